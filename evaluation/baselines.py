"""The floor that any method must beat: a plain splat with true depth and a classical fill of its holes.

Deliberately not the engine's own splat: each point is written to the four pixels around it, the nearest wins, points
at depth jumps over 20 % are dropped. It repeats the baselines that the kubric4d set publishes.
"""

import cv2
import numpy as np

_FAR = 1e4
"""Sky, in scene units."""
_JUMP = 0.2
"""In log depth, between a pixel and its 3x3 neighbors."""


def floor_anchor(
    frame: np.ndarray, depth: np.ndarray, K_px: np.ndarray, w2c: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One frame drawn from another camera.

    Args:
        frame: uint8 [H, W, 3].
        depth: float [H, W], planar z; inf is sky.
        K_px: [3, 3] of both cameras.
        w2c: [4, 4], source camera to new camera.

    Returns:
        uint8 [H, W, 3], black in the holes, and the mask bool [H, W].
    """
    height, width = depth.shape
    z = np.minimum(depth.astype(np.float64), _FAR)
    log = np.log(z)
    kernel = np.ones((3, 3))
    flying = np.maximum(cv2.dilate(log, kernel) - log, log - cv2.erode(log, kernel)) > _JUMP
    v, u = np.mgrid[:height, :width] + 0.5
    points = np.stack([u * z, v * z, z], -1).reshape(-1, 3) @ np.linalg.inv(K_px).T
    x, y, depth_new = ((points @ w2c[:3, :3].T + w2c[:3, 3]) @ K_px.T).T
    kept = np.flatnonzero((depth_new > 0.1) & ~flying.ravel())
    kept = kept[np.argsort(-depth_new[kept], kind="stable")]  # far to near: the last one written is the nearest
    left, top = (np.floor(p[kept] / depth_new[kept] - 0.5).astype(np.int64) for p in (x, y))
    nearest = np.full((height, width), np.inf)
    winner = np.full((height, width), -1)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        inside = (left + dx >= 0) & (left + dx < width) & (top + dy >= 0) & (top + dy < height)
        drawn = np.full((height, width), -1)
        drawn[top[inside] + dy, left[inside] + dx] = kept[inside]
        closer = (drawn >= 0) & (np.where(drawn >= 0, depth_new[drawn], np.inf) < nearest)
        nearest[closer], winner[closer] = depth_new[drawn[closer]], drawn[closer]
    mask = winner >= 0
    return np.where(mask[..., None], frame.reshape(-1, 3)[winner], 0).astype(np.uint8), mask


def fill_mean(anchor: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Holes in the mean color of the covered pixels (mid gray if none is covered); uint8 [H, W, 3], mask bool [H, W]."""
    filled = anchor.copy()
    filled[~mask] = anchor[mask].mean(0) if mask.any() else 128
    return filled


def fill_telea(anchor: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Holes inpainted from their rim by OpenCV (Telea 2004, radius 3 px)."""
    return cv2.inpaint(anchor, (~mask).astype(np.uint8), 3, cv2.INPAINT_TELEA)
