"""Small real things for bulk tests: a film maker that takes milliseconds, workers in this process, manifests."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs, parquet

from recapture.cluster.bulk.driver import Policy, Progress
from recapture.cluster.bulk.manifest import COLUMNS, Manifest, Row, read_manifest
from recapture.cluster.bulk.outcome import Entries, RowResult
from recapture.cluster.bulk.pool import Died, Event, Finished, Ready, StillInUse
from recapture.cluster.bulk.render import RowRenderer
from recapture.cluster.bulk.results import Results
from recapture.cluster.bulk.resume import run_manifest, scan_output
from recapture.cluster.bulk.single_flight import LeaseClient, SingleFlightStore
from recapture.engine.errors import InputError
from recapture.engine.store import Store, stage_key
from recapture.engine.store.remote_path import AllowedRoots, RemotePath, open_remote_path


class NoLeases:
    """For a single worker: everything is its own."""

    def acquire(self, key: str, wait_s: float) -> int | None:
        return 1

    def release(self, key: str, fence: int) -> None: ...


class Sketch:
    """A `RowEngine` of two stages: the clip's bytes counted (shared by its paths), and a text that stands for the video."""

    pipeline = "sketch-1"

    def __init__(self, store: Store, on_stage: Callable[[str, Row], None] = lambda stage, row: None) -> None:
        self._store, self._on_stage = store, on_stage
        self.loads = 1

    def __call__(self, row: Row, clip: Path, camera: str, bundle: Path) -> RowResult:
        data = clip.read_bytes()
        if data == b"broken":
            raise InputError("the clip is broken", param="CLIP", code="invalid_video")
        sha256 = hashlib.sha256(data).hexdigest()
        worked: dict[str, float] = {}
        entries = []
        for stage, config in (("shared", {}), ("path", {"camera": row.camera, "seed": row.seed})):
            key = stage_key(stage=stage, version=1, config=config, inputs={"clip": sha256}, weights=None)
            entry = self._store.get(stage, key)
            if entry is None:
                self._on_stage(stage, row)
                with self._store.begin(stage, key) as writer:
                    writer.json("said", {"bytes": len(data), **config})
                    entry = writer.publish()
                worked[stage] = 0.001
            entries.append(entry)
        self._on_stage("publish", row)
        bundle.mkdir()
        said = [entry.json("said") for entry in entries]
        (bundle / "video.mp4").write_text(json.dumps(said))
        return RowResult(
            status="completed",
            metrics={"bytes": float(len(data))},
            stage_seconds=worked,
            reused=tuple({"shared", "path"} - set(worked)),
            entries=tuple((entry.stage, entry.key) for entry in entries),
            stage_bytes=sum(entry.bytes for entry in entries if entry.stage in worked),
        )


@dataclass(frozen=True, kw_only=True)
class SketchSetup:
    """Makes `Sketch` renderers, in this process or a worker's."""

    stages: str
    roots: tuple[str, ...]
    on_stage: Callable[[str, Row], None] = lambda stage, row: None
    on_make: Callable[[], None] = lambda: None
    alone: bool = False
    """Ask nobody whether a stage is being computed."""

    def make(self, leases: LeaseClient) -> RowRenderer:
        self.on_make()
        leases = NoLeases() if self.alone else leases
        store = SingleFlightStore(open_remote_path(self.stages, param="store"), leases=leases)
        return RowRenderer(Sketch(store, self.on_stage), store, AllowedRoots(self.roots))


