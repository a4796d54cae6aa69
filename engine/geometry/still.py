"""What a clip from a camera that stands still knows about itself: one background, and things that move before it.

The background is seen in full over time, so its depth is estimated once, of its picture without the passers-by, and
holds still. Whatever differs from that picture is a thing before it: its outline is the difference's, to the pixel, and
it stands at one distance, that of the ground at its foot where it touches the ground.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from .steady import SKY
from .things import RELIEF, level, upright_things

WEAK, STRONG = 12.0, 26.0
"""Levels of 255 by which a thing's pixels differ from the background: all of them, and some of them."""
_SHADOW = (0.45, 0.97)
"""Shares of the background's light that a shadow leaves."""
_SHADOW_TINT = 0.02
_LEAST_AREA = 5e-4
NEARER = 0.04
"""Log depth by which a thing's nearer half is before the background at least; less is leaves in the wind."""
_IN_FRONT = 0.01
_FLOATING = 0.25
_WIDE_RELIEF = 0.7
_OVERLAP = 0.3
_SAME, _TOUCHES = 0.15, 0.25
STEADY_OVER = 3
"""Frames to either side over which a thing's distance is averaged."""


@dataclass(frozen=True, kw_only=True)
class Background:
    """A still background at the depth maps' size.

    Attributes:
        color: uint8 [h, w, 3].
        log_depth: float32 [h, w], finite, sky being `steady.SKY`.
        known: bool [h, w], where the clip shows it.
    """

    color: np.ndarray
    log_depth: np.ndarray
    known: np.ndarray

    @cached_property
    def resting(self) -> list[tuple[np.ndarray, float]]:
        """Upright things that are part of the background, and their log depths."""
        masks = upright_things(self.log_depth)
        return [(mask, float(np.median(self.log_depth[mask]))) for mask in masks]


@dataclass(frozen=True, slots=True)
class Thing:
    """A moving thing of one frame: bool [h, w] and its log depth."""

    mask: np.ndarray
    distance: float


def scale_shift(frame: np.ndarray, log_depth: np.ndarray, background: Background) -> float:
    """What brings a frame's log depth to the background's scale: the median difference where only background is seen."""
    both = ~differing(frame, background) & background.known & (log_depth < SKY) & (background.log_depth < SKY)
    return float(np.median((background.log_depth - log_depth)[both])) if both.any() else 0.0


def shifted(log_depth: np.ndarray, shift: float) -> np.ndarray:
    """Log depth at another scale, float32 [h, w]; sky stays sky."""
    return np.where(log_depth < SKY, log_depth + shift, SKY).astype(np.float32)


def differing(frame: np.ndarray, background: Background, before: np.ndarray | None = None) -> np.ndarray:
    """Where a frame shows something else than the background; bool [h, w].

    Connected pixels that differ a little count where some of them differ much. Where the depth model sees something
    nearer, less of a difference will do; elsewhere what is the background in less light is a shadow and lies on it.

    Args:
        frame: uint8 [h, w, 3].
        before: float [h, w], log depth by which the depth model sees the frame before the background; None if unknown.
    """
    now, empty = (cv2.blur(image, (3, 3)).astype(np.float32) for image in (frame, background.color))
    difference = np.abs(now - empty).max(-1)
    light, light_empty = now.sum(-1) + 1, empty.sum(-1) + 1
    share = light / light_empty
    tint = np.abs(now / light[..., None] - empty / light_empty[..., None]).max(-1)
    nearer = np.zeros(difference.shape, bool) if before is None else before > NEARER
    shadow = (share > _SHADOW[0]) & (share < _SHADOW[1]) & (tint < _SHADOW_TINT) & ~nearer
    weak = (difference > np.where(nearer, WEAK / 2, WEAK)) & ~shadow
    # Averaging spreads a difference by a pixel, so that the pixel itself is asked, too.
    weak &= np.abs(frame.astype(np.float32) - background.color).max(-1) > WEAK / 2
    weak |= ~background.known & nearer
    count, labels = cv2.connectedComponents(weak.astype(np.uint8), connectivity=8)
    sure = np.bincount(labels[(difference > STRONG) & background.known].ravel(), minlength=count) > 0
    sure[0] = False
    return sure[labels]


