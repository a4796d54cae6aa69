"""Where a render's clip comes from: an upload, or a URI below the folders that the operator lets the tenant name.

A URI is judged when it is asked for and again when it is read, by the allow-list that bulk runs have. The worker copies
the file into the tenant's stage store, under its URI, size and time: from there on it is a clip like any other.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from ...engine.errors import InputError, RecaptureError
from ...engine.store import Store
from ...engine.store.durable import disk_errno
from ...engine.store.remote_path import AllowedRoots, RemotePath, with_retries
from ..jobs.options import digest_of
from ..jobs.records import Job
from ..settings import Settings
from .decoding import Check, probe_upload
from .uploads import TooLarge, Uploads

_STAGE = "fetched"


class InputRefused(InputError):
    """The tenant is not allowed to name this file."""

    code = "input_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceClip:
    """A clip that can be rendered."""

    path: Path
    sha256: str
    info: dict[str, Any]
    """`ClipInfo.to_json`"""


class InputRoots:
    """Folders by tenant. A URI chooses no endpoint and no credentials: those are the root's.

    Raises:
        InputError: a root cannot be used.
    """

    def __init__(self, roots: Mapping[str, list[str]]) -> None:
        self._roots = {tenant: AllowedRoots(uris) for tenant, uris in roots.items()}

    def find(self, tenant: str, uri: str) -> RemotePath:
        """Raises InputRefused: it is below none of the tenant's roots, or carries options, credentials or `..`."""
        roots = self._roots.get(tenant)
        if roots is None:
            raise InputRefused("no folders are open to you here; send the clip as an upload", param="input.uri")
        try:
            return roots.find(uri, param="input.uri")
        except InputError as error:
            raise InputRefused(error.message, param="input.uri") from None


class Inputs:
    """The clips of jobs."""

    def __init__(self, settings: Settings, uploads: Uploads) -> None:
        self._settings, self._uploads = settings, uploads
        self._roots = InputRoots(settings.input_roots)

    def clip(self, job: Job, store: Store, check: Check = lambda: None) -> SourceClip:
        """The job's clip; one by URI is fetched into its tenant's store, unless the same file is there already.

        Raises:
            InputError: it is not there any more, or another than the render had that this one goes on from; the URI is
                not allowed any more, or what it names is no clip that can be used.
            RecaptureError: the store that holds it does not answer.
        """
        uri = job.request.get("uri")
        clip = self._uploaded(job) if uri is None else self._fetched(self._roots.find(job.tenant, uri), store, check)
        if job.request["sha256"] not in (None, clip.sha256):
            raise InputError("the file was changed since it was filmed", param="input", code="input_changed")
        return clip

    def _uploaded(self, job: Job) -> SourceClip:
        upload = self._uploads.get(job.tenant, job.request["input"])
        if upload is None or upload.status != "ready" or upload.clip is None:
            raise InputError("the uploaded clip no longer exists", param="input", code="upload_gone")
        try:
            path = self._uploads.files.clip(upload.id)
        except FileNotFoundError:  # deleted since its record was read
            raise InputError("the uploaded clip no longer exists", param="input", code="upload_gone") from None
        return SourceClip(path=path, sha256=upload.sha256, info=upload.clip)

    def _fetched(self, place: RemotePath, store: Store, check: Check) -> SourceClip:
        try:
            return self._copied(place, store, check)
        except OSError as error:
            if disk_errno(error) is not None:  # our own disk
                raise
            raise RecaptureError(
                f"{place} cannot be read now ({type(error).__name__})", param="input.uri", code="input_unreadable"
            ) from error

    def _copied(self, place: RemotePath, store: Store, check: Check) -> SourceClip:
        found = with_retries(lambda: place.filesystem.get_file_info(place.path))
        if found.type != fs.FileType.File:
            raise InputError(f"{place} does not exist", param="input.uri", code="input_missing")
        most = self._settings.max_upload_bytes
        if found.size > most:
            raise TooLarge(f"{place} has {found.size} bytes; at most {most} are accepted", param="input.uri")
        key = digest_of({"uri": str(place), "size": found.size, "mtime_ns": found.mtime_ns})
        entry = store.get(_STAGE, key)
        if entry is None:
            with store.begin(_STAGE, key) as out:
                path = out.path / "clip"
                place.download(path, most, param="input.uri")
                info = probe_upload(path, self._settings, check)
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                out.json("about", {"sha256": sha256, "info": info})
                entry = out.publish({"warnings": []})
        about = json.loads((entry.path / "about.json").read_bytes())
        return SourceClip(path=entry.path / "clip", sha256=about["sha256"], info=about["info"])
