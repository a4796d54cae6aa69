"""The database's revisions, by Alembic: `versions/` has one file for each step from the first schema to the present one.

Databases of before Alembic say their version in the table `schema_version`; they are taken over by stamping them with the
revision of the same number.
"""

import io
import logging
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

_LOCK = 0x5245_4341
_FOLDER = Path(__file__).parent


@cache
def head() -> str:
    """The revision that this software needs."""
    found = ScriptDirectory(str(_FOLDER)).get_current_head()
    assert found is not None, "there is a first revision"
    return found


def revision_of(connection: Connection) -> str | None:
    """The database's revision; None for an empty one. Only reads."""
    return MigrationContext.configure(connection).get_current_revision() or _before_alembic(connection)


def is_known(revision: str | None) -> bool:
    """Whether this software has a way on from there."""
    return revision is None or any(one.revision == revision for one in ScriptDirectory(str(_FOLDER)).walk_revisions())


def migrate(connection: Connection) -> None:
    """Bring the database to `head()` inside the connection's transaction; other processes that want the same wait."""
    if connection.dialect.name == "postgresql":  # SQLite's transaction is a writer's from its start
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    config = _config(connection)
    if MigrationContext.configure(connection).get_current_revision() is None and (old := _before_alembic(connection)):
        command.stamp(config, old)
    command.upgrade(config, "head")


def sql_of(connection: Connection) -> str:
    """What `migrate` would do, as SQL for the database's own tools; empty where there is nothing to do."""
    found, text = revision_of(connection), io.StringIO()
    config = _config(connection, text)
    if found == head():
        return ""
    if _before_alembic(connection) == found and found is not None:
        command.stamp(config, found, sql=True)
    command.upgrade(config, f"{found}:head" if found else "head", sql=True)
    return text.getvalue()


def _before_alembic(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("schema_version"):
        return None
    return str(connection.execute(sa.text("SELECT version FROM schema_version")).scalar_one())


def _config(connection: Connection, output: io.StringIO | None = None) -> Config:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    made = Config(output_buffer=output) if output else Config()
    made.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made
