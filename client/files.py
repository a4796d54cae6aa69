"""Files on their way: a clip read in parts, and a result that is written beside its place until it is whole."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from .errors import ClientError, DownloadDamaged
from .schema import Content, UploadCreate

PART_BYTES = 8 << 20


class ClipFile:
    """A clip to be sent. Its sha256 is taken first, so that the service can tell whether it got this file."""

    def __init__(self, path: Path) -> None:
        """Raises ClientError: the file cannot be read, or is empty."""
        self.path = path
        try:
            with path.open("rb") as file:
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self.bytes = file.tell()
        except OSError as error:
            raise ClientError(f"{path} cannot be read: {error.strerror}") from None
        if not self.bytes:
            raise ClientError(f"{path} is empty")

    @property
    def request(self) -> UploadCreate:
        """The request that announces the clip."""
        label = "".join(character for character in self.path.name if character.isprintable())
        return UploadCreate(bytes=self.bytes, sha256=self.sha256, filename=label[-255:])

    def part(self, offset: int) -> bytes:
        """At most `PART_BYTES` from `offset` on."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(PART_BYTES)


class PartFile:
    """A download under way, in `TARGET.part`: a process that is killed goes on from there the next time."""

    def __init__(self, target: Path, content: Content) -> None:
        self.target, self.content = target, content
        self.path = target.with_name(target.name + ".part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.arrived > content.bytes:  # of another file
            self.path.unlink()

    @property
    def arrived(self) -> int:
        """Bytes downloaded so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def complete(self) -> bool:
        """Whether all bytes have arrived."""
        return self.arrived == self.content.bytes

    @property
    def headers(self) -> Mapping[str, str]:
        """If-Range: should the part be of another file, the service sends its own whole."""
        return {"Range": f"bytes={self.arrived}-", "If-Range": f'"{self.content.sha256}"'} if self.arrived else {}

    def mode(self, status: int) -> str:
        """How to open the part file for the body of an answer: 206 goes on, 200 begins anew."""
        return "ab" if status == 206 else "wb"

    def publish(self) -> Path:
        """Raises DownloadDamaged: other bytes than were published; they are thrown away."""
        with self.path.open("rb") as file:
            arrived = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        if arrived != self.content.sha256:
            self.path.unlink()
            raise DownloadDamaged(f"{self.target.name} arrived damaged; its sha256 is not the published one")
        os.replace(self.path, self.target)
        return self.target
