"""The overhead of serving: a long queue, the ingress beside a busy renderer, Ray Serve over uvicorn,
memory over many renders, warm previews, resampling.

All of it on loopback, by the service's own processes and the embedded model. Targets: Ray Serve adds at most 6 ms at
p50, a warm preview at 384x256 takes at most 200 ms, memory stays flat.
"""

import itertools
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from ..client import Client, Options, Render
from ..engine.errors import RecaptureError
from ..serve.keys import create_key
from ..serve.processes.supervisor import PROCESSES
from ..serve.settings import Settings
from .bulk import write_footage
from .timing import Row, compare, measured

TINY = Options(height=64, width=96, spatial_steps=1, temporal_steps=1, sample_steps=1)
"""The smallest render that runs every stage."""
_LIBRARIES = ("fastapi", "uvicorn", "sqlalchemy", "ray")
_POLLS_PER_S = 20


@dataclass(frozen=True, kw_only=True)
class Service:
    """Processes of a service on this machine, and clips for it."""

    settings: Settings
    processes: dict[str, subprocess.Popen[bytes]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def key(self, tenant: str) -> str:
        database = self.settings.open_database()
        try:
            return create_key(database, tenant)
        finally:
            database.close()

    @contextmanager
    def client(self, tenant: str = "bench") -> Iterator[Client]:
        with Client(self.url, api_key=self.key(tenant)) as client:
            yield client

    @contextmanager
    def http(self, tenant: str = "bench") -> Iterator[httpx2.Client]:
        """A bare connection: what is timed is the service, and not the client's reading of it."""
        headers = {"Authorization": f"Bearer {self.key(tenant)}"}
        with httpx2.Client(base_url=self.url, headers=headers, timeout=120) as http:
            yield http

    def clip(self, client: Client, frames: int, **size: int) -> str:
        """Id of an upload of a clip with so many frames."""
        path = self.settings.data / f"clip{frames}.mp4"
        if not path.exists():
            write_footage(path, frames, **size)
        return client.uploads.create(path).id

    def rss_bytes(self) -> dict[str, int]:
        """Resident memory of each process."""
        pages = {n: int(Path(f"/proc/{p.pid}/statm").read_text().split()[1]) for n, p in self.processes.items()}
        return {name: count * os.sysconf("SC_PAGE_SIZE") for name, count in pages.items()}


@contextmanager
def service(*names: str, **settings: Any) -> Iterator[Service]:
    """These of the processes that `recapture serve` starts, ready for work."""
    with tempfile.TemporaryDirectory(prefix="recapture-bench-") as folder, ExitStack() as stack:
        made = Settings(data=Path(folder, "data"), port=free_port(), device="cpu", **settings)
        made.open_database().close()
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **made.variables()}
        log = stack.enter_context(Path(folder, "log").open("wb"))
        running = Service(settings=made, processes={})
        for name in names:
            command = [sys.executable, "-m", *PROCESSES[name]]
            running.processes[name] = process = subprocess.Popen(command, env=environment, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        wanted = {kind for name in names for kind in PROCESSES[name][1:]}
        _until(lambda: _ready(running.url, wanted), 180, "the service is not ready")
        yield running


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def queued_jobs(count: int, *, tenants: int = 4, connections: int = 8, over: int = 10) -> list[Row]:
    """`count` renders accepted and each looked at once; every tenant asks for more than it may have."""
    each = count // tenants
    with service("ingress", max_active=each, max_queue=each * tenants) as running, ExitStack() as stack:
        names = [f"tenant{n}" for n in range(tenants)]
        uploads = {}
        for name in (*names, "late"):
            with running.client(name) as client:
                uploads[name] = running.clip(client, 8)
        keys = {name: {"Authorization": f"Bearer {running.key(name)}"} for name in uploads}

        def submit(http: httpx2.Client, name: str, seed: int) -> httpx2.Response:
            body = {"input": {"upload": uploads[name]}, "camera": "arc(10deg)", "seed": seed}
            return http.post("/v1/renders", json=body, headers=keys[name])

        asked = [(name, seed) for seed in range(each + over) for name in names]
        submits = _by_many(running.url, connections, asked, submit)
        accepted = [(name, answer) for (name, _), answer, _ in submits if answer.status_code == 202]
        refused = [answer for _, answer, _ in submits if answer.status_code == 429]
        assert Counter(name for name, _ in accepted) == dict.fromkeys(names, each)
        assert len(refused) == over * tenants
        found = [(name, answer.headers["location"]) for name, answer in accepted]
        polls = _by_many(running.url, connections, found, lambda http, name, at: http.get(at, headers=keys[name]))
        assert all(answer.json()["status"] == "queued" for _, answer, _ in polls)
        http = stack.enter_context(httpx2.Client(base_url=running.url))
        late = submit(http, "late", 0)  # whose own quota is free, while the queue is not
        assert late.status_code == 429
        refused.append(late)
        assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
        http.post(found[0][1] + "/cancel", headers=keys[found[0][0]])
        assert submit(http, "late", 0).status_code == 202
    codes = Counter(answer.json()["error"]["code"] for answer in refused)
    return [
        measured(
            "serve_queue",
            _LIBRARIES,
            jobs=len(accepted),
            connections=connections,
            refused=dict(codes),
            **_percentiles("submit", [s for _, answer, s in submits if answer.status_code == 202]),
            **_percentiles("refusal", [s for _, answer, s in submits if answer.status_code == 429]),
            **_percentiles("poll", [s for _, _, s in polls]),
        )
    ]


def ingress_beside_renders(*, seconds: float) -> list[Row]:
    """A steady trickle of polls to an idle service, and to one whose renderer is never idle."""
    with service("ingress", "renderer", max_running=1) as running, running.client() as client, running.http() as http:
        upload = running.clip(client, 8)
        first = client.renders.wait(client.renders.create(upload, "arc(10deg)", options=TINY), timeout_s=600)
        idle = _trickle(http, f"/v1/renders/{first.id}", seconds)
        asked = [client.renders.create(upload, "arc(10deg)", options=TINY, seed=seed) for seed in range(1, 100)]
        _until(lambda: client.renders.retrieve(asked[0]).status == "in_progress", 60, "no render has begun")
        busy = _trickle(http, f"/v1/renders/{first.id}", seconds)
        ended = sum(client.renders.retrieve(render).done for render in asked)
        assert ended < len(asked) - 1, "the renderer ran out of work"
    return [
        measured(
            "serve_ingress",
            _LIBRARIES,
            polls=len(idle),
            renders_meanwhile=ended,
            **_percentiles("idle", idle),
            **_percentiles("busy", busy),
            busy_over_idle_p50=float(np.median(busy) / np.median(idle)),
        )
    ]


def ray_serve_over_uvicorn(*, requests: int) -> list[Row]:
    """The same app behind uvicorn and behind Ray Serve, on the same records, asked in turn."""
    from ray import serve

    from ..cluster.session import connect
    from ..serve.processes.deployments import ingress

    with service("ingress") as running, running.client() as client, running.http() as plain, connect(None, cpus=2):
        asked = client.renders.create(running.clip(client, 8), "arc(10deg)")
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
        try:
            serve.run(ingress(running.settings), name="recapture", route_prefix="/")
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=plain.headers, timeout=120) as by_serve:
                rows = []
                for path in ("/healthz", f"/v1/renders/{asked.id}"):
                    rivals = {
                        "uvicorn": lambda path=path: plain.get(path).raise_for_status(),
                        "ray serve": lambda path=path: by_serve.get(path).raise_for_status(),
                    }
                    rows += compare(
                        "serve_ray",
                        f"GET {path.replace(asked.id, 'ID')}",
                        rivals,
                        baseline="uvicorn",
                        device="cpu",
                        repeats=requests,
                        warmup=20,
                        budget_s=120,
                    )
                    rows[-1]["added_p50_ms"] = round(rows[-1]["p50_ms"] - rows[-2]["p50_ms"], 3)
        finally:
            serve.shutdown()
    return rows


