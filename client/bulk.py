"""Many clips through the service: a manifest in, files and a table of results out, interrupted and gone on at will.

A manifest is CSV, JSON lines or Parquet with a row a render:

    clip_id      the user's name of the clip
    input_uri    path of the clip on this machine (file:// is the same)
    camera       a preset expression, or the path of a camera.json
    output_uri   where the video goes on this machine: a file, or a folder for `video.mp4`; may be left out
    start_s, end_s, seed, options (a JSON object), priority: may be left out; higher priorities go first

Relative paths start from the manifest's folder. Options are named as requests name them (`temporal_steps`), or by section
(`{"tune": {"temporal_steps": 200}}`). `recapture bulk` reads the same manifests.

Each row's calls carry one idempotency key made from the row, so a driver that is killed and started again finds the
renders that it had asked for; the journal beside the results says which rows are done. A render that had ended otherwise
than completed is asked for once more. While the service does not answer, or is full, rows wait.
"""

import contextlib
import csv
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import APIError, ClientError, ConnectionFailed, NotFound, RenderFailed, UploadFailed, WaitTimeout
from .options import FIELDS
from .retries import RETRIED, backoff_s
from .schema import CameraFile, Options, Render, Seed, Upload

if TYPE_CHECKING:
    from .synchronous import Client

