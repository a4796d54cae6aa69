"""The door: what a user hands in becomes a file of our own name whose first bytes we know.

FFmpeg guesses a format from a file's content and name, and some formats (playlists, concat scripts, SDP) then make it
open other files and network addresses. Only three container families are let in, and each is opened by its own demuxer.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import OutputError, VideoError
from .clip import DEFAULT_LIMITS, Limits

ACCEPTED = "an MP4/MOV, Matroska/WebM or AVI file"

_HEAD_BYTES = 4096
_CHUNK_BYTES = 1 << 20
_SUFFIX = {"mov": ".mp4", "matroska": ".mkv", "avi": ".avi"}
# Files of before `ftyp` existed start with one of these boxes.
_MOV_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")
_STILL_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\x76\x2f\x31\x01", b"8BPS")
_AUDIO_MAGIC = (b"ID3", b"fLaC", b"OggS", b"\xff\xfb", b"\xff\xf3", b"\xff\xf1", b"\xff\xf9")


def admit(source: Path | str, folder: Path, limits: Limits = DEFAULT_LIMITS) -> Path:
    """Copies the user's clip into `folder` under a name of our own (`clip.mp4`, `clip.mkv` or `clip.avi`).

    Raises:
        VideoError: as `check_clip`.
        OutputError: `folder` cannot be written.
    """
    with _opened(source, limits) as (reader, container):
        target = folder / f"clip{_SUFFIX[container]}"
        try:
            _copy(reader, target, limits.max_bytes)
        except OSError as error:
            raise OutputError(f"cannot copy the clip to {target}: {error.strerror or error}") from error
        return target


def check_clip(source: Path | str, limits: Limits = DEFAULT_LIMITS) -> None:
    """Look at the user's clip where it lies.

    Raises:
        VideoError: `source` is missing, no regular file, empty, too large, or no container that is accepted.
    """
    with _opened(source, limits):
        pass


@contextmanager
def _opened(source: Path | str, limits: Limits) -> Iterator[tuple[BinaryIO, str]]:
    """The user's clip, opened, and its container."""
    if "://" in str(source):
        raise VideoError(f"{source} is an address, not a file; download it and pass {ACCEPTED}")
    source = Path(source)
    if source.suffix.lower() in (".m3u8", ".m3u"):
        raise VideoError(f"{source.name} is a playlist; pass {ACCEPTED}")
    if source.is_dir():
        raise VideoError(f"{source} is a folder; image sequences are not supported yet, pass {ACCEPTED}")
    if not source.exists():
        raise VideoError(f"{source} does not exist; pass {ACCEPTED}")
    if not source.is_file():
        raise VideoError(f"{source} is not a regular file; pass {ACCEPTED}")
    try:
        reader = source.open("rb")
    except OSError as error:
        raise VideoError(f"{source} cannot be read: {error.strerror}") from error
    with reader:
        size = os.fstat(reader.fileno()).st_size
        if size > limits.max_bytes:
            raise VideoError(f"{source.name} has {size} bytes; at most {limits.max_bytes} are accepted")
        yield reader, _container_of(reader, source.name)


def container_of(path: Path, name: str | None = None) -> str:
    """The FFmpeg demuxer that must open this file, by its first bytes: "mov", "matroska" or "avi".

    Args:
        name: what errors call it.

    Raises VideoError, naming what it is instead where that can be told.
    """
    try:
        with path.open("rb") as reader:
            return _container_of(reader, name or path.name)
    except OSError as error:
        raise VideoError(f"{name or path.name} cannot be read: {error.strerror or error}") from error


def _container_of(reader: BinaryIO, name: str) -> str:
    head = reader.read(_HEAD_BYTES)
    reader.seek(0)
    if not head:
        raise VideoError(f"{name} is empty; pass {ACCEPTED}")
    if head[4:8] == b"ftyp":
        if head[8:12] in _STILL_BRANDS:
            raise VideoError(f"{name} is a still image; pass {ACCEPTED}")
        return "mov"
    if head[4:8] in _MOV_BOXES:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    raise VideoError(f"{name} is {_what_else(head)}; pass {ACCEPTED}")


def _what_else(head: bytes) -> str:
    if head.startswith(_STILL_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "a still image"
    if head.startswith(_AUDIO_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WAVE"):
        return "a sound file"
    if b"#EXTM3U" in head[:64] or b"#EXT-X-" in head:
        return "a playlist"
    return "not a video of a kind that is known here"


def _copy(reader: BinaryIO, target: Path, max_bytes: int) -> None:
    part = target.with_name(target.name + ".part")
    try:
        with part.open("wb") as writer:
            copied = 0
            while chunk := reader.read(_CHUNK_BYTES):
                copied += len(chunk)
                if copied > max_bytes:  # the file grew since its size was read
                    raise VideoError(f"more than {max_bytes} bytes; that is the most accepted")
                writer.write(chunk)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def cut_short(path: Path, container: str) -> bool:
    """Whether the container's own outermost lengths reach past the end of the file, as a broken-off copy's do."""
    size = path.stat().st_size
    with path.open("rb") as reader:
        if container == "mov":
            return _boxes_end(reader, size) > size
        head = reader.read(_HEAD_BYTES)
        return (_riff_end(head) if container == "avi" else _segment_end(head)) > size


def _boxes_end(reader: BinaryIO, size: int) -> int:
    position = 0
    while position < size:
        reader.seek(position)
        header = reader.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length == 0:  # "to the end of the file"
            return size
        if length < 8:
            return size  # not a box: what precedes it was whole
        position += length
    return position


def _riff_end(head: bytes) -> int:
    return 8 + int.from_bytes(head[4:8], "little")


def _segment_end(head: bytes) -> int:
    start = head.find(b"\x18\x53\x80\x67")
    if start < 0 or start + 5 > len(head):
        return 0
    width = 9 - head[start + 4].bit_length()  # EBML: the leading zeros of the first byte give the field's width
    field = int.from_bytes(head[start + 4 : start + 4 + width], "big")
    length = field & ((1 << 7 * width) - 1)
    unknown = length == (1 << 7 * width) - 1  # a live recording: its end is wherever it stops
    return 0 if unknown else start + 4 + width + length
