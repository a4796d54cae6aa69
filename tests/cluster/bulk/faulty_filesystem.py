"""A `pyarrow` filesystem that fails as object stores do: no answer, an error, or half of what was written."""

import errno
import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from pyarrow import fs

from recapture.benchmarks.storage import Counting


class Half(io.BytesIO):
    """An output that keeps the first half of what it was given, and may or may not say so."""

    def __init__(self, target: Any, *, says: bool) -> None:
        super().__init__()
        self._target, self._says = target, says

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            self._target.write(data[: len(data) // 2])
            self._target.close()
            super().close()
            if self._says:
                raise OSError(errno.ECONNRESET, "connection reset by peer")


class Faulty(Counting):
    """Of all operations those fail for whose number `fails` answers how: timeout, error, half, silent half."""

    def __init__(self, inner: fs.FileSystem, fails: Callable[[int], str | None]) -> None:
        super().__init__(inner)
        self._fails, self._count = fails, 0
        self.failed: list[str] = []

    def _next(self) -> str | None:
        self._count += 1
        how = self._fails(self._count)
        if how == "timeout":
            self.failed.append(how)
            raise OSError(errno.ETIMEDOUT, "the store did not answer in time")
        if how == "error":
            self.failed.append(how)
            raise OSError(errno.EREMOTEIO, "503 slow down")
        return how

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        self._next()
        return super().get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        self._next()
        return super().get_file_info_selector(selector)

    def open_input_stream(self, path: str) -> Any:
        self._next()
        return super().open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        self._next()
        return super().open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        how = self._next()
        target = super().open_output_stream(path, metadata)
        if how not in ("half", "silent half"):
            return target
        self.failed.append(how)
        return pa.PythonFile(Half(target, says=how == "half"), mode="w")
