"""The overhead of bulk runs: the driver's rate and memory, resuming, waits, a clip's second path, requests."""

import hashlib
import json
import resource
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from pyarrow import fs, parquet

from ..cluster.bulk.driver import Policy, Progress
from ..cluster.bulk.engine_row_renderer import EngineSetup, RecaptureRowEngine, RowDefaults, pipeline_of
from ..cluster.bulk.manifest import COLUMNS, Manifest, Row, read_manifest
from ..cluster.bulk.outcome import Entries, RowResult
from ..cluster.bulk.ray_pool import RayPool, RendererSetup, lease_table
from ..cluster.bulk.render import RowRenderer
from ..cluster.bulk.resume import run_manifest, scan_output
from ..cluster.bulk.single_flight import LeaseClient, SingleFlightStore
from ..cluster.session import connect
from ..engine.pipeline import Recapture
from ..engine.stages import STAGES
from ..engine.store.remote_path import AllowedRoots, RemotePath, open_remote_path
from ..engine.video import VideoWriter
from .scale import Costs, makespan_s
from .storage import Counting
from .timing import Row as BenchRow
from .timing import measured

CAMERAS = [f"{name}({amount})" for amount in ("0.1", "-0.1", "0.05", "-0.05") for name in ("truck", "pedestal")]
"""Eight paths near each other."""

OPTIONS = {"condition": {"height": 64, "width": 96}}
"""A small picture, and all steps of the preset: what is measured are proportions, and that in minutes."""


