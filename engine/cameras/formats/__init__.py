"""The registry of camera file formats: one module and one line here for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import CameraError, OutputError
from ..track import PoseTrack
from . import colmap, native, nerfstudio, nerfstudio_path
from .strict import check_regular

if TYPE_CHECKING:
    from ..path import CameraPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How to recognize, read and write one kind of file."""

    name: str
    summary: str
    claims: Callable[[Path, bytes], bool]
    """(path, its first bytes; empty for a folder): whether this format should read it."""
    read: Callable[[Path], PoseTrack]
    read_camera: Callable[[Path, str], PoseTrack] | None = None
    """The same of one camera, by name, where a file may hold the images of several."""
    write: Callable[[CameraPath], dict[str, bytes]] | None = None
    """The files' contents; one file under the name "" is the path itself, others are files in a folder."""


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(name="json", summary="this project's own", claims=native.claims, read=native.read, write=native.write),
        Format(
            name="colmap",
            summary="COLMAP text folder",
            claims=colmap.claims_text,
            read=colmap.read_text,
            read_camera=colmap.read_text,
            write=colmap.write_text,
        ),
        Format(
            name="colmap-bin",
            summary="COLMAP binary folder",
            claims=colmap.claims_binary,
            read=colmap.read_binary,
            read_camera=colmap.read_binary,
            write=colmap.write_binary,
        ),
        Format(
            name="nerfstudio-path",
            summary="nerfstudio camera_path.json",
            claims=nerfstudio_path.claims,
            read=nerfstudio_path.read,
        ),
        # Last of the JSON formats: it takes every JSON file that no other one recognizes.
        Format(
            name="nerfstudio",
            summary="nerfstudio transforms.json",
            claims=nerfstudio.claims,
            read=nerfstudio.read,
            read_camera=nerfstudio.read,
            write=nerfstudio.write,
        ),
    )
}


def read_cameras(path: str | Path) -> PoseTrack:
    """Read a camera file of any known format; `FILE#NAME` is one camera of a file that holds the images of several.

    Raises:
        CameraError: missing, unreadable, of no known format, or malformed; names file and line or frame.
    """
    path, camera = split_camera(path)
    try:
        head = b""
        if not path.is_dir():
            check_regular(path)
            with path.open("rb") as file:
                head = file.read(4096)
        for known in FORMATS.values():
            if known.claims(path, head):
                if camera is None:
                    return known.read(path)
                if known.read_camera is None:
                    raise CameraError(f"{path}: has one camera only; leave out #{camera}", param="camera")
                return known.read_camera(path, camera)
    except FileNotFoundError as error:
        raise CameraError(f"{error.filename or path}: no such camera file", param="camera") from None
    except (OSError, ValueError) as error:
        raise CameraError(f"{path}: cannot be read: {error}", param="camera") from None
    models = sorted({file.parent for ending in ("*", "*/*") for file in path.glob(f"{ending}/images.[tb][xi][tn]")})
    if models:  # the folder of a whole reconstruction
        raise CameraError(f"{path}: holds COLMAP models deeper down; name one: {models[0]}", param="camera")
    kinds = "; ".join(f"{f.summary} ({f.name})" for f in FORMATS.values())
    raise CameraError(f"{path}: not a camera file of a known format. Known: {kinds}", param="camera")


def split_camera(path: str | Path) -> tuple[Path, str | None]:
    """The file and the camera of `FILE#NAME`; a file that has such a name is itself."""
    file, mark, camera = str(path).rpartition("#")
    if not mark or not file or Path(path).exists():
        return Path(path), None
    return Path(file), camera


def write_cameras(path: str | Path, fmt: str, cameras: CameraPath) -> None:
    """Write a path as absolute poses in the world of the source camera, translation in scene units.

    When read back, the poses of other formats are relative to a source camera: by default the file's first pose, in median
    depths unless the scale is 1. The project's own format keeps both.

    Args:
        path: A file, or for COLMAP a folder (made if missing).
        fmt: A name in `FORMATS` that can be written.

    Raises:
        CameraError: no such format.
        OutputError: the file cannot be written.
    """
    writable = {name: f.write for name, f in FORMATS.items() if f.write is not None}
    write = writable.get(fmt)
    if write is None:
        raise CameraError(f"no camera format {fmt!r} to write; known: {', '.join(writable)}", param="fmt")
    path, contents = Path(path), write(cameras)
    try:
        for name, data in contents.items():
            if name:
                path.mkdir(parents=True, exist_ok=True)
            target = path / name if name else path
            # Beside it and then renamed: a full disk leaves no half of a file under its name.
            part = target.with_name(f"{target.name}.part")
            try:
                part.write_bytes(data)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
