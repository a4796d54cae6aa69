"""Means over paths with bootstrap intervals, and what changed between two evaluations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..engine.errors import InputError

RESAMPLES = 10_000
LEVEL = 0.95
Line = dict[str, Any]
LineKey = tuple[str, str, str]
"""Row, depth, vary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over paths and its bootstrap interval (percentile method, `LEVEL`); `count` paths."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def is_noise(self) -> bool:
        """True for a difference whose interval contains zero, or that has too few paths."""
        return self.count < 3 or self.low <= 0 <= self.high


def estimate(values: Sequence[float]) -> Interval:
    """The mean of values that are independent draws; resampled with a fixed seed.

    Raises:
        ValueError: no values.
    """
    data = np.asarray(values, np.float64)
    if not data.size:
        raise ValueError("a mean needs at least one value")
    # scipy.stats.bootstrap is as long to call, warns of constant values, and draws otherwise: published intervals would move.
    index = np.random.default_rng(0).integers(len(data), size=(RESAMPLES, len(data)))
    low, high = np.quantile(data[index].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean=float(data.mean()), low=float(low), high=float(high), count=len(data))


def read_lines(folder: Path) -> list[Line]:
    """The lines of a finished evaluation.

    Raises:
        InputError: the folder holds none.
    """
    path = folder / "rows.parquet"
    if not path.exists():
        raise InputError(f"{folder} has no rows.parquet: it is not a finished evaluation", param="compare")
    return pq.read_table(path).to_pylist()


def groups(lines: Sequence[Line]) -> dict[LineKey, list[Line]]:
    """Lines by row, depth and variation, in the order in which they first come."""
    found: dict[LineKey, list[Line]] = {}
    for line in lines:
        found.setdefault((line["row"], line["depth"], line["vary"]), []).append(line)
    return found


def means(lines: Sequence[Line], metric: str) -> Interval | None:
    """Statistics of one group of rows, over the paths that have the metric; None if none has it."""
    values = [line[metric] for line in lines if line.get(metric) is not None]
    return estimate(values) if values else None


def differences(before: Sequence[Line], after: Sequence[Line], metric: str) -> Interval | None:
    """After minus before over the paths that both have, path by path: what the paths share cancels."""
    old = {(line["scene"], line["path"]): line.get(metric) for line in before}
    pairs = [(old.get((line["scene"], line["path"])), line.get(metric)) for line in after]
    values = [b - a for a, b in pairs if a is not None and b is not None]
    return estimate(values) if values else None
