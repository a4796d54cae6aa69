"""The cost of a bulk run of any size, by formula from the measured rows in `results/bulk.jsonl`.

python -m recapture.benchmarks.scale      # the tables of docs/scale.md
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of one worker.

    Attributes:
        start_s: from the command to the first row's beginning.
        warm_s: what a worker's first row takes longer than later ones (loading the model, compiling kernels).
        first_s: a clip's first path, its shared stages included.
        further_s: each further path.
    """

    start_s: float
    warm_s: float
    first_s: float
    further_s: float


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Failure rates: rows that fail after their full time, and losses per hour and worker."""

    failed_share: float = 0.0
    lost_per_hour: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Costs of a clip's first path and of each further one: requests, and bytes written to and kept in the stage store."""

    puts: tuple[float, float]
    gets: tuple[float, float]
    stage_bytes: tuple[float, float]
    output_bytes: float


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A run's size in numbers; rates are of the steady middle of the run."""

    hours: float
    gpu_hours: float
    rows_per_s: float
    puts: float
    gets: float
    puts_per_s: float
    gets_per_s: float
    written_bytes_per_s: float
    kept_bytes: float
    lease_calls_per_s: float


LEASE_CALLS = 2 * 14
"""A row's calls to the lease table: one stage's lease is taken and given up."""


def makespan_s(*, clips: int, paths: int, workers: int, costs: Costs, losses: Losses | None = None) -> float:
    """Seconds of a whole run: starting, getting warm, then the clips in even shares, the last one whole.

    A lost worker costs half a row on average (what was published stays, so at most the stage in flight), and the start
    and warming up of its successor. With r losses a second and a clip that takes c seconds, a clip takes
    c (1 + r (c / (2 paths) + start + warm)).
    """
    losses = losses or Losses()
    clip_s = costs.first_s + (paths - 1) * costs.further_s
    lost_s = clip_s / (2 * paths) + costs.start_s + costs.warm_s
    clip_s *= 1 + losses.lost_per_hour / 3600 * lost_s
    return costs.start_s + costs.warm_s + clip_s * -(-clips // workers)


def scale(
    *, clips: int, paths: int, workers: int, costs: Costs, storage: Storage, losses: Losses | None = None
) -> Scale:
    """The numbers of a run."""
    seconds = makespan_s(clips=clips, paths=paths, workers=workers, costs=costs, losses=losses)
    rows = clips * paths

    def of_clip(pair: tuple[float, float]) -> float:
        return pair[0] + (paths - 1) * pair[1]

    puts, gets = clips * of_clip(storage.puts), clips * of_clip(storage.gets)
    ok = rows * (1 - (losses.failed_share if losses else 0.0))
    return Scale(
        hours=seconds / 3600,
        gpu_hours=seconds / 3600 * workers,
        rows_per_s=rows / seconds,
        puts=puts,
        gets=gets,
        puts_per_s=puts / seconds,
        gets_per_s=gets / seconds,
        written_bytes_per_s=clips * (of_clip(storage.stage_bytes) + paths * storage.output_bytes) / seconds,
        kept_bytes=ok * storage.output_bytes,
        lease_calls_per_s=LEASE_CALLS * rows / seconds,
    )


def last(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The newest row with these values.

    Raises:
        LookupError: no row has these values.
    """
    for row in reversed(rows):
        if all(row.get(name) == value for name, value in wanted.items()):
            return row
    raise LookupError(f"no row with {wanted}; run `recapture bench bulk --out benchmarks/results/bulk.jsonl`")


SVD = Costs(start_s=40.0, warm_s=60.0, first_s=165.0, further_s=155.0)
"""Of an H100 with `svd` at 14 frames 576x1024: computed from the design's FLOP counts at 35 % of 800 TFLOP/s, not measured:
43 PFLOP for a first path (400 + 400 steps, one sample), 41 PFLOP for a further one."""

_PIXELS = 14 * 576 * 1024
_MEASURED_PIXELS = 8 * 96 * 160  # of the clip in benchmarks/bulk.py: frames x height x width
USD_PER_GPU_HOUR, USD_PER_1000_PUTS, USD_PER_1000_GETS, USD_PER_TB_MONTH = 2.5, 0.005, 0.0004, 23.0


def storage_of(rows: list[dict[str, Any]]) -> Storage:
    """Requests as measured; bytes of the stages and bundles scaled by the pixels of a full-size clip."""
    first, further = (last(rows, op="bulk_requests", path=path) for path in (1, 2))
    bigger = _PIXELS / _MEASURED_PIXELS
    return Storage(
        puts=(first["put_requests"], further["put_requests"]),
        gets=(first["get_requests"] + first["head_requests"], further["get_requests"] + further["head_requests"]),
        stage_bytes=(first["stage_bytes"] * bigger, further["stage_bytes"] * bigger),
        # Videos grow with the pixels; the report's pictures are of one size.
        output_bytes=further["output_bytes"] + further["video_bytes"] * (bigger - 1),
    )


def main(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    storage, losses = storage_of(rows), Losses(failed_share=0.01, lost_per_hour=0.05)
    print(
        "| GPUs | hours | GPU hours | USD, GPUs | requests | USD, requests | requests/s | written, GB/s | bundles, TB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for gpus in (8, 64, 1024):
        run = scale(clips=1_000_000, paths=1, workers=gpus, costs=SVD, storage=storage, losses=losses)
        requests_usd = run.puts / 1000 * USD_PER_1000_PUTS + run.gets / 1000 * USD_PER_1000_GETS
        print(
            f"| {gpus} | {run.hours:,.0f} | {run.gpu_hours:,.0f} | {run.gpu_hours * USD_PER_GPU_HOUR:,.0f} "
            f"| {(run.puts + run.gets) / 1e6:,.0f} M | {requests_usd:,.0f} | {run.puts_per_s + run.gets_per_s:,.1f} "
            f"| {run.written_bytes_per_s / 1e9:.2f} | {run.kept_bytes / 1e12:.0f} |"
        )
    print()
    print("| what | measured limit | GPUs that reach it |")
    print("| --- | --- | --- |")
    one = scale(clips=1_000_000, paths=1, workers=1024, costs=SVD, storage=storage, losses=losses)
    driver, leases = last(rows, op="bulk_driver"), last(rows, op="bulk_leases")
    for what, limit, per_s in (
        ("driver, rows/s", driver["rows_per_s"], one.rows_per_s),
        ("lease table, calls/s", leases["calls_per_s"], one.lease_calls_per_s),
        ("S3, puts/s to one prefix (published)", 3500.0, one.puts_per_s),
        ("S3, gets/s from one prefix (published)", 5500.0, one.gets_per_s),
    ):
        print(f"| {what} | {limit:,.0f} | {1024 * limit / per_s:,.0f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/bulk.jsonl"))
