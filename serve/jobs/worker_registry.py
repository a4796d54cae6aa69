"""Which workers live, and what they serve: readiness and the list of models are read from here."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .. import database as db
from ..database import Database

_SILENT_S = 60.0
"""A worker that was not heard of for so long is taken for dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveWorker:
    id: str
    kinds: list[str]
    model: dict[str, Any]
    device: str


class WorkerRegistry:
    """The workers' own rows."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._own: dict[str, dict[str, Any]] = {}

    def register(self, worker: str, kinds: Collection[str], model: dict[str, Any], device: str) -> None:
        now = time.time()
        row = {"id": worker, "kinds": list(kinds), "model": model, "device": device, "started_at": now, "seen_at": now}
        with self.database.writing() as connection:
            connection.execute(db.workers.delete().where(db.workers.c.seen_at < now - 10 * _SILENT_S))
            connection.execute(db.workers.insert().values(row))
        self._own[worker] = row

    def beat(self, worker: str) -> None:
        """Say that a worker registered here lives; one that slept for so long that its row was removed is back."""
        now = time.time()
        with self.database.writing() as connection:
            seen = connection.execute(db.workers.update().where(db.workers.c.id == worker).values(seen_at=now))
            if not seen.rowcount and worker in self._own:
                connection.execute(db.workers.insert().values({**self._own[worker], "seen_at": now}))

    def leave(self, worker: str) -> None:
        self._own.pop(worker, None)
        with self.database.writing() as connection:
            connection.execute(db.workers.delete().where(db.workers.c.id == worker))

    def live(self) -> list[LiveWorker]:
        query = sa.select(db.workers).where(db.workers.c.seen_at >= time.time() - _SILENT_S)
        with self.database.reading() as connection:
            return [
                LiveWorker(id=row.id, kinds=row.kinds, model=row.model, device=row.device)
                for row in connection.execute(query)
            ]
