"""The service as processes: killed, told to stop, supervised, on Ray Serve. The renders come out whole, once."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recapture.client import Client, Options, Render
from recapture.serve.settings import Settings

from ..engine.test_pipeline import write_clip
from .service import Server, worker_process

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

# A tuning of some seconds, saved at every other step: there is a middle to be killed in.
LONG = Options(rank=2, spatial_steps=2, temporal_steps=120, sample_steps=1, sdedit_steps=1, overlap=2)


@pytest.fixture
def settings(small_svd, tmp_path) -> Settings:
    return Settings(data=tmp_path / "data", model=str(small_svd), device="cpu", lease_s=3)


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_clip(tmp_path / "walk.mp4")


def until_tuning(client: Client, asked: Render) -> Render:
    """Wait until the render is in the middle of its longest stage."""
    started = None
    for render in client.renders.events(asked):
        assert not render.done, render
        if render.stage == "temporal":
            started = started or render.progress
            if render.progress > started:
                return render
    raise AssertionError("the events ended early")


def finished(client: Client, asked: Render, before: Render) -> Render:
    done = client.renders.wait(asked, timeout_s=400)
    assert done.progress == 1 > before.progress
    return done


def bundles(settings: Settings, render: Render) -> list[Path]:
    return [path for path in settings.render_path(render.id).iterdir() if any(path.iterdir())]


def test_a_worker_killed_in_the_middle_costs_an_attempt_and_nothing_else(settings, clip, tmp_path):
    log = tmp_path / "worker.log"
    with Server(settings) as server, server.client() as client:
        asked = client.renders.create(client.uploads.create(clip), "truck(0.1)", options=LONG)
        first = worker_process(settings, log)
        middle = until_tuning(client, asked)
        first.kill()
        first.wait()
        second = worker_process(settings, log)
        done = finished(client, asked, middle)
        assert done.attempt == 2
        assert {"depth", "anchor", "source", "condition", "spatial"} <= set(done.reused)
        assert len(bundles(settings, done)) == 1
        assert log.read_text().count('"event": "job_done"') == 1
        # Told to stop, a worker gives its render back at once: the lease need not run out, no attempt is spent.
        asked = client.renders.create(done.input, "pan(2deg)", options=LONG)
        middle = until_tuning(client, asked)
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 0
        assert client.renders.retrieve(asked).status == "queued"
        third = worker_process(settings, log)
        assert finished(client, asked, middle).attempt == 1
        third.terminate()
        assert third.wait(60) == 0


def test_a_sleeper_that_wakes_changes_nothing(settings, clip, tmp_path):
    log = tmp_path / "worker.log"
    with Server(settings) as server, server.client() as client:
        asked = client.renders.create(client.uploads.create(clip), "truck(0.1)", options=LONG)
        sleeper = worker_process(settings, log)
        middle = until_tuning(client, asked)
        sleeper.send_signal(signal.SIGSTOP)
        other = worker_process(settings, log)
        done = finished(client, asked, middle)
        sleeper.send_signal(signal.SIGCONT)
        while '"event": "job_lost"' not in log.read_text():
            time.sleep(0.1)
        assert client.renders.retrieve(asked) == done
        assert len(bundles(settings, done)) == 1
        for process in (sleeper, other):
            process.terminate()
            assert process.wait(60) == 0


def test_the_command_serves_and_starts_again_what_is_killed(small_svd, clip, tmp_path):
    command = [
        sys.executable,
        "-m",
        "recapture",
        "serve",
        "--data",
        tmp_path / "data",
        "--model",
        small_svd,
        "--device",
        "cpu",
        "--port",
        "0",
        "--allow-root",
        f"local={tmp_path}",
    ]
    log = tmp_path / "serve.log"
    with log.open("wb") as err:
        service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
    assert service.stdout is not None
    try:
        url = service.stdout.readline().split()[1]
        key = service.stdout.readline().split()[1]
        environment = {**os.environ, "RECAPTURE_URL": url, "RECAPTURE_API_KEY": key}

        def remote(*words: object) -> subprocess.CompletedProcess[str]:
            argv = [sys.executable, "-m", "recapture", "remote", *map(str, words)]
            return subprocess.run(argv, capture_output=True, text=True, env=environment)

        options = [
            word
            for name, value in LONG.model_dump(exclude_unset=True).items()
            for word in ("--" + name.replace("_", "-"), str(value))
        ]
        started = remote("run", clip, "--camera", "truck(0.1)", *options)
        assert started.returncode == 0, started.stderr
        render = re.search(r"rnd_\w+", started.stdout)[0]
        with Client(url, api_key=key) as client:
            middle = until_tuning(client, client.renders.retrieve(render))
            pids = dict(re.findall(r'"process": "(\w+)", "pid": (\d+)', log.read_text()))
            for name in ("ingress", "renderer"):
                os.kill(int(pids[name]), signal.SIGKILL)
            while f'"process": "ingress", "pid": {pids["ingress"]}' in log.read_text().splitlines()[-1]:
                time.sleep(0.1)
        fetched = None
        while fetched is None or fetched.returncode:  # the ingress is on its way up again
            fetched = remote("fetch", render, "--out", tmp_path / "video.mp4")
        assert (tmp_path / "video.mp4").stat().st_size > 0
        status = remote("status", render)
        assert "completed, 100%" in status.stdout
        assert middle.progress < 1
        assert remote("cancel", render).stdout.splitlines()[1].startswith("status     completed")
        named = remote("run", clip.as_uri(), "--camera", "truck(0.1)", *options)  # not uploaded: the service has it
        assert named.returncode == 0, named.stderr
        refused = remote("run", "file:///etc/hostname", "--camera", "truck(0.1)")
        assert refused.returncode == 2
        assert "no allowed root" in refused.stderr
        bad = remote("run", clip, "--camera", "swirl(3deg)")
        assert bad.returncode == 2
        assert len(bad.stderr.strip().splitlines()) == 1
        assert remote("status", "rnd_nothing").returncode == 2
    finally:
        service.send_signal(signal.SIGINT)
        assert service.wait(60) == 0
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "data")], capture_output=True, text=True).stdout
    assert left == ""
