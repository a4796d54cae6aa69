"""The workers of a cluster as an executor of the engine: they do frames and whole stages.

Arrays travel through files of the store; Ray carries names, options and progress. A worker that dies loses its share to
the others, and another takes its place; an error of the work itself is raised as if it had happened here.
"""

import secrets
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ...engine.catalog import MODELS
from ...engine.diffusion.tuner import AdamW, DataShard, OptimizerFactory
from ...engine.errors import ClusterError, InputError
from ...engine.graph.context import StageContext
from ...engine.graph.device_memory import DeviceBudget
from ...engine.graph.frame_task import FrameBatch, FrameTask, batches
from ...engine.graph.request import RenderRequest
from ...engine.graph.stage import Inputs, Stage, compute_stage
from ...engine.graph.warm_models import WarmModels
from ...engine.store import Entry, Store
from ...engine.store.arrays import read_array
from ..session import placement
from .frame_worker import FrameWorker

if TYPE_CHECKING:  # DeepSpeed takes seconds to import
    from ..tuning.trainer import Tuning

_POLL_S = 0.2
_CHUNK_BATCHES = 16
"""A share of the frames has at most so many batches: what a lost worker costs."""

Call = Callable[[Any], Any]
"""Calls a worker's method, given the worker; what it returns is Ray's promise of the result."""


