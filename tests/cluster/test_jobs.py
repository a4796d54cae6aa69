"""Bulk runs as Ray jobs, against a real dashboard that asks for a token."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from recapture.cluster.jobs import RayJobs, build_wheel
from recapture.engine.errors import ClusterError, InputError

from ..cli.test_cli import recapture  # noqa: F401 - the fixture
from ..engine.test_pipeline import write_clip
from .bulk.test_ray import manifest_of

pytestmark = [pytest.mark.slow]

TOKEN = "5eed" * 16


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def dashboard():
    """Address of a one-machine cluster's dashboard, on ports of its own: a machine may run several clusters."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="rj-") as folder:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # the job's `python`
        head = subprocess.Popen(
            [
                Path(sys.executable).parent / "ray",
                "start",
                "--head",
                "--block",
                "--num-cpus=2",
                f"--temp-dir={folder}",
                f"--port={free_port()}",
                "--include-dashboard=true",
                f"--dashboard-port={port}",
                f"--dashboard-agent-listen-port={free_port()}",
                f"--ray-client-server-port={free_port()}",
                "--dashboard-host=127.0.0.1",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for_agent(f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            head.terminate()
            head.wait(60)


def wait_for_agent(address: str) -> None:
    """The dashboard answers before it can take jobs."""
    deadline = time.monotonic() + 120
    headers = {"Authorization": f"Bearer {TOKEN}"}
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            request = urllib.request.Request(f"{address}/api/jobs/", headers=headers)
            nodes = urllib.request.Request(f"{address}/nodes?view=summary", headers=headers)
            urllib.request.urlopen(request)
            if "ALIVE" in urllib.request.urlopen(nodes).read().decode():
                return
        time.sleep(0.5)
    raise TimeoutError("no cluster after two minutes")


def answer(address: str, headers: dict[str, str]) -> int:
    try:
        return urllib.request.urlopen(urllib.request.Request(f"{address}/api/jobs/", headers=headers)).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.ci
def test_a_call_without_the_token_is_refused(dashboard, recapture, monkeypatch, tmp_path):  # noqa: F811
    assert answer(dashboard, {}) == 401
    assert answer(dashboard, {"Authorization": "Bearer " + "0" * 64}) == 403
    assert answer(dashboard, {"Authorization": f"Bearer {TOKEN}"}) == 200
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN") as caught:
        RayJobs(dashboard).list()
    assert caught.value.code == "unauthorized"
    said = recapture("jobs", "list", "--address", dashboard)
    assert said.code == 1
    assert "wants a token" in said.err


@pytest.mark.ci
def test_what_cannot_be_sent_is_refused(dashboard, recapture, tmp_path):  # noqa: F811
    jobs = RayJobs(dashboard)
    with pytest.raises(InputError, match="no job"):
        jobs.status("recapture-nothing")
    with pytest.raises(InputError, match="does not exist"):
        jobs.submit(str(tmp_path / "m.csv"), [], out="/out", wheel=None)
    with pytest.raises(InputError, match="credentials"):
        jobs.submit("s3://bucket/m.csv", ["--allow-root", "s3://key:secret@bucket"], out="/out", wheel=None)
    recapture("jobs", "list", "--address", "127.0.0.1:8265").refused("http://HEAD:8265")
    nobody = recapture("jobs", "list", "--address", "http://127.0.0.1:9")
    assert nobody.code == 1
    assert "no answer from" in nobody.err


def test_a_job_runs_on_the_sent_wheel_and_is_followed_from_outside(dashboard, recapture, small_svd, tmp_path):  # noqa: F811
    clip = write_clip(tmp_path / "walk.mp4")
    manifest = manifest_of(tmp_path, ["truck(0.1)"], [clip.relative_to(tmp_path)])  # so the clip travels along
    wheel = build_wheel(tmp_path)
    out = tmp_path / "out"
    sent = recapture(
        "submit",
        manifest,
        "--out",
        out,
        "--address",
        dashboard,
        "--model",
        small_svd,
        "--concurrency",
        1,
        "--device",
        "cpu",
        "--allow-root",
        tmp_path,
        "--wheel",
        wheel,
        "--json",
    )
    assert sent.code == 0, sent.err
    job = json.loads(sent.out)["job_id"]
    seen = set()
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        state = json.loads(recapture("jobs", "status", job, "--address", dashboard, "--json").out)
        seen.add((state["progress"] or {}).get("state"))
        if state["status"] in ("SUCCEEDED", "FAILED", "STOPPED"):
            break
        time.sleep(1.0)
    logs = recapture("jobs", "logs", job, "--address", dashboard).out
    assert (state["status"], state["exit_code"]) == ("SUCCEEDED", 0), logs
    assert {"running", "finished"} <= seen
    assert state["progress"]["rows"] == {"completed": 1}
    assert "1 ok of 1" in logs
    assert job in recapture("jobs", "list", "--address", dashboard).out
    assert len(list((out / "clips").iterdir())) == 1
    told = JobSubmissionClient(dashboard, headers={"Authorization": f"Bearer {TOKEN}"}).get_job_info(job)
    assert told.runtime_env.keys() <= {"env_vars", "working_dir", "py_modules", "_ray_commit"}
    assert told.runtime_env["env_vars"] == {"OMP_WAIT_POLICY": "PASSIVE"}  # whoever may list jobs reads this
    assert TOKEN not in told.model_dump_json()


def wait_for(address: str, job: str, done) -> dict:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        state = json.loads(json.dumps(asdict(RayJobs(address).status(job))))
        if done(state):
            return state
        time.sleep(0.5)
    raise TimeoutError(RayJobs(address).logs(job))


def test_a_stopped_job_goes_on_when_it_is_sent_again(dashboard, recapture, small_svd, tmp_path):  # noqa: F811
    cameras = ["truck(0.1)", "truck(0.2)", "truck(-0.1)"]
    manifest = manifest_of(tmp_path, cameras, [write_clip(tmp_path / "walk.mp4")])
    words = [
        manifest,
        "--out",
        tmp_path / "out",
        "--address",
        dashboard,
        "--model",
        small_svd,
        "--concurrency",
        1,
        "--device",
        "cpu",
        "--allow-root",
        tmp_path,
        "--installed",
    ]
    first = json.loads(recapture("submit", *words, "--json").out)["job_id"]
    wait_for(dashboard, first, lambda state: (state["progress"] or {}).get("rows"))
    assert recapture("jobs", "stop", first, "--address", dashboard).code == 0
    stopped = wait_for(dashboard, first, lambda state: state["status"] == "STOPPED")
    assert stopped["progress"]["state"] == "interrupted"
    assert 1 <= stopped["progress"]["rows"]["completed"] < 3
    second = recapture("submit", *words).out.split()[1]
    ended = wait_for(dashboard, second, lambda state: state["exit_code"] is not None)
    assert (ended["exit_code"], ended["progress"]["rows"]) == (0, {"completed": 3})
    assert "3 ok of 3" in recapture("jobs", "logs", second, "--address", dashboard, "--follow").out
    said = recapture("jobs", "status", second, "--address", dashboard).out
    assert "succeeded (exit code 0)" in said
    assert "3 ok of 3" in said


def test_plain_ray_submits_it_too(dashboard, small_svd, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    manifest = manifest_of(tmp_path, ["truck(0.1)"], [tmp_path / "broken.mp4"])
    done = subprocess.run(
        [
            Path(sys.executable).parent / "ray",
            "job",
            "submit",
            "--address",
            dashboard,
            "--",
            "recapture",
            "bulk",
            manifest,
            "--out",
            tmp_path / "out",
            "--cluster",
            "auto",
            "--model",
            small_svd,
            "--device",
            "cpu",
            "--concurrency",
            "1",
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "1 failed of 1" in done.stdout + done.stderr
    assert done.returncode != 0  # exit code 3: a row failed
