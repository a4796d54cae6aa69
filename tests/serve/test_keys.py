"""API keys: what is stored, what is told, and what a revoked one still does."""

import pytest
import sqlalchemy as sa

from recapture.engine.errors import InputError
from recapture.serve import database as db
from recapture.serve.database import Database
from recapture.serve.keys import check_key, create_key, list_keys, revoke_key


@pytest.fixture
def database(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'keys.db'}")
    yield database
    database.close()


def test_a_key_is_known_by_its_hash_alone(database):
    key = create_key(database, "studio", label="laptop")
    assert check_key(database, key).tenant == "studio"
    with database.reading() as connection:
        row = connection.execute(sa.select(db.api_keys)).one()
    assert key not in str(tuple(row))
    assert key.rsplit("_", 1)[1] not in str(tuple(row))
    assert [(info.tenant, info.label) for info in list_keys(database)] == [("studio", "laptop")]


def test_wrong_keys_open_nothing(database):
    key = create_key(database, "studio")
    other = create_key(database, "other")
    swapped = "_".join([*key.split("_", 2)[:2], other.split("_", 2)[2]])
    for wrong in ("", "rk_", key[:-1], key + "a", key.upper(), swapped, f"rk_{'0' * 12}_{'a' * 43}", "é" * 9):
        assert check_key(database, wrong) is None
    assert revoke_key(database, list_keys(database)[0].id)
    assert check_key(database, key) is None
    assert check_key(database, other).tenant == "other"
    assert not revoke_key(database, list_keys(database)[0].id)
    assert not revoke_key(database, "nothing")


def test_tenants_have_plain_names(database):
    for name in ("", "../up", "a b", "A", "-a", "a" * 65):
        with pytest.raises(InputError):
            create_key(database, name)
