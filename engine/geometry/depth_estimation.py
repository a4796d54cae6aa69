"""Depth of a whole clip by a network; memory does not grow with the clip's length."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from ..graph.frame_task import FrameBatch, FrameTask
from ..store.arrays import ArrayWriter
from . import steady
from .background import background_plate, sampled, stands_still
from .depth_models import DepthModel
from .depth_passes import RAW, SMALL, Drift, FindThings, PlaceThings, Steady, Structured, Voted, load_maps
from .depth_summary import ClipDepth, DepthSummary
from .disparity import log_of_disparity
from .still import Background
from .structure import structured

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
    to_log = log_of_disparity(raw[:, ::4, ::4]) if relative else steady.to_log
    for t in range(count):
        raw[t] = to_log(raw[t])
    raw.flush()
    empty = empty_scene(load_maps(scratch, SMALL), raw) if structure and count > 1 else None
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
    summary = DepthSummary()
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
        depth_tolerance: relative depth within which two depths are one surface.
    """

    frames: np.ndarray
    given: np.ndarray | None
    locked: bool | None
    depth_tolerance: float

    def __call__(self, small: np.ndarray, log_depth: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The picture (uint8 [h, w, 3]) and where it is known (bool), from frames and log depth [N, h, w] at one size;
        None if the camera moves."""
        if self.given is not None:
            return self.given, np.ones(self.given.shape[:2], bool)
        if not (stands_still(self.frames) if self.locked is None else self.locked):
            return None
        depth = {t: steady.from_log(log_depth[t]) for t in sampled(len(small))}
        plate = background_plate(small, depth, depth_tolerance=self.depth_tolerance)
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


def _before_background(
    each: Each, count: int, scratch: Path, empty: tuple[np.ndarray, np.ndarray], log_depth: np.ndarray
) -> FrameTask:
    """Find the background and what moves before it in each frame; what is left to do is to put them together."""
    color, known = empty
    size = load_maps(scratch, RAW).shape[:0:-1]
    color = cv2.resize(color, size, interpolation=cv2.INTER_AREA)
    known = cv2.resize(known.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    log_depth = cv2.resize(log_depth, size, interpolation=cv2.INTER_NEAREST)
    background = Background(color=color, log_depth=structured(color, log_depth), known=known)
    for name in ("color", "log_depth", "known"):
        np.save(scratch / f"background_{name}.npy", getattr(background, name))
    _keep(each(FindThings(folder=scratch), count), count, scratch)
    return PlaceThings(folder=scratch)


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
            raw = np.lib.format.open_memmap(scratch / RAW, "w+", np.float32, (count, *shape))
            small = np.lib.format.open_memmap(scratch / SMALL, "w+", np.uint8, (count, *shape, 3))
        rows = slice(done, done + len(part["raw"]))
        raw[rows], small[rows] = part["raw"], part["small"]
        fovs += [float(fov) for fov in part["fov_deg"] if np.isfinite(fov)]
        relative, done = bool(part["relative"][0]), rows.stop
        on_frame(done)
    assert raw is not None
    assert small is not None
    small.flush()
    return raw, relative, float(np.median(fovs)) if fovs else None
