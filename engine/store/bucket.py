"""The far side of a stage store on an object store: plain objects through `pyarrow.fs`, the manifest last.

An object store has no rename, so each publication puts its files under a fresh attempt name, and the manifest, one
atomic put, says which attempt is the entry. Two writers of one key can then never mix their files.
"""

import hashlib
import posixpath
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from pyarrow import fs

from .remote_path import with_retries

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _steady(call: Callable[Concatenate["Bucket", _P], _T]) -> Callable[Concatenate["Bucket", _P], _T]:
    """The method, called again while the store does not answer; each of them may be done twice."""

    @wraps(call)
    def again(self: "Bucket", *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return with_retries(partial(call, self, *args, **kwargs))

    return again


class Bucket:
    """Entries below `base` on any `pyarrow.fs` filesystem. Errors of the transport that last pass through as OSError."""

    def __init__(self, filesystem: fs.FileSystem, base: str) -> None:
        self.filesystem = filesystem
        self.base = base.rstrip("/")

    def _at(self, where: str) -> str:
        return f"{self.base}/{where}" if self.base else where

    @_steady
    def read(self, where: str) -> bytes | None:
        """The bytes of one small object, or None if it does not exist."""
        try:
            with self.filesystem.open_input_stream(self._at(where), compression=None) as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    @_steady
    def write(self, where: str, data: bytes) -> None:
        """Write a small object."""
        self._make_parent(where)
        with self.filesystem.open_output_stream(self._at(where), compression=None) as stream:
            stream.write(data)

    @_steady
    def upload(self, source: Path, where: str) -> None:
        """Copy a local file to an object."""
        self._make_parent(where)
        with (
            source.open("rb") as read,
            self.filesystem.open_output_stream(self._at(where), compression=None) as stream,
        ):
            shutil.copyfileobj(read, stream, 1 << 22)

    @_steady
    def download(self, where: str, target: Path) -> str:
        """Copy one object to a local file; returns the sha256 of what arrived."""
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with (
            self.filesystem.open_input_stream(self._at(where), compression=None) as stream,
            target.open("wb") as out,
        ):
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
                out.write(chunk)
        return digest.hexdigest()

    @_steady
    def sha256(self, where: str) -> str | None:
        """Digest of one object, or None if it does not exist."""
        try:
            with self.filesystem.open_input_stream(self._at(where), compression=None) as stream:
                digest = hashlib.sha256()
                while chunk := stream.read(1 << 22):
                    digest.update(chunk)
                return digest.hexdigest()
        except FileNotFoundError:
            return None

    @_steady
    def tree(self) -> dict[str, dict[str, float]]:
        """Every object: `<stage>/<key[:2]>/<key>` -> {path below it: time of its last change, Unix seconds}."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for info in self.filesystem.get_file_info(fs.FileSelector(self.base, allow_not_found=True, recursive=True)):
            parts = posixpath.relpath(info.path, self.base or ".").split("/")
            if info.is_file and len(parts) > 3:
                found["/".join(parts[:3])]["/".join(parts[3:])] = info.mtime.timestamp() if info.mtime else 0.0
        return dict(found)

    @_steady
    def delete(self, where: Iterable[str]) -> None:
        """Delete files and whole folders, in this order; missing ones are not an error."""
        for path in map(self._at, where):
            kind = self.filesystem.get_file_info(path).type
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(path)
            elif kind == fs.FileType.File:
                self.filesystem.delete_file(path)

    def _make_parent(self, where: str) -> None:
        self.filesystem.create_dir(posixpath.dirname(self._at(where)), recursive=True)
