"""Depth of a whole clip, by a network or from the user's files; memory does not grow with the clip's length."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..graph.frame_task import FrameBatch, FrameTask
from ..store.arrays import ArrayWriter
from . import steady, still
from .background import background_plate, sampled, stands_still
from .depth_models import DepthModel
from .still import Background
from .structure import structured

FAR_TO_NEAR = 12.0
"""Relative disparity has no zero of its own: its 1st percentile over the clip is taken to lie this many times farther
than its 99th, one scale and one shift for all frames. A clip that sees the sky has a zero: see `_log_of_disparity`."""

_ZERO, _ZERO_SHARE = 1e-3, 0.005
"""Disparity, in units of its 99th percentile, that is none; the share of the clip from which that is no accident."""


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


Each = Callable[[FrameTask, int], Iterator[FrameBatch]]
"""Does a task for frames 0 to count - 1 and gives the batches in order: `StageContext.each_frame` of one stage."""


def estimate_depth(
    each: Each,
    predict: FrameTask,
    count: int,
    rows: Callable[[tuple[int, int]], ArrayWriter],
    *,
    smooth: bool,
    structure: bool,
    empty_scene: "EmptyScene",
    look: Callable[[np.ndarray], FrameBatch],
    scratch: Path,
    on_frame: Callable[[int], None],
) -> ClipDepth:
    """Run the network on every frame, find the scene's structure in the result, append it to an array.

    A clip from a camera that stands still has one background, whose depth is estimated once; things that move stand
    before it. Otherwise the clip gets one scale and each frame is averaged with its neighbors along the flow.

    Args:
        predict: `predict_frame` of a range of one frame.
        rows: opens the output array for maps of a given (h, w).
        smooth: average over time.
        structure: hard borders, flat planes, upright things (`structure.py`), and the still background.
        empty_scene: finds the scene without what moves in it, if the camera stands still.
        look: `predict_frame` of a picture that is no frame of the clip.
        scratch: folder for the raw maps between the passes.
        on_frame: called with the number of network evaluations done.
    """
    raw, relative, fov_deg = _collect(each(predict, count), count, scratch, on_frame)
    to_log = _log_of_disparity(raw) if relative else steady.to_log
    for t in range(count):
        raw[t] = to_log(raw[t])
    raw.flush()
    empty = empty_scene(_load(scratch, _SMALL), raw) if structure and count > 1 else None
    if empty is not None:
        work = _before_background(each, count, scratch, empty, to_log(look(empty[0])["raw"][0]))
    else:
        if smooth and count > 1:
            drifts = [float(step) for part in each(Drift(folder=scratch), count) for step in part["drift"]]
            correction = steady.scale_corrections(drifts)
            for t in range(count):
                raw[t] = np.where(raw[t] >= steady.SKY, raw[t], raw[t] + correction[t])
            raw.flush()
        work = Steady(folder=scratch, smooth=smooth)
        if structure:
            _keep(each(Structured(folder=scratch, smooth=smooth), count), count, scratch)
            work = Voted(folder=scratch, smooth=smooth)
    summary = _Summary()
    with rows(raw.shape[1:]) as out:
        for part in each(work, count):
            for depth in part["depth"]:
                summary.add(depth)
            out.append(part["depth"])
    for path in scratch.glob("*.npy"):
        path.unlink()
    return summary.result(fov_deg)


@dataclass(frozen=True, slots=True)
class EmptyScene:
    """Finds the scene as a standing camera sees it, without what moves in it.

    Attributes:
        frames: uint8 [N, H, W, 3] at full size.
        given: the user's own picture of it, uint8 [H, W, 3].
        locked: whether the camera stands still; None looks.
        band: relative depth within which two depths are one surface.
    """

    frames: np.ndarray
    given: np.ndarray | None
    locked: bool | None
    band: float

    def __call__(self, small: np.ndarray, log_depth: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The picture (uint8 [h, w, 3]) and where it is known (bool), from frames and log depth [N, h, w] at one size;
        None if the camera moves."""
        if self.given is not None:
            return self.given, np.ones(self.given.shape[:2], bool)
        if not (stands_still(self.frames) if self.locked is None else self.locked):
            return None
        depth = {t: steady.from_log(log_depth[t]) for t in sampled(len(small))}
        plate = background_plate(small, depth, band=self.band)
        return plate.color, plate.confidence >= 0.5


def structure_of(frames: np.ndarray) -> Callable[[int, np.ndarray], np.ndarray]:
    """Finds the structure in a depth map of frame t of frames [N, H, W, 3]."""

    def refine(t: int, depth: np.ndarray) -> np.ndarray:
        picture = cv2.resize(frames[t], depth.shape[::-1], interpolation=cv2.INTER_AREA)
        return steady.from_log(structured(picture, steady.to_log(depth)))

    return refine


