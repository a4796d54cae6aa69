"""Whether timestamps are evenly spaced, and at which exact rate."""

from collections.abc import Iterable, Sequence
from fractions import Fraction

_USUAL = tuple(Fraction(n) for n in (10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)) + tuple(
    Fraction(n * 1000, 1001) for n in (12, 15, 24, 30, 48, 60, 120, 240)
)
_SNAP = Fraction(3, 10_000)  # under a third of the 0.1 % between 30 and 30000/1001
_LONGEST = 1_000_000  # denominator of a rate that libav can still hold in two 32-bit numbers
_JITTER = Fraction(1, 10)  # of a frame: what a camera's clock may do and a viewer cannot see


def constant_rate(pts: Sequence[int], time_base: Fraction, declared: Iterable[Fraction | None]) -> Fraction | None:
    """The frame rate of a clip, or None if it varies.

    Args:
        pts: Presentation times in ascending order, at least one, in units of `time_base` (seconds).
        declared: The rates that the container claims, the most trusted first.

    A rate fits if frame n sits at n / rate within the rounding of the time base: 29.97 in milliseconds comes as steps
    of 33 and 34. Exact fits go first, so that a claim is not believed for being merely near.
    """
    claims = [rate for rate in declared if rate and Fraction(1, 2) <= rate <= 1000]
    if len(pts) == 1:
        return _snapped(claims[0]) if claims else Fraction(25)
    span_s = (pts[-1] - pts[0]) * time_base
    if span_s <= 0:
        return None
    mean = (len(pts) - 1) / span_s
    if not Fraction(1, 10) <= mean <= 1000:
        return None
    rates = [r for claim in claims for r in (_snapped(claim), claim)]
    rates += [_snapped(mean), *_USUAL, mean.limit_denominator(1001), mean.limit_denominator(_LONGEST)]
    # A tick is never read as leave to lose a frame, however coarse the time base (AVI counts in whole frames).
    rounding = min(time_base * Fraction(101, 100), 1 / (4 * mean))
    for tolerance_s in (rounding, rounding + _JITTER / mean):
        for rate in rates:
            if _fits(pts, time_base, rate, tolerance_s):
                return rate
    return None


def _snapped(rate: Fraction) -> Fraction:
    nearest = min(_USUAL, key=lambda usual: abs(usual - rate))
    return nearest if abs(nearest - rate) <= _SNAP * rate else rate


def _fits(pts: Sequence[int], time_base: Fraction, rate: Fraction, tolerance_s: Fraction) -> bool:
    # Integers over one denominator: with thousands of frames Fractions would be a hundred times slower.
    step, tolerance = 1 / (rate * time_base), tolerance_s / time_base
    scale = step.denominator * tolerance.denominator
    step_i, tolerance_i = int(step * scale), int(tolerance * scale)
    return all(abs((t - pts[0]) * scale - n * step_i) <= tolerance_i for n, t in enumerate(pts))
