"""Uploads: bytes that arrive in parts, under names of our own, and are used once their sha256 and a probe agree."""

import hashlib
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import sqlalchemy as sa

from ...client.schema import Problem, UploadCreate
from ...engine.errors import InputError, RecaptureError
from .. import database as db
from ..database import Database
from ..files import Busy, open_files
from ..jobs.jobs import IdempotencyConflict, QueueFull, by_key, remember
from ..jobs.options import digest_of
from ..settings import Settings
from .decoding import probe_upload

UNFINISHED_S = 86_400.0
"""So long may an upload be silent before it is given up; and a failed one says for so long what was wrong."""


class UploadConflict(RecaptureError):
    """The part does not begin where the upload ends, or another request is sending one."""

    code = "upload_conflict"


class TooLarge(InputError):
    code = "too_large"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    id: str
    tenant: str
    status: str
    """pending, ready or failed."""
    bytes: int
    sha256: str
    filename: str | None
    clip: dict[str, Any] | None
    """`ClipInfo.to_json` of a clip that is ready."""
    error: dict[str, Any] | None
    created_at: float
    used_at: float | None = None
    """When a render, a preview or an estimate of it was last asked for."""


class Uploads:
    """Records in the database, bytes where the settings say."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings, self.files = database, settings, open_files(settings)

    def create(self, tenant: str, asked: UploadCreate, *, key: str | None) -> UploadRecord:
        """Make room for a clip.

        Raises:
            TooLarge, QueueFull: over the cap of one upload, or of the tenant's uploads together.
            IdempotencyConflict: the key made another upload.
        """
        if asked.bytes > self.settings.max_upload_bytes:
            raise TooLarge(f"at most {self.settings.max_upload_bytes} bytes are accepted", param="bytes")
        fingerprint = digest_of({"upload": asked.sha256, "bytes": asked.bytes})
        with self.database.writing() as connection:
            self.database.serialize(connection, f"upload {tenant}")
            if key is not None and (standing := by_key(connection, tenant, key)) is not None:
                if standing.fingerprint != fingerprint:
                    raise IdempotencyConflict("this key was used for another request", param="Idempotency-Key")
                row = connection.execute(sa.select(db.uploads).where(db.uploads.c.id == standing.subject)).first()
                if row is not None and row.status != "failed":  # a failed one takes no bytes: the key begins anew
                    return _record(row)
            used = sa.select(sa.func.coalesce(sa.func.sum(db.uploads.c.bytes), 0)).where(
                db.uploads.c.tenant == tenant, db.uploads.c.status != "failed"
            )
            if connection.execute(used).scalar_one() + asked.bytes > self.settings.max_tenant_bytes:
                raise QueueFull("your uploads take all the room you have; delete some", code="quota_used")
            record = UploadRecord(
                id=f"upl_{secrets.token_hex(12)}",
                tenant=tenant,
                status="pending",
                bytes=asked.bytes,
                sha256=asked.sha256,
                filename=asked.filename,
                clip=None,
                error=None,
                created_at=time.time(),
            )
            self.files.begin_upload(record.id)
            connection.execute(db.uploads.insert().values(_row(record)))
            if key is not None:
                remember(connection, tenant, key, fingerprint, record.id, record.created_at)
        return record

    def get(self, tenant: str, upload: str) -> UploadRecord | None:
        """A record of the tenant's own; None for one that is not there and for another's."""
        table = db.uploads.c
        with self.database.reading() as connection:
            query = sa.select(db.uploads).where(table.id == upload, table.tenant == tenant)
            row = connection.execute(query).first()
        return None if row is None else _record(row)

    def arrived(self, record: UploadRecord) -> int:
        """Bytes that are there."""
        return record.bytes if record.status == "ready" else self.files.arrived(record.id)

    @contextmanager
    def appending(self, record: UploadRecord, offset: int) -> Iterator[BinaryIO]:
        """The upload's file at its end, for one request at a time; what was written stays, also after an error.

        Raises:
            UploadConflict: the upload is complete, does not end at `offset`, or another request is writing.
        """
        if record.status != "pending":
            raise UploadConflict(f"the upload is {record.status}; it takes no more")
        try:
            with self.files.appending(record.id) as (file, at):
                if at != offset:
                    raise UploadConflict(f"it ends at {at}, not at {offset}", param="Upload-Offset")
                yield file
        except Busy:
            raise UploadConflict("another request is sending a part of it") from None

    def finish(self, record: UploadRecord) -> UploadRecord:
        """Decide on an upload that has all its bytes: ready, or failed with the reason."""
        path = self.files.whole_upload(record.id)
        clip = problem = None
        with path.open("rb") as file:
            arrived = hashlib.file_digest(file, "sha256").hexdigest()
        if arrived != record.sha256:
            problem = Problem(code="sha256_mismatch", message="other bytes arrived than were announced", param="sha256")
        else:
            try:
                clip = probe_upload(path, self.settings)
                self.files.keep_upload(record.id)
            except InputError as error:
                problem = Problem(code=error.code, message=error.message, param="input")
        changes = {
            "status": "failed" if problem else "ready",
            "clip": clip,
            "error": problem and problem.model_dump(),
        }
        with self.database.writing() as connection:
            mine = sa.and_(db.uploads.c.id == record.id, db.uploads.c.status == "pending")
            connection.execute(db.uploads.update().where(mine).values(changes))
        if problem:
            self.files.drop_upload(record.id)
        decided = self.get(record.tenant, record.id)
        return decided or record

    def delete(self, record: UploadRecord) -> None:
        self._delete(record.id, db.uploads.c.id == record.id)

    def remove_unfinished(self) -> int:
        """Delete what failed, or is pending, and got no byte for a day; returns how many."""
        before, table, removed = time.time() - UNFINISHED_S, db.uploads.c, 0
        old = sa.and_(table.status != "ready", table.created_at < before)
        with self.database.reading() as connection:
            found = [_record(row) for row in connection.execute(sa.select(db.uploads).where(old))]
        for record in found:
            if self.files.last_arrival(record.id) < before:
                removed += self._delete(record.id, sa.and_(table.id == record.id, table.status == record.status))
        return removed

    def remove_unused(self) -> int:
        """Delete what was not used for as long as the settings say; returns how many.

        One that an unfinished job refers to stays, however old it is, and counts from the job's end.
        """
        if self.settings.upload_days is None:
            return 0
        before, table, jobs = time.time() - 86_400 * self.settings.upload_days, db.uploads.c, db.jobs.c
        needed = sa.exists().where(
            jobs.tenant == table.tenant,
            jobs.request["input"].as_string() == table.id,
            sa.or_(jobs.completed_at.is_(None), jobs.completed_at > before),
        )
        old = sa.and_(sa.func.coalesce(table.used_at, table.created_at) < before, ~needed)
        with self.database.reading() as connection:
            found = list(connection.execute(sa.select(table.id).where(old)).scalars())
        # Asked again with the deletion: a job may have come meanwhile, and has said so in the upload's row.
        return sum(self._delete(upload, sa.and_(table.id == upload, old)) for upload in found)

    def _delete(self, upload: str, which: sa.ColumnElement[bool]) -> bool:
        with self.database.writing() as connection:
            if not connection.execute(db.uploads.delete().where(which)).rowcount:
                return False
            connection.execute(db.idempotency.delete().where(db.idempotency.c.subject == upload))
        self.files.remove_upload(upload)
        return True


_NAMES = list(UploadRecord.__annotations__)


def _record(row: Any) -> UploadRecord:
    return UploadRecord(**{name: getattr(row, name) for name in _NAMES})


def _row(record: UploadRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _NAMES}
