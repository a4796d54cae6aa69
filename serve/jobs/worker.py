"""A worker: takes jobs by lease and fence, runs the engine with a warm model, publishes. `python -m ...worker KIND...`.

Whatever ends it, the job is whole: told to stop it hands the job back, killed its lease runs out, and either way the
next worker finds in the store what was finished. Artifacts are durable before the record says that they are there.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from torch import Tensor

from ...engine.cameras import CameraSpec, parse_camera, parse_expression
from ...engine.config import RunConfig, override
from ...engine.errors import InputError, RecaptureError
from ...engine.graph.context import StageContext
from ...engine.models import adapters
from ...engine.options import by_section
from ...engine.pipeline import Recapture
from ...engine.planning.estimate import make_plan, time_plan
from ...engine.report.bundle import write_bundle
from ...engine.result import Result
from ...engine.stage_options import decode_options
from ...engine.stage_results import StageRecord, tuned_adapters
from ...engine.stages import STAGES
from ...engine.store import Store, stage_key
from ...engine.store.scratch import Scratch
from ...engine.video import ClipInfo, Limits
from ..api.error_handlers import request_field
from ..artifacts import CONTENT
from ..logs import get_logger, set_up_logs
from ..settings import Settings
from ..uploads.clip_sources import Inputs
from ..uploads.decoding import Check, add_sound, decode_into_store
from ..uploads.uploads import Uploads
from .jobs import Jobs, load_job
from .lease import Lease, Lost, Stopped
from .options import digest_of
from .preview import OpenClip, Previewer, clip_key
from .records import Job, Refused
from .worker_registry import WorkerRegistry

_IDLE_S, _AWAKE_S, _AWAKE_FOR_S = 0.2, 0.02, 20.0
"""Between two looks at the queue; more often for a while after a job, when a person may be dragging a slider."""
_BEAT_S = 2.0
_AWAY_S = 1.0
"""After a failed query, before the next."""

log = get_logger("worker")


class JobWorker:
    """One process's worth of work. `run` returns when `stop` is set.

    Args:
        kinds: of jobs that it takes: render, preview, estimate.
        head_start_s: for so long a new resample is left to the worker that it was offered to.
    """

    def __init__(
        self,
        settings: Settings,
        kinds: Collection[str],
        *,
        stop: threading.Event | None = None,
        head_start_s: float = 0.0,
    ) -> None:
        self.settings, self.kinds, self.stop = settings, sorted(kinds), stop or threading.Event()
        self._head_start_s = head_start_s
        self._offered: deque[tuple[str, HeldAdapters]] = deque(maxlen=16)  # one that is missed costs a read
        self._called = threading.Event()
        self.name = f"{platform.node()[:60]}-{os.getpid()}-{secrets.token_hex(3)}"
        database = settings.open_database()
        self.jobs = Jobs(database, quota=settings.quota)
        uploads = Uploads(database, settings)
        self.inputs, self.files = Inputs(settings, uploads), uploads.files
        with tempfile.TemporaryDirectory() as folder:  # the engine wants a store; each job brings its tenant's
            self.models = Recapture.from_pretrained(settings.model, device=settings.device, store=folder).models
        self._usual = override(RunConfig(model=settings.model), by_section(settings.options))
        self.workers = WorkerRegistry(database)
        self.previewer = Previewer()
        self._beaten_at = 0.0

    def run(self) -> None:
        """Take jobs until told to stop."""
        entry, depth = self.models.entry, self.models.depth_source(self._usual.depth.model)
        model = {
            "id": entry.name,
            "license": entry.license,
            "about": entry.about,
            "frames": self.models.shape.frames,
            "depth": depth.name,
            "depth_license": depth.license,
        }
        self.workers.register(self.name, self.kinds, model, self.models.device.type)
        if "render" in self.kinds:
            # Warm before the first job comes.
            self.models.video(self._usual.tune.rank, self._usual.attention, precision=self._usual.dtype)
        log.info(
            "worker_ready",
            worker=self.name,
            kinds=self.kinds,
            model=entry.name,
            depth=depth.name,
            device=str(self.models.device),
        )
        awake_until = 0.0
        try:
            while not self.stop.is_set():
                try:
                    self._beat()
                    self._called.clear()
                    job = self._take()
                    if job is None:
                        self.jobs.expire_overdue()
                        self._called.wait(_AWAKE_S if time.monotonic() < awake_until else _IDLE_S)
                        continue
                    self.work(job)
                    awake_until = time.monotonic() + _AWAKE_FOR_S
                except SQLAlchemyError:
                    log.exception("database_away", worker=self.name)
                    self.stop.wait(_AWAY_S)
        finally:
            self.workers.leave(self.name)
            log.info("worker_ended", worker=self.name)

    def offer(self, job: str, held: "HeldAdapters") -> None:
        """A resample that this worker can do with adapters in memory; it takes it if both are free and it is its turn."""
        self._offered.append((job, held))
        self._called.set()

    def hold_adapters(self, render: str) -> "HeldAdapters":
        """The tuned adapters of a completed render; none where it is not there any more."""
        with self.jobs.database.reading() as connection:
            job = load_job(connection, render)
        if job is None or job.result is None:
            return HeldAdapters(())
        local = self.settings.store_path(job.tenant)  # of an object store this machine's copy, where it has one
        return HeldAdapters(local / where for where in job.result.get("adapters", ()))

    def _take(self) -> Job | None:
        lease_s = self.settings.lease_s
        while self._offered:
            offered, held = self._offered.popleft()
            if (job := self.jobs.take(self.name, self.kinds, lease_s=lease_s, job=offered)) is not None:
                self.models.read_adapter = held.read
                return job
        self.models.read_adapter = adapters.read
        return self.jobs.take(self.name, self.kinds, lease_s=lease_s, head_start_s=self._head_start_s)

    def work(self, job: Job) -> None:
        """Do one job, whatever comes of it."""
        told = log.bind(job=job.id, tenant=job.tenant, attempt=job.attempt, fence=job.fence)
        told.info("job_taken", kind=job.kind)
        lease = Lease(self.jobs, job, lease_s=self.settings.lease_s, stop=self.stop, beat=self._beat)
        try:
            with lease:
                getattr(self, f"_{job.kind}")(job, lease)
            told.info("job_done")
        except Stopped:
            self._unless_lost(lambda: self.jobs.give_back(lease.claim))
            told.info("job_given_back")
        except (Lost, Refused):
            told.info("job_lost")
        except SQLAlchemyError:  # no fault of the job's: its lease runs out, and whoever takes it then goes on
            told.exception("job_left")
        except RecaptureError as error:
            self._fail(lease, error)
            told.info("job_failed", code=error.code)
        except Exception:
            told.exception("job_broke")
            message = f"the {job.kind} failed inside the service; its log has the reason"
            self._fail(lease, RecaptureError(message, code="internal"))

    def _render(self, job: Job, lease: Lease) -> None:
        folder = self.files.attempt(job.id, job.fence)
        # What earlier attempts left that were killed, or did not learn whether they had published. A later one's may be
        # published: this attempt may be the dead one.
        self.files.remove_attempts(job.id, job.fence)
        published = False
        try:
            with self.files.store(job.tenant) as store:
                result = self._film(job, lease, store, RunConfig.from_json(job.request["config"]))
                lease.check()
                write_bundle(result, folder, add_sound=partial(self._add_sound, check=lease.check))
                answer = {
                    "folder": str(job.fence),
                    "content": content_of(folder),
                    "hole_share": result.hole_share,
                    "generated_share": result.generated_share,
                    "frames_digest": digest_of([result.entries[stage].digest for stage in ("deliver", "generate")]),
                    "reused": [record.name for record in result.records if record.reused],
                    "clip_sha256": result.request.clip_sha256,
                    "depth": result.config.depth.model,
                    "device": self.models.device.type,
                    "worker": self.name,
                    "adapters": [str(path.relative_to(store.root)) for path in tuned_adapters(result.entries).values()],
                }
                warnings = list(result.warnings)
            self.files.keep_attempt(job.id, job.fence)
            published = True  # from here on as far as anybody knows: a connection may be lost behind the commit
            try:
                self.jobs.complete(lease.claim, answer, warnings=warnings, compute_s=lease.spent_s())
            except Refused:
                published = False
                raise
        finally:
            if not published:
                self.files.remove_attempts(job.id, job.fence)

    def _add_sound(self, video: Path, source: Path, *, start_s: float, limits: Limits, check: Check) -> list[str]:
        # The child has the same limits.
        return add_sound(video, source, start_s=start_s, settings=self.settings, check=check)

    def _preview(self, job: Job, lease: Lease) -> None:
        request = job.request

        def prepare() -> OpenClip:
            store = self.files.store(job.tenant)
            config = override(self._usual, request["sections"])
            return OpenClip(self._film(job, lease, store, config, camera="static", until="motion"), store)

        sha256 = request["sha256"]
        if sha256 is None:
            with self.files.store(job.tenant) as store:
                sha256 = self.inputs.clip(job, store, lease.check).sha256
        key = clip_key(job.tenant, sha256, request["sections"])
        clip = self.previewer.clip(key, prepare)
        if "scene" in request:
            answer = self.previewer.scene(clip, request["scene"])
        else:
            with tempfile.TemporaryDirectory(prefix="recapture-") as folder:
                answer = self.previewer.draw(clip, camera_of(request["camera"], Path(folder)), request["asked"])
        self.jobs.complete(lease.claim, answer, warnings=[])

    def _estimate(self, job: Job, lease: Lease) -> None:
        with self.files.store(job.tenant) as store:
            config = RunConfig.from_json(job.request["config"])
            preview = self._film(job, lease, store, config, until="anchor")
            lease.check()
            plan = make_plan(preview).to_json()
            self.jobs.complete(lease.claim, {**plan, "warnings": list(preview.warnings)}, warnings=[])

    def _film(
        self,
        job: Job,
        lease: Lease,
        store: Store,
        config: RunConfig,
        *,
        camera: str | None = None,
        until: str = "deliver",
    ) -> Result:
        """Run the engine, after a child process has decoded the clip into the store for it."""
        if job.attempt > 1:
            store.gc()  # what the worker before had half written, if it was killed
        clip = self.inputs.clip(job, store, lease.check)
        lease.check()
        key = frames_key(clip.sha256, config)
        if store.get(FRAMES.name, key) is None:
            decode_into_store(clip.path, clip.info, config.decode, store, key, self.settings, lease.check)
            if store.get(FRAMES.name, key) is None:  # or the engine would open the file in this process
                raise RecaptureError("the clip's frames were decoded and are not in the store", code="internal")
        engine = Recapture(self.models, store=store)

        def on_stage_end(record: StageRecord, result: Result) -> None:
            lease.check()
            lease.stage_done(record.name)
            # A resample needs no leave: it is less than the render that it goes on from.
            if record.name == FRAMES.name and job.kind == "render" and job.request.get("tuned_by") is None:
                self._admit(result.context)

        with tempfile.TemporaryDirectory(prefix="recapture-") as folder:
            spec = camera_of(camera or job.request["camera"], Path(folder))
            return engine(
                clip.path,
                spec,
                config=config,
                until=until,
                info=ClipInfo.from_json(clip.info),
                on_progress=lease.on_progress,
                on_stage_start=lambda name, result: lease.check(),
                on_stage_end=on_stage_end,
            )

    def _admit(self, context: StageContext) -> None:
        """Raises TooCostly: by a measured piece of it the render would take longer than one may."""
        seconds, most = sum(time_plan(context, context.request.frame_count).values()), self.settings.max_render_s
        if seconds > most:
            raise TooCostly(
                f"it would take about {seconds:.0f} s here and may take {most:.0f}; ask for fewer frames or steps, or a "
                "smaller picture",
                param="options",
            )

    def _fail(self, lease: Lease, error: RecaptureError) -> None:
        message, param = error.spelled(request_field)
        kept = {"code": error.code, "message": message, "param": param}
        if lease.job.kind != "render":  # its caller still waits, and gets it with a status
            kept["refused"] = isinstance(error, InputError)
        self._unless_lost(lambda: self.jobs.fail(lease.claim, kept, compute_s=lease.spent_s()))

    def _unless_lost(self, change: Callable[[], object]) -> None:
        with contextlib.suppress(Refused):  # it ended otherwise meanwhile, and stays so
            change()

    def _beat(self) -> None:
        if time.monotonic() - self._beaten_at >= _BEAT_S:
            self._beaten_at = time.monotonic()
            self.workers.beat(self.name)


class TooCostly(InputError):
    """More work than the operator grants to one render."""

    code = "too_costly"


class HeldAdapters:
    """Tuned adapters in memory, by the folder that has each on disk."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._tensors = {folder: adapters.read(folder) for folder in folders if folder.is_dir()}

    def read(self, folder: Path) -> dict[str, Tensor]:
        """The adapter of this folder; read from there if it is none of these."""
        held = self._tensors.get(folder)
        return adapters.read(folder) if held is None else held


