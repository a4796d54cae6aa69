"""A `pyarrow` filesystem that counts what would be requests to an object store."""

from collections import Counter
from typing import Any

from pyarrow import fs


class Counting(fs.FileSystemHandler):
    """Passes everything on to another filesystem. To the engine it is an object store: no renames, no local paths.

    `requests` counts by kind: get (a file read), put (a file written), head (asked whether it is there), list, delete.
    """

    def __init__(self, inner: fs.FileSystem) -> None:
        self.inner = inner
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def get_type_name(self) -> str:
        return "counting"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        self.requests["head"] += len(paths)
        return self.inner.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        self.requests["list"] += 1
        return self.inner.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.inner.create_dir(path, recursive=recursive)  # an object store has no folders

    def delete_dir(self, path: str) -> None:
        files = self.inner.get_file_info(fs.FileSelector(path, recursive=True))
        self.requests["delete"] += sum(info.is_file for info in files)
        self.inner.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self.requests["delete"] += 1
        self.inner.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        raise NotImplementedError("an object store has no rename")

    def copy_file(self, src: str, dest: str) -> None:
        self.inner.copy_file(src, dest)

    def open_input_stream(self, path: str) -> Any:
        self.requests["get"] += 1
        stream = self.inner.open_input_stream(path, compression=None)
        self.bytes["read"] += self.inner.get_file_info(path).size or 0
        return stream

    def open_input_file(self, path: str) -> Any:
        self.requests["get"] += 1
        return self.inner.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.requests["put"] += 1
        return self.inner.open_output_stream(path, compression=None)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError("an object store has no append")
