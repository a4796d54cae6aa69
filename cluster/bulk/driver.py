"""The driver: assigns rows to workers and records their results. It may be killed at any moment.

Its state is in the output: shards of results, and a signature of the driver that writes them. A row is finished when its
shard is written. A row that was rendered but not yet recorded has a mark in its own folder, and the next driver picks it up
from there.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from ...engine.errors import Cancelled, ClusterError, OutputError
from ...engine.store.references import References
from ...engine.store.remote_path import RemotePath
from .manifest import Manifest
from .outcome import RowResult
from .ownership import Ownership
from .pool import Died, Event, Finished, Pool, Ready, StillInUse
from .results import Results, Scan
from .schedule import Claim, Schedule

_START_ATTEMPTS = 3
_STORE_ATTEMPTS = 3
"""Times in a row that the output may refuse a signature or a shard, each of which was already tried four times."""

_GIVE_BACK_S = 60.0


class WorkersError(ClusterError):
    """No worker can be made, or one runs another pipeline than this driver."""

    code = "workers_failed"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a run is operated.

    Attributes:
        workers: how many rows run at once.
        evict_stages: remove a clip's stages when all its rows are finished.
        max_gpu_hours: no further row is admitted when the output's rows have taken this much.
        max_attempts: workers that a row may lose, or times that a store may fail it.
        shard_rows, shard_s: a shard is written when it has this many rows, or is this old.
        beat_s: between two signatures, and two writings of the progress.
    """

    workers: int
    evict_stages: bool = True
    max_gpu_hours: float | None = None
    max_attempts: int = 3
    shard_rows: int = 2000
    shard_s: float = 60.0
    beat_s: float = 5.0


@dataclass(kw_only=True)
class Progress:
    """Where a run stands; `progress.json` is this.

    Attributes:
        rows: by status, of the whole manifest.
        gpu_seconds: of all rows in the output.
        waits: how often a worker waited for another's stage, and how long in all.
        model_loads: of all workers that were alive at the end; equal to their number, or a model was loaded twice.
    """

    state: str = "running"
    total: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    waiting: int = 0
    running: int = 0
    retries: int = 0
    gpu_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    stages_reused: dict[str, int] = field(default_factory=dict)
    output_bytes: int = 0
    stage_bytes: int = 0
    waits: int = 0
    waited_s: float = 0.0
    workers: int = 0
    model_loads: int = 0
    elapsed_s: float = 0.0
    updated_at: str = ""

    @property
    def exit_code(self) -> int:
        """0 when every row of the manifest is there and well, else 3."""
        return 0 if self.rows.get("completed", 0) == self.total else 3


