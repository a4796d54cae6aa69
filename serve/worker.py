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
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..engine.cameras import CameraSpec, parse_camera, parse_expression
from ..engine.config import RunConfig, override
from ..engine.errors import RecaptureError
from ..engine.pipeline import Recapture, Result, StageRecord
from ..engine.plan import make_plan
from ..engine.stages import STAGES
from ..engine.store import Store, stage_key
from ..engine.store.durable import sync
from ..engine.video import ClipInfo
from .content import CONTENT
from .decoding import decode_into_store
from .jobs import Jobs
from .lease import Lease, Lost, Stopped
from .logs import get_logger, set_up_logs
from .options import digest_of
from .preview import Previewer, clip_key
from .problems import request_field
from .records import Job, Refused
from .settings import Settings
from .uploads import Uploads
from .workers import Workers

_IDLE_S, _AWAKE_S, _AWAKE_FOR_S = 0.2, 0.02, 20.0
"""Between two looks at the queue; more often for a while after a job, when a person may be dragging a slider."""
_BEAT_S = 2.0

log = get_logger("worker")


class Worker:
    """One process's worth of work. `run` returns when `stop` is set.

    Args:
        kinds: of jobs that it takes: render, preview, estimate.
    """

    def __init__(self, settings: Settings, kinds: Collection[str], *, stop: threading.Event | None = None) -> None:
        self.settings, self.kinds, self.stop = settings, sorted(kinds), stop or threading.Event()
        self.name = f"{platform.node()[:60]}-{os.getpid()}-{secrets.token_hex(3)}"
        database = settings.open_database()
        self.jobs = Jobs(database, quota=settings.quota)
        self.uploads = Uploads(database, settings)
        with tempfile.TemporaryDirectory() as folder:  # the engine wants a store; each job brings its tenant's
            self.models = Recapture.from_pretrained(settings.model, device=settings.device, store=folder).models
        self.workers = Workers(database)
        self.previewer = Previewer()
        self._beaten_at = 0.0

    def run(self) -> None:
        """Take jobs until told to stop."""
        entry = self.models.entry
        model = {"id": entry.name, "licence": entry.licence, "about": entry.about, "frames": self.models.shape.frames}
        self.workers.register(self.name, self.kinds, model, self.models.device.type)
        if "render" in self.kinds:
            self.models.video(RunConfig().tune.rank)  # warm before the first job comes
        log.info("worker_ready", worker=self.name, kinds=self.kinds, model=entry.name, device=str(self.models.device))
        awake_until = 0.0
        try:
            while not self.stop.is_set():
                self._beat()
                job = self.jobs.take(self.name, self.kinds, lease_s=self.settings.lease_s)
                if job is None:
                    self.jobs.expire_overdue()
                    self.stop.wait(_AWAKE_S if time.monotonic() < awake_until else _IDLE_S)
                    continue
                self.work(job)
                awake_until = time.monotonic() + _AWAKE_FOR_S
        finally:
            self.workers.leave(self.name)
            log.info("worker_ended", worker=self.name)

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
        except RecaptureError as error:
            self._fail(lease, error.code, error.message, error.param)
            told.info("job_failed", code=error.code)
        except Exception:
            told.exception("job_broke")
            self._fail(lease, "internal", "the render failed inside the service; its log has the reason", None)

    def _render(self, job: Job, lease: Lease) -> None:
        folder = self.settings.render_path(job.id) / str(job.fence)
        shutil.rmtree(folder, ignore_errors=True)
        published = False
        try:
            with Store(self.settings.store_path(job.tenant)) as store:
                result = self._film(job, lease, store, RunConfig.from_json(job.request["config"]))
                lease.check()
                result.save(folder)
                answer = {
                    "folder": str(job.fence),
                    "content": seal(folder),
                    "hole_share": result.hole_share,
                    "generated_share": result.generated_share,
                    "frames_digest": digest_of([result.entries[stage].digest for stage in ("deliver", "generate")]),
                    "reused": [record.name for record in result.records if record.reused],
                    "device": self.models.device.type,
                }
                warnings = list(result.run.warnings)
            self.jobs.complete(lease.claim, answer, warnings=warnings, compute_s=lease.spent_s())
            published = True
        finally:
            if not published:
                shutil.rmtree(folder, ignore_errors=True)

    def _preview(self, job: Job, lease: Lease) -> None:
        request = job.request

        def prepare() -> Result:
            store = Store(self.settings.store_path(job.tenant))  # kept open with the clip
            config = override(RunConfig(model=self.settings.model), request["sections"])
            return self._film(job, lease, store, config, camera="static", until="intrinsics")

        key = clip_key(job.tenant, request["sha256"], request["sections"])
        clip = self.previewer.clip(key, prepare)
        if "scene" in request:
            answer = self.previewer.scene(clip, request["scene"])
        else:
            with tempfile.TemporaryDirectory(prefix="recapture-") as folder:
                answer = self.previewer.draw(clip, camera_of(request["camera"], Path(folder)), request["asked"])
        self.jobs.complete(lease.claim, answer, warnings=[])

    def _estimate(self, job: Job, lease: Lease) -> None:
        with Store(self.settings.store_path(job.tenant)) as store:
            config = RunConfig.from_json(job.request["config"])
            preview = self._film(job, lease, store, config, until="anchor")
            lease.check()
            plan = make_plan(preview).to_json()
            self.jobs.complete(lease.claim, {**plan, "warnings": list(preview.run.warnings)}, warnings=[])

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
        upload = self.uploads.get(job.tenant, job.request["input"])
        if upload is None or upload.status != "ready" or upload.clip is None:
            raise RecaptureError("the uploaded clip is not there any more", param="input", code="upload_gone")
        path = self.settings.upload_path(upload.id)
        lease.check()
        key = frames_key(upload.sha256, config)
        if store.get(FRAMES.name, key) is None:
            where = self.settings.store_path(job.tenant)
            decode_into_store(path, upload.clip, config.decode, where, key, self.settings)
            if store.get(FRAMES.name, key) is None:  # or the engine would open the file in this process
                raise RecaptureError("the clip's frames were decoded and are not in the store", code="internal")
        engine = Recapture(self.models, store=store)

        def on_stage(record: StageRecord | str, result: Result) -> None:
            lease.check()
            if not isinstance(record, str):
                lease.stage_done(record.name)

        with tempfile.TemporaryDirectory(prefix="recapture-") as folder:
            spec = camera_of(camera or job.request["camera"], Path(folder))
            return engine(
                path, spec, config=config, until=until, info=ClipInfo.from_json(upload.clip),
                on_progress=lease.on_progress, on_stage=on_stage,
            )  # fmt: skip

    def _fail(self, lease: Lease, code: str, message: str, param: str | None) -> None:
        error = {"code": code, "message": message, "param": request_field(param)}
        self._unless_lost(lambda: self.jobs.fail(lease.claim, error, compute_s=lease.spent_s()))

    def _unless_lost(self, change: Callable[[], object]) -> None:
        with contextlib.suppress(Refused):  # it ended otherwise meanwhile, and stays so
            change()

    def _beat(self) -> None:
        if time.monotonic() - self._beaten_at >= _BEAT_S:
            self._beaten_at = time.monotonic()
            self.workers.beat(self.name)


