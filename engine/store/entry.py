"""Names and metadata of stage results: keys, manifests, entries."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import StoreError
from .arrays import read_array
from .durable import sync

MANIFEST = "manifest.json"
_FORMAT = 1


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII, floats by `repr`; tuples count as lists.

    Raises:
        TypeError: Something JSON has no type for (Path, Fraction, bytes, set, ndarray), or a key that is not a string.
        ValueError: NaN or an infinity.
    """
    _check_json(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _check_json(value: object, at: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{at} has the key {name!r}; only strings can be keys")
            _check_json(item, f"{at}.{name}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_json(item, f"{at}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{at} is {value}; only finite numbers can be stored")
    elif not isinstance(value, str | int | float | None):
        raise TypeError(f"{at} is a {type(value).__name__}, which has no JSON form")


def stage_key(
    *, stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str], weights: str | None
) -> str:
    """Key of a stage's result, sha256 hex. It changes if and only if one of the parts does.

    Args:
        stage: Name of the stage.
        version: Raised with every change of the stage's result.
        config: The stage's own options, as JSON values.
        inputs: Input name -> digest: an upstream `Entry.digest`, or the sha256 of a file.
        weights: Digest of the networks it runs, or None.
    """
    parts = {"stage": stage, "version": version, "config": dict(config), "inputs": dict(inputs), "weights": weights}
    return hashlib.sha256(canonical_json(parts)).hexdigest()


def place(stage: str, key: str) -> str:
    """Path of an entry below the store."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", stage) or not re.fullmatch(r"[0-9a-f]{64}", key):
        raise ValueError(f"{stage!r} and {key!r} are not the name of a stage and a sha256")
    return f"{stage}/{key[:2]}/{key}"


@dataclass(frozen=True, kw_only=True)
class EntryInfo:
    """The manifest's content for one published result."""

    stage: str
    key: str
    files: Mapping[str, tuple[int, str]]
    """Path below the entry -> (bytes, sha256)."""
    created_at: float
    """Unix seconds, UTC."""
    seconds: float
    """From `begin` to `publish`."""
    meta: Mapping[str, Any]
    attempt: str = ""
    """Folder below the entry that holds the files; empty on local disks."""
    used_at: float = 0.0
    """Last `get` on a local disk, else the publication; Unix seconds. Not part of the manifest."""

    @property
    def digest(self) -> str:
        """sha256 over file names and contents alone: equal results have equal digests, whenever they were made."""
        return hashlib.sha256(canonical_json({name: sha for name, (_, sha) in self.files.items()})).hexdigest()

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(size for size, _ in self.files.values())

    @property
    def where(self) -> str:
        """The entry's path below the store."""
        return place(self.stage, self.key)


def manifest_bytes(info: EntryInfo) -> bytes:
    """The manifest of an entry. Carries the digest of the file table, so that a torn manifest is noticed."""
    body = {f.name: getattr(info, f.name) for f in fields(EntryInfo) if f.name != "used_at"}
    body |= {"files": dict(info.files), "meta": dict(info.meta), "digest": info.digest, "format": _FORMAT}
    return canonical_json(body)


def fsync_and_hash(folder: Path) -> dict[str, tuple[int, str]]:
    """Sync every file below `folder` to disk; path -> (bytes, sha256)."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or name == MANIFEST or name.endswith(".arrow.rows"):
            raise ValueError(f"{name} cannot be published: it is a link, an open array, or has the manifest's name")
        sync(path)
        if path.is_file():
            with path.open("rb") as file:
                files[name] = (path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    return files


def parse_manifest(data: bytes | None, where: str, used_at: float = 0.0) -> EntryInfo | None:
    """None for anything but a whole manifest of this very entry, whose file names stay inside it."""
    try:
        body = json.loads(data or b"")
        digest, layout = body.pop("digest"), body.pop("format")
        body["files"] = {name: (int(size), str(sha)) for name, (size, sha) in body["files"].items()}
        info = EntryInfo(**body, used_at=used_at)
        for path in map(PurePosixPath, [*info.files, info.attempt]):
            if path.is_absolute() or ".." in path.parts:
                return None
        return info if (layout, digest, info.where) == (_FORMAT, info.digest, where) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True, kw_only=True)
class Entry(EntryInfo):
    """A published result on this machine. Read-only: its bytes are what its digest says."""

    path: Path

    def file(self, name: str) -> Path:
        """Path of one file.

        Raises:
            KeyError: The entry has no such file.
        """
        if name not in self.files:
            raise KeyError(f"{self.stage} has no {name!r}; it has {', '.join(self.files) or 'no files'}")
        return self.path / name

    def array(self, name: str) -> np.ndarray:
        """One array, [N, *shape_per_row], memory-mapped and read-only.

        Raises:
            StoreError: The file is gone or damaged.
        """
        path = self.file(f"{name}.arrow")
        try:
            return read_array(path)
        except (OSError, ValueError, LookupError, TypeError) as exc:
            raise StoreError(f"cannot read {path}: {exc}; `recapture store verify` names all damage") from exc

    def json(self, name: str) -> Any:
        """A JSON file of the entry.

        Raises:
            StoreError: it is missing or damaged.
        """
        path = self.file(f"{name}.json")
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError) as exc:
            raise StoreError(f"cannot read {path}: {exc}; `recapture store verify` names all damage") from exc