def memory_of_renders(count: int) -> list[Row]:
    """Resident memory of ingress and renderer over `count` consecutive renders; one row per process.

    `growth_bytes_per_render` is the slope of a line through the second half, where caches and allocators are full.
    """
    seen: list[dict[str, int]] = []
    with service("ingress", "renderer") as running, running.client() as client:
        upload = running.clip(client, 8)
        for seed in range(count):
            done = _finished(client, client.renders.create(upload, "arc(10deg)", options=TINY, seed=seed))
            assert "sample" not in done.reused
            seen.append(running.rss_bytes())
    half = count // 2
    rows = []
    for name in seen[0]:
        rss = np.array([sample[name] for sample in seen], float)
        slope = float(np.polyfit(np.arange(half, count), rss[half:], 1)[0]) if count - half > 1 else 0.0
        rows.append(
            measured(
                "serve_memory",
                _LIBRARIES,
                process=name,
                renders=count,
                first_bytes=int(rss[0]),
                half_bytes=int(rss[half]),
                last_bytes=int(rss[-1]),
                peak_bytes=int(rss.max()),
                growth_bytes_per_render=slope,
            )
        )
    return rows


def warm_previews(*, frames: int, count: int) -> list[Row]:
    """The first preview of a clip, which pays for its depth, and further ones as a dragged slider asks for them."""
    with service("ingress", "previewer") as running, running.client() as client:
        upload = running.clip(client, frames, width=384, height=256)
        began_s = time.perf_counter()
        first = client.preview(upload, "arc(5deg)")
        first_s = time.perf_counter() - began_s
        times_s = []
        for angle in np.linspace(5, 15, count):
            began_s = time.perf_counter()
            client.preview(upload, f"arc({angle:.2f}deg)")
            times_s.append(time.perf_counter() - began_s)
    return [
        measured(
            "serve_preview",
            _LIBRARIES,
            width=first.width,
            height=first.height,
            clip_frames=frames,
            pictures=len(first.frames),
            previews=count,
            first_s=first_s,
            **_percentiles("warm", times_s),
        )
    ]