def predict_frame(model: DepthModel, frame: np.ndarray) -> FrameBatch:
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
    batch = 1

    def __call__(self, context: object, indices: range) -> FrameBatch:
        t = indices.start
        if t == 0:
            return {"drift": np.zeros(1)}
        raw, small = self._maps
        return {"drift": np.array([steady.drift(raw[t - 1], raw[t], small[t - 1], small[t])])}

    @cached_property
    def _maps(self) -> tuple[np.ndarray, np.ndarray]:
        return _open(self.folder)


@dataclass(frozen=True, kw_only=True)
class Steady:
    """Depth [T, h, w] of frames, averaged with their neighbors."""

    folder: Path
    smooth: bool
    batch = 1

    def __call__(self, context: object, indices: range) -> FrameBatch:
        return {"depth": steady.from_log(self.log_depth(indices.start))[None]}

    def log_depth(self, t: int) -> np.ndarray:
        raw, small = self._maps
        return steady.temporal_mean(t, len(raw), lambda i: raw[i], lambda i: small[i]) if self.smooth else raw[t]

    @cached_property
    def _maps(self) -> tuple[np.ndarray, np.ndarray]:
        return _open(self.folder)


@dataclass(frozen=True, kw_only=True)
class Structured:
    """Structured log depth [T, h, w] of frames."""

    folder: Path
    smooth: bool
    batch = 1

    def __call__(self, context: object, indices: range) -> FrameBatch:
        _, small = _open(self.folder)
        log_depth = Steady(folder=self.folder, smooth=self.smooth).log_depth(indices.start)
        return {"structured": structured(small[indices.start], log_depth)[None]}


@dataclass(frozen=True, kw_only=True)
class Voted:
    """Depth [T, h, w] of frames: the median of the structured maps of a few frames along the flow."""

    folder: Path
    smooth: bool
    batch = 1

    def __call__(self, context: object, indices: range) -> FrameBatch:
        maps, small, t = self._maps, _load(self.folder, _SMALL), indices.start
        if self.smooth:
            return {
                "depth": steady.from_log(steady.temporal_median(t, len(maps), maps.__getitem__, small.__getitem__))[
                    None
                ]
            }
        return {"depth": steady.from_log(maps[t])[None]}

    @cached_property
    def _maps(self) -> np.ndarray:
        return _load(self.folder, "structured.npy")