class HerePool:
    """Workers in this process: each works when the driver waits for it."""

    def __init__(self, make: Callable[[], RowRenderer]) -> None:
        self._make = make
        self._workers: dict[str, RowRenderer] = {}
        self._events: list[Event] = []
        self._todo: list[tuple[str, Row]] = []
        self.rendered: list[str] = []
        self.kill_next = 0

    def start(self, worker: str) -> None:
        self._workers[worker] = self._make()
        self._events.append(Ready(worker, self._workers[worker].pipeline))

    def submit(self, worker: str, row: Row) -> None:
        self._todo.append((worker, row))

    def evict(self, worker: str, entries: Entries) -> None:
        self._events.append(StillInUse(worker, self._workers[worker].evict(entries)))

    def wait(self, timeout_s: float) -> list[Event]:
        if self._todo:
            worker, row = self._todo.pop(0)
            if self.kill_next:
                self.kill_next -= 1
                self._workers.pop(worker).close()
                return [Died(worker, "killed")]
            self.rendered.append(row.row_id)
            self._events.append(Finished(worker, self._workers[worker].render(row)))
        events, self._events = self._events, []
        return events

    def stop(self, worker: str) -> None:
        self._workers.pop(worker).close()

    def release(self) -> int:
        for renderer in self._workers.values():
            renderer.release()
        return sum(renderer.loads for renderer in self._workers.values())

    def close(self) -> None:
        while self._workers:  # the last made scratch is the first closed: each gives back the folder before its own
            self._workers.popitem()[1].close()


@dataclass
class Bulk:
    """A folder with clips, a manifest of them, and runs over it."""

    folder: Path
    rows: list[dict[str, Any]]
    policy: Policy = field(default_factory=lambda: Policy(workers=2, shard_rows=3, beat_s=0.2))
    stages: RemotePath | None = None
    place: RemotePath | None = None

    @property
    def out(self) -> RemotePath:
        return self.place or open_remote_path(str(self.folder / "out"), param="out")

    @property
    def roots(self) -> AllowedRoots:
        return AllowedRoots.of([open_remote_path(str(self.folder), param="allow_root"), self.out])

    def manifest(self) -> Manifest:
        path = self.folder / "manifest.parquet"
        parquet.write_table(pa.Table.from_pylist(self.rows, schema=COLUMNS), path)
        return read_manifest(open_remote_path(str(path), param="manifest"), self.roots, self.out)

    def renderer(self) -> RowRenderer:
        stages = self.stages or self.out / "stages"
        store = SingleFlightStore(stages, leases=NoLeases())
        return RowRenderer(Sketch(store), store, self.roots)

    def run(self, pool: HerePool | None = None, **options: Any) -> Progress:
        self.pool = pool or HerePool(self.renderer)
        options = {"policy": self.policy, "pipeline": Sketch.pipeline, **options}
        policy = options.pop("policy")
        return run_manifest(
            self.manifest(), self.out, policy, lambda driver: self.pool, stages=self.out / "stages", **options
        )

    def results(self) -> list[dict[str, Any]]:
        """Every row that counts, by the manifest's clip and camera."""
        table = Results(self.out).table(scan_output(self.out))
        return sorted(table.to_pylist(), key=lambda row: (row["clip_id"], row["camera"]))

    def essence(self) -> list[tuple[Any, ...]]:
        """What must be equal however often, and in whatever folder, the run was disturbed."""
        return [
            (
                row["clip_id"],
                row["camera"],
                row["seed"],
                row["status"],
                row["error_code"],
                row["sha256"],
                row["metrics"],
            )
            for row in self.results()
        ]


def make_bulk(folder: Path, *, clips: int = 3, paths: int = 2, broken: tuple[int, ...] = ()) -> Bulk:
    """`clips` times `paths` rows; the clips numbered in `broken` are no videos."""
    rows = []
    for number in range(clips):
        clip = folder / f"clip-{number}.mp4"
        clip.write_bytes(b"broken" if number in broken else b"clip" * (number + 1))
        rows += [
            {"clip_id": f"clip-{number}", "input_uri": str(clip), "camera": f"truck(0.{path + 1})"}
            for path in range(paths)
        ]
    return Bulk(folder, rows)


def files_below(place: RemotePath) -> set[str]:
    found = place.filesystem.get_file_info(fs.FileSelector(place.path, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(place.path + "/") for info in found if info.is_file}
