"""A worker's temporary folder: everything that it and the libraries it calls write aside lies in it."""

import os
import shutil
import tempfile
from pathlib import Path

from ...engine.store.durable import busy, try_lock

_PREFIX = "recapture-bulk-"


class Scratch:
    """Owned by a lock that the kernel drops however the process ends, so the next worker removes what a kill left."""

    def __init__(self) -> None:
        self._before = tempfile.tempdir
        for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            if not busy(left):
                shutil.rmtree(left, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._owner_fd = try_lock(self.path)
        tempfile.tempdir = str(self.path)  # the engine's copy of the clip, too, is then not left behind by a kill

    def close(self) -> None:
        tempfile.tempdir = self._before
        shutil.rmtree(self.path, ignore_errors=True)
        if self._owner_fd is not None:
            os.close(self._owner_fd)
            self._owner_fd = None
