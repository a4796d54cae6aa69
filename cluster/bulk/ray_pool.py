"""Workers on a Ray cluster: one actor a device, and one named actor that holds the leases of them all."""

import asyncio
import contextlib
import hashlib
import threading
import time
from typing import Any, Protocol

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayError

from .leases import Leases
from .manifest import Row
from .outcome import Entries, Renderer, RowResult
from .pool import Died, Event, Finished, Ready, StillInUse
from .single_flight import LeaseClient

NAMESPACE = "recapture"
LEASE_TTL_S = 30.0


class RendererSetup(Protocol):
    """Makes a renderer in a worker's process."""

    def make(self, leases: LeaseClient) -> Renderer: ...


@ray.remote(num_cpus=0)
class LeaseTable:
    """The leases of all workers that share a stage store, also of several drivers."""

    def __init__(self, ttl_s: float) -> None:
        self._leases = Leases(ttl_s)
        self._freed: dict[str, asyncio.Event] = {}

    async def acquire(self, key: str, holder: str, wait_s: float) -> int | None:
        deadline = time.monotonic() + wait_s
        while True:
            fence = self._leases.acquire(key, holder, time.monotonic())
            left_s = deadline - time.monotonic()
            if fence is not None or left_s <= 0:
                return fence  # pyright: ignore[reportReturnType]
            freed = self._freed.setdefault(key, asyncio.Event())
            with contextlib.suppress(TimeoutError):  # a lease that runs out wakes nobody
                await asyncio.wait_for(freed.wait(), min(left_s, 1.0))

    async def release(self, key: str, fence: int) -> None:
        if self._leases.release(key, fence):
            self._wake(key)

    async def renew(self, holder: str) -> None:
        self._leases.renew(holder, time.monotonic())

    async def drop(self, holder: str) -> None:
        for key in self._leases.drop(holder):
            self._wake(key)

    def _wake(self, key: str) -> None:
        freed = self._freed.pop(key, None)
        if freed is not None:
            freed.set()


def lease_table(name: str) -> Any:
    """The named actor, created on demand. It lives as long as the process that created it; the next caller that misses it creates
    another."""
    return LeaseTable.options(name=name, namespace=NAMESPACE, get_if_exists=True).remote(LEASE_TTL_S)


class RayLeases:
    """A worker's access to the lease table. Without the table, work continues without leases and may be done twice."""

    def __init__(self, name: str, holder: str) -> None:
        self._name, self._holder = name, holder
        self._table = lease_table(name)
        self._holding = False
        threading.Thread(target=self._renew, daemon=True).start()

    def acquire(self, key: str, wait_s: float) -> int | None:
        try:
            fence = ray.get(self._table.acquire.remote(key, self._holder, wait_s), timeout=wait_s + LEASE_TTL_S)
        except RayError:
            self._table = lease_table(self._name)
            return 0  # the fence of no lease
        self._holding = fence is not None
        return fence  # pyright: ignore[reportReturnType]

    def release(self, key: str, fence: int) -> None:
        self._holding = False
        with contextlib.suppress(RayError):
            ray.get(self._table.release.remote(key, fence), timeout=LEASE_TTL_S)

    def _renew(self) -> None:
        while True:
            time.sleep(LEASE_TTL_S / 4)
            if not ray.is_initialized():  # a call now would end the process
                return
            if self._holding:
                with contextlib.suppress(RayError):
                    ray.get(self._table.renew.remote(self._holder), timeout=LEASE_TTL_S / 4)


@ray.remote(max_restarts=0, max_task_retries=0)
class RowWorker:
    """One device with its warm models."""

    def __init__(self, setup: RendererSetup, leases: str, holder: str) -> None:
        self._renderer = setup.make(RayLeases(leases, holder))

    def pipeline(self) -> str:
        return self._renderer.pipeline

    def render(self, row: Row) -> RowResult:
        return self._renderer.render(row)

    def evict(self, entries: Entries) -> Entries:
        return self._renderer.evict(entries)

    def release(self) -> int:
        self._renderer.release()
        return self._renderer.loads

    def close(self) -> None:
        self._renderer.close()


