"""The manifests as they are: their variables make settings, and their processes start here and preview a clip.

What Kubernetes would do is done by hand: secrets are read, names of services are addresses on this machine, volumes are
folders, Ray's nodes are processes. There is no GPU here, so the device is replaced, too.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from recapture.client import Client
from recapture.engine.errors import InputError
from recapture.serve.settings import PREFIX, Settings

from ..cluster.test_deploy import documents, of_kind, pods, ray_cluster
from ..engine.test_pipeline import write_clip
from .databases import postgres_binaries, postgres_server
from .test_ray import free_port

SECRET = {
    "database": "postgresql://recapture:secret@recapture-postgresql/recapture",
    "postgres-password": "secret",
    "redis-password": "another",
}


def containers(name: str) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for pod in pods(documents(name)) for each in pod["containers"]}


def variables(container: Mapping[str, Any]) -> dict[str, str]:
    """A container's environment, by the last line of each name as Kubernetes takes it."""
    made = {}
    for each in container.get("env", ()):
        if "value" in each:
            made[each["name"]] = each["value"]
            continue
        key = each["valueFrom"]["secretKeyRef"]
        if key["key"] in SECRET or not key.get("optional"):
            made[each["name"]] = SECRET[key["key"]]
    return made


def command_of(container: Mapping[str, Any]) -> list[str]:
    words = [*container.get("command", ()), *container.get("args", ())]
    return [re.sub(r"\$\((\w+)\)", lambda match: variables(container)[match[1]], word) for word in words]


@pytest.mark.parametrize(
    ("name", "container", "device"),
    [
        ("deployments.yaml", "ingress", "cuda"),
        ("deployments.yaml", "renderer", "cuda"),
        ("deployments.yaml", "previewer", "cpu"),
        ("deployments.yaml", "maintenance", "cuda"),
        ("service.yaml", "ray-head", "cuda"),
        ("service.yaml", "ray-worker", "cuda"),
    ],
)
def test_variables_make_settings(name, container, device, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for key, value in variables(containers(name)[container]).items():
        monkeypatch.setenv(key, value)
    settings = Settings.read()
    assert (settings.data, settings.device, settings.host) == (Path("/data"), device, "0.0.0.0")
    assert settings.database_url == SECRET["database"]


def test_renderers_of_the_service_reserve_gpus(monkeypatch, tmp_path):
    pytest.importorskip("ray")
    from recapture.serve.processes.deployments import application

    monkeypatch.chdir(tmp_path)
    for key, value in variables(containers("service.yaml")["ray-worker"]).items():
        monkeypatch.setenv(key, value)
    (app,) = yaml.safe_load(of_kind("service.yaml", "RayService")["spec"]["serveConfigV2"])["applications"]
    bound = application(Settings.model_validate(app["args"]))._bound_deployment
    parts = {each._bound_deployment.name: each._bound_deployment for each in bound.init_args[1:]}
    gpus = {name: part.ray_actor_options["num_gpus"] for name, part in parts.items() if name != "Maintenance"}
    assert gpus["Renderer"] > 0.5  # two would not meet on one GPU
    assert sum(gpus.values()) == 1


def test_a_manifest_without_its_folder_would_be_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for key, value in variables(containers("service.yaml")["ray-worker"]).items():
        if key != f"{PREFIX}DATA":
            monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match="RECAPTURE_SERVE_DATA"):
        Settings.read()


