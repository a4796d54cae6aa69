"""Where the bytes of uploads and renders lie: in the data folder that all processes share, or in an object store.

In an object store `data` is a folder of one machine: what is being made, and a copy of what was read there lately.

    uploads/<id>/parts/<offset>     what arrived, until the upload is whole; named by where in the clip it begins
    uploads/<id>/clip               the clip
    renders/<id>/<attempt>/<name>   files of a result; the record says which attempt's they are
    stores/<tenant>/                the stage store
"""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pyarrow import fs

from ..engine.store import Store
from ..engine.store.durable import sync, try_lock
from ..engine.store.remote_path import join_uri, open_remote_path, with_retries
from .settings import Settings

_KEPT_S = 86_400.0
"""A machine's copy that nothing has read for so long makes room."""


class Busy(Exception):
    """Another request writes the same upload."""


class Files:
    """In the data folder."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def data(self) -> Path:
        return self._settings.data

    def check(self) -> None:
        """Raises OSError: the place cannot be used now."""
        probe = self.data / f".probe-{secrets.token_hex(6)}"
        probe.touch()
        probe.unlink()

    def store(self, tenant: str) -> Store:
        """The stage store of one tenant: what one has computed tells another nothing.

        Raises:
            StoreError: it cannot be used.
        """
        return Store(self._settings.store_path(tenant))

    def attempt(self, render: str, number: int) -> Path:
        """The folder that an attempt at a render makes its result in."""
        return self._render(render) / str(number)

    def begin_upload(self, upload: str) -> None:
        path = self._clip(upload)
        path.parent.mkdir(parents=True)
        path.touch()

    def arrived(self, upload: str) -> int:
        """Bytes of an upload that is not whole yet."""
        path = self._clip(upload)
        return path.stat().st_size if path.exists() else 0

    def last_arrival(self, upload: str) -> float:
        """When an unfinished upload got its last byte, Unix seconds; 0 if nothing of it is there."""
        path = self._clip(upload)
        return path.stat().st_mtime if path.exists() else 0.0

    @contextlib.contextmanager
    def appending(self, upload: str) -> Iterator[tuple[BinaryIO, int]]:
        """A file to write what comes next to, and where in the clip that is; what was written stays, also after an error.

        Raises:
            Busy: another request is writing.
        """
        path = self._clip(upload)
        lock = try_lock(path)
        if lock is None:
            raise Busy
        try:
            with path.open("ab") as file:
                at = file.tell()
                try:
                    yield file, at
                finally:
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            os.close(lock)

    def whole_upload(self, upload: str) -> Path:
        """The file of an upload whose last byte has arrived."""
        return self._clip(upload)

    def keep_upload(self, upload: str) -> None:
        """Make a whole upload durable."""
        sync(self._clip(upload).parent)

    def drop_upload(self, upload: str) -> None:
        """Remove the bytes of an upload; it stays known."""
        self._clip(upload).unlink(missing_ok=True)

    def remove_upload(self, upload: str) -> None:
        shutil.rmtree(self._clip(upload).parent, ignore_errors=True)

    def clip(self, upload: str) -> Path:
        """The file of a clip that was kept."""
        return self._clip(upload)

    def keep_attempt(self, render: str, number: int) -> None:
        """Make a finished attempt, whose files are synced, readable for all."""
        folder = self.attempt(render, number)
        for path in (folder, folder.parent, folder.parent.parent):
            sync(path)

    def remove_attempts(self, render: str, number: int) -> None:
        """Remove this attempt at a render and those before it."""
        for left in self._render(render).glob("*"):
            if left.name.isdigit() and int(left.name) <= number:
                shutil.rmtree(left, ignore_errors=True)

    def remove_render(self, render: str) -> None:
        shutil.rmtree(self._render(render), ignore_errors=True)

    def content(self, render: str, number: int, name: str) -> Path:
        """A file of a kept attempt.

        Raises:
            FileNotFoundError: it was removed.
        """
        return self.attempt(render, number) / name

    def _clip(self, upload: str) -> Path:
        return self._settings.upload_path(upload)

    def _render(self, render: str) -> Path:
        return self._settings.render_path(render)


class ObjectFiles(Files):
    """In an object store.

    Args:
        uri: of a folder, `s3://bucket/prefix?region=...`, as `pyarrow.fs` opens it.

    Raises:
        InputError: no filesystem for it.
    """

    def __init__(self, settings: Settings, uri: str) -> None:
        super().__init__(settings)
        self._uri, self._root = uri, open_remote_path(uri, param="objects")

    def check(self) -> None:
        super().check()
        self._root.filesystem.get_file_info(self._root.path)

    def store(self, tenant: str) -> Store:
        return Store(join_uri(self._uri, f"stores/{tenant}"), local_dir=self._settings.store_path(tenant))

    def begin_upload(self, upload: str) -> None:
        pass  # it has no parts

    def arrived(self, upload: str) -> int:
        return sum(size for _, size in self._parts(upload))

    def last_arrival(self, upload: str) -> float:
        selector = fs.FileSelector((self._root / f"uploads/{upload}").path, recursive=True, allow_not_found=True)
        found = with_retries(lambda: self._root.filesystem.get_file_info(selector))
        return max((info.mtime.timestamp() for info in found if info.is_file and info.mtime), default=0.0)

    @contextlib.contextmanager
    def appending(self, upload: str) -> Iterator[tuple[BinaryIO, int]]:
        # Two requests that begin at one place write the same bytes under the same name, so neither waits for the other:
        # where one of them came less far, the next request begins there.
        at = self.arrived(upload)
        part = self._clip(upload).with_name(f"part-{secrets.token_hex(6)}")
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                yield file, at
        finally:
            if part.stat().st_size:
                (self._root / f"uploads/{upload}/parts/{at:016d}").upload(part)
            part.unlink()

    def whole_upload(self, upload: str) -> Path:
        path = self._clip(upload)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"part-{secrets.token_hex(6)}")
        try:
            with path.open("wb") as out:
                for name, size in self._parts(upload):
                    (self._root / f"uploads/{upload}/parts/{name}").download(part, size, param="input")
                    with part.open("rb") as file:
                        shutil.copyfileobj(file, out, 1 << 22)
        finally:
            part.unlink(missing_ok=True)
        return path

    def keep_upload(self, upload: str) -> None:
        (self._root / f"uploads/{upload}/clip").upload(self._clip(upload))
        (self._root / f"uploads/{upload}/parts").delete()

    def drop_upload(self, upload: str) -> None:
        self.remove_upload(upload)

    def remove_upload(self, upload: str) -> None:
        super().remove_upload(upload)
        (self._root / f"uploads/{upload}").delete()

    def clip(self, upload: str) -> Path:
        return self._fetched(f"uploads/{upload}/clip")

    def keep_attempt(self, render: str, number: int) -> None:
        for path in sorted(self.attempt(render, number).rglob("*")):
            if path.is_file():
                (self._root / path.relative_to(self.data).as_posix()).upload(path)
        super().remove_attempts(render, number)

    def remove_attempts(self, render: str, number: int) -> None:
        super().remove_attempts(render, number)
        at = self._root / f"renders/{render}"
        selector = fs.FileSelector(at.path, allow_not_found=True)
        for info in with_retries(lambda: self._root.filesystem.get_file_info(selector)):
            if info.base_name.isdigit() and int(info.base_name) <= number:
                (at / info.base_name).delete()

    def remove_render(self, render: str) -> None:
        super().remove_render(render)
        (self._root / f"renders/{render}").delete()

    def content(self, render: str, number: int, name: str) -> Path:
        return self._fetched(f"renders/{render}/{number}/{name}")

    def _make_room(self) -> None:
        before = time.time() - _KEPT_S
        for folder in (*self.data.glob("uploads/*"), *self.data.glob("renders/*")):
            if max((path.stat().st_mtime for path in (folder, *folder.rglob("*"))), default=0.0) < before:
                shutil.rmtree(folder, ignore_errors=True)

    def _parts(self, upload: str) -> list[tuple[str, int]]:
        """Name and size of the parts that follow each other from the beginning on."""
        sizes, at, parts = (self._root / f"uploads/{upload}/parts").sizes(), 0, []
        while size := sizes.get(name := f"{at:016d}"):
            parts.append((name, size))
            at += size
        return parts

    def _fetched(self, where: str) -> Path:
        """This machine's copy of an object, which never changes."""
        path = self.data / where
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
            return path
        info = with_retries(lambda: self._root.filesystem.get_file_info((self._root / where).path))
        if info.type != fs.FileType.File:
            raise FileNotFoundError(f"{self._root / where}")
        self._make_room()
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
        try:
            (self._root / where).download(aside, info.size, param="input")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return path


def open_files(settings: Settings) -> Files:
    """The place of a service's files.

    Raises:
        InputError: the object store cannot be opened.
    """
    return Files(settings) if settings.objects is None else ObjectFiles(settings, settings.objects)
