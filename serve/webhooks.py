"""Webhooks: a render that ends leaves a message in the same transaction, and `processes/maintenance.py` delivers it.

Delivered at least once: a process that dies between the answer and the record sends it again, under the same id.
"""

import json
import random
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from ..client.webhooks import SECRET_PREFIX, sign_webhook
from . import database as db
from .database import Database, ensure_tenant
from .jobs.records import Job

RETRY_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Pauses between tries, as Standard Webhooks proposes them: three days in all."""
HOLD_S = 60.0
"""Nobody else tries a message for so long after a try began; a process that dies in between costs this."""
KEPT_S = 7 * 86_400.0
"""How long finished messages stay, so that operators can look them up."""
BOTH_S = 86_400.0
"""After a new secret was made the one before signs as well for so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message to one URL."""

    id: str
    tenant: str
    url: str
    body: str
    tries: int


def leave_message(connection: Connection, job: Job, now: float) -> None:
    """Put the news that a job has ended among what is to be delivered, if its owner asked for it."""
    url = job.request.get("webhook_url")
    if url is None:
        return
    body = {
        "type": f"render.{job.status}",
        "timestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": {
            "id": job.id,
            "status": job.status,
            "created_at": job.created_at,
            "completed_at": job.completed_at,
            "error": job.error,
        },
    }
    row = {
        "id": f"msg_{secrets.token_hex(12)}",
        "tenant": job.tenant,
        "render": job.id,
        "url": url,
        "body": json.dumps(body, separators=(",", ":")),
        "status": "waiting",
        "tries": 0,
        "next_at": now,
        "created_at": now,
    }
    connection.execute(db.webhooks.insert().values(row))


class Messages:
    """Pending messages; several processes may deliver them.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self.database, self.clock = database, clock

    def take(self, *, not_of: Collection[str] = ()) -> Message | None:
        """The message that has waited longest, held for this process; None if none is due.

        Args:
            not_of: tenants that are served already: a receiver that is slow delays nobody else's.
        """
        table = db.webhooks.c
        while True:
            now = self.clock()
            due = sa.select(db.webhooks).where(
                table.status == "waiting", table.next_at <= now, table.tenant.not_in(not_of)
            )
            with self.database.reading() as connection:
                row = connection.execute(due.order_by(table.next_at).limit(1)).first()
            if row is None:
                return None
            mine = (
                table.id == row.id,
                table.status == "waiting",
                table.tries == row.tries,
                table.next_at == row.next_at,
            )
            with self.database.writing() as connection:
                change = db.webhooks.update().where(*mine).values(tries=row.tries + 1, next_at=now + HOLD_S)
                if connection.execute(change).rowcount:
                    return Message(id=row.id, tenant=row.tenant, url=row.url, body=row.body, tries=row.tries + 1)

    def headers(self, message: Message) -> dict[str, str]:
        """Those of Standard Webhooks, for a try that is made now."""
        stamp, body = int(self.clock()), message.body.encode()
        signatures = [sign_webhook(secret, message.id, stamp, body) for secret in self._secrets(message.tenant)]
        return {
            "Content-Type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(stamp),
            "webhook-signature": " ".join(signatures),
        }

    def delivered(self, message: Message) -> None:
        self._end(message, "delivered", None)

    def failed(self, message: Message, why: str, *, for_good: bool = False) -> float | None:
        """Note a try that came to nothing; seconds until the next, None if it was the last. A long `why` is cut.

        Args:
            for_good: trying again cannot help.
        """
        why = why[: db.WHY_CHARACTERS]
        if for_good or message.tries > len(RETRY_S):
            self._end(message, "failed", why)
            return None
        pause_s = RETRY_S[message.tries - 1] * random.uniform(0.9, 1.1)
        self._note(message, {"next_at": self.clock() + pause_s, "error": why})
        return pause_s

    def tidy(self) -> None:
        """Forget messages that are long done with, and secrets that sign no more."""
        now, table = self.clock(), db.webhooks.c
        with self.database.writing() as connection:
            old = sa.and_(table.status != "waiting", table.created_at < now - KEPT_S)
            connection.execute(db.webhooks.delete().where(old))
            connection.execute(db.webhook_secrets.delete().where(db.webhook_secrets.c.ends_at < now))

    def counts(self) -> dict[str, int]:
        """How many messages there are by status."""
        query = sa.select(db.webhooks.c.status, sa.func.count()).group_by(db.webhooks.c.status)
        with self.database.reading() as connection:
            return {status: count for status, count in connection.execute(query)}

    def _secrets(self, tenant: str) -> list[str]:
        table = db.webhook_secrets.c
        good = sa.or_(table.ends_at.is_(None), table.ends_at > self.clock())
        query = sa.select(table.secret).where(table.tenant == tenant, good).order_by(table.created_at.desc())
        with self.database.reading() as connection:
            return list(connection.execute(query).scalars())

    def _end(self, message: Message, status: str, why: str | None) -> None:
        self._note(message, {"status": status, "error": why})

    def _note(self, message: Message, values: dict[str, Any]) -> None:
        # By the try as well: one that was held too long has become another's.
        mine = (db.webhooks.c.id == message.id, db.webhooks.c.tries == message.tries)
        with self.database.writing() as connection:
            connection.execute(db.webhooks.update().where(*mine).values(values))


def webhook_secret(database: Database, tenant: str, *, rotate: bool = False) -> str:
    """The secret that signs a tenant's webhooks, made if there is none.

    Args:
        rotate: make another; the one before signs as well for a day.
    """
    table, now = db.webhook_secrets.c, time.time()
    with database.writing() as connection:
        database.serialize(connection, f"webhook secret {tenant}")
        ensure_tenant(connection, tenant)
        query = sa.select(table.secret).where(table.tenant == tenant, table.ends_at.is_(None))
        standing = connection.execute(query).scalar()
        if standing is not None and not rotate:
            return standing
        mine = (table.tenant == tenant, table.ends_at.is_(None))
        connection.execute(db.webhook_secrets.update().where(*mine).values(ends_at=now + BOTH_S))
        secret = SECRET_PREFIX + b64encode(secrets.token_bytes(32)).decode()
        row = {"id": secrets.token_hex(12), "tenant": tenant, "secret": secret, "created_at": now}
        connection.execute(db.webhook_secrets.insert().values(row))
    return secret


def has_secret(database: Database, tenant: str) -> bool:
    """Whether anybody could check this tenant's webhooks."""
    table = db.webhook_secrets.c
    with database.reading() as connection:
        return connection.execute(sa.select(table.id).where(table.tenant == tenant).limit(1)).first() is not None
