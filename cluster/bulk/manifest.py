"""A manifest: one row per clip and path, as Parquet, CSV or JSONL, checked as a whole before anything runs.

Rows hold URIs, never frames. `COLUMNS` defines the values. `row_id` is computed from a row's content, so a manifest may be
reordered, extended or converted to another format, and finished rows stay finished.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ...engine.cameras import parse_expression
from ...engine.config import OPTIONS, QUALITIES, RunConfig, override
from ...engine.errors import InputError, RecaptureError
from ...engine.options import by_section
from ...engine.store import canonical_json
from ...engine.store.remote_path import AllowedRoots, RemotePath

VERSION = 1
_KIND, _VERSION = b"recapture.schema", b"recapture.version"

COLUMNS = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),  # the user's own name of the clip, free
        pa.field("input_uri", pa.string(), nullable=False),
        pa.field("start_s", pa.float64()),  # of the clip's part to use; null is its beginning
        pa.field("end_s", pa.float64()),  # null is its end
        pa.field("camera", pa.string(), nullable=False),  # a preset expression, or the URI of a camera file
        pa.field("output_uri", pa.string()),  # folder of the bundle; null is <out>/clips/<row_id>
        pa.field("seed", pa.int64()),  # null is the run's
        pa.field("options", pa.string()),  # JSON object over the run's options: section -> option -> value, or by name
        pa.field("priority", pa.int32()),  # higher ones are admitted first; null is 0
    ],
    metadata={_KIND: b"recapture.bulk.manifest", _VERSION: str(VERSION).encode()},
)
"""The manifest's schema. Parquet files may carry its metadata; one of another version is refused."""

_MAX_ROWS = 10_000_000
_MAX_TEXT = {"clip_id": 200, "input_uri": 2048, "output_uri": 2048, "camera": 4096, "options": 65_536}
_BATCH = 4096
_NAMED = 20
"""Bad rows that a refusal names."""


@dataclass(frozen=True, slots=True)
class ManifestProblem:
    """One bad value: where it stands (`line 7`, or `row 7` of a Parquet file) and what is wrong with it."""

    where: str
    column: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}, {self.column}: {self.what}"


class ManifestError(InputError):
    """The manifest cannot be used; `problems` holds every bad row."""

    code = "invalid_manifest"

    def __init__(self, problems: list[ManifestProblem]) -> None:
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        super().__init__("; ".join(map(str, problems[:_NAMED])) + more, param="manifest")
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The request of one row. `options` is the JSON text of the column, or empty."""

    index: int
    row_id: str
    clip_id: str
    input_uri: str
    start_s: float | None
    end_s: float | None
    camera: str
    output_uri: str
    seed: int
    options: str
    priority: int


class Manifest:
    """Checked rows, kept as one Arrow table."""

    def __init__(self, table: pa.Table, row_ids: list[str]) -> None:
        self.table, self.row_ids = table, row_ids

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def digest(self) -> str:
        """sha256 over the rows, whatever their order."""
        return hashlib.sha256("".join(sorted(self.row_ids)).encode()).hexdigest()

    def row(self, index: int) -> Row:
        values = {name: self.table[name][index].as_py() for name in COLUMNS.names}
        return Row(index=index, row_id=self.row_ids[index], **values)

    def clips(self) -> list[str]:
        """By row, what its clip's stages are shared under: rows of one input."""
        return self.table["input_uri"].to_pylist()

    def priorities(self) -> list[int]:
        return self.table["priority"].to_pylist()


def read_manifest(place: RemotePath, roots: AllowedRoots, out: RemotePath, *, seed: int = 0) -> Manifest:
    """Read and check a manifest, by its name's ending: `.parquet`, `.csv`, `.jsonl`.

    Args:
        roots: folders that `input_uri`, `output_uri` and camera files must be below.
        out: output folder of rows without an `output_uri`.
        seed: of rows that give none.

    Raises:
        ManifestError: names every bad row with its line and column.
        InputError: the file does not exist, or has another format.
    """
    checks = _Checks(roots, out, seed, base=place.path.rpartition("/")[0] if place.local else None)
    rows: list[dict[str, Any]] = []
    batches: list[pa.RecordBatch] = []
    problems: list[ManifestProblem] = []
    for where, record in raw_rows(place):
        found = checks.row(where, record)
        problems += found
        if not found:
            rows.append(record)
        if len(rows) == _BATCH:  # as Arrow a row takes a tenth of what it takes as a dict
            batches.append(pa.RecordBatch.from_pylist(rows, schema=COLUMNS))
            rows.clear()
        if len(checks.seen) > _MAX_ROWS:
            raise InputError(f"{place} has more than {_MAX_ROWS} rows; split it", param="manifest")
    if problems:
        raise ManifestError(problems)
    if not checks.seen:
        raise InputError(f"{place} has no rows", param="manifest")
    batches.append(pa.RecordBatch.from_pylist(rows, schema=COLUMNS))
    return Manifest(pa.Table.from_batches(batches).combine_chunks(), list(checks.seen.values()))


