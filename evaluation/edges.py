"""What a compositor looks at first: the pixels beside depth steps, against the ground truth.

The region is that of the scene, not of any row: within `REACH_PX` of where the rims of near things lie in the target view,
by the source's true depth, as far as they are seen from there.
"""

import cv2
import numpy as np

from ..engine.cameras.rigid import inverse
from ..engine.geometry.surfaces import bordered, inverse_depth, step_rims
from .dataset import Shot

REACH_PX = 4
_STEP = np.float32(0.05)
"""Relative inverse depth from which on two neighbors are two surfaces."""
_HIDDEN = 0.05
"""A rim this much farther, relatively, than the nearest point of its pixel is hidden."""


def edge_region(shot: Shot) -> np.ndarray:
    """Pixels of the target view beside depth steps that the source frame of the same moment shows; bool [T, H, W]."""
    w2c = inverse(shot.target_c2w) @ shot.source_c2w
    near = np.stack([_rims_in_view(depth, shot.K_px, w2c[t]) for t, depth in enumerate(shot.depth)])
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * REACH_PX + 1, 2 * REACH_PX + 1))
    beside = np.stack([cv2.dilate(rims.astype(np.uint8), disk) > 0 for rims in near])
    return beside & shot.visible & shot.known


def _rims_in_view(depth: np.ndarray, K_px: np.ndarray, w2c: np.ndarray) -> np.ndarray:
    """bool [H, W]: the pixels that the near sides of depth steps fall into, seen by a camera of the same K."""
    height, width = depth.shape
    rims, _ = step_rims(bordered(inverse_depth(depth)), _STEP)
    v, u = np.mgrid[:height, :width] + 0.5
    z = np.where(np.isfinite(depth) & (depth > 0), depth, 0.0)
    points = np.stack([u * z, v * z, z], -1).reshape(-1, 3) @ np.linalg.inv(K_px).T
    x, y, depth_new = ((points @ w2c[:3, :3].T + w2c[:3, 3]) @ K_px.T).T
    ahead = np.flatnonzero((z.ravel() > 0) & (depth_new > 0))
    column, row = (np.floor(p[ahead] / depth_new[ahead]).astype(np.int64) for p in (x, y))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    ahead, cell = ahead[inside], (row * width + column)[inside]
    nearest = np.full(height * width, np.inf)
    np.minimum.at(nearest, cell, depth_new[ahead])
    seen = (rims.ravel()[ahead] > 0) & (depth_new[ahead] <= nearest[cell] * (1 + _HIDDEN))
    found = np.zeros(height * width, bool)
    found[cell[seen]] = True
    return found.reshape(height, width)


def edge_flicker(output: np.ndarray, truth: np.ndarray, region: np.ndarray) -> float:
    """Mean change of the error from frame to frame, in levels of 255, where both frames are of the region.

    What moves moves in the truth, too: only what comes and goes by itself counts.

    Args:
        output, truth: uint8 [T, H, W, 3].
        region: bool [T, H, W].

    Returns:
        NaN where no two frames share a pixel of the region.
    """
    total, count = 0.0, 0
    for t in range(1, len(output)):
        both = region[t] & region[t - 1]
        before, after = (
            output[k][both].astype(np.int16) - truth[k][both].astype(np.int16) for k in (t - 1, t)
        )  # [N, 3]
        total += float(np.abs(after - before).sum())
        count += before.size
    return total / count if count else float("nan")
