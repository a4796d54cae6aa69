"""The static background of a locked-off clip: what one frame hides another shows, so holes can be filled with footage.

A pixel of the source always looks along the same ray. The farthest surface that it ever shows is the background there;
wherever something nearer stands in front of it at a moment, the background is known all the same and is drawn into the
anchor's holes. Only for a source camera that stands still: for a moving one the frames would have to be brought into one
space by camera poses and a depth that agrees between them, which a depth of one scale a clip does not give.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

SAMPLES = 48
"""Frames looked at, evenly spread: memory and time do not grow with the clip's length."""
_STILL_PX = 0.5
_TRACKED = 40
_FAR_QUANTILE = 0.85
"""Of a pixel's depth over time: the farthest surface, but for the few frames in which the estimate jumps."""
_STRIP = 32
TRUSTED = 0.5
"""Least confidence of a background that is drawn."""
_TOLERANCE = 12.0
"""Levels of 255 by which a background may vary (noise, compression) before it is trusted half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plate:
    """The background as the source camera sees it.

    Attributes:
        color: uint8 [H, W, 3].
        depth: float32 [H, W]; inf is sky, NaN where nothing is known.
        confidence: float32 [H, W], 0 to 1: how often and how constantly the background was seen.
    """

    color: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray


def sampled(count: int) -> list[int]:
    """Indices of at most `SAMPLES` frames, evenly spread."""
    return sorted({round(t) for t in np.linspace(0, count - 1, min(count, SAMPLES))})


def stands_still(frames: np.ndarray) -> bool:
    """Whether the camera of frames [N, H, W, 3] stands still: no corner of the picture moves by half a pixel.

    Corner features are followed from the first frame to others; the similarity (shift, turn, scale) that most of them
    agree on is the camera's motion, whatever moves in the scene. Too little texture to tell counts as moving.
    """
    scale = min(1.0, 640 / max(frames.shape[1:3]))

    def gray(t: int) -> np.ndarray:
        picture = cv2.cvtColor(np.ascontiguousarray(frames[t]), cv2.COLOR_RGB2GRAY)
        return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)

    first = gray(0)
    points = cv2.goodFeaturesToTrack(first, 400, 0.001, max(3, first.shape[1] / 80))
    if points is None or len(points) < _TRACKED:
        return False
    height, width = first.shape
    corners = np.array([[[0, 0]], [[width, 0]], [[width, height]], [[0, height]]], np.float32)
    follow: Any = cv2.calcOpticalFlowPyrLK  # its type has no optional points
    for t in sampled(len(frames))[1:]:
        moved, found, _ = follow(first, gray(t), points, None)
        kept = found[:, 0] > 0
        if kept.sum() < _TRACKED:
            return False
        motion, inliers = cv2.estimateAffinePartial2D(points[kept], moved[kept], ransacReprojThreshold=1.0)
        if motion is None or inliers.sum() < 0.25 * len(points):
            return False
        if np.abs(cv2.transform(corners, motion) - corners).max() > _STILL_PX:
            return False
    return True


def background_plate(
    frames: np.ndarray, depth: np.ndarray | Mapping[int, np.ndarray], *, depth_tolerance: float
) -> Plate:
    """What lies farthest along each pixel's ray, over the whole clip.

    Args:
        frames: uint8 [N, H, W, 3].
        depth: float32 [N, h, w], at the depth network's resolution; at least of the frames that are `sampled`.
        depth_tolerance: relative depth within which two depths are one surface.
    """
    times = sampled(len(frames))
    height, width = frames.shape[1:3]
    log = np.stack([_log_depth(depth[t], (width, height)) for t in times])  # [S, H, W]
    far = np.full((height, width), np.nan, np.float32)
    color = np.zeros((height, width, 3), np.uint8)
    confidence = np.zeros((height, width), np.float32)
    for top in range(0, height, _STRIP):
        rows = slice(top, top + _STRIP)
        part = log[:, rows]
        known = np.isfinite(part)
        far[rows] = np.quantile(np.where(known, part, -np.inf), _FAR_QUANTILE, axis=0, method="higher")
        shows = known & (part >= far[rows] - depth_tolerance)  # [S, r, W]
        pictures = np.stack([frames[t][rows] for t in times]).astype(np.float32)
        seen = np.where(shows[..., None], pictures, np.nan)
        count = shows.sum(0)
        seen[:, count == 0] = 0
        middle = np.nanmedian(seen, axis=0)
        spread = np.nanmedian(np.abs(seen - middle), axis=0).mean(-1)
        color[rows] = middle.round()
        share = np.minimum(1.0, count / min(4, len(times)))
        confidence[rows] = share / (1 + np.square(spread / _TOLERANCE))
    far_depth = np.where(far > _SKY_LOG / 2, np.inf, np.exp(np.minimum(far, _SKY_LOG / 2)))
    return Plate(
        color=color, depth=np.where(np.isfinite(far), far_depth, np.nan).astype(np.float32), confidence=confidence
    )


def clean_plate(image: np.ndarray, found: Plate, predicted: np.ndarray) -> Plate:
    """A user's picture of the empty scene, with depth.

    Where it looks like the background that the clip shows, it lies as far away; elsewhere a network's depth of it is
    used, brought to the clip's scale by the median ratio where both are known.

    Args:
        image: uint8 [H, W, 3], from the clip's own camera.
        found: what the clip shows itself.
        predicted: float32 [h, w], the network's depth of the image, up to a scale.
    """
    height, width = found.depth.shape
    log = _log_depth(predicted, (width, height))
    alike = (found.confidence >= 0.5) & ~_differs(image, found.color) & np.isfinite(found.depth)
    both = alike & (log < _SKY_LOG)
    with np.errstate(invalid="ignore", divide="ignore"):
        offset = float(np.median(np.log(found.depth[both]) - log[both])) if both.any() else 0.0
    scaled = np.where(log < _SKY_LOG, np.exp(log + offset), np.inf).astype(np.float32)
    confidence = np.ones((height, width), np.float32)
    return Plate(color=image, depth=np.where(alike, found.depth, scaled), confidence=confidence)


def hidden(plate: Plate, frame: np.ndarray, depth: np.ndarray, *, depth_tolerance: float) -> np.ndarray:
    """Where something else stands before a trusted background at one moment.

    It must be nearer and look different: depth alone flickers, and a thing that never moved is its own background.

    Args:
        frame: uint8 [H, W, 3] of that moment.
        depth: [h, w] of that moment.

    Returns:
        bool [H, W].
    """
    height, width = plate.depth.shape
    log = _log_depth(depth, (width, height))
    with np.errstate(invalid="ignore", divide="ignore"):
        far = np.where(np.isinf(plate.depth), _SKY_LOG, np.log(plate.depth))
    return (plate.confidence >= TRUSTED) & (log < far - depth_tolerance) & _differs(frame, plate.color)


def _differs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pictures [H, W, 3] to bool [H, W], noise and compression forgiven."""
    difference = np.abs(cv2.blur(a, (3, 3)).astype(np.int16) - cv2.blur(b, (3, 3)))
    return difference.max(-1) > _TOLERANCE


_SKY_LOG = 60.0


def _log_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Logarithm at `size` (W, H), sky as a large number, unknown as NaN; nearest, so that no depth is made up."""
    with np.errstate(invalid="ignore", divide="ignore"):
        log = np.where(np.isposinf(depth), _SKY_LOG, np.log(depth))
    log = np.where(depth > 0, log, np.nan).astype(np.float32)
    return cv2.resize(log, size, interpolation=cv2.INTER_NEAREST)
