"""Curves as inline SVG; colors come from the page's style sheet, so they follow its light and dark scheme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 440, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 34


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve: the value at x = start, start + 1, ...; values that are not finite leave a gap.

    Attributes:
        style: class of the page's style sheet: `ink`, `accent`, `soft` or `faint`.
        shade: fill the area below the curve.
    """

    label: str
    values: Sequence[float]
    style: str
    start: int = 0
    shade: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    log: bool = False,
    marks: Sequence[int] = (),
    percent: bool = False,
    follow: bool = False,
) -> str:
    """A figure with a legend and one SVG chart.

    Args:
        title: the caption; plain text.
        log: logarithmic y axis (values must be positive; others leave gaps).
        marks: x positions of vertical dashed lines.
        percent: y values are shares, shown in percent.
        follow: the page moves a line to the frame that is playing.
    """
    usable = [v for s in series for v in s.values if math.isfinite(v) and (v > 0 or not log)]
    if not usable:
        return ""
    last = max(s.start + len(s.values) - 1 for s in series)
    first = min(s.start for s in series)
    low, high, ticks = _log_axis(usable) if log else _axis(max(usable))

    def x_of(x: float) -> float:
        return _LEFT + (x - first) / max(1, last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)
        return _TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in ticks:
        y = y_of(tick)
        text = f"{100 * tick:g} %" if percent else f"{tick:g}"
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for x in _whole_ticks(first, last):
        parts.append(f'<text x="{x_of(x):.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{x}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts += [f'<path class="seam" d="M{x_of(x):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>' for x in marks]
    for each in series:
        line = _polyline(each, x_of, y_of, log)
        if each.shade:
            floor, end = _HEIGHT - _BOTTOM, each.start + len(each.values) - 1
            parts.append(f'<path class="shade" d="{line}L{x_of(end):.1f} {floor}L{x_of(each.start):.1f} {floor}Z"/>')
        parts.append(f'<path class="line {each.style}" d="{line}"/>')
    if follow:
        parts.append(
            f'<path class="cursor" data-x0="{x_of(0):.2f}" data-step="{x_of(1) - x_of(0):.4f}" '
            f'data-left="{_LEFT}" d="M0 {_TOP}V{_HEIGHT - _BOTTOM}" transform="translate({max(_LEFT, x_of(0)):.1f})"/>'
        )
    keys = "".join(f'<li class="{s.style}">{escape(s.label)}</li>' for s in series)
    if marks:
        keys += '<li class="seam">window seam</li>'
    spoken = escape(f"{title}: " + "; ".join(_spoken(s) for s in series), quote=True)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption><ul class="keys">{keys}</ul>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{spoken}">{"".join(parts)}</svg></figure>'
    )


def _polyline(series: Series, x_of, y_of, log: bool) -> str:
    parts, pen = [], "M"
    for i, value in enumerate(series.values):
        if not math.isfinite(value) or (log and value <= 0):
            pen = "M"
            continue
        parts.append(f"{pen}{x_of(series.start + i):.1f} {y_of(value):.1f}")
        pen = "L"
    return "".join(parts)


def _spoken(series: Series) -> str:
    finite = [v for v in series.values if math.isfinite(v)]
    if not finite:
        return f"{series.label} has no values"
    return f"{series.label} from {finite[0]:.3g} to {finite[-1]:.3g}, at most {max(finite):.3g}"


def _axis(most: float) -> tuple[float, float, list[float]]:
    """Least, most and ticks from 0 in steps of 1, 2 or 5 times a power of ten."""
    if most <= 0:
        return 0.0, 1.0, [0.0, 1.0]
    rough = most / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    count = math.ceil(most / step - 1e-9)
    return 0.0, count * step, [round(i * step, 12) for i in range(count + 1)]


def _log_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    low, high = min(values) / 1.15, max(values) * 1.15
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [m * 10.0**e for e in decades for m in digits if low <= m * 10.0**e <= high]
        if len(ticks) >= 3:
            break
    return low, high, ticks


def _whole_ticks(first: int, last: int) -> list[int]:
    span = max(1, last - first)
    unit = 10 ** max(0, math.floor(math.log10(span / 5))) if span >= 5 else 1
    step = next(unit * m for m in (1, 2, 5, 10) if span / (unit * m) <= 7)
    return [x for x in range(-(-first // step) * step, last + 1, step)]
