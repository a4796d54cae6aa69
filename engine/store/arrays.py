"""Arrays on disk: an Arrow IPC file with one column of fixed-shape tensors, one row per item of the first axis.

The file holds one record batch whatever the sizes of the appends were. So the same values give the same bytes however a
stage was chunked, and a reader maps the whole array as one contiguous block.
"""

import contextlib
from io import BufferedWriter
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

_DTYPE = b"dtype"  # field metadata: Arrow has no byte-wide bool that a tensor column takes, so bool travels as uint8


class ArrayWriter:
    """Streams rows into one array file; memory holds one append at a time.

    Rows go to a plain file beside the target first, because a record batch's length stands before its rows; closing
    copies it behind the Arrow header. While closing, the disk holds the array twice.

    Use as a context manager: the array exists only after a block that ended well.
    """

    def __init__(self, path: Path, *, shape_per_row: tuple[int, ...], dtype: np.dtype | type | str) -> None:
        self.path = path
        self.shape_per_row = tuple(shape_per_row)
        self.dtype = np.dtype(dtype)
        self.rows = 0
        if self.dtype.kind not in "buif" or not self.dtype.isnative:
            raise TypeError(f"{path.stem}: arrays hold booleans, integers or floats in native order, not {self.dtype}")
        self._spool = path.with_name(path.name + ".rows")
        self._file: BufferedWriter = self._spool.open("xb")

    def append(self, rows: np.ndarray) -> None:
        """Add rows, [k, *shape_per_row] of exactly the writer's dtype; k may be 0.

        Raises:
            ValueError: Another shape or dtype; nothing is cast or broadcast.
            OSError: The disk is full.
        """
        if rows.shape[1:] != self.shape_per_row or rows.ndim == 0 or rows.dtype != self.dtype:
            want = f"[k, {', '.join(map(str, self.shape_per_row))}] {self.dtype}"
            raise ValueError(f"{self.path.stem}: rows are {list(rows.shape)} {rows.dtype}, not {want}")
        self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.close()
                self._write_arrow()
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            with contextlib.suppress(OSError):  # a second flush of what a full disk refused
                self._file.close()
            self._spool.unlink(missing_ok=True)

    def _write_arrow(self) -> None:
        stored = np.dtype(np.uint8) if self.dtype.kind == "b" else self.dtype
        tensor = pa.fixed_shape_tensor(pa.from_numpy_dtype(stored), self.shape_per_row)
        field = pa.field("rows", tensor, nullable=False, metadata={_DTYPE: self.dtype.name})
        count = self.rows * int(np.prod(self.shape_per_row))
        # An empty file cannot be mapped.
        data = pa.memory_map(str(self._spool)).read_buffer() if count else pa.py_buffer(b"")
        values = pa.Array.from_buffers(tensor.value_type, count, [None, data])
        lists = pa.Array.from_buffers(tensor.storage_type, self.rows, [None], children=[values])
        column = pa.ExtensionArray.from_storage(tensor, lists)
        batch = pa.record_batch([column], schema=pa.schema([field]))
        with pa.ipc.new_file(str(self.path), batch.schema) as writer:
            writer.write_batch(batch)


def read_array(path: Path) -> np.ndarray:
    """Map an array file: [N, *shape_per_row], read-only, zero-copy; pages are read when touched.

    Raises:
        OSError: The file is missing.
        ValueError: The file is not an array file, or is damaged.
    """
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    column = batch.column(0)
    tensor = column.type
    if not isinstance(tensor, pa.FixedShapeTensorType):
        raise ValueError(f"{path.name} holds {tensor}, not fixed-shape tensors")
    dtype = np.dtype((batch.schema.field(0).metadata or {})[_DTYPE].decode())
    shape = (batch.num_rows, *tensor.shape)
    values = column.storage.values.buffers()[1] if np.prod(shape) else b""
    return np.ndarray(shape, dtype, buffer=values)