class RayPool:
    """A `Pool` of actors.

    Args:
        setup: travels to each worker and makes its renderer there.
        shared: names what the workers share (the stage store): drivers that name the same share its leases.
        num_gpus, num_cpus: of one worker.
    """

    def __init__(
        self, setup: RendererSetup, *, driver: str, shared: str, num_gpus: float = 0.0, num_cpus: float = 1.0
    ) -> None:
        self._setup, self._driver = ray.put(setup), driver
        self._options = {"num_gpus": num_gpus, "num_cpus": num_cpus}
        self._lease_name = "leases-" + hashlib.sha256(shared.encode()).hexdigest()[:16]
        self._table = lease_table(self._lease_name)
        self._actors: dict[str, Any] = {}
        self._calls: dict[ObjectRef, tuple[str, str, Entries]] = {}
        """What is under way: kind, worker, and for `evict` what it shall remove."""

    def start(self, worker: str) -> None:
        self._actors[worker] = RowWorker.options(**self._options).remote(
            self._setup, self._lease_name, self._holder(worker)
        )
        self._calls[self._actors[worker].pipeline.remote()] = "start", worker, ()

    def submit(self, worker: str, row: Row) -> None:
        self._calls[self._actors[worker].render.remote(row)] = "render", worker, ()

    def evict(self, worker: str, entries: Entries) -> None:
        self._calls[self._actors[worker].evict.remote(entries)] = "evict", worker, entries

    def wait(self, timeout_s: float) -> list[Event]:
        if not self._calls:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        return [event for ref in ready if (event := self._event(ref)) is not None]

    def stop(self, worker: str) -> None:
        actor = self._actors.pop(worker, None)
        if actor is None:
            return
        ray.kill(actor, no_restart=True)
        for ref in [ref for ref, call in self._calls.items() if call[1] == worker and call[0] != "evict"]:
            del self._calls[ref]
        # The table would find out by itself, but only when the lease has run out.
        with contextlib.suppress(RayError):
            ray.get(self._table.drop.remote(self._holder(worker)), timeout=5)

    def release(self) -> int:
        loads, starting = 0, {worker for kind, worker, _ in self._calls.values() if kind == "start"}
        for worker, actor in self._actors.items():
            if worker in starting:
                continue
            with contextlib.suppress(RayError):
                loads += ray.get(actor.release.remote(), timeout=30)  # pyright: ignore[reportOperatorIssue]
        return loads

    def close(self) -> None:
        """End all workers, those without a row in order, so that they remove what they wrote aside."""
        busy = {worker for kind, worker, _ in self._calls.values() if kind != "evict"}
        closing = [actor.close.remote() for worker, actor in self._actors.items() if worker not in busy]
        with contextlib.suppress(RayError):
            ray.wait(closing, num_returns=len(closing), timeout=10) if closing else None
        for worker in list(self._actors):
            self.stop(worker)
        self._calls.clear()

    def _holder(self, worker: str) -> str:
        return f"{self._driver}/{worker}"

    def _event(self, ref: ObjectRef) -> Event | None:
        call = self._calls.pop(ref, None)
        if call is None:  # of a worker that was stopped while this list was read
            return None
        kind, worker, entries = call
        try:
            value = ray.get(ref)
        except RayError as error:
            if kind == "evict":
                return StillInUse(worker, entries)
            # Also where it may only be out of reach: what is not known to be dead must be, before its row goes on.
            self.stop(worker)
            return Died(worker, _cause(error))
        if kind == "evict":
            return StillInUse(worker, value)
        return Ready(worker, value) if kind == "start" else Finished(worker, value)


def _cause(error: RayError) -> str:
    """The line of Ray's long message that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if isinstance(error, RayActorError) and "creation task" not in str(error) else lines[-1])[:500]