def _before_background(
    each: Each, count: int, scratch: Path, empty: tuple[np.ndarray, np.ndarray], log_depth: np.ndarray
) -> FrameTask:
    """Find the background and what moves before it in each frame; what is left to do is to put them together."""
    color, known = empty
    size = _load(scratch, _RAW).shape[:0:-1]
    color = cv2.resize(color, size, interpolation=cv2.INTER_AREA)
    known = cv2.resize(known.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    log_depth = cv2.resize(log_depth, size, interpolation=cv2.INTER_NEAREST)
    background = Background(color=color, log_depth=structured(color, log_depth), known=known)
    for name in ("color", "log_depth", "known"):
        np.save(scratch / f"background_{name}.npy", getattr(background, name))
    _keep(each(FindThings(folder=scratch), count), count, scratch)
    return PlaceThings(folder=scratch)


@dataclass(frozen=True, kw_only=True)
class _OnBackground:
    folder: Path
    batch = 1

    @cached_property
    def background(self) -> Background:
        color, log_depth, known = (
            np.load(self.folder / f"background_{name}.npy") for name in ("color", "log_depth", "known")
        )
        return Background(color=color, log_depth=log_depth, known=known)


@dataclass(frozen=True, kw_only=True)
class FindThings(_OnBackground):
    """What moves in frames: `things` uint8 [T, h, w] (0 is background), their log depths `distances` [T, 255], and the
    `shift` [T] of each frame's log depth to the background's scale."""

    def __call__(self, context: object, indices: range) -> FrameBatch:
        raw, small = (maps[indices.start] for maps in _open(self.folder))
        shift = still.scale_shift(small, raw, self.background)
        things = still.moving_things(small, still.shifted(raw, shift), self.background)
        labels, distances = still.labeled(things, self.background.known.shape)
        return {"things": labels[None], "distances": distances[None], "shift": np.array([shift])}


@dataclass(frozen=True, kw_only=True)
class PlaceThings(_OnBackground):
    """Depth [T, h, w] of frames: the background's, and the moving things' before it."""

    def __call__(self, context: object, indices: range) -> FrameBatch:
        t = indices.start
        labels, distances, shifts = (_load(self.folder, f"{name}.npy") for name in ("things", "distances", "shift"))
        near = range(max(0, t - still.STEADY_OVER), min(len(labels), t + still.STEADY_OVER + 1))
        neighbors = [still.unlabeled(labels[i], distances[i]) for i in near if i != t]
        things = still.steadied(still.unlabeled(labels[t], distances[t]), neighbors)
        log_depth = still.shifted(_load(self.folder, _RAW)[t], float(shifts[t]))
        return {"depth": steady.from_log(still.placed(things, log_depth, self.background))[None]}


def _keep(parts: Iterator[FrameBatch], count: int, scratch: Path) -> None:
    """Arrays of all frames as files of their names, on disk: memory does not grow with the clip's length."""
    files: dict[str, np.memmap] = {}
    done = 0
    for part in parts:
        for name, values in part.items():
            if name not in files:
                shape = (count, *values.shape[1:])
                files[name] = np.lib.format.open_memmap(scratch / f"{name}.npy", "w+", values.dtype, shape)
            files[name][done : done + len(values)] = values
        done += len(next(iter(part.values())))
    for file in files.values():
        file.flush()


def _collect(
    parts: Iterator[FrameBatch], count: int, scratch: Path, on_frame: Callable[[int], None]
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


def _load(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / name, mmap_mode="r")


def _open(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return _load(folder, _RAW), _load(folder, _SMALL)


def _log_of_disparity(raw: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Log depth by relative disparity, one rule for the clip's maps [N, h, w].

    Networks of relative disparity end in a ReLU and learn that the sky has none: where many pixels sit at zero, zero is
    infinity, the shift is known and only the scale is free. Where none do, the shift is a guess (`FAR_TO_NEAR`).
    """
    sample = raw[:, ::4, ::4]
    low, high = (float(value) for value in np.percentile(sample, [1, 99]))
    nothing = _ZERO * high
    if high > 0 and np.mean(sample <= nothing) >= _ZERO_SHARE:

        def from_zero(disparity: np.ndarray) -> np.ndarray:
            return steady.to_log(np.where(disparity > nothing, high / np.maximum(disparity, nothing), np.inf))

        return from_zero
    span = max(high - low, 1e-6)

    def shifted(disparity: np.ndarray) -> np.ndarray:
        scaled = (disparity - low) / span * (1 - 1 / FAR_TO_NEAR) + 1 / FAR_TO_NEAR
        return steady.to_log(1 / np.maximum(scaled, 0.25 / FAR_TO_NEAR))

    return shifted


def read_depth(
    folder: Path,
    count: int,
    rows: Callable[[tuple[int, int]], ArrayWriter],
    *,
    first: int = 0,
    refine: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> ClipDepth:
    """Depth the user brings, used as it is, no filter, no scale, unless `refine` is given (`structure_of`).

    Accepted: one `.npy` or `.npz` with [N, h, w], or a file a frame in the order of their names: `.npy` float [h, w] in
    scene units, or 16-bit `.png` in millimetres (0 is unknown). inf is sky, NaN and non-positive are unknown.

    Raises:
        InputError: names the file and what is wrong.
    """
    files = (
        sorted(path for path in folder.glob("*") if path.suffix in (".npy", ".npz", ".png")) if folder.is_dir() else []
    )
    if not files:
        raise InputError(f"{folder} holds no .npy, .npz or 16-bit .png depth", param="depth_dir")
    stack = _array(files[0]) if len(files) == 1 else None
    stack = stack if stack is not None and stack.ndim == 3 else None
    available = len(files) if stack is None else len(stack)
    if available < first + count:
        raise InputError(
            f"{folder} holds {available} depth maps, frames {first} to {first + count - 1} are needed",
            param="depth_dir",
        )

    def read(t: int) -> np.ndarray:
        depth = _array(files[t]) if stack is None else stack[t]
        return depth.astype(np.float32) / (1000 if depth.dtype.kind == "u" else 1)

    shape = read(first).shape
    if len(shape) != 2:
        raise InputError(f"{files[0].name}: a depth map is [h, w], not {list(shape)}", param="depth_dir")
    maps = (read(t) for t in range(first, first + count))
    return write_depth(maps, rows, where=str(folder), param="depth_dir", first=first, refine=refine)


def write_depth(
    maps: Iterator[np.ndarray],
    rows: Callable[[tuple[int, int]], ArrayWriter],
    *,
    where: str,
    param: str,
    first: int = 0,
    refine: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> ClipDepth:
    """Write maps that the user brings, float32 [h, w]; what is not positive is unknown.

    Args:
        rows: opens the output array for maps of a given (h, w).
        where: names their origin in errors.
        first: number of the first map, in errors.
        refine: changes the map of each frame.

    Raises:
        InputError: a map has another shape than the first, or no positive depth.
    """
    summary = _Summary()
    with ExitStack() as stack:
        out: ArrayWriter | None = None
        shape: tuple[int, ...] = ()
        for t, given in enumerate(maps):
            if out is None:
                shape = given.shape
                out = stack.enter_context(rows((shape[0], shape[1])))
            depth = np.where(given > 0, given, np.nan)
            if depth.shape != shape or np.isnan(depth).all():
                problem = "no positive depth" if depth.shape == shape else f"{depth.shape}, the first is {shape}"
                raise InputError(f"{where}, map {first + t}: {problem}", param=param)
            if refine is not None:
                depth = refine(t, depth)
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
        raise InputError(f"{path.name} cannot be read as depth ({error})", param="depth_dir") from None
    if values.dtype.kind not in "fu":
        raise InputError(f"{path.name} holds {values.dtype}, depth is floating point", param="depth_dir")
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
