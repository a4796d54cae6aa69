"""Soft borders made hard: where depth ramps from one surface to another, each pixel goes to the side it looks like.

A depth model blurs the border of a thing over many pixels. Drawn from the side, such a ramp is a torn sheet between the
thing and what is behind it. Along a row (then along a column) the two ends of a ramp are the nearest and the farthest
depth within reach; the colors of the pixels at either end are a Gaussian each, and a pixel between them belongs to the
side that explains its color better, its own depth deciding where colors do not.
"""

import cv2
import numpy as np

REACH = 14 / 640
"""How far a ramp reaches to either side, of the picture's width."""
STEP = 0.10
"""Least difference in log depth between the ends."""
_CORE = 0.2
"""Share of the difference within which a pixel belongs to an end and lends it its color."""
_THICKNESS = 7
_LEAST_VARIANCE = 30.0
_STEEPEST = 0.03


def resolve_ramps(image: np.ndarray, log_depth: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Log depth whose borders are steps on the picture's edges.

    Slopes stay: a surface that recedes does so on both sides of a pixel, a border on neither.

    Args:
        image: uint8 [h, w, 3].
        log_depth: float32 [h, w], finite.

    Returns:
        float32 [h, w].
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    across = np.ascontiguousarray(lab.transpose(1, 0, 2))
    reach = max(2, round(REACH * log_depth.shape[1]))
    for turn in range(rounds):
        pull = 1.0 if turn == rounds - 1 else 0.6
        log_depth = _along_rows(lab, log_depth, reach, pull, receding=1.0, strict=False)
        columns = np.ascontiguousarray(log_depth.T)
        columns = _along_rows(across, columns, reach, pull, receding=1.5, strict=True)
        log_depth = np.ascontiguousarray(columns.T)
    return log_depth


def _along_rows(
    lab: np.ndarray, log_depth: np.ndarray, reach: int, pull: float, *, receding: float, strict: bool
) -> np.ndarray:
    """One round along rows: pixels [h, w] of a ramp move by the share `pull` of the way to their side's depth."""
    window = np.ones((1, 2 * reach + 1), np.uint8)
    near, far = cv2.erode(log_depth, window), cv2.dilate(log_depth, window)
    gap = far - near
    slope = _slope(log_depth, reach, strict=strict)
    border = gap - receding * 2 * reach * slope > STEP
    near_mean, near_variance = _colors(lab, log_depth - near < _CORE * gap, reach)
    far_mean, far_variance = _colors(lab, far - log_depth < _CORE * gap, reach)
    unlike_near = np.square(lab - near_mean).sum(-1) / near_variance + np.log(near_variance)
    unlike_far = np.square(lab - far_mean).sum(-1) / far_variance + np.log(far_variance)
    own = 3 * (log_depth - (near + far) / 2) / np.maximum(gap, 1e-3)
    score = cv2.medianBlur((np.clip((unlike_near - unlike_far) / 2, -3, 3) + own).astype(np.float32), 5)
    side = np.where(score < 0, near, far)
    return np.where(border, log_depth + pull * (side - log_depth), log_depth).astype(np.float32)


def _colors(lab: np.ndarray, chosen: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [h, w, 3] and variance [h, w] of the chosen pixels' colors around each pixel."""

    def total(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (2 * reach + 1, _THICKNESS), normalize=False)

    weight = chosen.astype(np.float32)
    count = total(weight)[..., None] + 1e-3
    weighted = weight[..., None] * lab
    mean = total(weighted) / count
    variance = (total(weighted * lab) / count - np.square(mean)).sum(-1)
    return mean, np.maximum(variance, _LEAST_VARIANCE)


def _slope(log_depth: np.ndarray, reach: int, *, strict: bool) -> np.ndarray:
    """How steeply a surface recedes along rows, in log depth a pixel, [h, w], never negative.

    The median step beside a pixel, to its left and to its right: the lesser of the two where they agree in sign (or the
    greater, if `strict`: a floor that ends at a wall recedes on one side only and is no border either).
    """
    steps = np.diff(log_depth, axis=1, prepend=log_depth[:, :1])
    levels = np.clip((steps / _STEEPEST + 1) * 127.5, 0, 255).round().astype(np.uint8)
    size = min(2 * reach - 3, min(log_depth.shape)) | 1
    usual = (cv2.medianBlur(levels, size).astype(np.float32) / 127.5 - 1) * _STEEPEST
    usual[np.abs(usual) < _STEEPEST / 127] = 0
    away = 2 * reach - 2
    padded = np.pad(usual, ((0, 0), (away, away)), mode="edge")
    left, right = padded[:, : -2 * away], padded[:, 2 * away :]
    least, most = np.minimum(np.abs(left), np.abs(right)), np.maximum(np.abs(left), np.abs(right))
    return most if strict else np.where(left * right > 0, least, 0)
