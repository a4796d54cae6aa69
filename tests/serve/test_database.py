"""The database's versions: what an earlier one left is brought up to this one, on both kinds."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from recapture.cli.main import app
from recapture.engine.errors import StoreError
from recapture.serve import database as db
from recapture.serve import migrations
from recapture.serve.database import METADATA, Database
from recapture.serve.jobs.jobs import Jobs
from recapture.serve.keys import check_key, create_key
from recapture.serve.settings import Settings
from recapture.serve.uploads.uploads import Uploads

from .databases import postgres_binaries, postgres_server

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'old.db'}"
        return
    if postgres_binaries() is None:
        pytest.skip("the Debian package postgresql is not installed")
    with postgres_server() as url:
        yield url


def columns(url: str) -> dict[str, set[tuple[str, str]]]:
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    inspector = sa.inspect(engine)
    found = {t: {(c["name"], str(c["type"])) for c in inspector.get_columns(t)} for t in inspector.get_table_names()}
    engine.dispose()
    return found


def write_version(version: int, url: str) -> None:
    """A database as an earlier version made it, with a job and an upload in it."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    script = (GOLDEN / f"schema-{version}.{engine.dialect.name}.sql").read_text()
    with engine.begin() as connection:
        for statement in filter(str.strip, script.split(";")):
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("INSERT INTO tenants (id, created_at) VALUES ('old', 1)")
        connection.exec_driver_sql(
            "INSERT INTO jobs (id, tenant, kind, fingerprint, request, created_at, status, revision, attempt, fence,"
            " progress, compute_s, warnings) VALUES ('rnd_old', 'old', 'render', 'f', '{}', 1, 'queued', 1, 0, 0, 0, 0, '[]')"
        )
        connection.exec_driver_sql(
            "INSERT INTO jobs (id, tenant, kind, fingerprint, request, created_at, status, revision, attempt, fence,"
            " progress, compute_s, warnings, started_at)"
            " VALUES ('rnd_done', 'old', 'render', 'f', '{}', 1, 'completed', 3, 1, 1, 1, 1, '[]', 7)"
        )
        connection.exec_driver_sql(
            "INSERT INTO uploads (id, tenant, status, bytes, sha256, created_at)"
            " VALUES ('upl_old', 'old', 'ready', 1, 'f', 1)"
        )
        if version >= 4:
            connection.exec_driver_sql("INSERT INTO turns (tenant, kind, served_at) VALUES ('old', 'render', 7)")
    engine.dispose()


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_an_earlier_version_becomes_this_one_and_keeps_its_records(version, url, tmp_path):
    write_version(version, url)
    database = Database(url)
    assert database.revision() == migrations.head()
    assert set(columns(url)) == {*METADATA.tables, "alembic_version"}
    with database.reading() as connection:
        assert [tuple(row) for row in connection.execute(sa.select(db.turns))] == [("old", "render", 7)]
    jobs = Jobs(database)
    assert jobs.get("old", "rnd_old").status == "queued"
    assert jobs.take("w", ["render"], lease_s=60).id == "rnd_old"
    assert Uploads(database, Settings(data=tmp_path)).get("old", "upl_old").used_at is None
    assert check_key(database, create_key(database, "old")).tenant == "old"
    database.close()
    Database(url).close()  # a second start changes nothing


@pytest.mark.parametrize("version", [None, 1, 2, 3, 4])
def test_the_revisions_lead_to_the_tables_that_the_code_reads(version, url):
    if version is not None:
        write_version(version, url)
    database = Database(url)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    database.close()


@pytest.mark.parametrize("version", [None, 1, 4])
def test_the_sql_does_what_the_service_would(version, url):
    if version is not None:
        write_version(version, url)
    database = Database(url, up_to_date=False)
    script = "".join(line for line in database.migration_sql().splitlines(True) if not line.startswith("--"))
    with database.writing() as connection:
        for statement in script.replace("BEGIN;", "").replace("COMMIT;", "").split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    assert database.revision() == migrations.head()
    assert database.migration_sql() == ""
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    database.close()


def test_a_service_without_the_right_to_change_tables(url):
    if url.startswith("sqlite"):
        pytest.skip("every user of the file may")
    write_version(3, url)
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE service LOGIN")
        connection.exec_driver_sql("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO service")
        connection.exec_driver_sql(
            "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO service"
        )
    engine.dispose()
    service = url.replace("postgres@", "service@")
    with pytest.raises(StoreError, match="recapture database migrate"):
        Database(service)
    Database(url).close()
    database = Database(service)
    assert Jobs(database).take("w", ["render"], lease_s=60).id == "rnd_old"
    database.close()


def test_the_command(tmp_path, capsys):
    arguments = ["database", "migrate", "--data", str(tmp_path)]
    write_version(3, f"sqlite:///{tmp_path / 'recapture.db'}")
    app([*arguments, "--sql"], standalone_mode=False)
    assert "CREATE TABLE turns" in capsys.readouterr().out
    app(arguments, standalone_mode=False)
    assert f"from revision 3 to {migrations.head()}" in capsys.readouterr().out
    app(arguments, standalone_mode=False)
    assert f"has revision {migrations.head()}" in capsys.readouterr().out
