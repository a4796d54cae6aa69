"""Files that survive: synced writes, ownership by `flock`, and errors that name the path and the cause."""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from ..errors import StoreError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_BAD = (*DISK_FULL, errno.EIO, errno.EROFS)


@contextlib.contextmanager
def as_store_error(path: object, verb: str) -> Iterator[None]:
    """Turn what the system refuses into a StoreError that names the path and the cause."""
    try:
        yield
    except (OSError, pa.ArrowException) as exc:
        raise store_error(exc, path, verb) from exc


def disk_errno(exc: BaseException | None) -> int | None:
    """The system's number if this is a full or failing disk, also where a library keeps only the system's text."""
    if isinstance(exc, OSError):
        return exc.errno if exc.errno in DISK_BAD else None
    return next((number for number in DISK_BAD if os.strerror(number) in str(exc)), None)


def store_error(exc: BaseException | None, path: object, verb: str) -> StoreError:
    """A StoreError with the system's reason; credentials in URIs are removed."""
    number = disk_errno(exc) or getattr(exc, "errno", None)
    cause = os.strerror(number) if number else str(exc)
    # A store's URI may carry credentials: they stay out of messages and logs.
    at, cause = (re.sub("//[^/@]*@", "//", str(text)) for text in (getattr(exc, "filename", None) or path, cause))
    if number in DISK_FULL:
        return StoreError(f"cannot {verb} {at}: {cause}; make room or choose another store", code="disk_full")
    return StoreError(f"cannot {verb} {at}: {cause}")


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and sync it to disk; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    sync(path)


def sync(path: Path) -> None:
    """Sync a file or folder to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def try_lock(path: Path) -> int | None:
    """Own `path` until the returned descriptor is closed or the process ends; None when another does."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def busy(path: Path) -> bool:
    """Whether another process owns `path`; False if it does not exist."""
    try:
        fd = try_lock(path)
    except FileNotFoundError:
        return False
    if fd is not None:
        os.close(fd)
    return fd is None


def bytes_or_none(path: Path) -> bytes | None:
    """The content of a file, or None if it does not exist."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def size_or_none(path: Path) -> int | None:
    """The size of a file in bytes, or None if it cannot be read."""
    try:
        return path.stat().st_size
    except OSError:
        return None