FRAMES = STAGES[0]


def frames_key(sha256: str, config: RunConfig) -> str:
    """Where the store has a clip's frames: what the stage itself says of a run on that clip."""
    run: Any = SimpleNamespace(clip_sha256=sha256, config=config)
    return stage_key(
        stage=FRAMES.name, version=FRAMES.version, config=FRAMES.config(run), inputs={}, weights=FRAMES.weights(run)
    )


def camera_of(kept: str | dict[str, Any], folder: Path) -> CameraSpec:
    """The camera of a job: an expression, or a camera file's content, written to `folder` to be read by its format."""
    if isinstance(kept, str):
        return parse_expression(kept)
    path = folder / "camera.json"
    path.write_text(json.dumps(kept))
    return parse_camera(str(path))


def seal(folder: Path) -> dict[str, dict[str, Any]]:
    """Make a bundle's files durable; their sizes and sha256 by the name that callers use."""
    content = {}
    for variant, (name, kind) in CONTENT.items():
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
            content[variant] = {"bytes": file.tell(), "sha256": digest, "content_type": kind}
    for path in (folder, folder.parent, folder.parent.parent):
        sync(path)
    return content


def main() -> None:
    """Run until SIGTERM; SIGINT is the supervisor's affair and reaches us as the other."""
    settings = Settings.from_environment()
    set_up_logs()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Worker(settings, sys.argv[1:], stop=stop).run()


if __name__ == "__main__":
    main()
