"""The service on Ray Serve: deployed by its builder, used by the real client, a renderer killed in the middle."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from recapture.client import Client
from recapture.engine.errors import InputError
from recapture.serve.api.app import build_app
from recapture.serve.database import Database
from recapture.serve.jobs.jobs import Jobs
from recapture.serve.keys import create_key
from recapture.serve.settings import Settings

from ..engine.test_pipeline import write_clip
from .service import QUICK
from .test_processes import LONG, finished, until_tuning

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture
def cluster():
    from recapture.cluster.session import connect

    with connect(None, cpus=4):
        yield
        from ray import serve

        serve.shutdown()


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "walk.mp4")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def deployed(settings: Settings) -> Iterator[tuple[Client, Database]]:
    """The service on the cluster, a client of the tenant `studio`, and the records."""
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    serve.run(build_app(settings), name="recapture", route_prefix="/")  # in a data folder that is not there yet
    records = settings.open_database()
    with Client(f"http://127.0.0.1:{port}", api_key=create_key(records, "studio")) as client:
        yield client, records
    records.close()


def test_a_render_on_ray_serve_outlives_its_renderer(cluster, small_svd, clip, tmp_path):
    settings = Settings(data=tmp_path / "data", model=str(small_svd), device="cpu", lease_s=3)
    with deployed(settings) as (client, _):
        upload = client.uploads.create(clip)
        assert 0 < client.preview(upload, "truck(0.1)", count=2).hole_share < 0.5
        asked = client.renders.create(upload, "truck(0.1)", options=LONG)
        middle = until_tuning(client, asked)
        (renderer,) = [name for name in ray.util.list_named_actors(all_namespaces=True) if "#Renderer#" in name["name"]]
        ray.kill(ray.get_actor(renderer["name"], namespace=renderer["namespace"]), no_restart=True)
        done = finished(client, asked, middle)
        assert done.attempt == 2
        assert client.renders.download(done, tmp_path / "video.mp4").stat().st_size > 0


def test_resamples_go_to_the_renderer_that_holds_the_adapters(cluster, small_svd, clip, tmp_path):
    settings = Settings(data=tmp_path / "data", model=str(small_svd), device="cpu", renderers=2)
    with deployed(settings) as (client, records):
        first = client.renders.wait(
            client.renders.create(client.uploads.create(clip), "truck(0.1)", options=QUICK), timeout_s=400
        )
        workers = []
        for seed in range(1, 6):
            done = client.renders.wait(client.renders.resample(first, seed=seed), timeout_s=400)
            assert {"spatial", "temporal"} <= set(done.reused)
            workers.append(Jobs(records).get("studio", done.id).result["worker"])
    assert len(set(workers)) == 1  # of two that were free each time


def test_sqlite_is_refused_on_more_than_one_node(tmp_path, monkeypatch):
    from recapture.serve.processes import deployments

    monkeypatch.setattr(deployments, "_nodes", lambda: 2)
    with pytest.raises(InputError, match="one node"):
        build_app(Settings(data=tmp_path))
