"""API keys: shown once, stored as a hash, compared in constant time. A key belongs to a tenant."""

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass

import sqlalchemy as sa

from ..engine.errors import InputError
from . import database as db
from .database import Database, ensure_tenant

_KEY = re.compile(r"rk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """Public fields of a key: everything except the key itself."""

    id: str
    tenant: str
    label: str
    created_at: float
    revoked_at: float | None


def check_tenant(tenant: str) -> None:
    """Raises InputError: the tenant's name is no name."""
    if not _TENANT.fullmatch(tenant):
        raise InputError(
            f"{tenant!r} cannot name a tenant: use up to 64 of a-z, 0-9, - and _, not - or _ first",
            param="tenant",
        )


def create_key(database: Database, tenant: str, *, label: str = "") -> str:
    """A new key of a tenant, which is created if needed. The key cannot be shown again.

    Raises:
        InputError: the tenant's name is no name.
    """
    check_tenant(tenant)
    key = f"rk_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
    row = {"id": _parts(key)[0], "tenant": tenant, "label": label[:100], "hash": _hash(key), "created_at": time.time()}
    with database.writing() as connection:
        ensure_tenant(connection, tenant)
        connection.execute(db.api_keys.insert().values(row))
    return key


def has_key(database: Database) -> bool:
    """Whether any key is valid."""
    query = sa.select(sa.exists().where(db.api_keys.c.revoked_at.is_(None)))
    with database.reading() as connection:
        return bool(connection.execute(query).scalar_one())


def list_keys(database: Database) -> list[KeyInfo]:
    """All keys, the oldest first."""
    names = ("id", "tenant", "label", "created_at", "revoked_at")
    with database.reading() as connection:
        rows = connection.execute(sa.select(db.api_keys).order_by(db.api_keys.c.created_at))
        return [KeyInfo(**{name: getattr(row, name) for name in names}) for row in rows]


def revoke_key(database: Database, key: str) -> bool:
    """Revoke a key by its id, from the next request on. Returns False if no valid key has that id."""
    table = db.api_keys.c
    with database.writing() as connection:
        good = sa.and_(table.id == key, table.revoked_at.is_(None))
        return bool(connection.execute(db.api_keys.update().where(good).values(revoked_at=time.time())).rowcount)


def check_key(database: Database, key: str) -> KeyInfo | None:
    """Whose key this is; None for one that is malformed, unknown or revoked, after the same work for each."""
    identifier, _ = _parts(key)
    with database.reading() as connection:
        row = connection.execute(sa.select(db.api_keys).where(db.api_keys.c.id == identifier)).first()
    same = hmac.compare_digest(row.hash if row else "0" * 64, _hash(key))
    if row is None or not same or row.revoked_at is not None:
        return None
    return KeyInfo(id=row.id, tenant=row.tenant, label=row.label, created_at=row.created_at, revoked_at=row.revoked_at)


def _parts(key: str) -> tuple[str, str]:
    match = _KEY.fullmatch(key)
    return (match[1], match[2]) if match else ("", "")


def _hash(key: str) -> str:
    # Plain sha256: the key has 256 random bits, there is nothing to guess that a slow hash would protect.
    return hashlib.sha256(key.encode()).hexdigest()
