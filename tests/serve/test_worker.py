"""A worker beside what goes wrong: callers that give up, a database that is away, children and workers that die."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from recapture.client import Client
from recapture.client.errors import InvalidRequest, ServerError
from recapture.engine.store import Store
from recapture.serve.jobs.lease import Lease
from recapture.serve.jobs.worker import JobWorker
from recapture.serve.settings import Settings
from recapture.serve.uploads import decoding

from ..engine.test_pipeline import write_clip
from ..engine.video.clips import write_clip as write_video
from .service import QUICK, Server, worker_thread


@pytest.fixture
def settings(small_svd, tmp_path) -> Settings:
    return Settings(data=tmp_path / "data", model=str(small_svd), device="cpu")


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_clip(tmp_path / "walk.mp4")


def stages(settings: Settings, tenant: str = "studio") -> Iterator[str]:
    with Store(settings.store_path(tenant)) as store:
        yield from (entry.stage for entry in store.entries())


def test_the_depth_of_a_preview_is_kept_also_when_its_caller_may_wait_no_longer(settings, clip):
    impatient = settings.model_copy(update={"interactive_wait_s": 0.5})
    with Server(impatient) as server, worker_thread(settings, "preview"), server.client(max_retries=0) as client:
        upload = client.uploads.create(clip)
        with pytest.raises(ServerError) as busy:
            client.preview(upload, "static")
        assert busy.value.code == "busy"
        until = time.monotonic() + 60
        while "depth" not in stages(settings):  # nobody asks meanwhile
            assert time.monotonic() < until
            time.sleep(0.1)


def test_a_fault_of_the_service_is_not_called_the_callers(settings, clip):
    with Server(settings) as server, worker_thread(settings, "preview"), server.client(max_retries=0) as client:
        upload = client.uploads.create(clip)
        place = settings.store_path("studio")
        place.parent.mkdir(parents=True)
        place.write_bytes(b"no folder")
        with pytest.raises(ServerError) as failed:
            client.preview(upload, "static")
        assert failed.value.code == "store_failed"
        place.unlink()
        with pytest.raises(InvalidRequest) as wrong:
            client.preview(upload, "static", frame=99)
        assert wrong.value.param == "frame"
        with Store(place) as store:  # the clip is open: who makes room takes nothing from under it
            store.gc(max_bytes=0)
        assert {"frames", "depth"} <= set(stages(settings))
        assert client.preview(upload, "static").hole_share < 0.05


def decoders(data: Path) -> str:
    return subprocess.run(["pgrep", "-f", f"decode_child.*{data}"], capture_output=True, text=True).stdout


def test_a_cancelled_decoder_is_killed_and_leaves_nothing(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_LOOK_EVERY_S", 0.02)
    long = write_video(tmp_path / "long.mp4", 200, (640, 360))
    with Server(settings) as server, server.client() as client:
        asked = client.renders.create(client.uploads.create(long), "static", options=QUICK)
        worker = JobWorker(settings, ["render"])
        thread = threading.Thread(target=worker.work, args=[worker.jobs.take(worker.name, ["render"], lease_s=60)])
        thread.start()
        scratch, until = settings.store_path("studio") / ".scratch", time.monotonic() + 60
        while not list(scratch.glob("frames-*/*")):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert decoders(settings.data)
        client.renders.cancel(asked)
        thread.join(20)
        assert not thread.is_alive()
        assert decoders(settings.data) == ""
        assert list(scratch.iterdir()) == []
        assert "frames" not in stages(settings)  # it had not come to its end


def test_a_worker_removes_what_a_killed_one_left_in_the_temporary_folder(settings, tmp_path):
    temporary = tmp_path / "tmp"
    left = temporary / "recapture-bulk-dead" / "recapture-clip"
    left.mkdir(parents=True)
    environment = os.environ | {**settings.variables(), "TMPDIR": str(temporary)}
    with subprocess.Popen([sys.executable, "-m", "recapture.serve.jobs.worker", "preview"], env=environment) as worker:
        until = time.monotonic() + 60
        while left.exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        assert list(temporary.glob("recapture-bulk-*"))  # its own, which everything that it writes aside lies in
        worker.terminate()
        assert worker.wait(60) == 0
    assert list(temporary.iterdir()) == []


def submitted(client: Client, clip: Path) -> str:
    return client.renders.create(client.uploads.create(clip), "truck(0.1)", options=QUICK).id


def folders(settings: Settings, render: str) -> list[str]:
    return sorted(path.name for path in settings.render_path(render).glob("*"))


@pytest.mark.slow
@pytest.mark.ci
def test_what_was_committed_is_kept_though_nobody_heard_of_it(settings, clip, tmp_path, monkeypatch):
    """The connection is lost behind a COMMIT once, and before one once."""
    with Server(settings) as server, server.client() as client:
        first, second = submitted(client, clip), submitted(client, clip)
        worker = JobWorker(settings, ["render"])
        complete = worker.jobs.complete

        def committed(*what: Any, **more: Any) -> None:
            complete(*what, **more)
            raise OperationalError("COMMIT", None, ConnectionError("lost"))

        def refused(*what: Any, **more: Any) -> None:
            raise OperationalError("UPDATE", None, ConnectionError("lost"))

        monkeypatch.setattr(worker.jobs, "complete", committed)
        worker.work(worker.jobs.take(worker.name, ["render"], lease_s=60))
        assert client.renders.retrieve(first).status == "completed"
        assert client.renders.download(first, tmp_path / "video.mp4").stat().st_size > 0
        monkeypatch.setattr(worker.jobs, "complete", refused)
        worker.work(worker.jobs.take(worker.name, ["render"], lease_s=0.01))
        assert client.renders.retrieve(second).status == "in_progress"  # and no failure: its lease runs out
        assert folders(settings, second) == ["1"]
        monkeypatch.undo()
        job = worker.jobs.take(worker.name, ["render"], lease_s=60)
        assert (job.id, job.attempt) == (second, 2)
        worker.work(job)
        assert client.renders.retrieve(second).status == "completed"
        assert folders(settings, second) == ["2"]


@pytest.mark.slow
@pytest.mark.ci
def test_a_query_that_fails_costs_neither_the_lease_nor_the_worker(settings, clip, monkeypatch):
    with Server(settings) as server, server.client() as client:
        render = submitted(client, clip)
        worker = JobWorker(settings, ["render"])
        job = worker.jobs.take(worker.name, ["render"], lease_s=0.3)
        away = [True]
        renew, take = worker.jobs.renew, worker.jobs.take

        def failing(really: Callable) -> Callable:
            def query(*what: Any, **more: Any) -> Any:
                if away and away.pop():
                    raise OperationalError("UPDATE", None, ConnectionError("lost"))
                return really(*what, **more)

            return query

        monkeypatch.setattr(worker.jobs, "renew", failing(renew))
        with Lease(worker.jobs, job, lease_s=0.3, stop=worker.stop, beat=lambda: None) as lease:
            time.sleep(0.9)
            assert not away
            assert worker.jobs.get("studio", render).lease_until > time.time()
            lease.check()
        worker.jobs.give_back(job.claim)
        monkeypatch.setattr(worker.jobs, "take", failing(take))
        away.append(True)
        thread = threading.Thread(target=worker.run)
        thread.start()
        assert client.renders.wait(render, timeout_s=60).status == "completed"
        worker.stop.set()
        thread.join()
