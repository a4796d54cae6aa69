"""The service on Ray Serve: deployed by its builder, used by the real client, a renderer killed in the middle."""

import socket

import pytest

from recapture.client import Client
from recapture.engine.errors import InputError
from recapture.serve.app import build_app
from recapture.serve.keys import create_key
from recapture.serve.settings import Settings

from .test_pipeline import write_clip
from .test_serve_processes import LONG, finished, until_tuning

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture
def cluster():
    from recapture.cluster.session import connect

    with connect(None, cpus=4):
        yield
        from ray import serve

        serve.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_a_render_on_ray_serve_outlives_its_renderer(cluster, small_svd, tmp_path):
    from ray import serve

    settings = Settings(data=tmp_path / "data", model=str(small_svd), device="cpu", lease_s=3)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    serve.run(build_app(settings), name="recapture", route_prefix="/")  # in a data folder that is not there yet
    database = settings.open_database()
    with Client(f"http://127.0.0.1:{port}", api_key=create_key(database, "studio")) as client:
        upload = client.uploads.create(write_clip(tmp_path / "walk.mp4"))
        assert 0 < client.preview(upload, "truck(0.1)", count=2).hole_share < 0.5
        asked = client.renders.create(upload, "truck(0.1)", options=LONG)
        middle = until_tuning(client, asked)
        (renderer,) = [name for name in ray.util.list_named_actors(all_namespaces=True) if "#Renderer#" in name["name"]]
        ray.kill(ray.get_actor(renderer["name"], namespace=renderer["namespace"]), no_restart=True)
        done = finished(client, asked, middle)
        assert done.attempt == 2
        assert client.renders.download(done, tmp_path / "video.mp4").stat().st_size > 0
    database.close()


def test_sqlite_is_refused_on_more_than_one_node(tmp_path, monkeypatch):
    from recapture.serve import deployments

    monkeypatch.setattr(deployments, "_nodes", lambda: 2)
    with pytest.raises(InputError, match="one node"):
        build_app(Settings(data=tmp_path))
