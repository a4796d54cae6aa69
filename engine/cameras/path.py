"""The two ends of every camera: what the clip offers (`SourceView`) and what the renderer needs (`CameraPath`).

OpenCV axes (x right, y down, z forward), c2w 4x4 float64, pixel centers at +0.5, K in pixels of (width, height).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import CameraError
from .formats import native
from .rigid import checked_poses, inverse
from .track import ClipPart


def scaled_intrinsics(K_px: np.ndarray, scale_x: float, scale_y: float) -> np.ndarray:
    """K [..., 3, 3] for a picture stretched by (scale_x, scale_y); exact because pixel centers lie at +0.5."""
    return K_px * np.array([scale_x, scale_y, 1.0])[:, None]


def _frozen(array: object) -> np.ndarray:
    copy = np.array(array, dtype=np.float64)
    copy.setflags(write=False)
    return copy


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"the picture's size must be positive, not {width}x{height}")


def _check_times(times_s: np.ndarray) -> None:
    if times_s.ndim != 1 or not len(times_s) or not np.isfinite(times_s).all() or (np.diff(times_s) <= 0).any():
        raise ValueError("times_s must be a non-empty list of finite seconds, each later than the one before")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CameraPath:
    """Poses of the new camera relative to the source camera of the same moment, one for each frame.

    Raises:
        CameraError: a pose is not a rigid motion.
        ValueError: shapes, sizes or times that do not fit together.
    """

    c2w: np.ndarray
    """float64 [N, 4, 4], new camera to source camera; identity is the source camera. Translation in scene units,
    those of the clip's depth."""
    K_px: np.ndarray
    """float64 [N, 3, 3], the new camera's intrinsics in pixels of (width, height)."""
    width: int
    height: int
    times_s: np.ndarray
    """float64 [N], the frames' presentation times, rising."""

    def __post_init__(self) -> None:
        for name in ("c2w", "K_px", "times_s"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        _check_size(self.width, self.height)
        _check_times(self.times_s)
        n = len(self.times_s)
        if self.c2w.shape != (n, 4, 4) or self.K_px.shape != (n, 3, 3):
            raise ValueError(f"{n} times, but c2w is {self.c2w.shape} and K_px is {self.K_px.shape}")
        if not np.isfinite(self.K_px).all() or (self.K_px[:, [0, 1], [0, 1]] <= 0).any():
            raise CameraError("the path's focal lengths must be finite and positive", param="camera")
        object.__setattr__(self, "c2w", _frozen(checked_poses(self.c2w, lambda i: f"frame {i}")))

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def w2c(self) -> np.ndarray:
        """float64 [N, 4, 4], source camera to new camera."""
        return inverse(self.c2w)

    def resized(self, width: int, height: int) -> CameraPath:
        """The same camera for a picture of another size; each axis of K is scaled on its own."""
        _check_size(width, height)
        K_px = scaled_intrinsics(self.K_px, width / self.width, height / self.height)
        return replace(self, K_px=K_px, width=width, height=height)

    def to_json(self) -> str:
        """This path in the project's own format, exactly: `from_json` gives back the same numbers."""
        return native.encode(self)

    @classmethod
    def from_json(cls, text: str) -> CameraPath:
        """The path that `to_json` wrote.

        Raises:
            CameraError: not the project's format, or a file of it without times, intrinsics or relative poses.
        """
        track = native.decode(text, "camera path")
        if track.K_px is None or track.times_s is None or track.reference != "source" or track.unit != "scene":
            raise CameraError(
                "a complete camera path has K_px and time_s in every frame, reference 'source' and unit 'scene'",
                param="camera",
            )
        return cls(c2w=track.c2w, K_px=track.K_px, width=track.width, height=track.height, times_s=track.times_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceView:
    """Properties of the clip that a camera path depends on: lens, frame times and depth.

    Raises:
        ValueError: shapes, sizes, times or depths that do not fit together.
    """

    K_px: np.ndarray
    """float64 [3, 3] or [N, 3, 3], the source camera's intrinsics in pixels of (width, height)."""
    width: int
    height: int
    times_s: np.ndarray
    """float64 [N], the frames' presentation times, rising."""
    median_depth: float
    """Median of the clip's depth in scene units: what a length of 1 in a preset means."""
    subject_depth: float
    """Median depth at the picture's center; the subject lies on the source's optical axis at this depth."""
    part: ClipPart | None = None
    """Which of the clip's frames these are; None is all."""

    source_c2w: np.ndarray | None = None
    """float64 [N, 4, 4], the source camera's poses in the world of the first one; None where it stands still, or where
    paths ride on it."""

    def __post_init__(self) -> None:
        for name in ("K_px", "times_s"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        _check_size(self.width, self.height)
        _check_times(self.times_s)
        if self.K_px.shape not in ((3, 3), (len(self.times_s), 3, 3)) or not np.isfinite(self.K_px).all():
            raise ValueError(f"K_px must be finite, [3, 3] or [{len(self.times_s)}, 3, 3], not {self.K_px.shape}")
        for name in ("median_depth", "subject_depth"):
            depth = getattr(self, name)
            if not (np.isfinite(depth) and depth > 0):
                raise ValueError(f"{name} must be finite and positive, not {depth}")

    @property
    def frame_intrinsics_px(self) -> np.ndarray:
        """float64 [N, 3, 3]."""
        return np.broadcast_to(self.K_px, (len(self.times_s), 3, 3))
