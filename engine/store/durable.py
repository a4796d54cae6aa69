"""Files that survive: synced writes, ownership by locks, and errors that name the path and the cause."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from filelock import lock_descriptor

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
    """Sync a file or folder to disk; Windows, which syncs no folders, keeps their names by itself."""
    if os.name == "nt" and path.is_dir():
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock_file(path: Path) -> Path:
    """The file whose lock owns `path`: beside it, since not every system locks folders or reads what is locked."""
    return path.with_name(f".{path.name}.lock")


def try_lock(path: Path) -> int | None:
    """Own `path` until the returned descriptor is closed or the process ends; None when another does.

    Whoever removes `path` removes its lock file too.
    """
    return _locked(lock_file(path), os.O_RDWR | os.O_CREAT)


def busy(path: Path) -> bool:
    """Whether another process owns `path`, or another user; False if nobody ever did."""
    try:
        fd = _locked(lock_file(path), os.O_RDWR)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    if fd is not None:
        os.close(fd)
    return fd is None


def _locked(file: Path, flags: int) -> int | None:
    fd = os.open(file, flags, 0o644)
    try:
        mine = lock_descriptor(fd, blocking=False)
    except BaseException:
        os.close(fd)
        raise
    if not mine:
        os.close(fd)
    return fd if mine else None


def unlock(path: Path, fd: int | None) -> None:
    """Give up `path`, which is removed, with its lock file."""
    if fd is not None:
        lock_file(path).unlink(missing_ok=True)
        os.close(fd)


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
