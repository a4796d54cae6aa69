"""The passes over a clip's raw depth maps, frame by frame, as objects that another process can be given.

The maps of all frames are files in one folder, mapped into memory: memory does not grow with the clip's length.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..graph.frame_task import FrameBatch
from . import steady, still
from .still import Background
from .structure import structured

RAW, SMALL = "raw.npy", "small.npy"
"""Files of the maps [N, h, w] and of the pictures at their size, uint8 [N, h, w, 3]."""


def load_maps(folder: Path, name: str) -> np.ndarray:
    """One of the folder's files, mapped into memory."""
    return np.load(folder / name, mmap_mode="r")


def open_maps(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The maps and the pictures at their size."""
    return load_maps(folder, RAW), load_maps(folder, SMALL)


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
        return open_maps(self.folder)


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
        return open_maps(self.folder)


@dataclass(frozen=True, kw_only=True)
class Structured:
    """Structured log depth [T, h, w] of frames."""

    folder: Path
    smooth: bool
    batch = 1

    def __call__(self, context: object, indices: range) -> FrameBatch:
        _, small = open_maps(self.folder)
        log_depth = Steady(folder=self.folder, smooth=self.smooth).log_depth(indices.start)
        return {"structured": structured(small[indices.start], log_depth)[None]}


@dataclass(frozen=True, kw_only=True)
class Voted:
    """Depth [T, h, w] of frames: the median of the structured maps of a few frames along the flow."""

    folder: Path
    smooth: bool
    batch = 1

    def __call__(self, context: object, indices: range) -> FrameBatch:
        maps, small, t = self._maps, load_maps(self.folder, SMALL), indices.start
        if self.smooth:
            return {
                "depth": steady.from_log(steady.temporal_median(t, len(maps), maps.__getitem__, small.__getitem__))[
                    None
                ]
            }
        return {"depth": steady.from_log(maps[t])[None]}

    @cached_property
    def _maps(self) -> np.ndarray:
        return load_maps(self.folder, "structured.npy")


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
        raw, small = (maps[indices.start] for maps in open_maps(self.folder))
        shift = still.scale_shift(small, raw, self.background)
        things = still.moving_things(small, still.shifted(raw, shift), self.background)
        labels, distances = still.labeled(things, self.background.known.shape)
        return {"things": labels[None], "distances": distances[None], "shift": np.array([shift])}


@dataclass(frozen=True, kw_only=True)
class PlaceThings(_OnBackground):
    """Depth [T, h, w] of frames: the background's, and the moving things' before it."""

    def __call__(self, context: object, indices: range) -> FrameBatch:
        t = indices.start
        labels, distances, shifts = (load_maps(self.folder, f"{name}.npy") for name in ("things", "distances", "shift"))
        near = range(max(0, t - still.STEADY_OVER), min(len(labels), t + still.STEADY_OVER + 1))
        neighbors = [still.unlabeled(labels[i], distances[i]) for i in near if i != t]
        things = still.steadied(still.unlabeled(labels[t], distances[t]), neighbors)
        log_depth = still.shifted(load_maps(self.folder, RAW)[t], float(shifts[t]))
        return {"depth": steady.from_log(still.placed(things, log_depth, self.background))[None]}
