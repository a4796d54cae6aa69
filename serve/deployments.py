"""The service on Ray Serve: ingress replicas on CPUs, and renderers that keep the video model warm.

Records and leases are the same as on one machine, so Serve decides only where processes live and starts again what dies:
a replica that is killed loses its lease, and another one goes on with the render.
"""

import threading

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from ..engine.errors import InputError
from .app import create_api
from .logs import set_up_logs
from .settings import Settings


@serve.deployment
class Renderer:
    """A worker in a replica. It takes its jobs from the records, so no request ever waits for it."""

    def __init__(self, settings: str, kinds: list[str]) -> None:
        from .worker import Worker

        set_up_logs()
        self.stop = threading.Event()
        self.worker = Worker(Settings.model_validate_json(settings), kinds, stop=self.stop)
        self._thread = threading.Thread(target=self.worker.run, daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Serve starts the replica again when this raises."""
        if not self._thread.is_alive():
            raise RuntimeError("the worker's thread has ended")

    def name(self) -> str:
        """What the records call this worker."""
        return self.worker.name

    def __del__(self) -> None:
        self.stop.set()
        self._thread.join(30)  # gives its job back


@serve.deployment
class Keeping:
    """The keeper in a replica: delivers webhooks, removes old uploads."""

    def __init__(self, settings: str) -> None:
        from .keeper import Keeper

        set_up_logs()
        self.stop = threading.Event()
        self._thread = threading.Thread(
            target=Keeper(Settings.model_validate_json(settings), stop=self.stop).run, daemon=True
        )
        self._thread.start()

    def check_health(self) -> None:
        """Serve starts the replica again when this raises."""
        if not self._thread.is_alive():
            raise RuntimeError("the keeper's thread has ended")

    def __del__(self) -> None:
        self.stop.set()


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

    def api() -> FastAPI:
        set_up_logs()
        return create_api(Settings.model_validate_json(text))

    gpus = 1 if settings.device == "cuda" else 0
    renderer = Renderer.options(
        name="Renderer", num_replicas=settings.renderers, ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        graceful_shutdown_timeout_s=30,
    )  # fmt: skip
    previewer = Renderer.options(name="Previewer", ray_actor_options={"num_cpus": 1})
    keeper = Keeping.options(name="Keeper", ray_actor_options={"num_cpus": 0.1})
    ingress = serve.deployment(serve.ingress(api)()).options(
        name="Ingress", num_replicas=settings.ingresses, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=200
    )
    # The ingress calls none of them; bound to it, they are deployed with it.
    return ingress.bind(
        renderer.bind(text, ["render"]), previewer.bind(text, ["preview", "estimate"]), keeper.bind(text)
    )


def _nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1
