"""Depth of a whole clip, by a network or from the user's files; memory does not grow with the clip's length."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..store.arrays import ArrayWriter
from . import steady
from .models import DepthModel

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


def estimate_depth(
    model: DepthModel,
    frames: np.ndarray,
    rows: Callable[[tuple[int, int]], ArrayWriter],
    *,
    smooth: bool,
    sharpen: int,
    scratch: Path,
    on_frame: Callable[[int], None],
) -> ClipDepth:
    """Run the network on every frame, steady and sharpen the result, append it to an array.

    Args:
        frames: uint8 [N, H, W, 3].
        rows: opens the output array for maps of a given (h, w).
        scratch: folder for the raw maps between the passes.
        on_frame: called with the number of network evaluations done.
    """
    count = len(frames)
    raw: np.ndarray | None = None
    small: np.ndarray | None = None
    fovs = []
    for t in range(count):
        image = torch.from_numpy(frames[t].copy()).permute(2, 0, 1)[None].float() / 255
        predicted, fov = model.predict(image)  # one frame a call: no split of the clip can change a bit
        values = predicted[0].float().cpu().numpy()
        if raw is None or small is None:
            raw = np.lib.format.open_memmap(scratch / "raw.npy", "w+", np.float32, (count, *values.shape))
            small = np.lib.format.open_memmap(scratch / "small.npy", "w+", np.uint8, (count, *values.shape, 3))
        raw[t] = values
        small[t] = cv2.resize(frames[t], values.shape[::-1], interpolation=cv2.INTER_AREA)
        fovs += [] if fov is None else [fov]
        on_frame(t + 1)
    assert raw is not None
    assert small is not None
    _to_log_in_place(raw, relative=model.relative)
    if smooth and count > 1:
        correction = steady.scale_corrections(count, lambda t: raw[t], lambda t: small[t])
        for t in range(count):
            sky = raw[t] >= steady.SKY
            raw[t] = np.where(sky, raw[t], raw[t] + correction[t])
    summary = _Summary()
    with rows(raw.shape[1:]) as out:
        for t in range(count):
            log_depth = steady.temporal_mean(t, count, lambda i: raw[i], lambda i: small[i]) if smooth else raw[t]
            depth = steady.from_log(steady.sharpen(log_depth, sharpen))
            summary.add(depth)
            out.append(depth[None])
    for name in ("raw.npy", "small.npy"):
        (scratch / name).unlink()
    return summary.result(float(np.median(fovs)) if fovs else None)


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
