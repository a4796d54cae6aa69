"""Upright things kept upright: what stands before something farther on both sides is at one distance.

A depth model lets the head of a person lean into the wall behind, and a post bend like a bow. Along each row, a span
between a fall of depth and the next rise is part of something that stands in front; spans that overlap from row to row
are one thing. A thing that is taller than wide loses its lean: every row of it moves to one distance, that of its nearer
parts (its foot, where the model sees the ground), and some of its relief along the row stays.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

RELIEF = 0.3
"""Share of a thing's relief along a row that stays."""
_STEP = 0.08
_WIDEST = 0.45
_LOWEST = 0.06
_NEARER = 0.3
_ALIKE = 0.12
_GAP = 3
_DEEPEST = 0.4
"""Relief in log depth beyond which a pixel is no part of the thing's surface but background (or sky) in its mask."""
_GROUND = 0.04
"""Log depth by which ground comes nearer over a twelfth of the picture's height, at least."""


@dataclass(frozen=True, slots=True)
class Span:
    """Pixels start to stop - 1 of a row, and their median log depth; `cut`: one end is the picture's."""

    row: int
    start: int
    stop: int
    depth: float
    cut: bool


def straighten(log_depth: np.ndarray) -> np.ndarray:
    """Log depth in which upright things do not lean.

    Args:
        log_depth: float32 [h, w], finite, its borders hard (`resolve_ramps`).

    Returns:
        float32 [h, w].
    """
    out = log_depth.copy()
    for thing in upright_things(log_depth):
        level(out, log_depth, thing)
    return out


def level(
    out: np.ndarray, log_depth: np.ndarray, thing: np.ndarray, depth: float | None = None, *, relief: float = RELIEF
) -> None:
    """Write a thing (bool [h, w]) into `out` at one log depth, by default that of its nearer parts."""
    rows = np.flatnonzero(thing.any(1))
    middles = {int(y): float(np.median(log_depth[y, thing[y]])) for y in rows}
    if depth is None:
        widths = thing[rows].sum(1)
        depth = float(np.quantile(np.repeat(list(middles.values()), widths), _NEARER))
    for y, middle in middles.items():
        here = thing[y]
        out[y, here] = depth + relief * np.clip(log_depth[y, here] - middle, -_DEEPEST, _DEEPEST)


def upright_things(log_depth: np.ndarray) -> Iterator[np.ndarray]:
    """Masks, bool [h, w], of what is in front on both sides and taller than wide."""
    h, w = log_depth.shape
    for group in _grouped(_spans(log_depth)):
        widths = np.array([span.stop - span.start for span in group])
        height = max(span.row for span in group) - min(span.row for span in group) + 1
        if height < max(_LOWEST * h, float(np.median(widths))):
            continue
        if np.mean([span.cut for span in group]) > 0.8 and np.median(widths) > 0.3 * w:
            continue  # half of the picture, seen past a corner: rather a wall than a thing
        mask = np.zeros((h, w), np.uint8)
        for span in group:
            mask[span.row, span.start : span.stop] = 1
        # A row that reaches far beyond its neighbors took some of the background along.
        upright = np.ones((max(3, h // 50) | 1, 1), np.uint8)
        mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, upright), cv2.MORPH_OPEN, upright)
        if mask.any() and _stands(mask > 0, log_depth):
            yield mask > 0


def _stands(mask: np.ndarray, log_depth: np.ndarray) -> bool:
    """Whether a thing stands on, or hovers over, ground: what is beside its lower end comes nearer from row to row.

    Between walls, which keep their distance downwards, a thing is part of the wall. One that the picture's lower edge
    cuts counts as standing.
    """
    h, w = mask.shape
    rows = np.flatnonzero(mask.any(1))
    lowest = int(rows[-1])
    if lowest >= h - 2:
        return True
    foot = np.flatnonzero(mask[max(rows[0], lowest - h // 20) : lowest + 1].any(0))
    aside = w // 40
    above = max(0, lowest - h // 12)
    for beside in (slice(max(0, foot[0] - 2 * aside), foot[0] - 2), slice(foot[-1] + 3, foot[-1] + 2 * aside)):
        low, high = log_depth[lowest : lowest + 3, beside], log_depth[above : above + 3, beside]
        if low.size and high.size and float(np.median(high)) - float(np.median(low)) > _GROUND:
            return True
    return False


def _spans(log_depth: np.ndarray) -> list[Span]:
    """Between a fall and the next rise; the picture's edge stands for one of them."""
    width = log_depth.shape[1]
    found: list[Span] = []
    for row, steps in enumerate(np.diff(log_depth, axis=1)):
        start: int | None = 0
        for x in (*np.flatnonzero(np.abs(steps) > _STEP).tolist(), width - 1):
            if x < width - 1 and steps[x] < 0:
                start = x + 1
                continue
            cut = start == 0 or x == width - 1
            if start is not None and 2 <= x + 1 - start < _WIDEST * width:
                found.append(Span(row, start, x + 1, float(np.median(log_depth[row, start : x + 1])), cut))
            start = None
    return found


def _grouped(spans: list[Span]) -> list[list[Span]]:
    """Spans that overlap by half from row to row, at nearly one depth, are one thing."""
    root = list(range(len(spans)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    rows: dict[int, list[int]] = {}
    for i, span in enumerate(spans):
        for above in range(span.row - _GAP, span.row):
            for j in rows.get(above, []):
                other = spans[j]
                overlap = min(span.stop, other.stop) - max(span.start, other.start)
                narrower = min(span.stop - span.start, other.stop - other.start)
                if overlap > 0.5 * narrower and abs(span.depth - other.depth) < _ALIKE:
                    root[find(i)] = find(j)
        rows.setdefault(span.row, []).append(i)
    groups: dict[int, list[Span]] = {}
    for i, span in enumerate(spans):
        groups.setdefault(find(i), []).append(span)
    return list(groups.values())
