"""How far away what fills a hole would be: the background's depth, carried into the hole from the far side of its rim."""

import cv2
import numpy as np
import torch

from .push_pull import push_pull

_RIM_PX = 3
_STANDS_BEFORE = 0.4
"""Log depth by which a rim that is nearer than its row's background belongs to a thing in front of it."""


def hole_depth(log_depth: np.ndarray, front: np.ndarray, real: np.ndarray) -> np.ndarray | None:
    """Log depth of every pixel as if the things in front were not there.

    Two guesses are joined. Rows: the median over each row of the picture, which planes such as a floor continue beyond
    the last row that is known (they are linear in inverse depth). The rim: how far the background at a hole's rim is off
    its row, spread into the hole. What stands before the background takes no part in either.

    Args:
        log_depth: float32 [h, w], finite where `real`, if known.
        front: bool [h, w], pixels of a nearer thing beside something farther.
        real: bool [h, w], False in holes.

    Returns:
        float32 [h, w], None where no background is known.
    """
    height, width = real.shape
    known = real & ~front & np.isfinite(log_depth)
    rows = np.nonzero(known.sum(1) >= max(1, width // 40))[0]
    if not len(rows):
        return None
    least, most = log_depth[known].min() - np.log(3), log_depth[known].max()
    line = _rows(np.array([np.median(log_depth[y][known[y]]) for y in rows]), rows, height)
    line = np.clip(line, least, most)[:, None]
    near_hole = cv2.dilate((~real).astype(np.uint8), np.ones((2 * _RIM_PX + 1,) * 2, np.uint8)) > 0
    rim = known & near_hole & (log_depth > line - _STANDS_BEFORE)
    off = torch.from_numpy(np.where(rim, log_depth - line, 0).astype(np.float32))
    spread = push_pull(off[None, None], torch.from_numpy(rim)[None])[0, 0].numpy()
    return np.clip(line + spread, least, most).astype(np.float32)


def _rows(medians: np.ndarray, rows: np.ndarray, height: int) -> np.ndarray:
    """Log depth of every row, of the medians of some: joined between them, continued as planes above and below."""
    inverse, every = np.exp(-medians), np.arange(height)
    line = np.interp(every, rows, inverse)
    reach = max(4, height // 10)
    for end, inside, outside in (
        (rows[0], rows < rows[0] + reach, every < rows[0]),
        (rows[-1], rows > rows[-1] - reach, every > rows[-1]),
    ):
        if outside.any() and inside.sum() >= 4:
            slope = np.polyfit(rows[inside], inverse[inside], 1)[0]
            line[outside] = line[end] + slope * (every[outside] - end)
    line = np.clip(line, inverse.min(), 3 * inverse.max())
    return -np.log(cv2.GaussianBlur(line[:, None], (0, 0), height / 64)[:, 0])


def lifted(log_depth: np.ndarray, K_px: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """Points in the world, float32 [h, w, 3], of a frame's log depth [h, w]; K_px in pixels of (w, h)."""
    height, width = log_depth.shape
    y, x = np.mgrid[:height, :width] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(K_px).T
    return ((rays * np.exp(log_depth.astype(np.float64))[..., None]) @ c2w[:3, :3].T + c2w[:3, 3]).astype(np.float32)
