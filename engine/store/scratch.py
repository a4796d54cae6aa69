"""A worker's temporary folder: everything that it and the libraries it calls write aside lies in it."""

import secrets
import shutil
import tempfile
from pathlib import Path

from .durable import busy, lock_file, try_lock, unlock

_PREFIX = "recapture-bulk-"


class Scratch:
    """Owned by a lock that the kernel drops however the process ends, so that any other worker removes what a kill left."""

    def __init__(self) -> None:
        self._before = tempfile.tempdir
        self._parent = Path(tempfile.gettempdir())
        self.path = self._parent / f"{_PREFIX}{secrets.token_hex(6)}"
        self._owner_fd = try_lock(self.path)  # first, so that others see the folder only once it is owned
        self.path.mkdir(mode=0o700)
        tempfile.tempdir = str(self.path)  # the engine's copy of the clip, too, is then not left behind by a kill
        self.sweep()

    def sweep(self) -> None:
        """Remove what killed workers left beside this folder."""
        for left in self._parent.glob(f"{_PREFIX}*"):
            if not busy(left):
                shutil.rmtree(left, ignore_errors=True)
                lock_file(left).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder and release its lock."""
        tempfile.tempdir = self._before
        shutil.rmtree(self.path, ignore_errors=True)
        unlock(self.path, self._owner_fd)
        self._owner_fd = None