class Pods:
    """Processes with what containers of a manifest have, each on this machine."""

    def __init__(self, folder: Path, addresses: Mapping[str, str]) -> None:
        self.folder, self._addresses = folder, addresses
        self._processes: list[subprocess.Popen[bytes]] = []

    def here(self, text: str) -> str:
        for name, address in self._addresses.items():
            text = text.replace(name, address)
        return text

    def environment(self, container: Mapping[str, Any], **own: str) -> dict[str, str]:
        made = {name: self.here(value) for name, value in variables(container).items()}
        made[f"{PREFIX}DEVICE"] = "cpu"
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "PATH", "TMPDIR") if name in os.environ}
        return {**kept, "OMP_NUM_THREADS": "1", **made, **own}

    def start(self, name: str, words: list[str], environment: Mapping[str, str]) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words, env=dict(environment), stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        self._processes.append(process)

    def end(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def log(self) -> str:
        return "\n".join(f"{path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def until_ready(self, url: str, *, within_s: float = 300) -> None:
        until = time.monotonic() + within_s
        while True:
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    assert answer.status == 200
                    return
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < until, self.log()
                assert all(process.poll() is None for process in self._processes), self.log()
                time.sleep(0.5)


@pytest.fixture
def started(tmp_path, short) -> Iterator[tuple[Pods, str]]:
    """The folder of processes beside a PostgreSQL server, and the ingress's address."""
    if postgres_binaries() is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    database, port = free_port(), free_port()
    addresses = {
        "recapture-postgresql": f"127.0.0.1:{database}",
        "/data": str(tmp_path / "data"),
        "0.0.0.0": "127.0.0.1",
    }
    with postgres_server(port=database, password=SECRET["postgres-password"]):
        pods_here = Pods(tmp_path, {**addresses, "/weights": str(tmp_path)})
        try:
            yield pods_here, f"http://127.0.0.1:{port}"
        finally:
            pods_here.end()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder of a name short enough for sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def try_it(pods_here: Pods, url: str, environment: Mapping[str, str]) -> None:
    """As the guide goes on: a key, then a preview of a clip, whose record is in PostgreSQL."""
    words = [sys.executable, "-m", "recapture", "keys", "create", "--tenant", "studio"]
    key = subprocess.run(words, env=dict(environment), capture_output=True, text=True, check=True).stdout.strip()
    with Client(url, api_key=key) as client:
        upload = client.uploads.create(write_clip(pods_here.folder / "walk.mp4"))
        assert 0 < client.preview(upload, "truck(0.1)", count=2).hole_share < 0.5
    assert (pods_here.folder / "data" / "uploads" / upload.id).is_dir()
    assert not (pods_here.folder / "data" / "recapture.db").exists()


@pytest.mark.slow
@pytest.mark.chaos
def test_plain_deployments_start(started):
    pods_here, url = started
    own = {f"{PREFIX}PORT": url.rpartition(":")[2]}
    for name, container in containers("deployments.yaml").items():
        if name != "postgresql":
            words = command_of(container)
            assert words[0] == "python"
            pods_here.start(name, [sys.executable, *words[1:]], pods_here.environment(container, **own))
    ingress = containers("deployments.yaml")["ingress"]
    pods_here.until_ready(url + ingress["readinessProbe"]["httpGet"]["path"])
    pods_here.until_ready(url + ingress["livenessProbe"]["httpGet"]["path"])
    try_it(pods_here, url, pods_here.environment(ingress, **own))


@pytest.mark.slow
@pytest.mark.chaos
def test_the_ray_service_starts_on_two_nodes_with_its_state_in_redis(started, short):
    pytest.importorskip("ray")
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed (Debian: redis-server)")
    pods_here, url = started
    redis, gcs, dashboard = free_port(), free_port(), free_port()
    pods_here.start("redis", redis_command(pods_here, redis), os.environ)
    cluster = ray_cluster("service.yaml")
    # What KubeRay makes of the resource: the options of `ray start`, and where the head's state is.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
    token |= {f"RAY_SERVE_PROXY_{name}_CHECK_TIMEOUT_S": "600" for name in ("READY", "HEALTH")}  # a busy machine
    fault_tolerance = {"RAY_REDIS_ADDRESS": f"127.0.0.1:{redis}", "RAY_external_storage_namespace": "recapture"}
    ray = str(Path(sys.executable).parent / "ray")
    head = cluster["headGroupSpec"]
    given = [f"--{name}={value}" for name, value in head["rayStartParams"].items() if name != "dashboard-host"]
    container = head["template"]["spec"]["containers"][0]
    environment = pods_here.environment(container, **token, **fault_tolerance)
    words = [ray, "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}", *given]
    words += [f"--redis-password={SECRET['redis-password']}", f"--temp-dir={short}"]
    pods_here.start("head", words, environment)
    pods_here.until_ready(f"http://127.0.0.1:{dashboard}/api/gcs_healthz")
    (group,) = cluster["workerGroupSpecs"]
    container = group["template"]["spec"]["containers"][0]
    environment = pods_here.environment(container, **token)
    pods_here.start(
        "worker", [ray, "start", "--block", f"--address=127.0.0.1:{gcs}", "--num-cpus=4", "--num-gpus=1"], environment
    )
    serve = yaml.safe_load(of_kind("service.yaml", "RayService")["spec"]["serveConfigV2"])
    serve["http_options"] = {"host": "127.0.0.1", "port": int(url.rpartition(":")[2])}
    (pods_here.folder / "serve.yaml").write_text(yaml.safe_dump(serve))
    deploy = [str(Path(sys.executable).parent / "serve"), "deploy", str(pods_here.folder / "serve.yaml")]
    until = time.monotonic() + 300
    while True:  # as KubeRay does, again until it is taken
        told = subprocess.run(
            [*deploy, "--address", f"http://127.0.0.1:{dashboard}"],
            env=environment, capture_output=True, text=True, check=False, cwd=pods_here.folder,
        )  # fmt: skip
        if told.returncode == 0:
            break
        assert time.monotonic() < until, told.stderr + pods_here.log()
    pods_here.until_ready(f"{url}/readyz", within_s=400)
    try_it(pods_here, url, environment)
    count = ["redis-cli", "-p", str(redis), "-a", SECRET["redis-password"], "--no-auth-warning", "dbsize"]
    assert int(subprocess.run(count, capture_output=True, text=True, check=True).stdout) > 0


def redis_command(pods_here: Pods, port: int) -> list[str]:
    """As the manifest starts it, in a folder and on a port of the test's own."""
    (pods_here.folder / "redis").mkdir()
    words = command_of(containers("service.yaml")["redis"])
    assert words[0] == "redis-server"
    own = {"--dir": str(pods_here.folder / "redis"), "--port": str(port)}
    return [own.get(before, word) for before, word in zip(["", *words], words, strict=False)] + ["--bind", "127.0.0.1"]