MOST_ROWS = 1_000_000
SCHEMA_VERSION = 1
LONGEST_PAUSE_S = 60.0
PATIENCE_S = 86_400.0
"""How long a service may be away, or full, until that is the result of a row that waits for it."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Row(BaseModel):
    """One line of a manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip_id: str = Field(min_length=1, max_length=200)
    input_uri: str = Field(min_length=1)
    camera: str = Field(min_length=1, max_length=2000)
    output_uri: str | None = Field(default=None, min_length=1)
    start_s: float | None = Field(default=None, ge=0, le=1e6)
    end_s: float | None = Field(default=None, gt=0, le=1e6)
    seed: Seed = 0
    options: Options = Options()
    priority: int = Field(default=0, ge=-1000, le=1000)

    @field_validator("options", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        given = (json.loads(value) if value else {}) if isinstance(value, str) else value
        if not isinstance(given, dict):
            return given
        flat: dict[str, Any] = {}
        for name, part in given.items():
            if not isinstance(part, dict):
                flat[name] = part
                continue
            for field, one in part.items():
                if (path := f"{name}.{field}") not in FIELDS:
                    raise ValueError(f"{path} is no option of requests")
                # Of a pair that begins with 1 requests have the second.
                flat[FIELDS[path]] = one[1] if isinstance(one, list) and len(one) == 2 and one[0] == 1 else one
        return flat

    @property
    def key(self) -> str:
        """The idempotency key of this row, whoever sends it and how often."""
        return f"bulk-{hashlib.sha256(self.model_dump_json().encode()).hexdigest()}"

    def target(self, manifest: Path, results: Path) -> Path:
        """The file that the video goes to."""
        if self.output_uri is None:
            return results.parent / "clips" / self.key.removeprefix("bulk-")[:20] / "video.mp4"
        path = _local(self.output_uri, manifest)
        return path if path.suffix else path / "video.mp4"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """What became of a row; `status` is a render's, and `failed` where there was none."""

    clip_id: str
    status: str
    key: str
    render: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    attempts: int = 0
    gpu_seconds: float = 0.0
    sha256: str | None = None
    metrics: dict[str, float] | None = None


class Bulk:
    """`client.bulk`."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def run(
        self,
        manifest: str | Path,
        results: str | Path,
        *,
        in_flight: int = 4,
        on_row: Callable[[RowResult, int, int], None] = lambda result, done, total: None,
        on_pause: Callable[[str, str, float], None] = lambda clip_id, why, pause_s: None,
    ) -> list[RowResult]:
        """Render every row; return and write what became of each, in the manifest's order.

        Args:
            results: table to write: `.parquet` (needs pyarrow) or `.jsonl`. Its journal lies beside it.
            in_flight: rows under way at once.
            on_row: called with a result, and how many of how many rows are through.
            on_pause: called, in the row's own thread, when a row waits for a service that does not answer or is full:
                its name, why, and after how many seconds it is tried again.

        Raises:
            ClientError: the manifest cannot be used, or the service not be asked for its models; nothing was sent.
        """
        source, target = Path(manifest), Path(results)
        rows = read_manifest(source)
        if target.suffix not in (".parquet", ".jsonl"):
            raise ClientError(f"{target.name} is neither .parquet nor .jsonl")
        journal = Journal(target.with_name(target.name + ".journal"))
        videos = {row.key: row.target(source, target) for row in rows}
        done = {key: known for key, video in videos.items() if (known := journal.known(key, video)) is not None}
        waiting = sorted((row for row in rows if row.key not in done), key=lambda row: -row.priority)
        if waiting:
            self._client.models()  # a wrong address or key is the run's fault, and no row's
        pool, stop = ThreadPoolExecutor(in_flight), threading.Event()
        work = _Rows(self._client, source, videos, stop, on_pause)
        under_way = [pool.submit(work.result, row) for row in waiting]
        try:
            for future in as_completed(under_way):
                result = future.result()
                journal.add(result)
                done[result.key] = result
                on_row(result, len(done), len(rows))
        finally:
            stop.set()  # what is under way goes on there, and is found again by its key
            pool.shutdown(cancel_futures=True)
        ordered = [done[row.key] for row in rows]
        write_results(ordered, target)
        return ordered


class _Rows:
    """The rows of one run, each in a thread of its own."""

    def __init__(
        self,
        client: "Client",
        manifest: Path,
        videos: Mapping[str, Path],
        stop: threading.Event,
        on_pause: Callable[[str, str, float], None],
    ) -> None:
        self._client, self._manifest, self._videos = client, manifest, videos
        self._stop, self._on_pause = stop, on_pause
        self._sending: dict[Path, Future[Upload]] = {}
        self._lock = threading.Lock()

    def result(self, row: Row) -> RowResult:
        """Take a row through the service."""
        client = self._client
        try:
            upload = self._patiently(row, self._upload, _local(row.input_uri, self._manifest))
            options = _cut(row, upload.clip.fps if upload.clip else 0.0)
            create = partial(
                client.renders.create,
                upload,
                _camera(row.camera, self._manifest),
                options=options,
                seed=row.seed,
                idempotency_key=row.key,
            )
            render = self._patiently(row, create)
            if render.done and render.status != "completed":  # in an earlier run; deleted, it leaves its key free
                with contextlib.suppress(NotFound):
                    self._patiently(row, client.renders.delete, render)
                render = self._patiently(row, create)
            while not render.done and not self._stop.is_set():
                with contextlib.suppress(WaitTimeout):
                    render = self._patiently(row, client.renders.wait, render, timeout_s=2.0)
            if render.done:
                video = self._videos[row.key]
                video.parent.mkdir(parents=True, exist_ok=True)
                self._patiently(row, client.renders.download, render, video)
            return _result(row, render)
        except RenderFailed as failure:
            return _result(row, failure.render)
        except UploadFailed as failure:
            return _refused(row, failure.problem.code, failure.message)
        except APIError as failure:
            return _refused(row, failure.code, failure.message)
        except (ClientError, OSError, ValidationError) as failure:
            return _refused(row, "client", str(failure).splitlines()[0])

    def _upload(self, path: Path) -> Upload:
        """Send a clip, or wait for the row that is sending it."""
        mine: Future[Upload] = Future()
        with self._lock:
            sending = self._sending.setdefault(path, mine)
        if sending is not mine:
            return sending.result()
        try:
            mine.set_result(self._client.uploads.create(path, once=True))
        except BaseException as failure:
            mine.set_exception(failure)
        finally:
            # A later row asks the service again, which may have removed the upload meanwhile.
            with self._lock:
                del self._sending[path]
        return mine.result()

    def _patiently(self, row: Row, call: Callable[_P, _T], *args: _P.args, **options: _P.kwargs) -> _T:
        """The call's result; while there is no answer, or one that says to come back, it is made again and again."""
        tries, until = 0, time.monotonic() + PATIENCE_S
        while True:
            try:
                return call(*args, **options)
            except (ConnectionFailed, APIError) as failure:
                if not _passes(failure) or time.monotonic() >= until:
                    raise
                asked_s = (failure.retry_after_s or 0.0) if isinstance(failure, APIError) else 0.0
                pause_s = max(backoff_s(tries, longest_s=LONGEST_PAUSE_S), min(asked_s, LONGEST_PAUSE_S))
                self._on_pause(row.clip_id, failure.message, pause_s)
                if self._stop.wait(pause_s):
                    raise
                tries += 1


def _passes(failure: ConnectionFailed | APIError) -> bool:
    """Whether it is of the moment, and not of what was asked for."""
    return (
        isinstance(failure, ConnectionFailed)
        or failure.status in RETRIED
        or failure.status >= 500
        or failure.code == "upload_conflict"
    )


class Journal:
    """What is through, a line a row; a line that a crash cut short counts as none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, RowResult] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError, TypeError):
                result = RowResult(**json.loads(line))
                self._known[result.key] = result

    def known(self, key: str, video: Path) -> RowResult | None:
        """The result of the row of this key, if it was completed and its file is still there."""
        result = self._known.get(key)
        return result if result is not None and result.status == "completed" and video.is_file() else None

    def add(self, result: RowResult) -> None:
        """Append a finished row and flush it to disk."""
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_manifest(path: Path) -> list[Row]:
    """The rows of a CSV, JSON lines or Parquet file.

    Raises:
        ClientError: not readable, a row that is none, a row or an output that comes twice; names the line.
    """
    rows = []
    try:
        for number, values in enumerate(_raw_rows(path), start=1):
            if not isinstance(values, dict):
                raise ClientError(f"row {number} of {path.name} is not a JSON object")
            try:
                rows.append(Row.model_validate({k: v for k, v in values.items() if v not in (None, "")}))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise ClientError(f"row {number} of {path.name}: {where}: {first['msg']}") from None
            if number > MOST_ROWS:
                raise ClientError(f"{path.name} has more than {MOST_ROWS} rows; split it")
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ClientError(f"{path.name} cannot be read as a manifest: {error}") from None
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        before = seen.setdefault(row.output_uri or row.key, number)
        if before != number:
            what = (
                f"writes to the same output_uri as row {before}" if row.output_uri else f"is the same as row {before}"
            )
            raise ClientError(f"row {number} of {path.name} {what}")
    if not rows:
        raise ClientError(f"{path.name} has no rows")
    return rows


def _raw_rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            yield from csv.DictReader(file)
    elif path.suffix == ".parquet":
        yield from _arrow().read_table(path).to_pylist()
    else:
        with path.open() as file:
            yield from (json.loads(line) for line in file if line.strip())


def write_results(results: list[RowResult], path: Path) -> None:
    """The table of results, whole or not at all."""
    part = path.with_name(path.name + ".part")
    if path.suffix == ".parquet":
        import pyarrow as pa

        text, number = pa.string(), pa.float64()
        names = {"attempts": pa.int32(), "gpu_seconds": number, "metrics": pa.map_(text, number)}
        schema = pa.schema(
            [(field.name, names.get(field.name, text)) for field in fields(RowResult)],
            metadata={"recapture.bulk_results": str(SCHEMA_VERSION)},
        )
        table = [{**asdict(r), "metrics": None if r.metrics is None else list(r.metrics.items())} for r in results]
        _arrow().write_table(pa.Table.from_pylist(table, schema=schema), part)
    else:
        part.write_text("".join(json.dumps(asdict(result)) + "\n" for result in results))
    os.replace(part, path)


def _arrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ClientError("Parquet needs pyarrow: pip install pyarrow, or use .jsonl") from None
    return pyarrow.parquet


def _local(uri: str, manifest: Path) -> Path:
    """Raises ClientError: an address of another kind; the service takes what this machine uploads."""
    if "://" in uri and not uri.startswith("file://"):
        raise ClientError(f"{uri} is not on this machine; clips are uploaded from here")
    return manifest.parent / uri.removeprefix("file://")


def _camera(text: str, manifest: Path) -> str | CameraFile:
    if not text.endswith(".json"):
        return text
    return CameraFile.model_validate_json(_local(text, manifest).read_bytes())


def _cut(row: Row, fps: float) -> Options:
    """The options with the row's start and end as frames of the clip."""
    cut: dict[str, int] = {}
    if row.start_s is not None:
        cut["first_frame"] = round(row.start_s * fps)
    if row.end_s is not None:
        cut["frames"] = round(row.end_s * fps) - round((row.start_s or 0.0) * fps)
    return Options.model_validate({**row.options.model_dump(exclude_unset=True), **cut})


def _result(row: Row, render: Render) -> RowResult:
    shares = {"hole_share": render.hole_share, "generated_share": render.generated_share}
    return RowResult(
        clip_id=row.clip_id,
        status=render.status,
        key=row.key,
        render=render.id,
        error_code=render.error.code if render.error else None,
        error_message=render.error.message if render.error else None,
        attempts=render.attempt,
        gpu_seconds=render.usage.gpu_seconds,
        sha256=render.content["video"].sha256 if "video" in render.content else None,
        metrics={name: share for name, share in shares.items() if share is not None},
    )


def _refused(row: Row, code: str, message: str) -> RowResult:
    return RowResult(clip_id=row.clip_id, status="failed", key=row.key, error_code=code, error_message=message)
