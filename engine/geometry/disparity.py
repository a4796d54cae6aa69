"""Depth from relative disparity, which has a scale and a shift of its own."""

from collections.abc import Callable

import numpy as np

from . import steady

FAR_TO_NEAR = 12.0
"""Relative disparity has no zero of its own: its 1st percentile over the clip is taken to lie this many times farther
than its 99th, one scale and one shift for all frames. A clip that sees the sky has a zero: see `log_of_disparity`."""

_ZERO, _ZERO_SHARE = 1e-3, 0.005
"""Disparity, in units of its 99th percentile, that is none; the share of the clip from which that is no accident."""


def log_of_disparity(sample: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Log depth by relative disparity, one rule for the maps of a clip.

    Networks of relative disparity end in a ReLU and learn that the sky has none: where many pixels sit at zero, zero is
    infinity, the shift is known and only the scale is free. Where none do, the shift is a guess (`FAR_TO_NEAR`).

    Args:
        sample: values from all over the clip, of any shape, all finite.
    """
    low, high = (float(value) for value in np.percentile(sample, [1, 99]))
    nothing = _ZERO * high
    if high > 0 and np.mean(sample <= nothing) >= _ZERO_SHARE:

        def from_zero(disparity: np.ndarray) -> np.ndarray:
            return steady.to_log(np.where(disparity > nothing, high / np.maximum(disparity, nothing), np.inf))

        return from_zero
    span = max(high - low, 1e-6)

    def shifted(disparity: np.ndarray) -> np.ndarray:
        scaled = (disparity - low) / span * (1 - 1 / FAR_TO_NEAR) + 1 / FAR_TO_NEAR
        return steady.to_log(1 / np.maximum(scaled, 0.25 / FAR_TO_NEAR))

    return shifted
