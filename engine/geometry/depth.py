"""Depth of a whole clip, by a network or from the user's files; memory does not grow with the clip's length."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..graph.executor import FrameWork, Part
from ..store.arrays import ArrayWriter
from . import steady
from .depth_models import DepthModel

FAR_TO_NEAR = 12.0
"""Relative disparity has no zero: its 1st percentile over the clip is taken to lie this many times farther than its
99th, one scale and one shift for all frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipDepth:
    """What is known of a clip's depth besides the maps themselves.

    Attributes:
        median: median depth of everything finite, scene units.
        subject: median depth at the middle of the picture over the clip: what the camera looks at by default.
        fov_deg: horizontal field of view that the network estimated, or None.
    """

    median: float
    subject: float
    fov_deg: float | None


Each = Callable[[FrameWork, int], Iterator[Part]]
"""Does a piece of work for frames 0 to count - 1 and gives the parts in order; `FrameMap` with all but these settled."""


def estimate_depth(
    each: Each,
    predict: FrameWork,
    count: int,
    rows: Callable[[tuple[int, int]], ArrayWriter],
    *,
    smooth: bool,
    sharpen: int,
    scratch: Path,
    on_frame: Callable[[int], None],
) -> ClipDepth:
    """Run the network on every frame, steady and sharpen the result, append it to an array.

    Between the passes over the frames only numbers are looked at, of all of them together: the clip has one scale.

    Args:
        predict: `predict_frame` of a range of one frame.
        rows: opens the output array for maps of a given (h, w).
        scratch: folder for the raw maps between the passes.
        on_frame: called with the number of network evaluations done.
    """
    raw, relative, fov_deg = _collect(each(predict, count), count, scratch, on_frame)
    _to_log_in_place(raw, relative=relative)
    if smooth and count > 1:
        raw.flush()
        drifts = [float(step) for part in each(Drift(folder=scratch), count) for step in part["drift"]]
        correction = steady.scale_corrections(drifts)
        for t in range(count):
            sky = raw[t] >= steady.SKY
            raw[t] = np.where(sky, raw[t], raw[t] + correction[t])
    raw.flush()
    summary = _Summary()
    with rows(raw.shape[1:]) as out:
        for part in each(Steady(folder=scratch, smooth=smooth, sharpen=sharpen), count):
            for depth in part["depth"]:
                summary.add(depth)
            out.append(part["depth"])
    for name in (_RAW, _SMALL):
        (scratch / name).unlink()
    return summary.result(fov_deg)


