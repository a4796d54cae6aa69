"""The service on Ray Serve: ingress replicas on CPUs, and renderers that keep the video model warm.

Records and leases are the same as on one machine: a killed replica loses its lease, and another one continues
the render. Serve places processes, restarts dead ones, and routes a resample to the renderer that has its adapters in
memory.
"""

# pyright: reportCallIssue=false, reportFunctionMemberAccess=false
# Ray Serve's decorators carry no types.

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from ...engine.errors import InputError
from ..api.app import create_api
from ..jobs.records import Job
from ..logs import get_logger, set_up_logs
from ..settings import Settings

if TYPE_CHECKING:
    from ..jobs.worker import HeldAdapters

HELD_ADAPTERS = 8
"""Renders whose adapters a renderer keeps in memory: of Stable Video Diffusion at rank 16 these are 42 MB a render."""
HEAD_START_S = 1.0
"""For so long a new resample is left to the renderer that it was offered to; then any may take it."""

RENDERER_GPU = 0.75
"""Share of a GPU that a renderer reserves: two never meet on one, and the previewer has room beside one of them."""

log = get_logger("deployments")


class _Loop(Protocol):
    def run(self) -> None: ...


_Part = TypeVar("_Part", bound=_Loop)


class _Replica:
    """A part of the service whose loop runs in a thread of the replica, until Serve ends the replica."""

    _thread: threading.Thread | None = None

    def start(self, settings: str, make: Callable[[Settings, threading.Event], _Part]) -> _Part:
        """The part, running; `make` gets the settings and the event that ends its loop."""
        set_up_logs()
        self._stop = threading.Event()
        part = make(Settings.model_validate_json(settings), self._stop)
        self._thread = threading.Thread(target=part.run, daemon=True)
        self._thread.start()
        return part

    def check_health(self) -> None:
        """Serve starts the replica again when this raises."""
        if self._thread is None or not self._thread.is_alive():
            raise RuntimeError("the thread of this part of the service has ended")

    def __del__(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join(30)  # a worker gives its job back


@serve.deployment
class RenderReplica(_Replica):
    """A worker in a replica. It takes its jobs from the records, so no request ever waits for it."""

    def __init__(self, settings: str, kinds: list[str]) -> None:
        from ...engine.store.scratch import Scratch
        from ..jobs.worker import JobWorker  # with torch, which the ingress does without

        self._scratch = Scratch()  # of the replica's process; when it has ended, the next one removes what it left
        self.worker = self.start(
            settings, lambda read, stop: JobWorker(read, kinds, stop=stop, head_start_s=HEAD_START_S)
        )

    @serve.multiplexed(max_num_models_per_replica=HELD_ADAPTERS)
    async def adapters(self, render: str) -> "HeldAdapters":
        """The tuned adapters of a render, in memory; those used longest ago make room."""
        return await asyncio.to_thread(self.worker.hold_adapters, render)

    async def offer(self, job: str) -> None:
        """A resample of the render that the request was routed by: this worker may take it before others do."""
        self.worker.offer(job, await self.adapters(serve.get_multiplexed_model_id()))


@serve.deployment
class MaintenanceReplica(_Replica):
    """Maintenance in a replica: delivers webhooks, removes old uploads."""

    def __init__(self, settings: str) -> None:
        from .maintenance import Maintenance

        self.start(settings, lambda read, stop: Maintenance(read, stop=stop))


@serve.deployment
@serve.ingress()
class Ingress:
    """The HTTP side. It waits for none of the other deployments: what is long is in the records."""

    def __init__(self, settings: str, renderer: DeploymentHandle | None = None, *others: DeploymentHandle) -> None:
        self._settings, self._renderer = Settings.model_validate_json(settings), renderer

    def __serve_build_asgi_app__(self) -> FastAPI:
        set_up_logs()
        return create_api(self._settings, offer=self._offer)

    def _offer(self, job: Job) -> None:
        """Tell the renderer that holds the adapters of a resample. Should it not hear it, any other takes the job."""
        tuned_by = job.request.get("tuned_by")
        if tuned_by is None or self._renderer is None:
            return
        try:
            self._renderer.options(multiplexed_model_id=tuned_by).offer.remote(job.id)
        except Exception:
            log.exception("offer_broke", job=job.id)


def ingress(settings: Settings, *others: Application) -> Application:
    """The HTTP side, bound; with the others, the renderer first, that are deployed with it."""
    replicas = Ingress.options(
        name="Ingress", num_replicas=settings.ingresses, ray_actor_options={"num_cpus": 0.25}, max_ongoing_requests=200
    )
    return replicas.bind(settings.model_dump_json(), *others)


def application(settings: Settings) -> Application:
    """The deployments, bound.

    Raises:
        InputError: SQLite on more than one node, where each would have a file of its own.
    """
    text = settings.model_dump_json()
    if settings.database_url.startswith("sqlite") and _nodes() > 1:
        raise InputError(
            "SQLite is for one node; this cluster has more, so give database=postgresql://...", param="database"
        )
    # Ray hides the GPUs from actors that reserve none.
    renderer = RenderReplica.options(
        name="Renderer",
        num_replicas=settings.renderers,
        ray_actor_options={"num_cpus": 1, "num_gpus": RENDERER_GPU if on_gpus(settings) else 0},
        graceful_shutdown_timeout_s=30,
    )
    # All of it fits on a machine of two cores: what does not is waited for without an end.
    previewer = RenderReplica.options(
        name="Previewer", ray_actor_options={"num_cpus": 0.5, "num_gpus": 1 - RENDERER_GPU if on_gpus(settings) else 0}
    )
    maintenance = MaintenanceReplica.options(name="Maintenance", ray_actor_options={"num_cpus": 0.1})
    return ingress(
        settings, renderer.bind(text, ["render"]), previewer.bind(text, ["preview", "estimate"]), maintenance.bind(text)
    )


def on_gpus(settings: Settings) -> bool:
    """Whether renderers and previewer reserve GPUs: as the settings say, `auto` by what the cluster has now."""
    if settings.device == "auto":
        return ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    return settings.device.startswith("cuda")


def _nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1
