"""The stage store: a stage's result is a directory named by the key of everything that went into it.

    <store>/<stage>/<key[:2]>/<key>/     published: files, and the manifest (sizes, sha256) that makes them an entry
    <store>/.scratch/<stage>-<key>-*/    being written; the writer holds the lock `.<name>.lock` beside it while it lives
    <store>/.checkpoints/<stage>-<key>/  states of a long stage; outlive a crash, end with the publication
    <store>/.live/*                      one file a process: the entries it uses, which gc leaves alone

Publishing is one rename. An entry is never changed afterwards: the first publication of a key wins, and a process that
computed the same adopts it. Ownership is a file's lock, which the kernel drops however a process ends, so nothing that a
killed process left is ever mistaken for work in progress.

On an object store the same layout is a cache on this machine, and `bucket.py` holds the published truth.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import time
import weakref
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import platformdirs
from filelock import lock_descriptor
from pyarrow import fs

from ..errors import RecaptureError, StoreError
from .arrays import ArrayWriter
from .bucket import Bucket
from .durable import (
    as_store_error,
    busy,
    bytes_or_none,
    disk_errno,
    lock_file,
    size_or_none,
    store_error,
    sync,
    try_lock,
    unlock,
    write_synced,
)
from .entry import MANIFEST, Entry, EntryInfo, canonical_json, fsync_and_hash, manifest_bytes, parse_manifest, place

_UPLOAD_MAX_S = 86_400.0  # an object that no manifest names is a dead upload only after a day

_TRASH = "removed-"


def default_store() -> Path:
    """$RECAPTURE_STORE, or a folder of the user's cache."""
    return Path(os.environ.get("RECAPTURE_STORE") or user_cache() / "stages")


def user_cache() -> Path:
    """The package's folder in the user's cache."""
    return platformdirs.user_cache_path("recapture")


@dataclass(frozen=True, slots=True)
class Damage:
    """One finding of `Store.verify`."""

    path: str
    what: str


@dataclass(frozen=True, slots=True)
class GcReport:
    """Totals removed by `Store.gc`."""

    removed: list[EntryInfo]
    leftovers: list[str]
    """Paths of scratch, checkpoints and damaged entries that no process owned."""
    bytes: int
    """Size of the removed entries."""