def predict_frame(model: DepthModel, frame: np.ndarray) -> Part:
    """What the network says of one frame, uint8 [H, W, 3]: its map, the picture at that size, the field of view."""
    image = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float() / 255
    predicted, fov = model.predict(image)
    raw = predicted.float().cpu().numpy()
    small = cv2.resize(frame, raw.shape[:0:-1], interpolation=cv2.INTER_AREA)
    fovs = np.array([np.nan if fov is None else fov])
    return {"raw": raw, "small": small[None], "fov_deg": fovs, "relative": np.array([model.relative])}


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How the depth scale steps from one frame to the next, along the flow; 0 at frame 0."""

    folder: Path
    batch: ClassVar[int] = 1

    def __call__(self, run: object, frames: range) -> Part:
        t = frames.start
        if t == 0:
            return {"drift": np.zeros(1)}
        raw, small = self._maps
        return {"drift": np.array([steady.drift(raw[t - 1], raw[t], small[t - 1], small[t])])}

    @cached_property
    def _maps(self) -> tuple[np.ndarray, np.ndarray]:
        return _open(self.folder)


@dataclass(frozen=True, kw_only=True)
class Steady:
    """Depth [T, h, w] of frames, averaged with their neighbours and sharpened."""

    folder: Path
    smooth: bool
    sharpen: int
    batch: ClassVar[int] = 1

    def __call__(self, run: object, frames: range) -> Part:
        raw, small = self._maps
        t = frames.start
        log_depth = steady.temporal_mean(t, len(raw), lambda i: raw[i], lambda i: small[i]) if self.smooth else raw[t]
        return {"depth": steady.from_log(steady.sharpen(log_depth, self.sharpen))[None]}

    @cached_property
    def _maps(self) -> tuple[np.ndarray, np.ndarray]:
        return _open(self.folder)


def _collect(
    parts: Iterator[Part], count: int, scratch: Path, on_frame: Callable[[int], None]
) -> tuple[np.memmap, bool, float | None]:
    """Raw maps of the whole clip (and small pictures, on disk), whether they are relative, the median field of view."""
    raw: np.memmap | None = None
    small: np.memmap | None = None
    fovs: list[float] = []
    relative, done = False, 0
    for part in parts:
        if raw is None or small is None:
            shape = part["raw"].shape[1:]
            raw = np.lib.format.open_memmap(scratch / _RAW, "w+", np.float32, (count, *shape))
            small = np.lib.format.open_memmap(scratch / _SMALL, "w+", np.uint8, (count, *shape, 3))
        rows = slice(done, done + len(part["raw"]))
        raw[rows], small[rows] = part["raw"], part["small"]
        fovs += [float(fov) for fov in part["fov_deg"] if np.isfinite(fov)]
        relative, done = bool(part["relative"][0]), rows.stop
        on_frame(done)
    assert raw is not None
    assert small is not None
    small.flush()
    return raw, relative, float(np.median(fovs)) if fovs else None


_RAW, _SMALL = "raw.npy", "small.npy"


def _open(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    raw, small = (np.load(folder / name, mmap_mode="r") for name in (_RAW, _SMALL))
    return raw, small


def _to_log_in_place(raw: np.ndarray, *, relative: bool) -> None:
    if relative:
        sample = raw[:, ::4, ::4]
        low, high = np.percentile(sample, [1, 99])
        span = max(float(high - low), 1e-6)
    for t in range(len(raw)):
        values = raw[t]
        if relative:
            scaled = (values - low) / span * (1 - 1 / FAR_TO_NEAR) + 1 / FAR_TO_NEAR
            values = 1 / np.maximum(scaled, 0.25 / FAR_TO_NEAR)
        raw[t] = steady.to_log(values)


def read_depth(
    folder: Path, count: int, rows: Callable[[tuple[int, int]], ArrayWriter], *, first: int = 0
) -> ClipDepth:
    """Depth the user brings, used as it is: no filter, no scale.

    Accepted: one `.npy` or `.npz` with [N, h, w], or a file a frame in the order of their names: `.npy` float [h, w] in
    scene units, or 16-bit `.png` in millimetres (0 is unknown). inf is sky, NaN and non-positive are unknown.

    Raises:
        InputError: names the file and what is wrong.
    """
    files = (
        sorted(path for path in folder.glob("*") if path.suffix in (".npy", ".npz", ".png")) if folder.is_dir() else []
    )
    if not files:
        raise InputError(f"{folder} holds no .npy, .npz or 16-bit .png depth", param="--depth-dir")
    stack = _array(files[0]) if len(files) == 1 else None
    stack = stack if stack is not None and stack.ndim == 3 else None
    available = len(files) if stack is None else len(stack)
    if available < first + count:
        raise InputError(
            f"{folder} holds {available} depth maps, frames {first} to {first + count - 1} are needed",
            param="--depth-dir",
        )

    def read(t: int) -> np.ndarray:
        depth = _array(files[t]) if stack is None else stack[t]
        depth = depth.astype(np.float32) / (1000 if depth.dtype.kind == "u" else 1)
        return np.where(depth > 0, depth, np.nan)

    shape = read(first).shape
    if len(shape) != 2:
        raise InputError(f"{files[0].name}: a depth map is [h, w], not {list(shape)}", param="--depth-dir")
    summary = _Summary()
    with rows(shape) as out:
        for t in range(first, first + count):
            depth = read(t)
            if depth.shape != shape or np.isnan(depth).all():
                problem = "no positive depth" if depth.shape == shape else f"{depth.shape}, the first is {shape}"
                raise InputError(f"{folder}, map {t}: {problem}", param="--depth-dir")
            summary.add(depth)
            out.append(depth[None])
    return summary.result(None)


def _array(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".png":
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            if image is None or image.dtype != np.uint16 or image.ndim != 2:
                raise ValueError("not a 16-bit grey PNG")
            return image
        loaded = np.load(path, allow_pickle=False)
        values = loaded[loaded.files[0]] if path.suffix == ".npz" else loaded
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{path.name} cannot be read as depth ({error})", param="--depth-dir") from None
    if values.dtype.kind not in "fu":
        raise InputError(f"{path.name} holds {values.dtype}, depth is floating point", param="--depth-dir")
    return values


class _Summary:
    """Medians over a clip from a sample of each map."""

    def __init__(self) -> None:
        self._all: list[np.ndarray] = []
        self._middle: list[float] = []

    def add(self, depth: np.ndarray) -> None:
        h, w = depth.shape
        self._all.append(_finite(depth[:: max(1, h // 32), :: max(1, w // 32)]))
        middle = _finite(depth[h * 3 // 8 : h * 5 // 8 + 1, w * 3 // 8 : w * 5 // 8 + 1])
        if middle.size:
            self._middle.append(float(np.median(middle)))

    def result(self, fov_deg: float | None) -> ClipDepth:
        everything = np.concatenate(self._all)
        median = float(np.median(everything)) if everything.size else 1.0  # nothing but sky: any unit will do
        subject = float(np.median(self._middle)) if self._middle else median
        return ClipDepth(median=median, subject=subject, fov_deg=fov_deg)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values) & (values > 0)]
