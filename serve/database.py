"""The database behind the records: SQLite in a file, or PostgreSQL by URL; made, and brought up to this version."""

import time
from collections.abc import Callable, Iterator, Mapping
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
from sqlalchemy.exc import ArgumentError, OperationalError

from ..engine.errors import StoreError

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

schema_version = Table("schema_version", METADATA, Column("version", Integer, primary_key=True))


def _to_2(connection: Connection) -> None:
    """Workers say that they live, and which model they serve."""
    workers.create(connection)


def _to_3(connection: Connection) -> None:
    """Webhooks; uploads know when they were last used."""
    webhook_secrets.create(connection)
    webhooks.create(connection)
    definition = sa.schema.CreateColumn(uploads.c.used_at).compile(dialect=connection.dialect)
    connection.exec_driver_sql(f"ALTER TABLE uploads ADD COLUMN {definition}")
    next(index for index in uploads.indexes if index.name == "uploads_by_tenant").create(connection)


def _to_4(connection: Connection) -> None:
    """Turns, apart from the jobs."""
    turns.create(connection)
    served = sa.select(jobs.c.tenant, jobs.c.kind, sa.func.max(jobs.c.started_at))
    served = served.where(jobs.c.started_at.is_not(None)).group_by(jobs.c.tenant, jobs.c.kind)
    connection.execute(turns.insert().from_select(["tenant", "kind", "served_at"], served))


VERSION = 4
MIGRATIONS: Mapping[int, Callable[[Connection], None]] = {2: _to_2, 3: _to_3, 4: _to_4}
"""By the version they lead to; each takes a database from the version before."""

_MIGRATION_LOCK = 0x5245_4341


class Database:
    """One database; safe to use from several threads and processes.

    Raises:
        StoreError: it cannot be reached, or a newer version of this software has written it.
    """

    def __init__(self, url: str) -> None:
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
        try:
            self._bring_up_to_date()
        except OperationalError as error:
            raise StoreError(f"the database {self.where} cannot be used: {error.orig}") from None

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

    def version(self) -> int:
        with self.reading() as connection:
            return connection.execute(sa.select(schema_version.c.version)).scalar_one()

    def close(self) -> None:
        self.engine.dispose()

    def _bring_up_to_date(self) -> None:
        with self.writing() as connection:
            if not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            if not sa.inspect(connection).has_table("schema_version"):
                METADATA.create_all(connection)
                connection.execute(schema_version.insert().values(version=VERSION))
                return
            found = connection.execute(sa.select(schema_version.c.version)).scalar_one()
            if found > VERSION:
                raise StoreError(
                    f"the database {self.where} is of version {found}, this software knows {VERSION}; install a newer one"
                )
            for version in range(found + 1, VERSION + 1):
                MIGRATIONS[version](connection)
                connection.execute(schema_version.update().values(version=version))


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
