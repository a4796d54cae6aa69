"""Warnings about a path before its cost is spent: jumps, views from behind, walls in the way."""

from __future__ import annotations

import numpy as np

from ..user_files.numbering import counted
from .agreed_depth import Depths
from .path import CameraPath, SourceView, scaled_intrinsics
from .rigid import rotation_angle_deg

# A step is a jump when it is this many times the steps around it ...
_JUMP_RATIO = 6.0
_JUMP_NEIGHBORS = 4
# ... and large enough to be seen: degrees, and a share of the path's whole length.
_JUMP_DEG = 2.0
_JUMP_SHARE = 0.05
_MAGNIFICATION = 2.0


def path_warnings(path: CameraPath, view: SourceView | None = None) -> list[str]:
    """Warnings about likely mistakes in a path: jumps, and views that the source cannot supply.

    Args:
        view: The source, for the warnings about magnification; None leaves them out.
    """
    return [*_jumps(path), *_behind(path), *(_magnified(path, view) if view is not None else [])]


def _jumps(path: CameraPath) -> list[str]:
    if len(path) < 4:
        return []
    dt = np.diff(path.times_s)
    per_step = np.median(dt) / dt  # a late frame may move further
    R, position = path.c2w[:, :3, :3], path.c2w[:, :3, 3]
    turned = rotation_angle_deg(R[:-1].transpose(0, 2, 1) @ R[1:])
    moved = np.linalg.norm(np.diff(position, axis=0), axis=-1)
    found = []
    for i in range(len(dt)):
        around = np.r_[max(i - _JUMP_NEIGHBORS, 0) : i, i + 1 : min(i + 1 + _JUMP_NEIGHBORS, len(dt))]
        what = []
        for step, floor, words in (
            (turned, _JUMP_DEG, f"turns {turned[i]:.1f} degrees"),
            (moved, _JUMP_SHARE * moved.sum(), f"moves {moved[i]:.3g} scene units"),
        ):
            usual = np.median(step[around] * per_step[around])
            if step[i] > max(floor, 1e-9) and step[i] * per_step[i] > _JUMP_RATIO * usual:
                what.append(words)
        if what:
            found.append(f"the path jumps between frames {i} and {i + 1}: it {' and '.join(what)} in one step")
    return found


def _behind(path: CameraPath) -> list[str]:
    # The new camera's forward axis in source coordinates: a negative z looks back at the source.
    frames = np.flatnonzero(path.c2w[:, 2, 2] < -1e-9)
    if not len(frames):
        return []
    return [
        f"the path faces more than 90 degrees away from the source's view at {counted(frames)}: "
        "the clip hardly shows that side"
    ]


def _magnified(path: CameraPath, view: SourceView) -> list[str]:
    K = scaled_intrinsics(view.frame_intrinsics_px, path.width / view.width, path.height / view.height)
    factor = path.K_px[:, 1, 1] / K[:, 1, 1]
    frames = np.flatnonzero(factor > _MAGNIFICATION)
    if not len(frames):
        return []
    return [f"the path zooms in up to {factor.max():.1f} times at {counted(frames)}: the clip has no such detail"]


def through_geometry(path: CameraPath, depth: Depths, source_K_px: np.ndarray) -> list[str]:
    """Warn where the new camera stands behind the surface that the source sees in its place.

    Only the source's own view is known: a camera outside or behind it counts as free.

    Args:
        path: The path.
        depth: [N, h, w] planar depth of the source frames in scene units, at any resolution; not finite is free.
        source_K_px: [3, 3] or [N, 3, 3], the source's intrinsics in pixels of (path.width, path.height).
    """
    n, h, w = depth.shape
    if n != len(path):
        raise ValueError(f"{len(path)} poses, but depth of {n} frames")
    K = np.broadcast_to(scaled_intrinsics(source_K_px, w / path.width, h / path.height), (n, 3, 3))
    center = path.c2w[:, :3, 3]
    ahead = center[:, 2] > 0
    z = np.where(ahead, center[:, 2], 1.0)
    # Clipped before the cast, because a center close beside the source projects beyond any integer.
    u = np.clip(np.floor(K[:, 0, 0] * center[:, 0] / z + K[:, 0, 2]), -1, w).astype(int)
    v = np.clip(np.floor(K[:, 1, 1] * center[:, 1] / z + K[:, 1, 2]), -1, h).astype(int)
    seen = ahead & (u >= 0) & (u < w) & (v >= 0) & (v < h)
    surface = depth[np.arange(n), np.clip(v, 0, h - 1), np.clip(u, 0, w - 1)]
    frames = np.flatnonzero(seen & np.isfinite(surface) & (surface > 0) & (center[:, 2] >= surface))
    return [f"the path passes through geometry at {counted(frames)}"] if len(frames) else []
