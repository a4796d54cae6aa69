"""Where rows point: files on any `pyarrow.fs` filesystem, only below the roots that the operator allowed.

A row's URI never chooses an endpoint or a credential: those belong to the root (`s3://bucket?endpoint_override=...`), and
a row that lies below it is read through the root's filesystem.
"""

import os
import posixpath
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from pyarrow import fs

from ..errors import InputError, OutputError
from .durable import disk_errno, write_synced

_T = TypeVar("_T")

_PAUSES_S = (0.2, 0.8, 3.2)
"""Before the second, third and fourth try of what a store refused. The client's back-off is not below the engine, and a
store, unlike a service, never says when to come back."""

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def with_retries(call: Callable[[], _T]) -> _T:
    """The call's result; a store that times out or answers with an error is asked again, three times.

    Raises:
        OSError: the last one, or at once what asking again cannot mend (no such file, no permission, a full disk).
    """
    for pause_s in _PAUSES_S:
        try:
            return call()
        except OSError as error:
            if isinstance(error, _FINAL) or disk_errno(error) is not None:
                raise
        time.sleep(pause_s)
    return call()


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A file or folder: its filesystem, its path there, and how the user writes it."""

    filesystem: fs.FileSystem
    path: str
    uri: str

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.filesystem, posixpath.join(self.path, name), f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return re.sub("//[^/@]*@", "//", self.uri.split("?")[0])  # a URI may carry credentials

    @property
    def local(self) -> bool:
        """Whether it is on this machine's file system."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def read(self) -> bytes | None:
        """The whole file, or None if it does not exist."""

        def once() -> bytes:
            with self.filesystem.open_input_stream(self.path, compression=None) as stream:
                return stream.read()

        try:
            return with_retries(once)
        except FileNotFoundError:
            return None

    def write(self, data: bytes) -> None:
        """Replace the file. On a local disk by one synced rename; on an object store by one put, read back by size.

        Raises:
            OutputError: it cannot be written; on a local disk the file is then as it was.
        """
        self._steadily_write(lambda: self._put(data))

    def upload(self, source: Path) -> None:
        """As `write`, from a local file and without taking it into memory."""
        self._steadily_write(lambda: self._put(source))

    def _steadily_write(self, call: Callable[[], None]) -> None:
        try:
            with_retries(call)
        except OSError as error:
            full = disk_errno(error) is not None
            raise OutputError(
                f"cannot write {self}: {error.strerror or error}", param="out", code="disk_full" if full else None
            ) from error

    def _put(self, data: bytes | Path) -> None:
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        if self.local:
            aside = Path(f"{self.path}.{os.getpid()}.part")
            try:
                aside.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(data, Path):
                    shutil.copyfile(data, aside)
                else:
                    write_synced(aside, data)
                os.replace(aside, self.path)
            finally:
                aside.unlink(missing_ok=True)
            return
        self.filesystem.create_dir(posixpath.dirname(self.path), recursive=True)
        with self.filesystem.open_output_stream(self.path, compression=None) as stream:
            if isinstance(data, Path):
                with data.open("rb") as reader:
                    shutil.copyfileobj(reader, stream, 1 << 22)
            else:
                stream.write(data)
        arrived = self.filesystem.get_file_info(self.path).size
        if arrived != size:
            raise OSError(f"{arrived} bytes arrived of {size}")

    def download(self, target: Path, max_bytes: int, *, param: str) -> None:
        """Copy to a local file.

        Args:
            param: what named the file, for the refusal.

        Raises:
            InputError: it does not exist, is larger than `max_bytes`, or cannot be read.
            OSError: its store does not answer, or the local disk is full.
        """

        def once() -> None:
            copied = 0
            with (
                self.filesystem.open_input_stream(self.path, compression=None) as stream,
                target.open("wb") as out,
            ):
                while chunk := stream.read(1 << 22):
                    copied += len(chunk)
                    if copied > max_bytes:
                        raise InputError(f"{self} has more than {max_bytes} bytes", param=param)
                    out.write(chunk)

        try:
            with_retries(once)
        except FileNotFoundError:
            raise InputError(f"{self} does not exist", param=param, code="input_missing") from None
        except _FINAL as error:
            why = os.strerror(error.errno) if error.errno else type(error).__name__
            raise InputError(f"{self} cannot be read: {why}", param=param, code="input_unreadable") from None

    def sizes(self) -> dict[str, int]:
        """Files directly in this folder by name, with their bytes; empty where there is no folder."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        found = with_retries(lambda: self.filesystem.get_file_info(selector))
        return {info.base_name: info.size for info in found if info.is_file}

    def delete(self) -> None:
        """Delete the file or the whole folder; what is not there is no error."""

        def once() -> None:
            kind = self.filesystem.get_file_info(self.path).type
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif kind == fs.FileType.File:
                self.filesystem.delete_file(self.path)

        with_retries(once)


class AllowedRoots:
    """The folders that rows may name.

    Args:
        uris: local paths or `pyarrow.fs` URIs with whatever options and credentials their stores need.

    Raises:
        InputError: one cannot be used.
    """

    def __init__(self, uris: Iterable[str]) -> None:
        self._roots = [open_remote_path(uri, param="allow_root") for uri in dict.fromkeys(uris)]

    @classmethod
    def of(cls, places: Iterable[RemotePath]) -> "AllowedRoots":
        """Roots on filesystems that are already open."""
        made = cls(())
        made._roots = list(places)
        return made

    def find(self, uri: str, *, param: str, base: str | None = None) -> RemotePath:
        """The place of a URI.

        Args:
            param: name of the manifest's column, for the refusal.
            base: local folder that a relative path starts from.

        Raises:
            InputError: it is below no root, or carries a query, credentials or `..`.
        """
        scheme, path = _split(uri, param, base)
        for root in self._roots:
            if _scheme(root.uri) == scheme and (path + "/").startswith(root.path.rstrip("/") + "/"):
                return RemotePath(root.filesystem, path, uri)
        allowed = ", ".join(map(str, self._roots)) or "none"
        raise InputError(f"{uri} is below no allowed root ({allowed}); see `allow_root`", param=param)


def open_remote_path(uri: str, *, param: str) -> RemotePath:
    """A place by the operator's own word: any URI that `pyarrow.fs` opens, or a local path.

    Raises:
        InputError: no filesystem for it.
    """
    if "://" not in uri:
        return RemotePath(fs.LocalFileSystem(), os.path.realpath(os.path.expanduser(uri)), uri)
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (ValueError, OSError) as error:
        raise InputError(f"{uri.split('?')[0]} cannot be opened: {error}", param=param) from None
    return RemotePath(filesystem, os.path.realpath(path) if uri.startswith("file:") else path, uri.split("?")[0])


def join_uri(uri: str, name: str) -> str:
    """The URI of something below a folder; options stay where they belong, at the end."""
    base, question, options = uri.partition("?")
    return f"{base.rstrip('/')}/{name}{question}{options}"


def absolute_uri(uri: str) -> str:
    """The same place from any working directory."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def _scheme(uri: str) -> str:
    return uri.split("://")[0] if "://" in uri else "file"


def _split(uri: str, param: str, base: str | None) -> tuple[str, str]:
    """Scheme and path as the filesystem wants it, with nothing in it that leads elsewhere."""
    if not uri.isprintable():
        raise InputError(f"{uri!r} is not a path", param=param)
    if "://" not in uri:
        if base is None and not os.path.isabs(uri):
            raise InputError(f"{uri} is a relative path, which only a local manifest may hold", param=param)
        return "file", os.path.realpath(os.path.join(base or "/", uri))
    try:
        parts = urlsplit(uri)
    except ValueError:  # brackets that are no IPv6 address
        raise InputError(f"{uri} is not a URI", param=param) from None
    path = unquote(parts.path)
    if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
        raise InputError(f"{uri} names another machine's file", param=param)
    if parts.query or parts.fragment or "@" in parts.netloc or ":" in parts.netloc:
        raise InputError(f"{uri.split('?')[0]} may carry no options, port or credentials", param=param)
    if not path.isprintable() or any(part in ("..", ".") for part in path.split("/")) or "//" in path:
        raise InputError(f"{uri} is not a plain path", param=param)
    return (parts.scheme, os.path.realpath(path)) if parts.scheme == "file" else (parts.scheme, parts.netloc + path)
