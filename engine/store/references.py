"""References of live runs into a stage store: `store gc` keeps these entries, on any machine.

    <stages>/.runs/<driver>.json     signed again and again while the run lives

The store itself protects what processes of its own machine have open; between two rows of a clip, or on another machine,
this does.
"""

import json
import time
from collections.abc import Iterable

from .remote_path import RemotePath

STALE_S = 900.0
"""A run that did not sign for this long is dead; its stages may be removed."""


class References:
    """One run's claim on entries."""

    def __init__(self, stages: RemotePath, driver: str) -> None:
        self._place = stages / ".runs" / f"{driver}.json"

    def renew(self, keys: Iterable[str]) -> None:
        """Say that the run lives and needs these keys."""
        self._place.write(json.dumps({"signed_at": time.time(), "keys": sorted(keys)}).encode())

    def drop(self) -> None:
        self._place.delete()


def live_keys(stages: RemotePath, now: float | None = None) -> set[str]:
    """Keys that runs which still sign need."""
    now, folder, keys = time.time() if now is None else now, stages / ".runs", set()
    for name in folder.sizes():
        try:
            said = json.loads((folder / name).read() or b"")
            if now - said["signed_at"] < STALE_S:
                keys.update(said["keys"])
        except (ValueError, KeyError, TypeError):
            continue  # gone meanwhile, or a signature that broke off: the next one is seconds away
    return keys