class Writer:
    """A result being written. Made by `Store.begin`, used as a context manager.

    A block that ends without `publish` leaves nothing but its checkpoints. A full or failing disk inside the
    block becomes a StoreError, whoever wrote.
    """

    def __init__(self, store: "Store", stage: str, key: str) -> None:
        self.stage, self.key = stage, key
        self._store = store
        self._began_s = time.monotonic()
        self.path, self._owner_fd = store._new_scratch(f"{stage}-{key}")
        """Folder for plain files: whatever lies here at `publish` is the result."""
        self.checkpoint_dir = store.root / ".checkpoints" / f"{stage}-{key}"
        self._checkpoint_fd: int | None = None
        self._result: Entry | None = None

    def array(self, name: str, *, shape_per_row: tuple[int, ...], dtype: np.dtype | type | str) -> ArrayWriter:
        """Stream an array row by row: `with writer.array(...) as rows: rows.append(chunk)`."""
        return ArrayWriter(self.path / f"{name}.arrow", shape_per_row=shape_per_row, dtype=dtype)

    def save_array(self, name: str, array: np.ndarray) -> None:
        """Save a whole array; its first axis is the rows."""
        with self.array(name, shape_per_row=array.shape[1:], dtype=array.dtype) as rows:
            rows.append(array)

    def json(self, name: str, value: object) -> None:
        """Write a JSON file of the entry."""
        (self.path / f"{name}.json").write_bytes(canonical_json(value))

    def publish(self, meta: Mapping[str, Any] | None = None) -> Entry:
        """Make the scratch folder the entry; returns the existing one if the key was published meanwhile.

        Raises:
            StoreError: The files cannot be synced, moved or uploaded.
            TypeError, ValueError: `meta` is no JSON.
        """
        if self._result is None:
            with as_store_error(self.path, "write"):
                info = EntryInfo(
                    stage=self.stage,
                    key=self.key,
                    files=fsync_and_hash(self.path),
                    created_at=time.time(),
                    seconds=round(time.monotonic() - self._began_s, 3),
                    meta=dict(meta or {}),
                )
                write_synced(self.path / MANIFEST, manifest_bytes(info))
                sync(self.path)
                self._result = self._store._publish(info, self.path)
                self._store._drop_checkpoints(self.checkpoint_dir, owned=self._checkpoint_fd is not None)
        return self._result

    def save_checkpoint(self, files: Mapping[str, bytes | Path | Callable[[], bytes]]) -> None:
        """Replace the checkpoint by these files, all or nothing; the one before goes only after the new one is safe.

        A second process that computes the same key saves none: the first owns the place.

        Raises:
            StoreError: It cannot be written; the one before stays.
        """
        if not self._claim_checkpoints():
            return
        existing = self._checkpoints()
        number = int(existing[-1].name) + 1 if existing else 0
        aside = self.checkpoint_dir / f"new-{secrets.token_hex(4)}"
        try:
            with as_store_error(aside, "write the checkpoint"):
                aside.mkdir()
                for name, source in files.items():
                    data = source() if callable(source) else source
                    write_synced(aside / name, data.read_bytes() if isinstance(data, Path) else data)
                sync(aside)
                newest = aside.rename(self.checkpoint_dir / f"{number:08d}")
                sync(self.checkpoint_dir)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        for old in set(self.checkpoint_dir.iterdir()) - {newest}:
            shutil.rmtree(old, ignore_errors=True)

    def load_checkpoint(self) -> Path | None:
        """Folder of the newest complete checkpoint of any earlier attempt, or None."""
        existing = self._checkpoints() if self._claim_checkpoints() else []
        return existing[-1] if existing else None

    def _checkpoints(self) -> list[Path]:
        return sorted(path for path in self.checkpoint_dir.iterdir() if path.name.isdigit())

    def _claim_checkpoints(self) -> bool:
        if self._checkpoint_fd is None:
            with as_store_error(self.checkpoint_dir, "write"), self._store._locked():
                self.checkpoint_dir.mkdir(exist_ok=True)
                self._checkpoint_fd = try_lock(self.checkpoint_dir)
        return self._checkpoint_fd is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        unlock(self.path, self._owner_fd)
        if self._checkpoint_fd is not None:
            os.close(self._checkpoint_fd)  # its folder and lock file stay for the next attempt
        if disk_errno(exc) and not isinstance(exc, RecaptureError):
            raise store_error(exc, self.path, "write") from exc


