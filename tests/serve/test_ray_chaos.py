"""The service on Ray Serve, of which each process is killed in the middle of a render: it is completed, once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from recapture.client import Client, ClientError, Render
from recapture.serve.database import Database
from recapture.serve.jobs.jobs import Jobs
from recapture.serve.jobs.records import Job
from recapture.serve.keys import create_key
from recapture.serve.settings import Settings

from ..engine.test_pipeline import write_clip
from .databases import postgres_binaries, postgres_server
from .test_processes import LONG, bundles, until_tuning
from .test_ray import free_port

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

DRIVER = """
import sys, time, ray
from ray import serve
from recapture.cluster.session import authenticate, connect
from recapture.serve.api.app import build_app
from recapture.serve.settings import Settings
authenticate(create=False)
with connect(sys.argv[1]):
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])}, proxy_location="HeadOnly")
    serve.run(build_app(Settings.model_validate_json(sys.argv[3])), name="recapture", route_prefix="/")
    print("up", flush=True)
    time.sleep(100_000)
"""


@contextmanager
def machines(*cpus: int) -> Iterator["ray.cluster_utils.Cluster"]:
    """Nodes of one cluster with so many CPUs each, the head first."""
    from ray.cluster_utils import Cluster

    from recapture.cluster.session import authenticate

    authenticate(create=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0]})
    try:
        for count in cpus[1:]:
            cluster.add_node(num_cpus=count)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def deployed(cluster: "ray.cluster_utils.Cluster", settings: Settings) -> Iterator[tuple[Client, subprocess.Popen]]:
    """The service, deployed by a driver process that stays until it is killed."""
    port = free_port()
    command = [sys.executable, "-c", DRIVER, cluster.address, str(port), settings.model_dump_json()]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        assert any(line == "up\n" for line in driver.stdout)
        records = settings.open_database()
        with Client(f"http://127.0.0.1:{port}", api_key=create_key(records, "studio")) as client:
            yield client, driver
        records.close()
    finally:
        driver.kill()
        driver.wait()


def processes(title: str) -> list[psutil.Process]:
    """Those of this test's cluster that Ray has given a title that begins so."""
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if " ".join(process.cmdline()).startswith(title)]


def ended(settings: Settings, render: Render) -> Job:
    """The record when it is final, from the database: whatever serves it may be down."""
    records = Database(settings.database_url)
    try:
        until_s = time.monotonic() + 600
        while not (job := Jobs(records).get("studio", render.id)).final:
            assert time.monotonic() < until_s, job
            time.sleep(0.2)
        return job
    finally:
        records.close()


def downloaded(client: Client, render: Render, path: Path) -> Path:
    """The video, as soon as somebody answers again."""
    until_s = time.monotonic() + 300
    while True:
        try:
            return client.renders.download(render, path)
        except ClientError:
            assert time.monotonic() < until_s
            time.sleep(1)


def completed_once(client: Client, settings: Settings, asked: Render, tmp_path: Path, *, attempts: int) -> None:
    job = ended(settings, asked)
    assert (job.status, job.attempt, job.error) == ("completed", attempts, None)
    assert downloaded(client, asked, tmp_path / "video.mp4").stat().st_size > 0
    assert len(bundles(settings, asked)) == 1


@pytest.fixture
def clip(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    return write_clip(tmp_path / "walk.mp4")


@pytest.mark.parametrize(
    ("title", "attempts"),
    [
        ("ray::ServeController", 1),
        ("ray::ProxyActor", 1),
        ("ray::ServeReplica:recapture:Ingress", 1),
        ("ray::ServeReplica:recapture:Renderer", 2),
        ("driver", 1),
    ],
)
def test_one_process_killed(title, attempts, small_svd, clip, tmp_path):
    settings = Settings(data=tmp_path / "data", model=str(small_svd), device="cpu", lease_s=5)
    with machines(4) as cluster, deployed(cluster, settings) as (client, driver):
        asked = client.renders.create(client.uploads.create(clip), "truck(0.1)", options=LONG)
        until_tuning(client, asked)
        (victim,) = [driver.pid] if title == "driver" else [process.pid for process in processes(title)]
        os.kill(victim, signal.SIGKILL)
        completed_once(client, settings, asked, tmp_path, attempts=attempts)


def test_a_machine_lost(small_svd, clip, tmp_path):
    """The raylet of the node that renders is killed, and with it all on that node; another node takes its place."""
    if postgres_binaries() is None:
        pytest.skip("the Debian package postgresql is not installed")
    with postgres_server() as url, machines(0, 2, 2) as cluster:  # the head renders nothing
        settings = Settings(data=tmp_path / "data", database=url, model=str(small_svd), device="cpu", lease_s=5)
        with deployed(cluster, settings) as (client, _):
            asked = client.renders.create(client.uploads.create(clip), "truck(0.1)", options=LONG)
            until_tuning(client, asked)
            (renderer,) = processes("ray::ServeReplica:recapture:Renderer")
            (node,) = [node for node in cluster.worker_nodes if raylet_pid(node) == renderer.ppid()]
            raylet = psutil.Process(raylet_pid(node))
            for lost in (raylet, *raylet.children(recursive=True)):
                lost.kill()
            cluster.add_node(num_cpus=2)
            completed_once(client, settings, asked, tmp_path, attempts=2)


def raylet_pid(node: object) -> int:
    return node.all_processes["raylet"][0].process.pid
