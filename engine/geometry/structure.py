"""The structure of a scene in a depth map of one picture: hard borders, flat planes, upright things."""

import cv2
import numpy as np

from .planes import flatten
from .ramps import resolve_ramps
from .steady import SKY
from .things import straighten

_BEYOND = 1.0
"""Log depth by which the sky lies beyond the farthest surface while borders are found."""


def structured(image: np.ndarray, log_depth: np.ndarray) -> np.ndarray:
    """Log depth in which borders are steps, nearly flat surfaces are flat and upright things do not lean.

    Args:
        image: uint8 [h, w, 3].
        log_depth: float32 [h, w]; SKY is sky, NaN is unknown and stays so.

    Returns:
        float32 [h, w].
    """
    unknown = np.isnan(log_depth)
    if unknown.all():
        return log_depth
    work = _nearest_known(log_depth, unknown) if unknown.any() else log_depth
    sky = work >= SKY
    if sky.all():
        return log_depth
    farthest = float(work[~sky].max())
    work = resolve_ramps(image, np.where(sky, farthest + _BEYOND, work).astype(np.float32))
    sky = work > farthest + _BEYOND / 2
    work = straighten(flatten(work, ~sky))
    work = np.where(sky, SKY, work)
    return np.where(unknown, np.nan, work).astype(np.float32)


def _nearest_known(log_depth: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Unknown pixels at the depth of the nearest known one."""
    _, label = cv2.distanceTransformWithLabels(
        unknown.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    label = label.astype(np.intp)
    values = np.zeros(label.max() + 1, np.float32)
    values[label[~unknown]] = log_depth[~unknown]
    return values[label]
