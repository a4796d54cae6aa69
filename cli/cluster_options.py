"""`--cluster`: the same engine, its work done by Ray's workers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..cluster.tuning.trainer import Tuning
    from ..engine.config import RunConfig
    from ..engine.pipeline import Recapture


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """What is asked of a cluster; without an address, nothing."""

    address: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            help="Let Ray's workers do it: local (on this machine), auto, or HOST:PORT of a cluster.",
            show_default=False,
            rich_help_panel="Cluster",
        ),
    ] = None
    gpus: Annotated[
        int | None,
        typer.Option(help="GPUs of the cluster to take.", min=0, show_default="1 if any", rich_help_panel="Cluster"),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            help="Warm workers; several may share a GPU.",
            min=1,
            show_default="one per GPU",
            rich_help_panel="Cluster",
        ),
    ] = None
    tune_devices: Annotated[
        int | None,
        typer.Option(
            help="Devices of the cluster that tune this clip together.",
            min=1,
            show_default="one warm worker",
            rich_help_panel="Cluster",
        ),
    ] = None
    deepspeed: Annotated[
        Path | None,
        typer.Option(help="DeepSpeed's JSON for --tune-devices.", show_default="stage 0", rich_help_panel="Cluster"),
    ] = None

    def check(self, config: "RunConfig") -> None:
        """Refuse what is known to fail before anything is started.

        Raises:
            InputError: an option needs another, Ray is not installed, or the batches cannot be shared.
        """
        from ..engine.errors import InputError

        if self.address is None:
            for name in ("gpus", "workers", "tune_devices", "deepspeed"):
                if getattr(self, name) is not None:
                    raise InputError("is for a cluster: give `cluster` local, auto or HOST:PORT too", param=name)
            return
        if self.deepspeed is not None and self.tune_devices is None:
            raise InputError("give `tune_devices` too", param="deepspeed")
        try:
            import ray  # noqa: F401
        except ModuleNotFoundError:
            raise InputError("Ray is not installed: pip install 'recapture[cluster]'", param="cluster") from None
        tuning = self.tuning(gpu=False)
        if tuning is not None:
            tuning.check(config)

    def tuning(self, *, gpu: bool) -> "Tuning | None":
        if self.tune_devices is None:
            return None
        from ..cluster.tuning.deepspeed_optimizer import read_settings
        from ..cluster.tuning.trainer import Tuning

        return Tuning(devices=self.tune_devices, settings=read_settings(self.deepspeed), gpu=gpu)


@contextmanager
def on_cluster(engine: "Recapture", cluster_options: ClusterOptions) -> Iterator["Recapture"]:
    """The engine itself without an address, else one whose work the workers of that cluster do.

    Raises:
        InputError: the cluster has less than what is asked for.
        ClusterError: the cluster cannot be reached or is busy.
    """
    if cluster_options.address is None:
        yield engine
        return
    import ray

    from ..cluster.frames.ray_executor import ray_executor
    from ..cluster.session import LOCAL, connect, require
    from ..engine.pipeline import Recapture

    asked = max(cluster_options.workers or 1, cluster_options.tune_devices or 1)
    cpus = max(os.cpu_count() or 1, asked) if cluster_options.address == LOCAL else None
    with connect(cluster_options.address, cpus=cpus):
        gpus = (
            min(1, int(ray.cluster_resources().get("GPU", 0))) if cluster_options.gpus is None else cluster_options.gpus
        )
        require(gpus=gpus)
        count = cluster_options.workers or max(1, gpus)
        tuning = cluster_options.tuning(gpu=gpus > 0)
        with ray_executor(engine.models, engine.store, count=count, gpus=gpus, tuning=tuning) as executor:
            yield Recapture(engine.models, store=engine.store, executor=executor)
