"""A bulk run on a Ray cluster, from URIs to the summary: what `recapture bulk` and jobs call."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from ...engine.errors import InputError
from ...engine.store.remote_path import AllowedRoots, RemotePath, absolute_uri, join_uri, open_remote_path
from ..session import connect, require
from .driver import Policy, Progress
from .engine_row_renderer import EngineSetup, Keep, RowDefaults, pipeline_of
from .manifest import Manifest, read_manifest
from .metrics import BulkMetrics
from .outcome import RowResult
from .price import Price, price
from .ray_pool import RayPool
from .resume import Resume, run_manifest, scan_output


@dataclass(frozen=True, kw_only=True)
class BulkRun:
    """The user's request for a bulk run.

    Attributes:
        manifest, out: URIs; `out` may carry its store's options behind a `?`.
        allow_roots: URIs that rows may name files below; by default the manifest's own folder. The output is always included.
        store: URI of the stage store; None is a folder of the output.
        defaults: what rows get where they say nothing.
        concurrency: number of workers; None means one per GPU, or one per CPU on a cluster without GPUs.
    """

    manifest: str
    out: str
    cluster: str | None = None
    concurrency: int | None = None
    model: str = "tiny"
    device: str = "auto"
    keep: Keep = "results"
    allow_roots: tuple[str, ...] = ()
    store: str | None = None
    max_gpu_hours: float | None = None
    attempts: int = 3
    defaults: RowDefaults = field(default_factory=RowDefaults)
    resume: Resume = field(default_factory=Resume)

    @property
    def root_uris(self) -> tuple[str, ...]:
        base, question, options = absolute_uri(self.manifest).partition("?")
        folder = (base.rpartition("/")[0] or "/") + question + options
        return (absolute_uri(self.out), *(map(absolute_uri, self.allow_roots) if self.allow_roots else (folder,)))

    def open(self) -> tuple[Manifest, RemotePath, AllowedRoots]:
        """The checked manifest, the output and the roots.

        Raises:
            InputError: the manifest cannot be used, or a place cannot be opened.
        """
        if self.concurrency is not None and self.concurrency < 1:
            raise InputError(f"{self.concurrency} workers do nothing; give at least 1", param="concurrency")
        if self.max_gpu_hours is not None and not self.max_gpu_hours >= 0:
            raise InputError(f"{self.max_gpu_hours} is not a number of hours", param="max_gpu_hours")
        if ":" in self.device:
            raise InputError("Ray hands GPUs to workers by itself; give cuda", param="device")
        if self.keep not in ("results", "adapters", "all"):
            raise InputError(f"{self.keep!r} is not one of results, adapters, all", param="keep")
        out, roots = open_remote_path(self.out, param="out"), AllowedRoots(self.root_uris)
        seed = self.defaults.options.get("seed", 0)
        return read_manifest(open_remote_path(self.manifest, param="manifest"), roots, out, seed=seed), out, roots


def run_bulk(
    bulk: BulkRun,
    *,
    on_wait: Callable[[str], None] = lambda sentence: None,
    on_heartbeat: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Run a manifest on a cluster.

    Raises:
        InputError: the request cannot be run; nothing started.
        ClusterError, WorkersError, OwnershipError, OutputError: the run cannot continue.
        Cancelled: Ctrl-C or SIGTERM; running again resumes.
    """
    manifest, out, _ = bulk.open()
    stages_uri = absolute_uri(bulk.store or join_uri(bulk.out, "stages"))
    stages = open_remote_path(stages_uri, param="store")
    pipeline = pipeline_of(bulk.model, bulk.defaults)
    with connect(bulk.cluster, cpus=bulk.concurrency), _terminable():  # in this order: Ray, too, sets a handler
        gpus = 0 if bulk.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        if bulk.device == "cuda" and not gpus:
            raise InputError("the cluster has no GPU; set `device` to cpu", param="device")
        workers = bulk.concurrency or gpus or int(ray.cluster_resources().get("CPU", 1))
        require(gpus=workers if gpus else 0, cpus=0 if gpus else workers)
        setup = EngineSetup(
            model=os.path.abspath(bulk.model) if os.path.isdir(bulk.model) else bulk.model,
            device="cuda" if gpus else "cpu",
            stages=stages_uri,
            roots=bulk.root_uris,
            keep=bulk.keep,
            threads=None if gpus else 1,
            defaults=bulk.defaults,
        )
        policy = Policy(
            workers=workers,
            evict_stages=bulk.keep != "all",
            max_gpu_hours=bulk.max_gpu_hours,
            max_attempts=bulk.attempts,
        )
        metrics: list[BulkMetrics] = []

        def make_pool(driver: str) -> RayPool:
            metrics.append(BulkMetrics(driver))
            return RayPool(
                setup, driver=driver, shared=str(stages), num_gpus=1 if gpus else 0, num_cpus=0 if gpus else 1
            )

        def outcome_seen(outcome: RowResult, attempts: int) -> None:
            metrics[0].on_outcome(outcome, attempts)

        def heartbeat_seen(progress: Progress) -> None:
            metrics[0].on_heartbeat(progress)
            on_heartbeat(progress)

        return run_manifest(
            manifest,
            out,
            policy,
            make_pool,
            pipeline=pipeline,
            resume=bulk.resume,
            stages=stages,
            facts={"model": bulk.model, "quality": bulk.defaults.quality, "keep": bulk.keep, "workers": workers},
            on_wait=on_wait,
            on_outcome=outcome_seen,
            on_heartbeat=heartbeat_seen,
        )


def price_bulk(bulk: BulkRun, *, usd_per_gpu_hour: float | None) -> Price:
    """Price the remaining rows of a manifest, without a cluster and without writing anything.

    Raises:
        InputError: the manifest, or one of the rows that are looked at, cannot be used.
    """
    manifest, out, roots = bulk.open()
    return price(
        manifest,
        out,
        scan_output(out),
        roots,
        bulk.model,
        bulk.defaults,
        device=bulk.device,
        workers=bulk.concurrency or 1,
        usd_per_gpu_hour=usd_per_gpu_hour,
    )


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, which is how clusters end a job, ends the run as Ctrl-C does: what is finished is written down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