class NoStages:
    """A renderer without work per row; the rest is Ray, the driver and the results."""

    pipeline, loads = "no-stages", 1

    def render(self, row: Row) -> RowResult:
        return RowResult(
            status="completed", sha256=hashlib.sha256(row.row_id.encode()).hexdigest(), metrics={"frames": 14.0}
        )

    def evict(self, entries: Entries) -> Entries:
        return ()

    def release(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class NoStagesSetup:
    def make(self, leases: LeaseClient) -> NoStages:
        return NoStages()


class NobodyElse:
    """Leases for a single worker."""

    def acquire(self, key: str, wait_s: float) -> int | None:
        return 1

    def release(self, key: str, fence: int) -> None: ...


def rows_without_work(count: int, *, workers: int = 2) -> list[BenchRow]:
    """A manifest of `count` rows without work, and the scan at the start of a second run."""
    with tempfile.TemporaryDirectory() as folder:
        asked = [{"clip_id": f"c{n}", "input_uri": f"c{n // 4}.mp4", "camera": CAMERAS[n % 4]} for n in range(count)]
        began_s = time.perf_counter()
        bulk = _Setting(Path(folder), asked)
        read_s = time.perf_counter() - began_s
        with connect(None, cpus=workers):
            progress = bulk.run(NoStagesSetup(), NoStages.pipeline, workers, evict_stages=False)
        assert progress.rows == {"completed": count}
        began_s = time.perf_counter()
        scan = scan_output(bulk.out)
        assert len(scan.status) == count
        scan_s = time.perf_counter() - began_s
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [
        _row(
            "bulk_driver",
            rows=count,
            workers=workers,
            read_s=read_s,
            seconds=progress.elapsed_s,
            rows_per_s=count / progress.elapsed_s,
            driver_peak_bytes=peak_bytes,
            shards=len(scan.shards),
            resume_scan_s=scan_s,
        )
    ]


def paths_of_one_clip(*, frames: int, model: str = "tiny") -> list[BenchRow]:
    """Seconds of the first, second ... eighth path of a clip, cold and with warm start, in workers that are warm.

    The two take turns, path by path, so that whatever else the machine does falls on both.
    """
    outcomes: dict[bool, list[RowResult]] = {False: [], True: []}
    with ExitStack() as stack:
        bulks = {}
        for warm in outcomes:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            asked = [{"clip_id": "c", "input_uri": "c.mp4", "camera": each} for each in CAMERAS]
            options = {**OPTIONS, "tune": {"spatial_steps": 30, "temporal_steps": 20, "checkpoint_every": 5}}
            bulk = _Setting(
                folder, [*asked, {"clip_id": "other", "input_uri": "other.mp4", "camera": "static"}], options
            )
            write_footage(folder / "c.mp4", frames)
            write_footage(folder / "other.mp4", frames, seed=1)
            renderer = bulk.engine_setup(model, RowDefaults(options={"tune.warm_start": warm})).make(NobodyElse())
            stack.callback(renderer.close)
            bulks[warm] = bulk.manifest, renderer
        manifest, renderer = bulks[True]
        assert renderer.render(manifest.row(len(CAMERAS))).status == "completed"  # compiles the kernels
        for index in range(len(CAMERAS)):
            for warm, (manifest, renderer) in bulks.items():
                outcomes[warm].append(renderer.render(manifest.row(index)))
    return [_paths_row(frames, model, warm, outcomes[warm][:paths]) for warm in outcomes for paths in (1, 2, 4, 8)]


def _paths_row(frames: int, model: str, warm: bool, outcomes: list[RowResult]) -> BenchRow:
    assert all(outcome.status == "completed" for outcome in outcomes), outcomes
    seconds = [outcome.gpu_seconds for outcome in outcomes]
    further = statistics.median(seconds[1:]) / seconds[0] if seconds[1:] else None
    return _row(
        "bulk_paths",
        model=model,
        frames=frames,
        warm_start=warm,
        paths=len(outcomes),
        seconds=sum(seconds),
        seconds_per_path=sum(seconds) / len(seconds),
        further_path_share=further,
        tuning_s=[round(outcome.stage_seconds["temporal"], 3) for outcome in outcomes],
        temporal_steps=[outcome.metrics["temporal_steps"] for outcome in outcomes],
        held_out=[round(outcome.metrics["held_out"], 4) for outcome in outcomes],
        psnr_visible_db=[round(outcome.metrics["psnr_visible_db"], 3) for outcome in outcomes],
    )


def requests_of_a_row(*, frames: int, model: str = "tiny") -> list[BenchRow]:
    """Requests and bytes of a clip's first and second path where input, stages and output are on an object store."""
    with tempfile.TemporaryDirectory() as folder:
        write_footage(Path(folder, "c.mp4"), frames)
        counting = Counting(fs.LocalFileSystem())
        root = RemotePath(fs.PyFileSystem(counting), folder, "count://bucket")
        manifest = _manifest(
            Path(folder), [{"clip_id": "c", "input_uri": "c.mp4", "camera": each} for each in CAMERAS[:2]]
        )
        with tempfile.TemporaryDirectory() as cache:
            store = SingleFlightStore(root / "stages", leases=NobodyElse(), local_dir=Path(cache))
            row_engine = RecaptureRowEngine(
                Recapture.from_pretrained(model, device="cpu", store=store), RowDefaults(), tuned=False
            )
            renderer = RowRenderer(row_engine, store, AllowedRoots.of([replace(root, uri=folder)]))
            try:
                rows = [_counted(renderer, manifest.row(index), counting, index) for index in range(2)]
            finally:
                renderer.close()
    return [_row("bulk_requests", model=model, frames=frames, **row) for row in rows]


def real_runs(*, clips: int, paths: int, frames: int, model: str = "tiny") -> list[BenchRow]:
    """The same manifest by one worker and by two, against the formula that docs/scale.md counts with."""
    rows = []
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            asked = [
                {"clip_id": f"c{n}", "input_uri": f"c{n}.mp4", "camera": each}
                for n in range(clips)
                for each in CAMERAS[:paths]
            ]
            bulk = _Setting(Path(folder), asked)
            for number in range(clips):
                write_footage(bulk.folder / f"c{number}.mp4", frames, seed=number)
            setup = bulk.engine_setup(model)
            pipeline = pipeline_of(model, RowDefaults())
            began_s = time.perf_counter()
            with connect(None, cpus=workers):
                connected_s = time.perf_counter() - began_s
                progress = bulk.run(setup, pipeline, workers, evict_stages=True)
                elapsed_s = time.perf_counter() - began_s
        seen = bulk.seen
        start_s = seen[0][0] - began_s - seen[0][1].gpu_seconds
        costs = costs_of([outcome for _, outcome in seen], workers, start_s)
        predicted_s = makespan_s(clips=clips, paths=paths, workers=workers, costs=costs)
        rows.append(
            _row(
                "bulk_real",
                model=model,
                frames=frames,
                clips=clips,
                paths=paths,
                workers=workers,
                seconds=elapsed_s,
                gpu_seconds=progress.gpu_seconds,
                waits=progress.waits,
                waited_s=progress.waited_s,
                ray_start_s=connected_s,
                start_s=start_s,
                warm_s=costs.warm_s,
                first_s=costs.first_s,
                further_s=costs.further_s,
                predicted_s=predicted_s,
                predicted_over_measured=predicted_s / elapsed_s,
                stage_bytes=progress.stage_bytes,
                output_bytes=progress.output_bytes,
                model_loads=progress.model_loads,
            )
        )
    return rows


def lease_calls(count: int = 4000) -> list[BenchRow]:
    """Calls a second that the lease table answers when many wait."""
    with connect(None, cpus=2):
        table = lease_table("leases-bench")
        fences = ray.get([table.acquire.remote(f"k{n}", "holder", 0.0) for n in range(100)])
        began_s = time.perf_counter()
        fences = ray.get([table.acquire.remote(f"k{n}", "holder", 0.0) for n in range(count // 2)])
        ray.get([table.release.remote(f"k{n}", fence) for n, fence in enumerate(fences)])
        seconds = time.perf_counter() - began_s
    return [_row("bulk_leases", calls=count, calls_per_s=count / seconds)]


def waits_on_one_clip(*, frames: int, model: str = "tiny") -> list[BenchRow]:
    """Two workers on the paths of one clip: how long the second waits for the first one's shared stages."""
    with tempfile.TemporaryDirectory() as folder:
        bulk = _Setting(Path(folder), [{"clip_id": "c", "input_uri": "c.mp4", "camera": each} for each in CAMERAS[:4]])
        write_footage(bulk.folder / "c.mp4", frames)
        pipeline = pipeline_of(model, RowDefaults())
        with connect(None, cpus=2):
            progress = bulk.run(bulk.engine_setup(model), pipeline, 2, evict_stages=True)
    shared = {stage.name for stage in STAGES if stage.per_clip}
    done = sum(1 for _, outcome in bulk.seen for name in outcome.stage_seconds if name in shared)
    return [
        _row(
            "bulk_waits",
            model=model,
            frames=frames,
            workers=2,
            paths=4,
            waits=progress.waits,
            waited_s=progress.waited_s,
            gpu_seconds=progress.gpu_seconds,
            shared_stages=len(shared),
            shared_stages_computed=done,
        )
    ]


def costs_of(outcomes: list[RowResult], workers: int, start_s: float) -> Costs:
    """Costs from a run's outcomes in the order that they came in: the first of each worker is also its warming up."""
    cold, rest = outcomes[:workers], outcomes[workers:]
    first = [outcome.gpu_seconds for outcome in rest if "frames" in outcome.stage_seconds]
    further = [outcome.gpu_seconds for outcome in rest if "frames" not in outcome.stage_seconds]
    first_s = statistics.mean(first)
    warm_s = statistics.mean(outcome.gpu_seconds for outcome in cold) - first_s
    further_s = statistics.mean(further) if further else 0.0
    return Costs(start_s=start_s, warm_s=max(0.0, warm_s), first_s=first_s, further_s=further_s)


class _Setting:
    """A folder with a manifest, runs over it, and what the runs' outcomes were."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]], options: dict[str, Any] = OPTIONS) -> None:
        self.folder, self.out = folder, open_remote_path(str(folder / "out"), param="out")
        self.manifest = _manifest(folder, rows, options)
        self.seen: list[tuple[float, RowResult]] = []

    def engine_setup(self, model: str, defaults: RowDefaults | None = None) -> EngineSetup:
        return EngineSetup(
            model=model,
            device="cpu",
            stages=str(self.folder / "out" / "stages"),
            roots=(str(self.folder),),
            threads=1,
            defaults=defaults or RowDefaults(),
        )

    def run(self, setup: RendererSetup, pipeline: str, workers: int, *, evict_stages: bool) -> Progress:
        policy = Policy(workers=workers, evict_stages=evict_stages)

        def seen(outcome: RowResult, attempts: int) -> None:
            if len(self.seen) < 10_000:  # the driver's memory is measured, not this list's
                self.seen.append((time.perf_counter(), outcome))

        return run_manifest(
            self.manifest,
            self.out,
            policy,
            lambda driver: RayPool(setup, driver=driver, shared=str(self.folder)),
            pipeline=pipeline,
            on_outcome=seen,
        )


def write_footage(path: Path, frames: int, *, seed: int = 0, width: int = 160, height: int = 96) -> None:
    """A box before a textured wall, at 12 frames a second, moving to the right; sides are multiples of 8."""
    rng = np.random.default_rng(seed)
    wall = rng.integers(40, 180, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with VideoWriter(path, width=width, height=height, rate=Fraction(12), crf=10) as video:
        for t in range(frames):
            picture = wall.copy()
            picture[30:70, 20 + 4 * t : 50 + 4 * t] = (230, 200, 40)
            video.write(picture)


def _manifest(folder: Path, rows: list[dict[str, Any]], options: dict[str, Any] = OPTIONS) -> Manifest:
    rows = [{**row, "options": json.dumps(options)} for row in rows]
    parquet.write_table(pa.Table.from_pylist(rows, schema=COLUMNS), folder / "manifest.parquet")
    place = open_remote_path(str(folder / "manifest.parquet"), param="manifest")
    return read_manifest(place, AllowedRoots([str(folder)]), open_remote_path(str(folder / "out"), param="out"))


def _counted(renderer: RowRenderer, row: Row, counting: Counting, index: int) -> dict[str, Any]:
    counting.requests.clear()
    counting.bytes.clear()
    outcome = renderer.render(row)
    assert outcome.status == "completed", outcome
    return {
        "path": index + 1,
        **{f"{kind}_requests": counting.requests[kind] for kind in ("get", "put", "head", "list", "delete")},
        "read_bytes": counting.bytes["read"],
        "video_bytes": sum(f.stat().st_size for f in Path(row.output_uri).glob("*.mp4")),
        "stage_bytes": outcome.stage_bytes,
        "output_bytes": outcome.output_bytes,
    }


def _row(op: str, **values: Any) -> BenchRow:
    return measured(op, ("ray",), **values)
