"""Results: Parquet shards of many rows, one row for each row of the manifest.

    <out>/results/part-<fence>-<number>.parquet

A shard is written whole under a name of its own and never changed. A rewritten one (rows to be done again are taken out)
names in its metadata the shard that it replaces, so that a crash between writing and deleting doubles nothing. Shards of
an earlier owner of the output count only up to the number at which the next owner sealed them: what a driver writes after
it was taken over changes nothing.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, which no checker sees.

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ...engine.store.remote_path import RemotePath, with_retries

VERSION = 1
_REPLACES = b"recapture.replaces"

STATUSES = ("completed", "failed", "not_admitted")
"""`not_admitted`: the budget ended first; running again continues with these rows."""

SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("input_uri", pa.string(), nullable=False),
        pa.field("camera", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("output_uri", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("gpu_seconds", pa.float64(), nullable=False),  # a worker's device was held, all attempts together
        pa.field("sha256", pa.string()),  # of video.mp4
        pa.field("metrics", pa.map_(pa.string(), pa.float64())),
        pa.field("stage_seconds", pa.map_(pa.string(), pa.float64())),  # of the stages that this row ran
        pa.field("output_bytes", pa.int64(), nullable=False),
        pa.field("stage_bytes", pa.int64(), nullable=False),  # that this row added to the stage store
        pa.field("pipeline", pa.string(), nullable=False),
        pa.field("finished_at", pa.timestamp("ms", tz="UTC"), nullable=False),
    ],
    metadata={b"recapture.schema": b"recapture.bulk.results", b"recapture.version": str(VERSION).encode()},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The content of an output.

    Attributes:
        status: row_id -> status, of all rows in valid shards.
        pipelines: pipeline digest -> number of rows made by it.
        gpu_seconds: all rows together.
        shards: the valid ones.
        stray: names of invalid shards: incomplete, replaced, or written by a driver after it was taken over.
    """

    status: dict[str, str] = field(default_factory=dict)
    pipelines: dict[str, int] = field(default_factory=dict)
    gpu_seconds: float = 0.0
    shards: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)


class Results:
    """The shards below `<out>/results`."""

    def __init__(self, out: RemotePath) -> None:
        self.folder = out / "results"

    def last_numbers(self) -> dict[int, int]:
        """Fence -> number of its last shard: what a new owner seals."""
        found: dict[int, int] = {}
        for fence, number in filter(None, map(_parse, self.folder.sizes())):
            found[fence] = max(number, found.get(fence, 0))
        return found

    def scan(self, sealed: Mapping[int, int], fence: int) -> Scan:
        """Read which rows there are.

        Args:
            sealed: by earlier owner, the number of its last shard that counts.
            fence: of the present owner, whose shards all count.

        Raises:
            OSError: the store does not answer.
        """
        pipelines: dict[str, int] = {}
        status: dict[str, str] = {}
        gpu_seconds, shards, stray, replaced = 0.0, [], [], set()
        tables: dict[str, pa.Table] = {}
        for name in sorted(self.folder.sizes()):
            parsed = _parse(name)
            if parsed is None or not (parsed[0] == fence or parsed[1] <= sealed.get(parsed[0], 0)):
                stray.append(name)
                continue
            table = self._columns(name, ["row_id", "status", "gpu_seconds", "pipeline"])
            if table is None:
                stray.append(name)
                continue
            tables[name] = table
            replaced |= set(json.loads((table.schema.metadata or {}).get(_REPLACES, b"[]")))
        for name, table in tables.items():
            if name in replaced:
                stray.append(name)
                continue
            shards.append(name)
            gpu_seconds += sum(table["gpu_seconds"].to_pylist())
            status.update(zip(table["row_id"].to_pylist(), table["status"].to_pylist(), strict=True))
            for count in table["pipeline"].value_counts().to_pylist():
                pipelines[count["values"]] = pipelines.get(count["values"], 0) + count["counts"]
        return Scan(status=status, pipelines=pipelines, gpu_seconds=gpu_seconds, shards=shards, stray=stray)

    def write(self, fence: int, number: int, rows: Iterable[Mapping[str, Any]], replaces: Iterable[str] = ()) -> None:
        """Write one shard.

        Raises:
            OutputError: it cannot be written; nothing that counts was.
        """
        table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
        self._put(fence, number, table, replaces)

    def drop(self, scan: Scan, fence: int, number: int, is_dropped: Callable[[pa.Table], Any]) -> int:
        """Take rows out, so that they are done again; the next free shard number.

        Args:
            is_dropped: mask of a shard's rows that go.
        """
        for name in scan.shards:
            table = self._columns(name, None)
            if table is None:
                continue
            mask = is_dropped(table)
            if not pc.any(mask).as_py():
                continue
            kept = table.filter(pc.invert(mask))
            if kept.num_rows:
                self._put(fence, number, kept, [name])
                number += 1
            (self.folder / name).delete()
        return number

    def tidy(self, scan: Scan) -> None:
        """Delete invalid shards."""
        for name in scan.stray:
            (self.folder / name).delete()

    def table(self, scan: Scan) -> pa.Table:
        """All rows that count."""
        found = [table for name in scan.shards if (table := self._columns(name, None)) is not None]
        return pa.concat_tables(found) if found else SCHEMA.empty_table()

    def _put(self, fence: int, number: int, table: pa.Table, replaces: Iterable[str]) -> None:
        # Made in memory first: a stream that breaks off in the middle must not leave a file with a footer.
        metadata = {**(SCHEMA.metadata or {}), _REPLACES: json.dumps(list(replaces)).encode()}
        sink = pa.BufferOutputStream()
        parquet.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
        (self.folder / f"part-{fence:06d}-{number:06d}.parquet").write(sink.getvalue().to_pybytes())

    def _columns(self, name: str, columns: list[str] | None) -> pa.Table | None:
        """None where the file is not whole, or gone."""

        def once() -> pa.Table:
            with self.folder.filesystem.open_input_file((self.folder / name).path) as source:
                return parquet.ParquetFile(source).read(columns)

        try:
            table = with_retries(once)
        except (FileNotFoundError, pa.ArrowInvalid):
            return None
        at = table.schema.get_field_index("status")
        # Shards of the version before have `ok` for `completed`.
        renamed = pc.replace_substring_regex(table["status"], "^ok$", "completed")
        return table.set_column(at, table.schema.field(at), renamed)


def _parse(name: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"part-(\d{6})-(\d{6})\.parquet", name)
    return (int(match[1]), int(match[2])) if match else None
