"""Jobs in the database: the rules of `records.py`, each change one compare-and-swap on the record's revision.

Nothing here decides what is allowed: it loads a record, computes its successor, and writes that if no other process was
faster. So both databases obey the same rules, and no lock is held during other work.
"""

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from ...engine.errors import InputError, RecaptureError
from .. import database as db
from ..database import Database
from ..webhooks import leave_message
from .records import FINAL, UNENDED, Claim, Job, Refused

_COLUMNS = [field.name for field in fields(Job)]


UNCLAIMED_S = 60.0
"""Time within which a caller fetches its preview or estimate."""


class IdempotencyConflict(RecaptureError):
    """The key was used for another request."""

    code = "idempotency_conflict"


class UploadGone(InputError):
    """It was deleted."""

    code = "upload_gone"


class QueueFull(RecaptureError):
    """No more is accepted now."""

    code = "queue_full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Default limits of a tenant; its own row may override them."""

    max_active: int = 100
    """Renders that have not ended."""
    max_running: int = 4
    max_queue: int = 2000
    """Renders waiting, of all tenants together."""


class Jobs:
    """The queue and the records.

    Args:
        clock: Unix seconds; all processes of a service should agree on it within a fraction of a lease.
    """

    def __init__(
        self, database: Database, *, quota: Quota | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.database, self.quota, self.clock = database, quota or Quota(), clock

    def submit(
        self,
        tenant: str,
        kind: str,
        request: Mapping[str, Any],
        fingerprint: str,
        *,
        key: str | None = None,
        deadline_s: float | None = None,
    ) -> tuple[Job, bool]:
        """Accept a job, or return the one that this key accepted before; the second value says whether it is new.

        Raises:
            IdempotencyConflict: the key belongs to a request with another fingerprint.
            QueueFull: the tenant's quota or the whole queue is used up.
            UploadGone: the clip was deleted meanwhile.
        """
        now = self.clock()
        with self.database.writing() as connection:
            # Counting and adding must be one thing, or a burst gets past the quota.
            self.database.serialize(connection, f"submit {tenant}")
            if key is not None and (existing := by_key(connection, tenant, key)) is not None:
                if existing.fingerprint != fingerprint:
                    raise IdempotencyConflict(
                        "this key was used for another request; use a new one", param="Idempotency-Key"
                    )
                if (job := load_job(connection, existing.subject)) is not None:
                    return job, False
            self._admit(connection, tenant, kind)
            if "input" in request:  # from here on it is in use, or it is gone and was not
                mine = (db.uploads.c.id == request["input"], db.uploads.c.tenant == tenant)
                if not connection.execute(db.uploads.update().where(*mine).values(used_at=now)).rowcount:
                    raise UploadGone("the uploaded clip is not there any more", param="input")
            job = Job(
                id=f"{_PREFIX[kind]}_{secrets.token_hex(12)}",
                tenant=tenant,
                kind=kind,
                fingerprint=fingerprint,
                request=dict(request),
                created_at=now,
                deadline_at=None if deadline_s is None else now + deadline_s,
            )
            connection.execute(db.jobs.insert().values({name: getattr(job, name) for name in _COLUMNS}))
            if key is not None:
                remember(connection, tenant, key, fingerprint, job.id, now)
        return job, True

    def get(self, tenant: str, job: str, kind: str | None = None) -> Job | None:
        """A record of the tenant's own; None for one that is not there and for another's."""
        with self.database.reading() as connection:
            found = load_job(connection, job)
        return found if found and found.tenant == tenant and kind in (None, found.kind) else None

    def page(
        self, tenant: str, kind: str, *, limit: int, after: str | None = None, status: str | None = None
    ) -> list[Job]:
        """The newest first, those after the job named.

        Raises:
            InputError: the job named by `after` does not exist.
        """
        table = db.jobs.c
        query = sa.select(db.jobs).where(table.tenant == tenant, table.kind == kind)
        if status is not None:
            query = query.where(table.status == status)
        if after is not None:
            if (last := self.get(tenant, after, kind)) is None:
                raise InputError(f"{kind} {after} does not exist; it may have been deleted", param="after")
            older = sa.or_(
                table.created_at < last.created_at, sa.and_(table.created_at == last.created_at, table.id < last.id)
            )
            query = query.where(older)
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(table.created_at.desc(), table.id.desc()).limit(limit))
            return [_job(row) for row in rows]

    def take(
        self, worker: str, kinds: Collection[str], *, lease_s: float, job: str | None = None, head_start_s: float = 0.0
    ) -> Job | None:
        """Give the worker the next free job, or None.

        The tenant with the fewest running goes first, then the one served longest ago, then the oldest job.

        Args:
            job: only this one, if it is free and its tenant's turn: it may pass the tenant's own jobs, not another's.
            head_start_s: resamples younger than this are left to the worker that holds their adapters.
        """
        while True:
            now = self.clock()
            with self.database.reading() as connection:
                candidate = self._next(connection, kinds, now, job, head_start_s)
                turn = candidate if job is None else self._next(connection, kinds, now, None, 0.0)
            if candidate is None or turn is None or turn.tenant != candidate.tenant:
                return None
            try:
                taken = self._change(candidate.id, lambda job, now=now: job.taken(worker, now=now, lease_s=lease_s))
            except Refused:
                continue  # another worker was faster
            if not taken.final:
                return taken

    def renew(self, claim: Claim, *, lease_s: float) -> bool:
        """Hold the job for longer; False when it is not this worker's any more."""
        until = self.clock() + lease_s
        try:
            self._change(claim.job, lambda job: job.renewed(claim, until=until))
        except Refused:
            return False
        return True

    def holds(self, claim: Claim) -> bool:
        """Whether the worker still holds the job: what it asks at each step."""
        table = db.jobs.c
        query = sa.select(table.id).where(
            table.id == claim.job,
            table.attempt == claim.attempt,
            table.fence == claim.fence,
            table.status == "in_progress",
        )
        with self.database.reading() as connection:
            return connection.execute(query).first() is not None

    def advance(self, claim: Claim, **what: Any) -> Job:
        """Raises Refused, as all below: the job is not this worker's any more."""
        return self._change(claim.job, lambda job: job.advanced(claim, **what))

    def complete(self, claim: Claim, result: dict[str, Any], *, warnings: list[str], compute_s: float = 0.0) -> Job:
        now = self.clock()
        return self._change(
            claim.job, lambda job: job.completed(claim, result, now=now, warnings=warnings, compute_s=compute_s)
        )

    def fail(self, claim: Claim, error: dict[str, Any], *, compute_s: float = 0.0) -> Job:
        now = self.clock()
        return self._change(claim.job, lambda job: job.failed(claim, error, now=now, compute_s=compute_s))

    def give_back(self, claim: Claim) -> Job:
        return self._change(claim.job, lambda job: job.given_back(claim))

    def cancel(self, job: str) -> Job:
        now = self.clock()
        return self._change(job, lambda record: record.cancelled(now=now))

    def expire_overdue(self) -> int:
        """End what is past its deadline; returns how many."""
        now, table, ended = self.clock(), db.jobs.c, 0
        query = sa.select(table.id).where(table.status.in_(UNENDED), table.deadline_at <= now)
        with self.database.reading() as connection:
            overdue = list(connection.execute(query).scalars())
        for job in overdue:
            try:
                self._change(job, lambda record: record.expired(now=now))
                ended += 1
            except Refused:  # it ended by itself
                pass
        return ended

    def delete(self, job: str) -> None:
        """Forget a job; its idempotency key may be used again."""
        with self.database.writing() as connection:
            connection.execute(db.idempotency.delete().where(db.idempotency.c.subject == job))
            connection.execute(db.jobs.delete().where(db.jobs.c.id == job))

    def withdraw(self, job: str) -> None:
        """Forget a job that no worker has taken; one that was stays. Not for jobs with an idempotency key."""
        with self.database.writing() as connection:
            connection.execute(db.jobs.delete().where(db.jobs.c.id == job, db.jobs.c.status == "queued"))

    def remove_unclaimed(self) -> int:
        """Delete previews and estimates that ended and were never fetched; returns their number."""
        table = db.jobs.c
        left = sa.and_(table.kind != "render", table.status.in_(FINAL), table.completed_at < self.clock() - UNCLAIMED_S)
        with self.database.writing() as connection:
            return connection.execute(db.jobs.delete().where(left)).rowcount

    def counts(self) -> dict[tuple[str, str], int]:
        """Number of jobs by kind and status."""
        table = db.jobs.c
        query = sa.select(table.kind, table.status, sa.func.count()).group_by(table.kind, table.status)
        with self.database.reading() as connection:
            return {(kind, status): count for kind, status, count in connection.execute(query)}

    def oldest_queued_s(self) -> float:
        """Seconds that the first job in the queue has waited; 0 if the queue is empty."""
        with self.database.reading() as connection:
            query = sa.select(sa.func.min(db.jobs.c.created_at)).where(db.jobs.c.status == "queued")
            first = connection.execute(query).scalar()
        return 0.0 if first is None else max(0.0, self.clock() - first)

    def _admit(self, connection: Connection, tenant: str, kind: str) -> None:
        table = db.jobs.c
        count = sa.select(sa.func.count()).where(table.kind == kind)
        waiting = connection.execute(count.where(table.status == "queued")).scalar_one()
        if waiting >= self.quota.max_queue:
            raise QueueFull(f"{waiting} are waiting, more are not accepted; try again later")
        own = connection.execute(sa.select(db.tenants.c.max_active).where(db.tenants.c.id == tenant)).scalar()
        most = self.quota.max_active if own is None else own
        active = count.where(table.tenant == tenant, table.status.in_(UNENDED))
        if connection.execute(active).scalar_one() >= most:
            raise QueueFull(f"at most {most} may be queued and running at once; wait for one to end", code="quota_used")

    def _next(
        self, connection: Connection, kinds: Collection[str], now: float, job: str | None, head_start_s: float
    ) -> Job | None:
        table = db.jobs.c
        # Each poll of each worker asks this: it reads the jobs that have not ended, by their index, and no others.
        live = (
            sa.select(table.tenant, sa.func.count().label("running"))
            .where(table.status == "in_progress", table.kind.in_(kinds), table.lease_until > now)
            .group_by(table.tenant)
            .subquery()
        )
        turns = (
            sa.select(db.turns.c.tenant, sa.func.max(db.turns.c.served_at).label("served_at"))
            .where(db.turns.c.kind.in_(kinds))
            .group_by(db.turns.c.tenant)
            .subquery()
        )
        running = sa.func.coalesce(live.c.running, 0)
        query = (
            sa.select(db.jobs)
            .join(db.tenants, db.tenants.c.id == table.tenant)
            .outerjoin(live, live.c.tenant == table.tenant)
            .outerjoin(turns, turns.c.tenant == table.tenant)
            .where(
                table.kind.in_(kinds),
                table.status.in_(UNENDED),
                sa.or_(table.status == "queued", table.lease_until <= now),
                sa.or_(table.deadline_at.is_(None), table.deadline_at > now),
                running < sa.func.coalesce(db.tenants.c.max_running, self.quota.max_running),
            )
            .order_by(running, sa.func.coalesce(turns.c.served_at, 0), table.created_at, table.id)
            .limit(1)
        )
        if job is not None:
            query = query.where(table.id == job)
        elif head_start_s:
            tuned_by = table.request["tuned_by"].as_string()
            query = query.where(sa.or_(tuned_by.is_(None), table.created_at <= now - head_start_s))
        row = connection.execute(query).first()
        return None if row is None else _job(row)

    def _change(self, job: str, change: Callable[[Job], Job]) -> Job:
        while True:
            with self.database.writing() as connection:
                before = load_job(connection, job)
                if before is None:
                    raise Refused(f"{job} was deleted")
                after = change(before)
                changes = {n: getattr(after, n) for n in _COLUMNS if getattr(after, n) != getattr(before, n)}
                if not changes:
                    return after
                # The fence too: a lease that is renewed leaves the revision as it is.
                here = (db.jobs.c.id == job, db.jobs.c.revision == before.revision, db.jobs.c.fence == before.fence)
                if connection.execute(db.jobs.update().where(*here).values(changes)).rowcount:
                    if after.fence > before.fence:
                        self._note_turn(connection, after)
                    if after.final:  # in one transaction: no render ends without its message
                        leave_message(connection, after, self.clock())
                    return after

    def _note_turn(self, connection: Connection, job: Job) -> None:
        row = {"tenant": job.tenant, "kind": job.kind, "served_at": self.clock()}
        insert = (sqlite if self.database.is_sqlite else postgresql).insert(db.turns).values(row)
        connection.execute(insert.on_conflict_do_update(index_elements=["tenant", "kind"], set_=row))


_PREFIX = {"render": "rnd", "preview": "prv", "estimate": "est"}


def remember(connection: Connection, tenant: str, key: str, fingerprint: str, subject: str, now: float) -> None:
    """Tie an idempotency key to what it made."""
    connection.execute(
        db.idempotency.delete().where(db.idempotency.c.tenant == tenant, db.idempotency.c.key == key)
    )  # of a deleted job
    row = {"tenant": tenant, "key": key, "fingerprint": fingerprint, "subject": subject, "created_at": now}
    connection.execute(db.idempotency.insert().values(row))


def by_key(connection: Connection, tenant: str, key: str) -> Any:
    """What an idempotency key made: `fingerprint` and `subject`; None for a new one."""
    table = db.idempotency.c
    return connection.execute(sa.select(db.idempotency).where(table.tenant == tenant, table.key == key)).first()


def load_job(connection: Connection, job: str) -> Job | None:
    """A record of any tenant."""
    row = connection.execute(sa.select(db.jobs).where(db.jobs.c.id == job)).first()
    return None if row is None else _job(row)


def _job(row: Any) -> Job:
    return Job(**{name: getattr(row, name) for name in _COLUMNS})