def raw_rows(place: RemotePath) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands and what it holds, unchecked.

    Raises:
        ManifestError: a line is no row.
        InputError: the file cannot be read, or has another format.
    """
    suffix = place.path.rpartition(".")[2].lower()
    if suffix not in _READERS:
        raise InputError(f"{place} is not a .parquet, .csv or .jsonl file", param="manifest")
    try:
        yield from _READERS[suffix](place)
    except FileNotFoundError:
        raise InputError(f"{place} does not exist", param="manifest") from None
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{place} cannot be read: {error}", param="manifest") from None


def row_id(record: dict[str, Any]) -> str:
    """Name of a row: 20 hex digits of the sha256 of what it asks for. Priority changes when, not what."""
    wanted = {name: value for name, value in record.items() if name != "priority"}
    return hashlib.sha256(canonical_json(wanted)).hexdigest()[:20]


def _csv_rows(place: RemotePath) -> Iterator[tuple[str, dict[str, Any]]]:
    with _text(place) as text:
        reader = csv.DictReader(text, strict=True)
        for record in reader:
            where = f"line {reader.line_num}"
            extra = record.pop(None, None)  # type: ignore[call-overload]
            if extra is not None or None in record.values():
                raise ManifestError(
                    [ManifestProblem(where, "row", f"it has not {len(reader.fieldnames or ())} fields")]
                )
            yield where, {name: value or None for name, value in record.items()}


def _jsonl_rows(place: RemotePath) -> Iterator[tuple[str, dict[str, Any]]]:
    with _text(place) as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("no object")
            except (ValueError, RecursionError) as error:
                raise ManifestError(
                    [ManifestProblem(f"line {number}", "row", f"it is not a JSON object ({error})")]
                ) from None
            yield f"line {number}", record


def _parquet_rows(place: RemotePath) -> Iterator[tuple[str, dict[str, Any]]]:
    with place.filesystem.open_input_file(place.path) as source:
        file = parquet.ParquetFile(source)
        metadata = file.schema_arrow.metadata or {}
        kind, version = metadata.get(_KIND), metadata.get(_VERSION)
        if kind is not None and (kind, version) != (COLUMNS.metadata[_KIND], COLUMNS.metadata[_VERSION]):
            said = f"{kind.decode()} version {(version or b'?').decode()}"
            raise InputError(f"{place} is a {said}; this release reads version {VERSION}", param="manifest")
        number = 0
        for batch in file.iter_batches(batch_size=_BATCH):
            for record in batch.to_pylist():
                number += 1
                yield f"row {number}", record


_READERS: dict[str, Callable[[RemotePath], Iterator[tuple[str, dict[str, Any]]]]] = {
    "csv": _csv_rows,
    "jsonl": _jsonl_rows,
    "parquet": _parquet_rows,
}


def _text(place: RemotePath) -> io.TextIOWrapper:
    stream = place.filesystem.open_input_stream(place.path, compression=None)
    return io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8-sig", newline="")  # type: ignore[arg-type]


class _Checks:
    """Checks rows one by one, completes them in place, and remembers which there were."""

    def __init__(self, roots: AllowedRoots, out: RemotePath, seed: int, base: str | None) -> None:
        self.roots, self.out, self.seed, self.base = roots, out, seed, base
        self.seen: dict[str, str] = {}
        """Output folder -> row_id, in the order of the rows."""
        self._lines: dict[str, str] = {}
        self._options = cache(_check_options)
        self._expression = cache(parse_expression)

    def row(self, where: str, record: dict[str, Any]) -> list[ManifestProblem]:
        """Problems of a record. Afterwards, a valid record holds all columns in the schema's types."""
        unknown = set(record) - set(COLUMNS.names)
        if unknown:
            known = ", ".join(COLUMNS.names)
            return [
                ManifestProblem(where, column, f"unknown column; choose from {known}") for column in sorted(unknown)
            ]
        problems = []
        for field in COLUMNS:
            try:
                record[field.name] = self._value(field, record.get(field.name))
            except RecaptureError as error:
                # A wrong option in a row is named by its section and field, as the row writes it.
                message = error.message if error.param in (None, field.name) else str(error)
                problems.append(ManifestProblem(where, field.name, message))
        if problems:
            return problems
        start_s, end_s = record["start_s"], record["end_s"]
        if end_s is not None and end_s <= (start_s or 0.0):
            return [ManifestProblem(where, "end_s", f"{end_s:g} is not after start_s")]
        return self._claim(where, record)

    def _claim(self, where: str, record: dict[str, Any]) -> list[ManifestProblem]:
        name = row_id(record)
        place = self.out / "clips" / name
        if record["output_uri"] is not None:
            place = self.roots.find(record["output_uri"], param="output_uri", base=self.base)
            record["output_uri"] = place.path if place.local else place.uri
        else:
            record["output_uri"] = place.path if place.local else place.uri
        if place.path in self.seen:
            return [ManifestProblem(where, "output_uri", f"{self._lines[place.path]} writes to the same place")]
        self.seen[place.path], self._lines[place.path] = name, where
        return []

    def _value(self, field: pa.Field, value: Any) -> Any:
        if value is None or value == "":
            if not field.nullable:
                raise InputError("it is missing")
            return {"seed": self.seed, "priority": 0, "options": ""}.get(field.name)
        if pa.types.is_floating(field.type):
            return _seconds(value)
        if pa.types.is_integer(field.type):
            return _whole(value, *((0, 2**31 - 1) if field.name == "seed" else (-(2**31), 2**31 - 1)))
        if field.name == "options" and isinstance(value, dict):
            value = json.dumps(value)
        if not isinstance(value, str):
            raise InputError(f"{value!r} is not text")
        if len(value) > _MAX_TEXT[field.name]:
            raise InputError(f"it has {len(value)} characters; at most {_MAX_TEXT[field.name]} are accepted")
        return self._text(field.name, value)

    def _text(self, name: str, value: str) -> str:
        if name == "options":
            return self._options(value)
        if name in ("input_uri", "output_uri") or (name == "camera" and is_camera_file(value)):
            place = self.roots.find(value, param=name, base=self.base)
            return place.path if place.local else value
        if name == "camera":
            self._expression(value)
        elif not value.isprintable():
            raise InputError(f"{value!r} holds characters that cannot be printed")
        return value