class RayExecutor:
    """Warm workers, one a device. Made by `ray_executor`."""

    def __init__(
        self,
        bundles: list[dict[str, float]],
        models: WarmModels,
        store: Store,
        *,
        mark: str,
        dtype: torch.dtype | None,
        tuning: "Tuning | None",
        patience_s: float,
    ) -> None:
        self._bundles, self._store, self._tuning, self._patience_s = bundles, store, tuning, patience_s
        self._recipe = {
            # A name is found on each machine by itself; a user's folder lies at one path everywhere.
            "model": models.entry.name if models.entry.name in MODELS else str(models.folder.absolute()),
            "store": str(store.root) if "://" not in store.uri else store.uri,
            "threads": torch.get_num_threads(),
            "dtype": dtype,
        }
        self._wanted = {
            "unet": models.unet_digest,
            "encoders": models.encoder_digest,
            "mark": f".scratch/{mark}",
        }
        self._losses_left = 3 * len(bundles)
        self._reserved = ExitStack()
        self._ready: list[Any] = []
        self._arriving: dict[Any, Any] = {}  # promise of readiness -> worker
        self._places: dict[Any, int] = {}  # worker -> index of its bundle

    def open(self) -> None:
        """Reserve a place for each worker and wait until all are ready.

        Raises:
            InputError: the cluster is too small.
            ClusterError: it is busy, or a machine lacks the store or has other weights.
        """
        self._group = self._reserved.enter_context(placement(self._bundles, timeout_s=self._patience_s))
        for index in range(len(self._bundles)):
            self._start_worker(index)
        for promise, worker in list(self._arriving.items()):
            self._get(promise, self._patience_s)
            self._mark_ready(promise, worker)

    def close(self) -> None:
        """End the workers and give their places back."""
        for worker in self._places:
            ray.kill(worker)
        self._ready, self._arriving, self._places = [], {}, {}
        self._reserved.close()

    @property
    def tune_devices(self) -> int:
        """See `Executor`."""
        return 1 if self._tuning is None else self._tuning.devices

    @property
    def data_shard(self) -> DataShard:
        """See `StageServices`: stages that stay in this process tune nothing."""
        return 0, 1

    @property
    def make_optimizer(self) -> OptimizerFactory:
        """See `StageServices`."""
        return AdamW

    def map_frames(self, context: StageContext, task: FrameTask, count: int, *, scratch: Path) -> Iterator[FrameBatch]:
        """See `StageServices`: the frames' batches in shares, as many as the workers or a multiple of that."""
        every = batches(count, task.batch)
        workers = len(self._bundles)
        rounds = -(-len(every) // (workers * _CHUNK_BATCHES))
        shares = _split(every, min(len(every), workers * rounds))
        folder = scratch / f"parts-{secrets.token_hex(4)}"
        order = ray.put(order_of(context, task))
        attempts: list[Path] = [folder] * len(shares)

        def call_for(index: int) -> Call:
            def call(worker: Any) -> Any:
                attempts[index] = folder / f"{index:06}-{secrets.token_hex(4)}"  # a lost worker may have left half
                return worker.do_frames.remote(order, shares[index], attempts[index])

            return call

        finished: dict[int, FrameBatch] = {}
        following = 0
        try:
            for index, names in self._each([call_for(index) for index in range(len(shares))]):
                finished[index] = {name: read_array(attempts[index] / f"{name}.arrow") for name in names}
                while following in finished:
                    yield finished.pop(following)
                    shutil.rmtree(attempts[following])
                    following += 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def run_stage(self, stage: Stage, context: StageContext, inputs: Inputs, store: Store, key: str) -> Entry:
        """See `Executor`: what runs a network as a whole goes to a worker, everything else stays here.

        Raises:
            ClusterError: workers died again and again, or none came back.
        """
        if stage.by_frame or stage.weights(context) is None:
            return compute_stage(stage, context, inputs, store, key)
        sent = portable(context)
        if self._tuning is not None and self._tuning.takes(stage, context.config):
            self._tuning.check(context.config)
            self.close()  # the devices are the workers' own
            try:
                self._tuning.run_stage(stage, sent, inputs, store, key, self._recipe)
            finally:
                self.open()
        else:
            for _ in self._each([lambda worker: worker.run_stage.remote(stage.name, sent, inputs, key)], context):
                pass
        entry = store.get(stage.name, key)
        if entry is None:
            raise ClusterError(f"a worker published the stage {stage.name}, but it is not in {store.uri}")
        if any((store.root / ".scratch").glob(f"{stage.name}-{key}-*")):
            store.gc()  # a process was killed while it wrote this
        return entry

    def budget(self) -> DeviceBudget:
        """What each worker may take of its device: the least of them, devices shared evenly."""
        answers: list[tuple[str, DeviceBudget]] = self.ask("budget")
        sharing = Counter(where for where, _ in answers)
        shares = [one.shared(sharing[at]) for at, one in answers]
        return min(shares, key=lambda one: one.usable)

    def ask(self, method: str) -> list[Any]:
        """What each worker that is ready answers to a method without arguments."""
        return ray.get([getattr(worker, method).remote() for worker in self._ready])

    def _each(self, calls: Sequence[Call], context: StageContext | None = None) -> Iterator[tuple[int, Any]]:
        """Make the calls, each once, to whoever is free; (index, result) in the order in which they end.

        Args:
            context: gets the progress of the stage that a worker computes.
        """
        todo, idle = deque(range(len(calls))), list(self._ready)
        running: dict[Any, tuple[int, Any]] = {}
        alone_since: float | None = None
        while todo or running:
            while todo and idle:
                index, worker = todo.popleft(), idle.pop(0)
                running[calls[index](worker)] = index, worker
            done, _ = ray.wait([*running, *self._arriving], timeout=_POLL_S)
            if context is not None:
                self._report(context, running)
            for promise in done:
                if promise in self._arriving:
                    newcomer = self._arriving[promise]
                    if self._arrived(promise):
                        idle.append(newcomer)
                    continue
                index, worker = running.pop(promise)
                try:
                    result = self._get(promise)
                except RayActorError:
                    todo.appendleft(index)
                    self._lost(worker)
                else:
                    idle.append(worker)
                    yield index, result
            alone_since = None if running or not todo else alone_since or time.monotonic()
            if alone_since is not None and time.monotonic() - alone_since > self._patience_s:
                raise ClusterError(f"no worker was ready within {self._patience_s:g} s", code="cluster_busy")

    def _report(self, context: StageContext, running: dict[Any, tuple[int, Any]]) -> None:
        for _, worker in running.values():
            try:
                for stage, done, total, detail in ray.get(worker.happened.remote(), timeout=5):
                    context.progress(stage, done, total, **detail)
            except (RayActorError, GetTimeoutError):
                pass  # the loss is noticed where the result is waited for
            except BaseException:
                worker.stop.remote()
                raise

    def _start_worker(self, index: int) -> None:
        """Start a worker in a bundle of the placement group; it is ready when its promise is kept."""
        bundle = self._bundles[index]
        worker = (
            cast(Any, FrameWorker)
            .options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index),
            )
            .remote()
        )
        self._places[worker] = index
        self._arriving[worker.prepare.remote(**self._recipe, wanted=self._wanted)] = worker

    def _arrived(self, promise: Any) -> bool:
        worker = self._arriving[promise]
        try:
            self._get(promise)
        except RayActorError:
            del self._arriving[promise]
            self._lost(worker)
            return False
        self._mark_ready(promise, worker)
        return True

    def _mark_ready(self, promise: Any, worker: Any) -> None:
        del self._arriving[promise]
        self._ready.append(worker)

    def _lost(self, worker: Any) -> None:
        if worker in self._ready:
            self._ready.remove(worker)
        index = self._places.pop(worker)
        ray.kill(worker)
        self._losses_left -= 1
        if self._losses_left < 0:
            raise ClusterError("workers die again and again; `ray logs` on their machines says why")
        self._start_worker(index)

    def _get(self, promise: Any, timeout_s: float | None = None) -> Any:
        try:
            return ray.get(promise, timeout=timeout_s)
        except RayTaskError as error:
            raise error.cause from None
        except GetTimeoutError:
            raise ClusterError(f"no worker was ready within {timeout_s:g} s", code="cluster_busy") from None


