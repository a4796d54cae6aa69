"""Depth over time: one scale without flicker, averaged along the motion.

Everything works on log depth, sky being the constant SKY (so that differences to sky are large but finite).
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

SKY = 20.0
"""Log depth that stands for infinity."""

_RADIUS = 2
_COLOR_SIGMA = 12.0  # levels of 255
_DEPTH_SIGMA = 0.08  # of log depth: an average never crosses an object's border


def to_log(depth: np.ndarray) -> np.ndarray:
    """float32 log depth; infinity becomes SKY, NaN stays."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.minimum(np.log(depth.astype(np.float32)), SKY)


def from_log(log_depth: np.ndarray) -> np.ndarray:
    return np.where(log_depth >= SKY - 0.5, np.inf, np.exp(log_depth)).astype(np.float32)


def optical_flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Flow [h, w, 2] in pixels from image a to image b, uint8 [h, w, 3] (dense inverse search)."""
    grays = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (a, b)]
    if min(grays[0].shape) < 32:  # below the coarsest pyramid level
        return np.zeros((*grays[0].shape, 2), np.float32)
    search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)  # its type has no optional flow
    return search.calc(grays[0], grays[1], None)


def warp(image: np.ndarray, flow: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """image[x + flow(x)], [h, w] or [h, w, C]; outside is NaN (0 for integers)."""
    h, w = flow.shape[:2]
    x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    mode = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    outside = np.nan if image.dtype.kind == "f" else 0
    return cv2.remap(
        image, x + flow[..., 0], y + flow[..., 1], mode, borderMode=cv2.BORDER_CONSTANT, borderValue=outside
    )


def drift(before: np.ndarray, after: np.ndarray, image_before: np.ndarray, image_after: np.ndarray) -> float:
    """Median step of log depth from one frame to the next along the flow; 0 where too little can be matched."""
    flow = optical_flow(image_before, image_after)
    ratio = warp(after, flow, nearest=True) - before
    near = np.isfinite(ratio) & (np.abs(ratio) < 0.5)
    return float(np.median(ratio[near])) if near.any() else 0.0


def scale_corrections(drifts: Sequence[float], sigma_frames: float = 6.0) -> np.ndarray:
    """Log-scale correction of each frame, float32 [N], that removes the network's frame-to-frame scale flicker.

    The drifts [N] (that of frame 0 is 0) are summed over time; what is slow is motion and stays, what is fast goes.
    """
    total = np.cumsum(np.asarray(drifts, np.float64))
    return (_gaussian(total, sigma_frames) - total).astype(np.float32)


def _gaussian(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing that keeps a straight line straight at the ends (odd reflection)."""
    radius = min(len(values) - 1, round(3 * sigma))
    if radius < 1:
        return values
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    left = 2 * values[0] - values[radius:0:-1]
    right = 2 * values[-1] - values[-2 : -radius - 2 : -1]
    return np.convolve(np.concatenate([left, values, right]), kernel / kernel.sum(), mode="valid")


def temporal_mean(
    t: int, count: int, log_depth: Callable[[int], np.ndarray], image: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Log depth of frame t averaged with its neighbors along the flow, where color and depth agree."""
    center, center_image = log_depth(t), image(t).astype(np.float32)
    total = np.ones_like(center)
    mean = np.where(np.isfinite(center), center, 0.0)
    for other in range(max(0, t - _RADIUS), min(count, t + _RADIUS + 1)):
        if other == t:
            continue
        flow = optical_flow(image(t), image(other))
        moved = warp(log_depth(other), flow, nearest=True)
        color = np.abs(warp(image(other), flow).astype(np.float32) - center_image).mean(axis=2)
        weight = np.exp(-0.5 * (color / _COLOR_SIGMA) ** 2 - 0.5 * ((moved - center) / _DEPTH_SIGMA) ** 2)
        weight = np.nan_to_num(weight)
        total += weight
        mean += weight * np.nan_to_num(moved)
    averaged = np.where(
        center >= SKY, SKY, mean / total
    )  # a mean of SKY is SKY but for rounding, which makes it a surface
    return np.where(np.isfinite(center), averaged, np.nan).astype(np.float32)


def temporal_median(
    t: int, count: int, log_depth: Callable[[int], np.ndarray], image: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Log depth of frame t as most of its neighbors have it along the flow, weighted by how alike the colors are.

    A median, where a mean would smear: borders that agree stay as hard as they are.
    """
    center, center_image = log_depth(t), image(t).astype(np.float32)
    values, weights = [center], [np.ones_like(center)]
    for other in range(max(0, t - _RADIUS), min(count, t + _RADIUS + 1)):
        if other == t:
            continue
        flow = optical_flow(image(t), image(other))
        moved = warp(log_depth(other), flow, nearest=True)
        color = np.abs(warp(image(other), flow).astype(np.float32) - center_image).mean(axis=2)
        values.append(moved)
        weights.append(np.where(np.isfinite(moved), np.exp(-0.5 * np.square(color / _COLOR_SIGMA)), 0))
    stack, weight = np.stack(values), np.stack(weights)
    order = np.argsort(stack, axis=0)  # NaN, which weighs nothing, last
    running = np.take_along_axis(weight, order, 0).cumsum(0)
    middle = (running >= running[-1] / 2).argmax(0)
    median = np.take_along_axis(np.take_along_axis(stack, order, 0), middle[None], 0)[0]
    return np.where(np.isfinite(center), median, np.nan).astype(np.float32)
