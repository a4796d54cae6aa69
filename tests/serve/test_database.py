"""The database's versions: what an earlier one left is brought up to this one, on both kinds."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from recapture.serve import database as db
from recapture.serve.database import METADATA, VERSION, Database
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
    engine.dispose()


@pytest.mark.parametrize("version", range(1, VERSION))
def test_an_earlier_version_becomes_this_one_and_keeps_its_records(version, url, tmp_path):
    write_version(version, url)
    database = Database(url)
    assert database.version() == VERSION
    assert set(columns(url)) == set(METADATA.tables)
    with database.reading() as connection:
        assert [tuple(row) for row in connection.execute(sa.select(db.turns))] == [("old", "render", 7)]
    jobs = Jobs(database)
    assert jobs.get("old", "rnd_old").status == "queued"
    assert jobs.take("w", ["render"], lease_s=60).id == "rnd_old"
    assert Uploads(database, Settings(data=tmp_path)).get("old", "upl_old").used_at is None
    assert check_key(database, create_key(database, "old")).tenant == "old"
    database.close()
    Database(url).close()  # a second start changes nothing


@pytest.mark.parametrize("version", range(1, VERSION))
def test_a_migrated_database_is_a_new_one(version, tmp_path):
    old, new = (f"sqlite:///{tmp_path / name}.db" for name in ("old", "new"))
    write_version(version, old)
    for made in (old, new):
        Database(made).close()
    assert columns(old) == columns(new)