def moving_things(frame: np.ndarray, log_depth: np.ndarray, background: Background) -> list[Thing]:
    """What stands before the background in one frame.

    Args:
        frame: uint8 [h, w, 3].
        log_depth: float32 [h, w], the depth model's, at the background's scale.
    """
    h, w = log_depth.shape
    before = background.log_depth - log_depth
    differs = differing(frame, background, before).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(3, w // 120) | 1,) * 2)
    closed = cv2.morphologyEx(differs, cv2.MORPH_CLOSE, kernel)
    closed = cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    things = []
    for k in range(1, count):
        if stats[k, cv2.CC_STAT_AREA] < _LEAST_AREA * h * w:
            continue
        mask = labels == k
        if np.median(before[mask]) < NEARER and np.quantile(before[mask], 0.75) < 2 * NEARER:
            continue
        distance = _distance(mask, log_depth, background.log_depth)
        for resting, rested in background.resting:
            if _parts_of_one(mask, distance, resting, rested):
                distance = rested
        things.append(Thing(mask, distance))
    return things


def _parts_of_one(mask: np.ndarray, distance: float, resting: np.ndarray, rested: float) -> bool:
    """Whether a moving thing is a limb of one that rests: a person who hardly moves is background for the most part."""
    if abs(distance - rested) > _SAME:
        return False
    rim = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~mask
    return float(resting[rim].mean()) > _TOUCHES


def _distance(mask: np.ndarray, log_depth: np.ndarray, behind: np.ndarray) -> float:
    """Log depth of a thing: the ground's at its foot if it stands there, else that of its own nearer parts."""
    surface = log_depth[mask][log_depth[mask] < SKY]  # what flies before the sky is taken for sky in part
    own = float(np.quantile(surface, 0.3)) if len(surface) else SKY
    h = len(mask)
    rows = np.flatnonzero(mask.any(1))
    lowest = int(rows[-1])
    foot = mask[max(rows[0], lowest - max(2, len(rows) // 20)) : lowest + 1].any(0)
    at_foot = float(np.median(behind[lowest, foot]))
    if lowest >= h - 2:
        return min(own, at_foot)  # cut by the picture: it stands nearer than the nearest ground that is seen
    below = float(np.median(behind[min(h - 1, lowest + 3), foot]))
    if at_foot - below > 2 * NEARER:
        return max(below, min(own, at_foot))  # it stands behind something
    return own if own < at_foot - _FLOATING else at_foot


def steadied(things: list[Thing], neighbors: list[list[Thing]]) -> list[Thing]:
    """Each thing at the mean distance of itself and of what overlaps it in neighboring frames, where that is known."""
    steady = []
    for thing in things:
        distances = [thing.distance]
        for others in neighbors:
            shares = [_overlap(thing.mask, other.mask) for other in others]
            if shares and max(shares) > _OVERLAP:
                distances.append(others[int(np.argmax(shares))].distance)
        known = [distance for distance in distances if distance < SKY]
        steady.append(Thing(thing.mask, float(np.mean(known)) if known else SKY))
    return steady


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def labeled(things: list[Thing], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Things as numbers in a map, uint8 [h, w] (0 is none, at most 255), and log depths float32 [255]."""
    labels, distances = np.zeros(size, np.uint8), np.zeros(255, np.float32)
    for k, thing in enumerate(things[:255]):
        labels[thing.mask], distances[k] = k + 1, thing.distance
    return labels, distances


def unlabeled(labels: np.ndarray, distances: np.ndarray) -> list[Thing]:
    """The inverse of `labeled`."""
    return [Thing(labels == k + 1, float(distances[k])) for k in range(int(labels.max()))]


def placed(things: list[Thing], log_depth: np.ndarray, background: Background) -> np.ndarray:
    """Log depth of a frame: the background's, and the things' before it; float32 [h, w]."""
    out = background.log_depth.copy()
    surfaces = out[out < SKY]
    middle = float(np.median(surfaces)) if len(surfaces) else 0.0
    finite = np.minimum(log_depth, background.log_depth)
    for thing in things:
        rows, columns = thing.mask.any(1).sum(), thing.mask.any(0).sum()
        relief = RELIEF if rows > columns else _WIDE_RELIEF
        # What flies before the sky, and is taken for sky, may be anywhere; with the sky it would not move at all.
        distance = thing.distance if thing.distance < SKY else middle
        level(out, finite, thing.mask, distance, relief=relief)
        out[thing.mask] = np.minimum(out[thing.mask], background.log_depth[thing.mask] - _IN_FRONT)
    return out