@contextmanager
def ray_executor(
    models: WarmModels,
    store: Store,
    *,
    count: int,
    gpus: float = 0,
    dtype: torch.dtype | None = None,
    tuning: "Tuning | None" = None,
    patience_s: float = 300.0,
) -> Iterator[RayExecutor]:
    """Within the context `count` warm workers are at hand; this process must be connected (`session.connect`).

    Args:
        models: what the workers load; this process loads nothing of it.
        store: a folder that every machine mounts.
        gpus: shared evenly among the workers; 0 lets them work on the CPU.
        dtype: of the UNet; None is what each worker's device suggests.
        tuning: several devices tune a clip together; None lets one warm worker do it.
        patience_s: how long to wait for free places, or for workers where all were lost.

    Raises:
        InputError: the cluster is too small.
        ClusterError: it is busy, or a machine lacks the store or has other weights.
    """
    bundle = {"CPU": 1.0} | ({"GPU": gpus / count} if gpus else {})
    with store.scratch("driver") as mark:
        executor = RayExecutor(
            [bundle] * count, models, store, mark=mark.name, dtype=dtype, tuning=tuning, patience_s=patience_s
        )
        try:
            executor.open()
            yield executor
        finally:
            executor.close()


def order_of(context: StageContext, task: FrameTask) -> tuple[RenderRequest, FrameTask]:
    """What a worker is sent: names and options. What the task has already looked up here stays here."""
    return portable(context), replace(cast(Any, task))


def portable(context: StageContext) -> RenderRequest:
    """The request as another process can take it, without what was looked up here.

    Raises:
        InputError: a callback was to see each sampling step: latents stay with the worker.
    """
    if context.on_step_end is not None:
        raise InputError(
            "callback_on_step_end works in one process, not on a cluster; on_progress does on both",
            param="callback_on_step_end",
        )
    return replace(context.request)


def _split(every: list[range], shares: int) -> list[list[range]]:
    """As many lists of consecutive batches, their lengths different by at most one."""
    bounds = [len(every) * i // shares for i in range(shares + 1)]
    return [every[a:b] for a, b in pairwise(bounds)]
