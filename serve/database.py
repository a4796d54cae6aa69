"""The database behind the records: SQLite in a file, or PostgreSQL by URL; made, and brought up to this version."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    event,
)
from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError

from ..engine.errors import StoreError
from . import migrations

METADATA = MetaData()

tenants = Table(
    "tenants",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("max_active", Integer),
    Column("max_running", Integer),
)

api_keys = Table(
    "api_keys",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("tenant", ForeignKey("tenants.id"), nullable=False),
    Column("label", String(100), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

uploads = Table(
    "uploads",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("tenant", ForeignKey("tenants.id"), nullable=False),
    Column("status", String(16), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("filename", String(255)),
    Column("clip", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("created_at", Float, nullable=False),
    Column("used_at", Float),
    Index("uploads_by_tenant", "tenant", "created_at"),
)

jobs = Table(
    "jobs",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("tenant", ForeignKey("tenants.id"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("request", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("status", String(16), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("worker", String(100)),
    Column("lease_until", Float),
    Column("deadline_at", Float),
    Column("started_at", Float),
    Column("completed_at", Float),
    Column("stage", String(32)),
    Column("progress", Float, nullable=False),
    Column("checkpoint", String(64)),
    Column("result", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("compute_s", Float, nullable=False),
    Column("warnings", JSON, nullable=False),
    Index("jobs_by_status", "status", "kind", "created_at"),
    Index("jobs_by_tenant", "tenant", "kind", "created_at"),
)

turns = Table(
    "turns",
    METADATA,
    Column("tenant", ForeignKey("tenants.id"), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("served_at", Float, nullable=False),
)
"""When a tenant was given a worker last: what is fair must not be read out of all jobs that ever were."""

idempotency = Table(
    "idempotency",
    METADATA,
    Column("tenant", ForeignKey("tenants.id"), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("subject", String(32), nullable=False),
    Column("created_at", Float, nullable=False),
)

workers = Table(
    "workers",
    METADATA,
    Column("id", String(100), primary_key=True),
    Column("kinds", JSON, nullable=False),
    Column("model", JSON(none_as_null=True)),
    Column("device", String(32), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
)

webhook_secrets = Table(
    "webhook_secrets",
    METADATA,
    Column("id", String(24), primary_key=True),
    Column("tenant", ForeignKey("tenants.id"), nullable=False),
    Column("secret", String(100), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("ends_at", Float),
)

WHY_CHARACTERS = 300

webhooks = Table(
    "webhooks",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("tenant", ForeignKey("tenants.id"), nullable=False),
    Column("render", String(32), nullable=False),
    Column("url", String(2000), nullable=False),
    Column("body", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_at", Float, nullable=False),
    Column("error", String(WHY_CHARACTERS)),
    Column("created_at", Float, nullable=False),
    Index("webhooks_due", "status", "next_at"),
)


class Database:
    """One database; safe to use from several threads and processes.

    Args:
        up_to_date: bring it to this software's revision, which takes the right to change tables; a database that has it
            already is only read.

    Raises:
        StoreError: it cannot be reached or brought up to date, or a newer version of this software has written it.
    """

    def __init__(self, url: str, *, up_to_date: bool = True) -> None:
        try:
            parsed = sa.make_url(url)
        except ArgumentError:
            raise StoreError("the database's URL cannot be read; give sqlite:///FILE or postgresql://...") from None
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise StoreError(f"{parsed.get_backend_name()} is not supported; use sqlite or postgresql")
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.where = parsed.render_as_string(hide_password=True)
        # SQLite's own transactions are begun by hand below: as writers from the start, or two that both read first
        # would end in a deadlock that no waiting resolves.
        more: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"} if self.is_sqlite else {"pool_pre_ping": True}
        more |= {"pool_size": 10, "max_overflow": 30}  # as many as the ingress has threads
        self.engine = sa.create_engine(parsed, **more)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _sqlite_settings)
        if up_to_date:
            self.migrate()

    def revision(self) -> str | None:
        """The schema's revision; None for a database without tables."""
        with self._refused_as_error(), self.reading() as connection:
            return migrations.revision_of(connection)

    def migrate(self) -> None:
        """Bring the schema to this software's revision."""
        found, needed = self.revision(), migrations.head()
        if not migrations.is_known(found):
            raise StoreError(
                f"the database {self.where} is of revision {found}, this software knows {needed}; install a newer one"
            )
        if found != needed:
            with self._refused_as_error(), self.writing() as connection:
                migrations.migrate(connection)

    def migration_sql(self) -> str:
        """What `migrate` would do, as SQL."""
        with self._refused_as_error(), self.reading() as connection:
            return migrations.sql_of(connection)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction: all of the block or nothing."""
        with self.engine.connect() as connection:
            if not self.is_sqlite:
                with connection.begin():
                    yield connection
                return
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Statements on their own; no lock is kept between them."""
        with self.engine.connect() as connection:
            yield connection

    def serialize(self, connection: Connection, name: str) -> None:
        """Let no other transaction past this point under the same name until this one ends."""
        if not self.is_sqlite:  # there, writers are one at a time anyway
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(name))))

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _refused_as_error(self) -> Iterator[None]:
        try:
            yield
        except ProgrammingError as error:
            raise StoreError(
                f"the database {self.where} does not let this user change its tables ({str(error.orig).strip()}); "
                "run `recapture database migrate` as a user who may"
            ) from None
        except OperationalError as error:
            raise StoreError(f"the database {self.where} cannot be used: {error.orig}") from None


def _sqlite_settings(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    # A reader never waits for a writer; what was committed survives a power cut.
    for setting in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def ensure_tenant(connection: Connection, tenant: str) -> None:
    """Create the tenant's row if it does not exist."""
    if connection.execute(sa.select(tenants.c.id).where(tenants.c.id == tenant)).first() is None:
        connection.execute(tenants.insert().values(id=tenant, created_at=time.time()))
