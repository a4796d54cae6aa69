"""The far side of a stage store on an object store: plain objects through `pyarrow.fs`, the manifest last.

An object store has no rename, so each publication puts its files under a fresh attempt name, and the manifest, one
atomic put, says which attempt is the entry. Two writers of one key can then never mix their files.
"""

import hashlib
import posixpath
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pyarrow import fs


class Bucket:
    """Entries below `base` on any `pyarrow.fs` filesystem. Errors of the transport pass through as OSError."""

    def __init__(self, filesystem: fs.FileSystem, base: str) -> None:
        self.filesystem = filesystem
        self.base = base.rstrip("/")

    def _at(self, where: str) -> str:
        return f"{self.base}/{where}" if self.base else where

    def read(self, where: str) -> bytes | None:
        """The bytes of one small object, or None if it does not exist."""
        try:
            with self.filesystem.open_input_stream(self._at(where), compression=None) as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def write(self, where: str, data: bytes) -> None:
        """Write a small object."""
        self._make_parent(where)
        with self.filesystem.open_output_stream(self._at(where), compression=None) as stream:
            stream.write(data)

    def upload(self, source: Path, where: str) -> None:
        """Copy a local file to an object."""
        self._make_parent(where)
        with (
            source.open("rb") as read,
            self.filesystem.open_output_stream(self._at(where), compression=None) as stream,
        ):
            shutil.copyfileobj(read, stream, 1 << 22)

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

    def tree(self) -> dict[str, dict[str, float]]:
        """Every object: `<stage>/<key[:2]>/<key>` -> {path below it: time of its last change, Unix seconds}."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for info in self.filesystem.get_file_info(fs.FileSelector(self.base, allow_not_found=True, recursive=True)):
            parts = posixpath.relpath(info.path, self.base or ".").split("/")
            if info.is_file and len(parts) > 3:
                found["/".join(parts[:3])]["/".join(parts[3:])] = info.mtime.timestamp() if info.mtime else 0.0
        return dict(found)

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
