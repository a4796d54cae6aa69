"""What moves by itself in a clip whose camera moves.

A surface that stands still is seen at the same place from every pose. A pixel moves where other moments see through it,
to something farther that looks different; where they see something nearer, they say nothing. Both conditions together
forgive errors of depth on plain surfaces and light that changes.
"""

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from ..cameras.rigid import inverse

_LOOK_AT_PX = 480
_OFFSETS = (-12, -6, -3, -1, 1, 3, 6, 12)
"""The other moments that a frame is compared with, in frames."""
_FARTHER = 0.06
"""Log depth by which another moment must see through a pixel, at least; estimated depth adds its own uncertainty."""
_SPREADS = 2.5
_DIFFERENT = 18.0
"""Levels of 255, the nearest of a 3x3 neighborhood."""
_MOVING_SHARE = 0.4
"""Of the moments that have something to say."""


def moving_masks(
    frames: np.ndarray, depth: np.ndarray, K_px: np.ndarray, c2w: np.ndarray, log_scale: np.ndarray
) -> np.ndarray:
    """Masks of what moves in the world.

    Args:
        frames: uint8 [N, H, W, 3].
        depth: float32 [N, h, w]; inf is sky.
        K_px: float64 [3, 3] in pixels of (W, H).
        c2w: float64 [N, 4, 4], the source camera, in units of depth times exp(log_scale).
        log_scale: float64 [N].

    Returns:
        bool [N, h, w].
    """
    count, (rows, columns) = len(frames), depth.shape[1:]
    scale = min(1.0, _LOOK_AT_PX / frames.shape[2])
    size = (round(frames.shape[2] * scale), round(frames.shape[1] * scale))
    K_small = np.diag([size[0] / frames.shape[2], size[1] / frames.shape[1], 1.0]) @ K_px

    @lru_cache(maxsize=2 * max(_OFFSETS) + 4)
    def look(t: int) -> tuple[np.ndarray, np.ndarray]:
        picture = cv2.resize(np.ascontiguousarray(frames[t]), size, interpolation=cv2.INTER_AREA)
        log = np.log(np.minimum(depth[t], 1e9)) + np.float32(log_scale[t])
        return cv2.blur(picture, (3, 3)), cv2.resize(log, size, interpolation=cv2.INTER_NEAREST)

    out = np.zeros((count, rows, columns), bool)
    for t in range(count):
        others = [t + offset for offset in _OFFSETS if 0 <= t + offset < count]
        moving = _seen_through(t, others, look, c2w, K_small)
        kernel = np.ones((3, 3), np.uint8)
        moving = cv2.morphologyEx(moving.astype(np.uint8), cv2.MORPH_OPEN, kernel)
        moving = cv2.dilate(cv2.morphologyEx(moving, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8)), kernel)
        out[t] = cv2.resize(moving, (columns, rows), interpolation=cv2.INTER_NEAREST) > 0
    return out


def _seen_through(
    t: int,
    others: list[int],
    look: Callable[[int], tuple[np.ndarray, np.ndarray]],
    c2w: np.ndarray,
    K_px: np.ndarray,
) -> np.ndarray:
    """bool [h, w]: pixels of frame t that most other moments, of those that could see them, see through."""
    picture, log_depth = look(t)
    height, width = log_depth.shape
    y, x = np.mgrid[:height, :width] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(K_px).T
    points = rays * np.exp(np.minimum(log_depth, 20))[..., None]
    against, heard = np.zeros((height, width), np.int16), np.zeros((height, width), np.int16)
    for u in others:
        motion = inverse(c2w[u : u + 1])[0] @ c2w[t]
        local = points @ motion[:3, :3].T + motion[:3, 3]
        ahead = local[..., 2]
        front = ahead > 1e-6
        at = local[..., :2] / np.where(front, ahead, 1)[..., None] * (K_px[0, 0], K_px[1, 1]) + (K_px[0, 2], K_px[1, 2])
        column, row = (at - 0.5).astype(np.float32).transpose(2, 0, 1)
        inside = front & (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
        other_picture, other_log = look(u)
        beyond = cv2.remap(other_log, column, row, cv2.INTER_NEAREST) - np.log(np.maximum(ahead, 1e-6))
        near = inside & (np.abs(beyond) < 0.5)
        spread = 1.48 * float(np.median(np.abs(beyond[near]))) if near.any() else 0.0
        step = max(_FARTHER, _SPREADS * spread)
        seen = inside & (beyond > -step)  # what is nearer there hides it
        heard += seen
        through = seen & (beyond > step)
        if through.any():
            against += through & (_difference(picture, other_picture, column, row) > _DIFFERENT)
    return (against > 0) & (against >= _MOVING_SHARE * heard)


def _difference(picture: np.ndarray, other: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """float [h, w]: how much the other picture's colors around (column, row) differ from this one's, at best."""
    best = np.full(column.shape, np.inf, np.float32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            there = cv2.remap(other, column + dx, row + dy, cv2.INTER_NEAREST)
            best = np.minimum(best, np.abs(there.astype(np.int16) - picture).max(-1))
    return best
