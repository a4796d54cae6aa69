"""A row from its URI to its bundle: fetch, render, publish. `engine_row_renderer.py` renders; this file does not use Ray."""

import hashlib
import json
import re
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ...engine.errors import Cancelled, RecaptureError, StoreError
from ...engine.store.entry import EntryInfo
from ...engine.store.remote_path import AllowedRoots, RemotePath
from ...engine.store.scratch import Scratch
from ...engine.video import Limits
from .manifest import Row, is_camera_file
from .outcome import Entries, RowResult
from .single_flight import SingleFlightStore

COMPLETION_MARKER = "result.json"
"""Written last into a row's folder: the bundle is whole, and this is what made it."""

_CAMERA_BYTES = 16 << 20


class BrokenDevice(Exception):
    """The device answers nothing but errors until this process ends."""


class RowEngine(Protocol):
    """Makes bundles of local files."""

    @property
    def pipeline(self) -> str: ...

    @property
    def loads(self) -> int: ...

    def __call__(self, row: Row, clip: Path, camera: str, bundle: Path) -> RowResult:
        """Render the clip and write the bundle, `video.mp4` among it; what it took, without sizes and digests.

        Raises:
            RecaptureError: the row's error, or a StoreError that may pass.
            BrokenDevice: another process must do it.
        """
        ...


class RowRenderer:
    """A `Renderer` for any row engine.

    Args:
        store: the stage store that the engine uses.
        roots: what rows may lie below.
    """

    def __init__(self, row_engine: RowEngine, store: SingleFlightStore, roots: AllowedRoots) -> None:
        self._row_engine, self._store, self._roots = row_engine, store, roots
        self._scratch = Scratch()
        self._clip: tuple[str, Path] | None = None
        """The last input that was fetched: a clip's rows follow one another."""
        self.pipeline = row_engine.pipeline

    @property
    def loads(self) -> int:
        return self._row_engine.loads

    def render(self, row: Row) -> RowResult:
        """Do a row; one whose folder holds a whole bundle of this row and pipeline is taken as it is."""
        began_s = time.monotonic()
        waits = self._store.waits, self._store.waited_s
        try:
            out = self._roots.find(row.output_uri, param="output_uri")
            outcome = self._existing(row, out) or self._make(row, out)
        except (KeyboardInterrupt, Cancelled):
            raise
        except RecaptureError as error:
            passing = isinstance(error, StoreError) and error.code != "disk_full"
            outcome = _failed(error.code, str(error), retry=passing)
        except OSError as error:
            outcome = _failed("io_failed", f"{type(error).__name__}: {error}", retry=True)
        except BrokenDevice as error:
            outcome = replace(_failed("device_failed", str(error), retry=True), broken=True)
        except Exception as error:  # a fault of ours is this row's error, not the end of the run
            outcome = _failed("internal", f"{type(error).__name__}: {error}", retry=False)
        finally:
            self._store.release()
        waited = self._store.waits - waits[0], round(self._store.waited_s - waits[1], 3)
        return replace(outcome, gpu_seconds=round(time.monotonic() - began_s, 3), waits=waited)

    def evict(self, entries: Entries) -> Entries:
        """Remove a finished clip's stages; those that another worker still uses are returned."""
        self._store.close()
        return tuple(
            (stage, key)
            for stage, key in entries
            if not self._store.remove(EntryInfo(stage=stage, key=key, files={}, created_at=0, seconds=0, meta={}))
        )

    def release(self) -> None:
        """Hold none of the last clip's stages; on a local disk remove what killed workers left half-written."""
        self._store.close()
        self._scratch.sweep()
        if self._store.local:  # in a bucket that means listing all of it: `recapture store gc` does
            self._store.gc()

    def close(self) -> None:
        self._store.close()
        self._scratch.close()

    def _existing(self, row: Row, out: RemotePath) -> RowResult | None:
        """The outcome of an earlier driver that was killed before it could write it down."""
        try:
            marker = json.loads((out / COMPLETION_MARKER).read() or b"")
            if (marker["row_id"], marker["pipeline"]) != (row.row_id, self.pipeline):
                return None
            return RowResult(
                status="completed", sha256=marker["sha256"], metrics=marker["metrics"], output_bytes=marker["bytes"]
            )
        except (ValueError, KeyError, TypeError):
            return None

    def _make(self, row: Row, out: RemotePath) -> RowResult:
        clip = self._fetch(row)
        with tempfile.TemporaryDirectory(prefix="row-", dir=self._scratch.path) as folder:
            outcome = self._row_engine(row, clip, self._camera(row, Path(folder)), Path(folder, "bundle"))
            return self._publish(row, outcome, Path(folder, "bundle"), out)

    def _publish(self, row: Row, outcome: RowResult, bundle: Path, out: RemotePath) -> RowResult:
        files = sorted(path for path in bundle.rglob("*") if path.is_file())
        with (bundle / "video.mp4").open("rb") as video:
            sha256 = hashlib.file_digest(video, "sha256").hexdigest()
        for path in files:
            (out / path.relative_to(bundle).as_posix()).upload(path)
        size = sum(path.stat().st_size for path in files)
        marker = {
            "row_id": row.row_id,
            "pipeline": self.pipeline,
            "sha256": sha256,
            "metrics": outcome.metrics,
            "bytes": size,
        }
        (out / COMPLETION_MARKER).write(json.dumps(marker, indent=1).encode())
        return replace(outcome, sha256=sha256, output_bytes=size)

    def _fetch(self, row: Row) -> Path:
        if self._clip is not None and self._clip[0] == row.input_uri:
            return self._clip[1]
        self._store.close()  # the last clip's stages need not stay for this worker
        folder = self._scratch.path / "clip"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        place = self._roots.find(row.input_uri, param="input_uri")
        # The name is for reports only; what a stranger wrote into a URI is not a file name here.
        name = re.sub(r"[^A-Za-z0-9._-]", "_", place.path.rpartition("/")[2])[-80:].lstrip(".") or "clip"
        self._clip = None
        place.download(folder / name, Limits().max_bytes, param="input_uri")
        self._clip = row.input_uri, folder / name
        return folder / name

    def _camera(self, row: Row, folder: Path) -> str:
        """The row's expression, or the path of its camera file on this machine."""
        if not is_camera_file(row.camera):
            return row.camera
        place = self._roots.find(row.camera, param="camera")
        target = folder / f"camera{Path(place.path).suffix.lower()}"
        place.download(target, _CAMERA_BYTES, param="camera")
        return str(target)


def _failed(code: str, message: str, *, retry: bool) -> RowResult:
    return RowResult(status="retry" if retry else "failed", error_code=code, error_message=message)
