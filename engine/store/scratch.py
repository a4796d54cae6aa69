"""A worker's temporary folder: everything that it and the libraries it calls write aside lies in it."""

import os
import shutil
import tempfile
from pathlib import Path

from .durable import busy, try_lock

_PREFIX = "recapture-bulk-"


class Scratch:
    """Owned by a lock that the kernel drops however the process ends, so that any other worker removes what a kill left."""

    def __init__(self) -> None:
        self._before = tempfile.tempdir
        self._parent = Path(tempfile.gettempdir())
        made = Path(tempfile.mkdtemp(prefix=".recapture-bulk-"))
        self._owner_fd = try_lock(made)
        self.path = made.rename(made.with_name(made.name[1:]))  # seen by others only now that it is owned
        tempfile.tempdir = str(self.path)  # the engine's copy of the clip, too, is then not left behind by a kill
        self.sweep()

    def sweep(self) -> None:
        """Remove what killed workers left beside this folder."""
        for left in self._parent.glob(f"{_PREFIX}*"):
            if not busy(left):
                shutil.rmtree(left, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder and release its lock."""
        tempfile.tempdir = self._before
        shutil.rmtree(self.path, ignore_errors=True)
        if self._owner_fd is not None:
            os.close(self._owner_fd)
            self._owner_fd = None