def is_camera_file(camera: str) -> bool:
    """Whether a `camera` names a file; a preset expression has no slash."""
    return "/" in camera and "(" not in camera


_BY_NAME = {name: option.path for option in OPTIONS.values() for name in (option.name, option.request_name)}
_NOT_IN_ROWS = {"model": "the run's", "seed": "a column of its own"}


def options_of(text: str) -> tuple[str | None, dict[str, Any]]:
    """Quality, if it is named, and values by the configuration's path, of an `options` column.

    Options stand in their section, `{"tune": {"rank": 8}}`, or by the name that commands and requests use,
    `{"rank": 8, "quality": "draft"}`.
    """
    given: dict[str, Any] = json.loads(text) if text else {}
    quality = given.pop("quality", None)
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict):
            found |= {f"{name}.{field}": tuple(v) if isinstance(v, list) else v for field, v in value.items()}
        else:
            path = _BY_NAME.get(name, name)
            found[path] = OPTIONS[path].read(value) if path in OPTIONS else value
    return quality, found


def _check_options(text: str) -> str:
    """The options in one spelling, whichever the row has: by section, and those of the run itself by name."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON ({error})") from None
    if not isinstance(given, dict):
        raise InputError('it is no object, such as {"rank": 8} or {"tune": {"rank": 8}}')
    sections = sorted({path.partition(".")[0] for path in OPTIONS if "." in path})
    for name, value in given.items():
        if isinstance(value, dict) and name not in sections:
            raise InputError(f"unknown section {name}; choose from {', '.join(sections)}")
        if not isinstance(value, dict) and name not in _BY_NAME and name not in OPTIONS and name != "quality":
            raise InputError(
                f"unknown option {name}; choose from {', '.join(sorted(_BY_NAME))}, or give options by section"
            )
    quality, options = options_of(text)
    if quality is not None and quality not in list(QUALITIES):
        raise InputError(f"{quality!r} is not one of {', '.join(QUALITIES)}", param="quality")
    for name, whose in _NOT_IN_ROWS.items():
        if name in options:
            raise InputError(f"a row's options cannot name its {name}: that is {whose}")
    # What a model's name leads to is loaded by the workers: no folder outside the roots, and no adapter's code.
    depth, multiview = options.get("depth.model"), options.get("anchor.multiview")
    if multiview not in (None, "embedded"):
        raise InputError("a row may name the embedded multiview model, no other")
    if isinstance(depth, str) and (depth.startswith(("/", ".", "~")) or ".." in depth):
        raise InputError("a row may name the embedded depth model or a hub repository, no folder")
    override(RunConfig(), by_section(options))
    spelled: dict[str, Any] = by_section(options)
    return canonical_json(
        {**spelled.pop("", {}), **spelled, **({} if quality is None else {"quality": quality})}
    ).decode()


def _seconds(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{value!r} is not a number of seconds") from None
    if isinstance(value, bool) or not math.isfinite(number) or number < 0:
        raise InputError(f"{value!r} is not a number of seconds, 0 or more")
    return number


def _whole(value: Any, least: int, most: int) -> int:
    try:
        number = int(value)
        whole = not isinstance(value, bool) and (isinstance(value, str) or number == value)
    except (TypeError, ValueError, OverflowError):
        whole, number = False, 0
    if not whole:
        raise InputError(f"{value!r} is not a whole number")
    if not least <= number <= most:
        raise InputError(f"{number} is out of range, {least} to {most} is accepted")
    return number