class Store:
    """Results of stages, on a local disk or an object store.

    Entries that a store object returned are safe from `gc`, of any process, until it is closed or collected.

    Args:
        uri: Local path or `pyarrow.fs` URI (file://, s3://, gs://).
        filesystem: Any other `pyarrow.fs` filesystem, treated as an object store; `uri` is then a path in it.
        local_dir: Scratch and cache for an object store; by default a folder of the user's cache.

    Raises:
        StoreError: The store cannot be reached or written.
    """

    def __init__(
        self, uri: str | Path, *, filesystem: fs.FileSystem | None = None, local_dir: Path | None = None
    ) -> None:
        self.uri = str(uri)
        self._bucket: Bucket | None = None
        self._proved_writable = False
        self._live: Path | None = None
        self._in_use: set[str] = set()
        self._release: Callable[[], object] = lambda: None
        base = self.uri
        with as_store_error(uri, "use the store"):
            if filesystem is None and "://" in base:
                filesystem, base = fs.FileSystem.from_uri(base)
                if isinstance(filesystem, fs.LocalFileSystem):
                    filesystem = None
            if filesystem is not None:
                self._bucket = Bucket(filesystem, base)
                base = local_dir or user_cache() / "store" / hashlib.sha256(self.uri.encode()).hexdigest()[:16]
            self.root = Path(base).expanduser().absolute()
            for name in (".scratch", ".checkpoints", ".live"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass

    def get(self, stage: str, key: str) -> Entry | None:
        """The published entry, or None: nothing there, or a file is missing or of another size than published.

        On an object store this brings the entry to this machine, checked against its sha256.

        Raises:
            StoreError: The object store cannot be reached, or the local disk cannot take the entry.
        """
        where = place(stage, key)
        with as_store_error(f"{self.uri}/{where}", "read"):
            if self._bucket is None:
                with self._locked():
                    return self._hold(self._read(where))
            info = parse_manifest(self._bucket.read(f"{where}/{MANIFEST}"), where)
            if info is None:
                return None
            with self._locked():
                cached = self._read(where)
                if cached and cached.digest == info.digest:
                    return self._hold(cached)
            return self._fetch(self._bucket, info)

    def begin(self, stage: str, key: str) -> Writer:
        """Start writing a result: `with store.begin(stage, key) as writer: ...; entry = writer.publish()`.

        Raises:
            StoreError: The store cannot be written; an object store is tried once, before hours go into a result.
        """
        place(stage, key)
        with as_store_error(self.uri, "write"):
            if self._bucket and not self._proved_writable:
                probe = f".scratch/{secrets.token_hex(6)}"
                self._bucket.write(probe, b"")
                self._bucket.delete([probe])
                self._proved_writable = True
            return Writer(self, stage, key)

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A folder on the store's own disk that `gc` leaves alone, gone when the context ends."""
        path, fd = self._new_scratch(name)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            unlock(path, fd)

    def entries(self) -> Iterator[EntryInfo]:
        """Every published entry, in no order. Damaged ones are left to `verify`."""
        with as_store_error(self.uri, "list"):
            for where, used_at in self._places():
                if (info := self._info(where, used_at)) is not None:
                    yield info

    def remove(self, entry: EntryInfo) -> bool:
        """Remove one entry; False, and nothing done, when a live process on this machine uses it."""
        with as_store_error(f"{self.uri}/{entry.where}", "remove"):
            with self._locked():
                if entry.where in self._held():
                    return False
                trash = self._set_aside(self.root / entry.where)
            shutil.rmtree(trash, ignore_errors=True)
            if self._bucket:
                self._bucket.delete([f"{entry.where}/{MANIFEST}", entry.where])
        return True

    def gc(
        self, *, older_than_s: float | None = None, max_bytes: int | None = None, keep: Container[str] = ()
    ) -> GcReport:
        """Remove what no process owns; then entries and checkpoints unused for `older_than_s`; then the least recently
        used entries until `max_bytes` hold the rest. Keys in `keep`, and entries in use, always stay.
        """
        leftovers = self._sweep(older_than_s)
        by_use = sorted(self.entries(), key=lambda info: info.used_at)
        total, now, removed = sum(info.bytes for info in by_use), time.time(), []
        for info in by_use:
            old = older_than_s is not None and now - info.used_at > older_than_s
            over = max_bytes is not None and total > max_bytes
            if (old or over) and info.key not in keep and self.remove(info):
                removed.append(info)
                total -= info.bytes
        return GcReport(removed, leftovers, sum(info.bytes for info in removed))

    def verify(self) -> list[Damage]:
        """Read everything: each file of each entry against its sha256, and what no live process owns."""
        problems = []
        with as_store_error(self.uri, "verify"):
            for where, _ in self._places():
                found = self._check(where)
                if self._bucket or (self.root / where).exists():  # else a gc removed it meanwhile
                    problems += found
            with self._locked():
                dead = [path for path in self._dead() if not path.name.startswith(_TRASH)]  # somebody is deleting those
            problems += [Damage(str(path.relative_to(self.root)), "left by a dead process") for path in dead]
        return problems

    def close(self) -> None:
        """Give up the entries in use to `gc`. The store remains usable."""
        self._release()
        self._live = None
        self._in_use.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclusive among all processes and threads; held for renames, never while bytes move. Not re-entrant."""
        with (self.root / ".lock").open("ab") as file:
            lock_descriptor(file.fileno(), poll_interval=0.005)
            yield

    def _new_scratch(self, name: str) -> tuple[Path, int]:
        path = self.root / ".scratch" / f"{name}-{secrets.token_hex(6)}"
        with self._locked():  # so that no gc sees the folder before it is owned
            path.mkdir()
            fd = try_lock(path)
        assert fd is not None, "a folder made a moment ago has no other owner"
        return path, fd

    def _read(self, where: str) -> Entry | None:
        """The entry in this machine's tree if it is whole, by sizes."""
        info, path = parse_manifest(bytes_or_none(self.root / where / MANIFEST), where), self.root / where
        if info is None or any(size_or_none(path / name) != size for name, (size, _) in info.files.items()):
            return None
        return Entry(**{f.name: getattr(info, f.name) for f in fields(EntryInfo)}, path=path)

    def _hold(self, entry: Entry | None) -> Entry | None:
        """Note the entry as used by this process; the lock must be held, so that gc sees it in use or not at all."""
        if entry is not None:
            if self._live is None:
                self._live = self.root / ".live" / f"{os.getpid()}-{secrets.token_hex(6)}"
                self._release = weakref.finalize(self, _release, self._live, try_lock(self._live))
            if entry.where not in self._in_use:
                with self._live.open("a") as marks:
                    marks.write(f"{entry.where}\n")
                self._in_use.add(entry.where)
            with contextlib.suppress(OSError):
                os.utime(entry.path / MANIFEST)
        return entry

    def _held(self) -> set[str]:
        """Entries in use by live processes, this one included; the lock must be held."""
        held = set()
        for mark in (self.root / ".live").glob("[!.]*"):
            if busy(mark):
                held.update((bytes_or_none(mark) or b"").decode().splitlines())  # none: its owner closed just now
            else:
                mark.unlink(missing_ok=True)
                lock_file(mark).unlink(missing_ok=True)
        return held

    def _publish(self, info: EntryInfo, scratch: Path) -> Entry:
        if self._bucket is None:
            return self._install(info, scratch)
        entry = self.get(info.stage, info.key)
        if entry is None:
            attempt = replace(info, attempt=secrets.token_hex(6))
            for name in info.files:
                self._bucket.upload(scratch / name, f"{info.where}/{attempt.attempt}/{name}")
            self._bucket.write(f"{info.where}/{MANIFEST}", manifest_bytes(attempt))
            self._install(info, scratch, over=True)
            entry = self.get(info.stage, info.key)  # a writer that came between has won: adopt its entry
        if entry is None:
            raise StoreError(f"{info.where} was removed from the object store while it was published")
        return entry

    def _fetch(self, bucket: Bucket, info: EntryInfo) -> Entry | None:
        scratch, fd = self._new_scratch(f"{info.stage}-{info.key}")
        try:
            for name, (_, sha256) in info.files.items():
                if bucket.download(str(PurePosixPath(info.where, info.attempt, name)), scratch / name) != sha256:
                    return None
            info = replace(info, attempt="")
            write_synced(scratch / MANIFEST, manifest_bytes(info))
            return self._install(info, scratch, over=True)
        except FileNotFoundError:  # removed meanwhile, or damaged
            return None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            unlock(scratch, fd)

    def _install(self, info: EntryInfo, scratch: Path, *, over: bool = False) -> Entry:
        """Rename scratch to the entry unless a whole one stands (with `over`, unless an equal one stands)."""
        folder, trash = self.root / info.where, None
        with self._locked():
            existing = self._read(info.where)
            if existing is None or (over and existing.digest != info.digest):
                trash = self._set_aside(folder)
                folder.parent.mkdir(parents=True, exist_ok=True)
                scratch.rename(folder)
                sync(folder.parent)
                existing = self._read(info.where)
            entry = self._hold(existing)
        if trash:
            shutil.rmtree(trash, ignore_errors=True)
        if entry is None:
            raise StoreError(f"{folder} differs from what was written to it; the disk may be failing")
        return entry

    def _set_aside(self, path: Path) -> Path:
        """Out of sight by one rename, to be deleted without the lock; a crash between leaves ownerless scratch."""
        trash = self.root / ".scratch" / f"{_TRASH}{secrets.token_hex(6)}"
        with contextlib.suppress(FileNotFoundError):
            path.rename(trash)
        lock_file(path).unlink(missing_ok=True)
        return trash

    def _drop_checkpoints(self, path: Path, *, owned: bool) -> None:
        with self._locked():
            trash = None if not owned and busy(path) else self._set_aside(path)
        if trash:
            shutil.rmtree(trash, ignore_errors=True)

    def _folders(self) -> Iterator[Path]:
        return self.root.glob("[!.]*/??/*")

    def _places(self) -> Iterator[tuple[str, float]]:
        """Every folder where an entry should be, with the time of its last use."""
        if self._bucket:
            for where, objects in self._bucket.tree().items():
                yield where, max(objects.values())
        else:
            for path in self._folders():
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    mark = path / MANIFEST if (path / MANIFEST).exists() else path
                    yield path.relative_to(self.root).as_posix(), mark.stat().st_mtime

    def _info(self, where: str, used_at: float = 0.0) -> EntryInfo | None:
        name = f"{where}/{MANIFEST}"
        return parse_manifest(
            self._bucket.read(name) if self._bucket else bytes_or_none(self.root / name), where, used_at
        )

    def _sha256(self, path: str) -> str | None:
        if self._bucket:
            return self._bucket.sha256(path)
        try:
            with (self.root / path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    def _check(self, where: str) -> list[Damage]:
        info = self._info(where)
        if info is None:
            return [Damage(where, "no valid manifest")]
        problems = []
        for name, (_, sha256) in info.files.items():
            found = self._sha256(str(PurePosixPath(where, info.attempt, name)))
            if found != sha256:
                what = "missing" if found is None else "content differs from what was published"
                problems.append(Damage(f"{where}/{name}", what))
        return problems

    def _dead(self, older_than_s: float | None = None) -> list[Path]:
        """Scratch and checkpoints without owner or use; the lock must be held."""

        def useless(path: Path) -> bool:
            stage, _, key = path.name.rpartition("-")
            old = older_than_s is not None and time.time() - path.stat().st_mtime > older_than_s
            return old or self._read(f"{stage}/{key[:2]}/{key}") is not None

        # A path that is gone is not dead: its writer ended while we looked.
        dead = [path for path in (self.root / ".scratch").glob("[!.]*") if not busy(path) and path.exists()]
        return dead + [path for path in (self.root / ".checkpoints").glob("[!.]*") if useless(path) and not busy(path)]

    def _sweep(self, older_than_s: float | None) -> list[str]:
        """Delete what `_dead` names and entries that no `get` returns; the paths."""
        with as_store_error(self.uri, "clean"):
            with self._locked():
                self._held()  # drops the marks of dead processes
                dead = self._dead(older_than_s)
                dead += [path for path in self._folders() if self._read(str(path.relative_to(self.root))) is None]
                trash = [self._set_aside(path) for path in dead]
                for lock in self.root.glob(".*/.*.lock"):
                    owned = lock.with_name(lock.name[1:].removesuffix(".lock"))
                    if not owned.exists() and not busy(owned):
                        lock.unlink(missing_ok=True)
            for path in trash:
                shutil.rmtree(path, ignore_errors=True)
            stale = []
            for where, objects in self._bucket.tree().items() if self._bucket else ():
                info = self._info(where)
                named = {MANIFEST, *(str(PurePosixPath(info.attempt, name)) for name in info.files)} if info else set()
                old = time.time() - _UPLOAD_MAX_S
                stale += [f"{where}/{name}" for name, mtime in objects.items() if name not in named and mtime < old]
            if self._bucket:
                self._bucket.delete(stale)
        return [str(path.relative_to(self.root)) for path in dead] + stale


def _release(mark: Path, fd: int | None) -> None:
    if mark.name.startswith(f"{os.getpid()}-"):
        mark.unlink(missing_ok=True)
        unlock(mark, fd)
    elif fd is not None:
        os.close(fd)  # a forked child ends without ending its parent's claim
