"""State shared by the routes, made once per app."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from ..database import Database
from ..jobs.jobs import Jobs
from ..jobs.records import Job
from ..jobs.worker_registry import WorkerRegistry
from ..metrics import Metrics
from ..safe_http import Outbound
from ..settings import Settings
from ..uploads.clip_sources import InputRoots
from ..uploads.uploads import Uploads
from ..webhooks import Messages

Offer = Callable[[Job], None]
"""Told of a resample that was accepted, for a worker that could do it sooner than others; must not wait for it."""


_DECIDED_AT_ONCE = 2
"""Uploads that an ingress decides on at once: each takes a process with up to `child_memory_bytes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    settings: Settings
    database: Database
    jobs: Jobs
    uploads: Uploads
    roots: InputRoots
    workers: WorkerRegistry
    metrics: Metrics
    outbound: Outbound
    offer: Offer
    deciding: asyncio.Semaphore
    """Held while the last bytes of an upload are looked at."""

    @staticmethod
    def open(settings: Settings, offer: Offer) -> "State":
        """
        Raises:
            StoreError: the data folder or the database cannot be used.
            InputError: a folder of the allow-list cannot be used.
        """
        database = settings.open_database()
        jobs, workers = Jobs(database, quota=settings.quota), WorkerRegistry(database)
        return State(
            settings=settings,
            database=database,
            jobs=jobs,
            uploads=Uploads(database, settings),
            roots=InputRoots(settings.input_roots),
            workers=workers,
            metrics=Metrics(jobs, workers, Messages(database)),
            outbound=settings.outbound(),
            offer=offer,
            deciding=asyncio.Semaphore(_DECIDED_AT_ONCE),
        )


def _state(request: Request) -> State:
    return request.app.state.service


def _tenant(request: Request) -> str:
    return request.state.key.tenant  # there is one, or the guard had answered


Service = Annotated[State, Depends(_state)]
Tenant = Annotated[str, Depends(_tenant)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]