def resamples(*, frames: int, count: int = 3) -> list[Row]:
    """A render by the preset's own steps, and other seeds with its adapters: seconds of work of the renderer."""
    with service("ingress", "renderer") as running, running.client() as client:
        options = Options(height=64, width=96)
        upload = running.clip(client, frames)
        _finished(client, client.renders.create(upload, "truck(0.1)", options=TINY))  # compiles the kernels
        clip = running.clip(client, frames + 1)
        whole = _finished(client, client.renders.create(clip, "arc(10deg)", options=options, seed=0))
        others = [_finished(client, client.renders.resample(whole, seed=seed)) for seed in range(1, count + 1)]
        assert not {"spatial", "temporal"} & set(whole.reused)
        assert all({"spatial", "temporal"} <= set(other.reused) for other in others)
    again_s = float(np.median([other.usage.compute_seconds for other in others]))
    render_s = whole.usage.compute_seconds
    return [
        measured(
            "serve_resample",
            _LIBRARIES,
            frames=frames + 1,
            render_s=render_s,
            resample_s=again_s,
            times_faster=render_s / again_s,
        )
    ]


def _finished(client: Client, asked: Render) -> Render:
    """The render when it has ended; asked for more often than a person would."""
    found: list[Render] = []

    def done() -> bool:
        found[:] = [client.renders.retrieve(asked)]
        return found[0].done

    _until(done, 1800, f"{asked.id} does not end")
    assert found[0].status == "completed", found[0]
    return found[0]


def _by_many(
    url: str,
    connections: int,
    asked: Sequence[tuple[Any, ...]],
    ask: Callable[..., httpx2.Response],
) -> list[tuple[tuple[Any, ...], httpx2.Response, float]]:
    """What was asked, each once, by so many connections at a time: with its answer and how many seconds that took."""
    waiting: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    for item in asked:
        waiting.put(item)
    answers = []

    def work() -> None:
        with httpx2.Client(base_url=url, timeout=120) as http:
            while True:
                try:
                    item = waiting.get_nowait()
                except queue.Empty:
                    return
                began_s = time.perf_counter()
                answer = ask(http, *item)
                answers.append((item, answer, time.perf_counter() - began_s))

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(asked)
    return answers


def _trickle(http: httpx2.Client, path: str, seconds: float) -> list[float]:
    """Seconds that each of a steady row of polls took; a slow one does not hold back those after it in the count."""
    times_s, began_s = [], time.perf_counter()
    for number in itertools.count():
        due_s = began_s + number / _POLLS_PER_S
        if due_s - began_s >= seconds:
            return times_s
        time.sleep(max(0.0, due_s - time.perf_counter()))
        http.get(path).raise_for_status()
        times_s.append(time.perf_counter() - due_s)  # from when it was due: waiting behind another counts
    raise AssertionError


def _percentiles(name: str, times_s: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(times_s, (50, 99)) * 1e3
    return {f"{name}_p50_ms": float(p50), f"{name}_p99_ms": float(p99)}


def _ready(url: str, kinds: set[str]) -> bool:
    """Whether the ingress answers and knows a worker of each of these kinds."""
    try:
        workers = httpx2.get(f"{url}/readyz", timeout=5).json()["checks"]["workers"]
    except (httpx2.HTTPError, OSError):
        return False
    return workers != "not known" and not any(kind in workers for kind in kinds)  # it names those that are missing


def _until(true: Callable[[], bool], seconds: float, otherwise: str) -> None:
    until_s = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until_s:
            raise RecaptureError(otherwise)
        time.sleep(0.05)
