"""Starting and joining Ray: who may talk to it, what is refused before anything waits, what is left behind."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group_table

from recapture.cluster import session
from recapture.cluster.session import connect, placement, require
from recapture.engine.errors import ClusterError, InputError

pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    """A token file of Ray's own mode, readable by all."""
    path = tmp_path_factory.mktemp("token") / "auth_token"
    path.write_text("5" * 64)
    path.chmod(0o644)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield path


@pytest.fixture(scope="module")
def cluster(token):
    with connect(None, cpus=2):
        yield
    assert not ray.is_initialized()


def join_with(token: str) -> str:
    """What a driver that holds this token is told by the running cluster."""
    address = ray.get_runtime_context().gcs_address
    code = """
import sys
from recapture.cluster.session import connect
try:
    with connect(sys.argv[1]):
        import ray
        print(ray.cluster_resources()["CPU"])
except Exception as error:
    print(type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, address],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "RAY_AUTH_TOKEN": token, "RAY_gcs_rpc_server_reconnect_timeout_s": "2"},
    )
    return done.stdout.split()[-1]


def test_a_started_cluster_asks_for_the_token_and_hides_it(cluster, token):
    assert token.stat().st_mode & 0o777 == 0o600
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert join_with("5" * 64) == "2.0"
    assert join_with("6" * 64) == "ClusterError"


def test_a_missing_token_is_made_for_its_owner_alone(tmp_path):
    path = tmp_path / "deep" / "auth_token"
    session._ensure_token(path)
    first = path.read_text()
    assert (path.stat().st_mode & 0o777, len(first)) == (0o600, 64)
    session._ensure_token(path)
    assert path.read_text() == first


def test_too_much_is_refused_before_waiting(cluster):
    with pytest.raises(InputError, match=r"gpus: needs 4 GPUs, the cluster has 0"):
        require(gpus=4)
    with pytest.raises(InputError, match=r"needs 3 CPUs, the cluster has 2"), placement([{"CPU": 1}] * 3):
        pytest.fail("it has no room for this")
    require(cpus=2)


def test_places_are_given_back_also_where_there_was_no_room(cluster):
    with (
        pytest.raises(ClusterError, match="busy: 1 workers found no place within 1 s"),
        placement([{"CPU": 1}] * 2),
        placement([{"CPU": 1}], timeout_s=1),
    ):
        pytest.fail("all CPUs are taken")
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}


def test_addresses_where_nobody_answers():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, but nobody listens
        port = free.getsockname()[1]
        script = f"""
from recapture.cluster.session import connect
for address in ("127.0.0.1:{port}", "head"):
    try:
        with connect(address):
            pass
    except Exception as error:
        print(error)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    nobody, malformed = done.stdout.splitlines()
    assert nobody.startswith(f"cluster: no Ray cluster answers at 127.0.0.1:{port}")
    assert "is not local, auto or HOST:PORT" in malformed


def test_engine_and_command_do_not_need_ray():
    root = Path(session.__file__).parent.parent
    for path in [*(root / "engine").rglob("*.py"), *(root / "kernels").rglob("*.py")]:
        assert "import ray" not in path.read_text(), path
