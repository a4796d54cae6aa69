"""Time rivals side by side: interleaved in one process, so that whatever else the machine does falls on all of them.

Only ratios of one run mean anything on a machine that is shared; absolute times are kept beside them, as percentiles.
"""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

Row = dict[str, Any]
"""One measurement, as it is written: op, implementation, device, shape, p20_ms, p50_ms, p80_ms, repeats, baseline,
speedup (the baseline's median over this one's), versions, date, and what else the operation has to say."""

COPY = "copy (roofline)"
"""Name of the rival that only moves the bytes that any implementation must move."""


def compare(
    op: str,
    shape: str,
    rivals: Mapping[str, Callable[[], Any]],
    *,
    baseline: str,
    device: str,
    repeats: int,
    warmup: int = 3,
    budget_s: float = 60.0,
) -> list[Row]:
    """Time each rival `repeats` times, in turn, and relate it to the baseline and to the copy, if there is one.

    Args:
        rivals: by name, a call each that does the whole work once.
        baseline: name of the rival that speedups are counted from.
        device: cpu or cuda.
        warmup: calls of each before the first that counts (they compile, and grow the allocator).
        budget_s: no further round is begun after this long; a round is one call of each.

    Returns:
        A row a rival, in their order; with a `copy` among them also `roofline_share`, its time over theirs.
    """
    for run in rivals.values():
        for _ in range(warmup):
            run()
    times_ms: dict[str, list[float]] = {name: [] for name in rivals}
    clock = _cuda_ms if device == "cuda" else _cpu_ms
    names, started = list(rivals), time.perf_counter()
    for round_ in range(repeats):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:  # nobody always follows the same one
            times_ms[name].append(clock(rivals[name]))
        if time.perf_counter() - started > budget_s:
            break
    percentiles = {name: np.percentile(times, (20, 50, 80)) for name, times in times_ms.items()}
    rows = []
    for name, (p20, p50, p80) in percentiles.items():
        row: Row = {
            "op": op,
            "implementation": name,
            "device": device_name(device),
            "threads": torch.get_num_threads() if device == "cpu" else None,
            "shape": shape,
            "p20_ms": round(float(p20), 5),
            "p50_ms": round(float(p50), 5),
            "p80_ms": round(float(p80), 5),
            "repeats": len(times_ms[name]),
            "baseline": baseline,
            "speedup": round(float(percentiles[baseline][1] / p50), 3),
            "versions": versions(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if COPY in percentiles:
            row["roofline_share"] = round(float(percentiles[COPY][1] / p50), 3)
        rows.append(row)
    return rows


def measured(op: str, libraries: Iterable[str] = (), **values: Any) -> Row:
    """A row of figures of this machine's CPUs that no rival was timed against.

    Args:
        libraries: packages whose versions matter beside the usual ones.
    """
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
    return {
        "op": op,
        **rounded,
        "device": device_name("cpu"),
        "versions": {**versions(), **{name: metadata.version(name) for name in libraries}},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def copy_of(count: int, device: str) -> Callable[[], Any]:
    """A call that moves `count` bytes, half of them read and half written: the least time for work of as many bytes."""
    source = torch.ones(max(1, count // 2), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the context torch uses one thread an operation, as the CPU kernels do.

    Where others work too, waking threads for an operation of a millisecond costs more than it gains, and the rival
    would be measured at its worst.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_ms(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _cuda_ms(run: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


@cache
def device_name(device: str) -> str:
    """`cpu: ...` or `cuda: ...` with the model's name."""
    if device == "cuda":
        return f"cuda: {torch.cuda.get_device_name()}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"cpu: {models[0] if models else platform.processor() or platform.machine()}"


@cache
def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("recapture", "torch", "numba", "triton", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