class Driver:
    """One run over a manifest, after the driver owns the output.

    Args:
        scan: rows of the output that are already done.
        first_shard: number of the next shard.
        on_outcome: called with each row's outcome and number of attempts.
        on_heartbeat: called with the run's progress every few seconds.
    """

    def __init__(
        self,
        manifest: Manifest,
        out: RemotePath,
        ownership: Ownership,
        pool: Pool,
        policy: Policy,
        *,
        pipeline: str,
        scan: Scan,
        first_shard: int,
        references: References | None = None,
        on_outcome: Callable[[RowResult, int], None] = lambda outcome, attempts: None,
        on_heartbeat: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._manifest, self._out, self._ownership, self._pool, self._policy = manifest, out, ownership, pool, policy
        self._pipeline, self._references = pipeline, references
        self._on_outcome, self._on_beat = on_outcome, on_heartbeat
        self._results, self._shard = Results(out), first_shard
        self._clips = manifest.clips()
        waiting = [index for index, name in enumerate(manifest.row_ids) if name not in scan.status]
        self._schedule = Schedule(self._clips, manifest.priorities(), waiting, max_attempts=policy.max_attempts)
        done = Counter(scan.status[name] for name in manifest.row_ids if name in scan.status)
        self.progress = Progress(total=len(manifest), rows=dict(done), gpu_seconds=scan.gpu_seconds)
        self._idle: set[str] = set()
        self._made = 0
        self._failed_starts = 0
        self._submitted_s: dict[str, float] = {}
        self._held_s: dict[int, float] = {}
        """Row -> device seconds of its earlier attempts."""
        self._entries: dict[str, set[tuple[str, str]]] = {}
        """Clip -> what its unfinished rows share in the stage store."""
        self._left: set[tuple[str, str]] = set()
        self._rows: list[dict[str, Any]] = []
        self._began_s = self._beat_at = self._shard_at = time.monotonic()
        self._spent_here_s, self._done_here = 0.0, 0
        self._forgetting = 0
        self._refused = 0

    def run(self) -> Progress:
        """Process the rows; returns when all are finished or the budget is spent.

        Raises:
            Cancelled: Ctrl-C. Finished rows are recorded.
            WorkersError, OwnershipError, OutputError: the run cannot continue.
        """
        try:
            for _ in range(min(self._policy.workers, self._schedule.waiting)):
                self._start_worker()
            self._beat()
            while self._admit():
                for event in self._pool.wait(timeout_s=min(1.0, self._policy.beat_s)):
                    self._handle(event)
                if time.monotonic() - self._beat_at >= self._policy.beat_s:
                    self._insist(self._beat)
                self._insist(self._write_due_shard)
            self._refuse_rest()
            self._settle()
        except KeyboardInterrupt:
            self._end("interrupted")
            raise Cancelled("interrupted; run the same command again and it goes on from here") from None
        except BaseException:
            self._end("failed")
            raise
        self._end("finished")
        return self.progress

    def _admit(self) -> bool:
        """Give rows to idle workers; False when nothing runs and nothing more will."""
        for worker in sorted(self._idle):
            if self._spent():
                break
            claim = self._schedule.take(worker)
            if claim is None:
                break
            self._idle.remove(worker)
            self._submitted_s[worker] = time.monotonic()
            self._pool.submit(worker, self._manifest.row(claim.row))
        if self._schedule.running:
            return True
        return not self._schedule.finished and not self._spent()

    def _spent(self) -> bool:
        """Whether another row of the usual cost would go beyond the budget."""
        if self._policy.max_gpu_hours is None:
            return False
        usual_s = self._spent_here_s / max(1, self._done_here)
        expected_s = self.progress.gpu_seconds + usual_s * (len(self._schedule.running) + 1)
        return expected_s > 3600 * self._policy.max_gpu_hours or self._policy.max_gpu_hours == 0

    def _handle(self, event: Event) -> None:
        match event:
            case Ready(worker, pipeline):
                if pipeline != self._pipeline:
                    raise WorkersError(
                        "a worker has another version of the code or of a model than this driver; give both the same "
                        "image, the same `model` and the same `recapture models pull`",
                        code="version_mismatch",
                    )
                self._failed_starts = 0
                self._idle.add(worker)
            case Finished(worker, outcome):
                self._finished(worker, outcome)
            case Died(worker, why):
                self._died(worker, why)
            case StillInUse(_, entries):
                self._forgetting -= 1
                self._left.update(entries)

    def _finished(self, worker: str, outcome: RowResult) -> None:
        claim = self._schedule.running[worker]
        self._submitted_s.pop(worker)
        self.progress.waits += outcome.waits[0]
        self.progress.waited_s += outcome.waits[1]
        if outcome.status == "retry" and self._schedule.retry(worker):
            self._count_retry(claim, outcome.gpu_seconds)
        else:
            self._record(worker, claim, outcome, alive=not outcome.broken)
        if outcome.broken:
            self._schedule.leave(worker)
            self._pool.stop(worker)
            self._start_worker()
        else:
            self._idle.add(worker)

    def _died(self, worker: str, why: str) -> None:
        self._idle.discard(worker)
        claim = self._schedule.running.get(worker)
        if claim is not None:
            held_s = time.monotonic() - self._submitted_s.pop(worker)
            if self._schedule.retry(worker):
                self._count_retry(claim, held_s)
            else:
                lost = RowResult(status="failed", error_code="worker_lost", error_message=why, gpu_seconds=held_s)
                self._record(worker, claim, lost, alive=False)
        else:
            self._failed_starts += 1
            if self._failed_starts >= _START_ATTEMPTS * self._policy.workers:
                raise WorkersError(f"workers do not start: {why}")
        self._schedule.leave(worker)
        if not self._schedule.finished:
            self._start_worker()

    def _count_retry(self, claim: Claim, held_s: float) -> None:
        self._held_s[claim.row] = self._held_s.get(claim.row, 0.0) + held_s
        self.progress.gpu_seconds += held_s
        self.progress.retries += 1

    def _record(self, worker: str, claim: Claim, outcome: RowResult, *, alive: bool) -> None:
        status = "completed" if outcome.status == "completed" else "failed"
        self._rows.append(self._result(claim, outcome, status))
        self._on_outcome(outcome, claim.attempt)
        self._spent_here_s, self._done_here = self._spent_here_s + outcome.gpu_seconds, self._done_here + 1
        progress = self.progress
        progress.rows[status] = progress.rows.get(status, 0) + 1
        progress.gpu_seconds += outcome.gpu_seconds
        progress.output_bytes += outcome.output_bytes
        progress.stage_bytes += outcome.stage_bytes
        for stage, seconds in outcome.stage_seconds.items():
            progress.stage_seconds[stage] = progress.stage_seconds.get(stage, 0.0) + seconds
        for stage in outcome.reused:
            progress.stages_reused[stage] = progress.stages_reused.get(stage, 0) + 1
        clip = self._clips[claim.row]
        self._entries.setdefault(clip, set()).update(outcome.entries)
        if self._schedule.finish(worker):
            entries = self._entries.pop(clip)
            if self._policy.evict_stages and entries and alive:
                self._pool.evict(worker, tuple(sorted(entries)))
                self._forgetting += 1
            elif self._policy.evict_stages:
                self._left.update(entries)

    def _result(self, claim: Claim, outcome: RowResult, status: str) -> dict[str, Any]:
        row = self._manifest.row(claim.row)
        return {
            "row_id": row.row_id,
            "clip_id": row.clip_id,
            "input_uri": row.input_uri,
            "camera": row.camera,
            "seed": row.seed,
            "output_uri": row.output_uri,
            "status": status,
            "error_code": outcome.error_code,
            "error_message": outcome.error_message,
            "attempts": claim.attempt,
            "gpu_seconds": outcome.gpu_seconds + self._held_s.pop(claim.row, 0.0),
            "sha256": outcome.sha256,
            "metrics": list(outcome.metrics.items()),
            "stage_seconds": list(outcome.stage_seconds.items()),
            "output_bytes": outcome.output_bytes,
            "stage_bytes": outcome.stage_bytes,
            "pipeline": self._pipeline,
            "finished_at": datetime.now(UTC),
        }

    def _refuse_rest(self) -> None:
        """Rows that the budget left out have a row in the results, too."""
        for row in self._schedule.rest():
            said = RowResult(status="failed", error_code="budget", error_message="the budget of GPU hours ended first")
            self._rows.append(self._result(Claim(row, 0), said, "not_admitted"))
            self.progress.rows["not_admitted"] = self.progress.rows.get("not_admitted", 0) + 1
            self._insist(self._write_due_shard)

    def _settle(self) -> None:
        """Evict the stages that another worker still used when their clip finished; no worker uses them now."""
        self._await_forgotten()
        self.progress.model_loads = self._pool.release()
        if self._left and self._idle:
            left, self._left = tuple(sorted(self._left)), set()
            self._pool.evict(min(self._idle), left)
            self._forgetting += 1
            self._await_forgotten()

    def _await_forgotten(self) -> None:
        deadline = time.monotonic() + _GIVE_BACK_S
        while self._forgetting and time.monotonic() < deadline:
            for event in self._pool.wait(timeout_s=1.0):
                if not isinstance(event, Ready):  # one that was made too late for any row
                    self._handle(event)

    def _start_worker(self) -> None:
        self._made += 1
        self._pool.start(f"worker-{self._made}")

    def _insist(self, call: Callable[[], None]) -> None:
        """Do what the output may refuse for a while: the rows that are not written yet are kept, and it is done again.

        Raises:
            OutputError: it was refused too often, or the disk is full.
        """
        try:
            call()
            self._refused = 0
        except OutputError as error:
            self._refused += 1
            if self._refused >= _STORE_ATTEMPTS or error.code == "disk_full":
                raise

    def _write_due_shard(self) -> None:
        old = time.monotonic() - self._shard_at > self._policy.shard_s
        if len(self._rows) >= self._policy.shard_rows or old:
            self._write_shard()

    def _write_shard(self) -> None:
        if self._rows:
            self._ownership.check()
            self._write_rows()
        self._shard_at = time.monotonic()

    def _write_rows(self) -> None:
        self._shard += 1  # also where writing fails: what it left under that name is no shard
        self._results.write(self._ownership.owner.fence, self._shard - 1, self._rows)
        self._rows = []

    def _beat(self) -> None:
        self._ownership.renew()
        if self._references is not None:
            self._references.renew({key for entries in self._entries.values() for _, key in entries})
        self._say("running")
        self._beat_at = time.monotonic()

    def _say(self, state: str) -> None:
        progress = self.progress
        progress.state, progress.waiting = state, self._schedule.waiting
        progress.running, progress.workers = len(self._schedule.running), len(self._idle) + len(self._schedule.running)
        progress.elapsed_s = round(time.monotonic() - self._began_s, 3)
        progress.updated_at = datetime.now(UTC).isoformat(timespec="seconds")
        (self._out / "progress.json").write(json.dumps(asdict(progress), indent=1).encode())
        self._on_beat(progress)

    def _end(self, state: str) -> None:
        """Record finished rows, then release resources. Results go first: SIGKILL may follow SIGTERM."""
        try:
            with contextlib.suppress(OutputError):  # no answer; and of a driver that was taken over no shard counts
                self._ownership.check()
            while self._rows:
                self._insist(self._write_rows)
            self._say(state)
        finally:
            try:
                if self._references is not None:
                    with contextlib.suppress(OSError):  # they go stale by themselves
                        self._references.drop()
                self._ownership.release()
            finally:
                self._pool.close()
