"""The source camera of every frame: standing still, given by a file, or found in the clip."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..cameras.rigid import inverse, rotation_angle_deg
from .moving import moving_masks
from .odometry import LostCamera, camera_motion

Kind = Literal["still", "given", "estimated", "lost"]
_LEAST_SHIFT = 0.003
"""Of the median depth; a camera that moves less, and turns less than `_LEAST_TURN_DEG`, stands still."""
_LEAST_TURN_DEG = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCamera:
    """How the source camera moves.

    Attributes:
        kind: where the poses come from; of a `lost` camera nothing is known, and it counts as standing still.
        reason: why it is lost, else empty.
        c2w: float64 [N, 4, 4], camera to the world of the first frame's camera.
        log_scale: float64 [N], added to a frame's log depth so that all frames agree.
        moving: bool [N, h, w], what moves by itself; None where the camera stands still.
        turns_only: it stays on its spot.
        error_px: median distance of the followed points from where the poses put them.
        agreeing: share of the followed points that agree with the poses.
    """

    kind: Kind
    reason: str
    c2w: np.ndarray
    log_scale: np.ndarray
    moving: np.ndarray | None
    turns_only: bool
    error_px: float
    agreeing: float

    @property
    def sentence(self) -> str:
        """For the user."""
        if self.kind == "lost":
            return f"the source camera's motion cannot be found: {self.reason}"
        if not self.moves:
            return "the source camera stands still: the clip is treated as static"
        if self.kind == "given":
            return "the source camera moves along the poses of its file"
        how = "turns on its spot" if self.turns_only else "moves"
        return (
            f"the source camera {how}: poses found, {100 * self.agreeing:.0f} % of what was followed agrees with them"
        )

    @property
    def moves(self) -> bool:
        """Whether the poses differ."""
        return self.moving is not None


def find_source_camera(
    frames: np.ndarray, depth: np.ndarray, K_px: np.ndarray, *, still: bool, given: np.ndarray | None
) -> SourceCamera:
    """The source camera of a clip.

    Args:
        frames: uint8 [N, H, W, 3].
        depth: float32 [N, h, w]; inf is sky.
        K_px: float64 [3, 3] in pixels of (W, H).
        still: it is known to stand still.
        given: poses of the user, float64 [N, 4, 4], in units of the depth.
    """
    count = len(frames)
    if given is not None:
        c2w = inverse(given[:1]) @ given
        return _settled("given", frames, depth, K_px, c2w, np.zeros(count))
    if still or count < 2:
        return _standing("still", count)
    try:
        found = camera_motion(frames, depth, K_px)
    except LostCamera as error:
        return _standing("lost", count, str(error))
    return _settled(
        "estimated",
        frames,
        depth,
        K_px,
        found.c2w,
        found.log_scale,
        turns_only=found.turns_only,
        error_px=found.error_px,
        agreeing=found.inlier_share,
    )


def _standing(kind: Kind, count: int, reason: str = "") -> SourceCamera:
    return SourceCamera(
        kind=kind,
        reason=reason,
        c2w=np.tile(np.eye(4), (count, 1, 1)),
        log_scale=np.zeros(count),
        moving=None,
        turns_only=False,
        error_px=0.0,
        agreeing=1.0,
    )


def _settled(
    kind: Kind,
    frames: np.ndarray,
    depth: np.ndarray,
    K_px: np.ndarray,
    c2w: np.ndarray,
    log_scale: np.ndarray,
    *,
    turns_only: bool = False,
    error_px: float = 0.0,
    agreeing: float = 1.0,
) -> SourceCamera:
    shift = np.linalg.norm(c2w[:, :3, 3], axis=1).max()
    unit = float(np.median(depth[0][np.isfinite(depth[0])])) if np.isfinite(depth[0]).any() else 1.0
    if shift < _LEAST_SHIFT * unit and rotation_angle_deg(c2w[:, :3, :3]).max() < _LEAST_TURN_DEG:
        return _standing("still", len(frames))
    return SourceCamera(
        kind=kind,
        reason="",
        c2w=c2w,
        log_scale=log_scale,
        moving=moving_masks(frames, depth, K_px, c2w, log_scale),
        turns_only=turns_only,
        error_px=error_px,
        agreeing=agreeing,
    )
