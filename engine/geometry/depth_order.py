"""Whether maps that are said to be depth run the wrong way: large where things are near, as disparity does."""

from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
from scipy.stats import rankdata

from ..errors import InputError
from .background import sampled, stands_still

_WIDTH = 160
"""Pictures are compared at this width."""
_CHANGED, _DISTINCT = 40, 0.02
"""Levels of 255 by which a pixel differs from the empty scene where something passes; share of the values' range by
which its depth must differ from the scene's to count."""
_LEAST, _SELDOM = 50, 0.25
"""Pixels that are enough to judge by; share of the frames in which something may pass a pixel whose scene is known."""
_BEHIND, _BEFORE = 0.8, 0.5
_AGAINST, _FOR = -0.4, 0.2
"""Rank correlations with an estimate from which that is no accident."""


def runs_backwards(
    depth: Callable[[int], np.ndarray], frames: np.ndarray, estimate: Callable[[np.ndarray], np.ndarray]
) -> Literal["certain", "likely"] | None:
    """How sure it is that the maps are large where things are near; None if nothing says so.

    Before a camera that stands still, things that pass hide the scene, so they are nearer than it. (A thing that rests for
    most of the clip and then leaves is taken for the scene, and shows what was behind.) Besides, the maps are compared with
    the estimate of a network. It is certain where motion says so and the estimate does not contradict, and likely where
    one of them says so.

    Args:
        depth: map of a frame, [h, w].
        frames: uint8 [N, H, W, 3].
        estimate: depth of a picture by a network, up to any rising function.
    """
    chosen = sampled(len(frames))
    size = (_WIDTH, max(1, round(_WIDTH * frames.shape[1] / frames.shape[2])))
    pictures = np.stack([cv2.resize(frames[t], size, interpolation=cv2.INTER_AREA) for t in chosen])
    maps = np.stack([cv2.resize(depth(t), size, interpolation=cv2.INTER_NEAREST) for t in chosen])
    finite = np.isfinite(maps)
    maps = np.where(finite, maps, np.nan)
    behind = share_behind(pictures, maps) if len(chosen) > 2 and stands_still(frames) else None
    if behind is not None and behind < _BEFORE:
        return None
    middle = len(chosen) // 2
    looked_at = sorted({0, middle, len(chosen) - 1})
    agreement = np.median([_rank_correlation(maps[i], estimate(frames[chosen[i]])) for i in looked_at])
    if behind is not None and behind > _BEHIND:
        return "certain" if agreement < _FOR else "likely"
    return "likely" if agreement < _AGAINST else None


def refuse_backwards(found: Literal["certain", "likely"] | None, where: str, warn: Callable[[str], None]) -> None:
    """Say what `runs_backwards` found.

    Raises:
        InputError: it is certain.
    """
    if found is None:
        return
    way_out = "set `depth.kind` to disparity (or inverse, for 1/depth) if near things have the large values"
    if found == "certain":
        raise InputError(
            f"in {where}, what passes before the background lies behind it; {way_out}, or to depth if it is right as it is",
            param="depth_dir",
        )
    warn(f"the depth in {where} seems to run the wrong way, far for near; {way_out}")


def share_behind(pictures: np.ndarray, maps: np.ndarray) -> float | None:
    """Share of what passes a standing camera that lies behind the scene it hides; None where too little passes.

    Args:
        pictures: uint8 [N, h, w, 3].
        maps: [N, h, w], NaN where unknown.
    """
    scene = np.median(pictures, axis=0)
    passes = np.abs(pictures - scene).max(-1) > _CHANGED
    passes &= passes.mean(0) <= _SELDOM  # elsewhere the median may be of the thing
    usual = np.where(passes, np.nan, maps)
    known = np.isfinite(usual).any(0)
    behind_it = np.full(maps.shape[1:], np.nan)
    behind_it[known] = np.nanmedian(usual[:, known], axis=0)
    steps = (maps - behind_it)[passes]
    low, high = np.nanpercentile(maps, [1, 99]) if np.isfinite(maps).any() else (0.0, 0.0)
    steps = steps[np.abs(steps) > _DISTINCT * (high - low)]
    return float((steps > 0).mean()) if len(steps) >= _LEAST else None


def _rank_correlation(values: np.ndarray, estimate: np.ndarray) -> float:
    """Spearman's coefficient over pixels where both are known; 1 where there is nothing to compare."""
    estimate = cv2.resize(estimate, values.shape[::-1], interpolation=cv2.INTER_AREA)
    both = np.isfinite(values) & np.isfinite(estimate)
    a, b = values[both], estimate[both]
    if len(a) < _LEAST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 1.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