FRAMES = STAGES[0]


def frames_key(sha256: str, config: RunConfig) -> str:
    """Where the store has a clip's frames."""
    options = decode_options(sha256, config.decode)
    return stage_key(stage=FRAMES.name, version=FRAMES.version, config=options, inputs={}, weights=None)


def camera_of(kept: str | dict[str, Any], folder: Path) -> CameraSpec:
    """The camera of a job: an expression, or a camera file's content, written to `folder` to be read by its format."""
    if isinstance(kept, str):
        return parse_expression(kept)
    path = folder / "camera.json"
    path.write_text(json.dumps(kept))
    return parse_camera(str(path))


def content_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Sync a bundle's files; their sizes and sha256 by the name that callers use."""
    content = {}
    for variant, (name, kind) in CONTENT.items():
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
            content[variant] = {"bytes": file.tell(), "sha256": digest, "content_type": kind}
    return content


def main() -> None:
    """Run until SIGTERM; SIGINT is the supervisor's affair and reaches us as the other."""
    settings = Settings.of_process()
    set_up_logs()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    scratch = Scratch()  # of the whole process, which is this worker's alone
    try:
        JobWorker(settings, sys.argv[1:], stop=stop).run()
    finally:
        scratch.close()


if __name__ == "__main__":
    main()
