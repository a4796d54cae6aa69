"""A stage is computed once, however many workers want it: a stage store that asks before it says that nothing is there.

Publication is idempotent, so correctness never depends on a lease: one that is lost costs work done twice.
"""

import time
from pathlib import Path
from typing import Protocol

from ...engine.store import Entry, Store
from ...engine.store.remote_path import RemotePath

_WAIT_S = 5.0
"""The store is asked again after this long, in case another cluster has published what is waited for."""


class LeaseClient(Protocol):
    """One worker's way to the table of leases."""

    def acquire(self, key: str, wait_s: float) -> int | None:
        """A fence, or None if another holder kept the key the whole time."""
        ...

    def release(self, key: str, fence: int) -> None: ...


class SingleFlightStore(Store):
    """A `Store` whose `get` waits while another worker computes what is asked for.

    It holds at most one lease, taken when `get` finds nothing and given up at the next `get` (or `release`), by when the
    result is published. So no worker waits while it holds a lease, and workers cannot deadlock.
    """

    def __init__(self, place: RemotePath, *, leases: LeaseClient, local_dir: Path | None = None) -> None:
        super().__init__(place.path, filesystem=None if place.local else place.filesystem, local_dir=local_dir)
        self.local = place.local
        self._leases = leases
        self._lease_held: tuple[str, int] | None = None
        self.waits = 0
        """How often another worker was waited for."""
        self.waited_s = 0.0

    def get(self, stage: str, key: str) -> Entry | None:
        """As `Store.get`; None means that this worker is the one to compute it."""
        self.release()
        entry = super().get(stage, key)
        if entry is not None:
            return entry
        if not self._lease(f"{stage}/{key}", wait_s=0.0):
            began_s = time.monotonic()
            while entry is None and not self._lease(f"{stage}/{key}", wait_s=_WAIT_S):
                entry = super().get(stage, key)
            self.waits += 1
            self.waited_s += time.monotonic() - began_s
        entry = entry or super().get(stage, key)  # its last holder may have published just before it let go
        if entry is not None:
            self.release()
        return entry

    def _lease(self, name: str, wait_s: float) -> bool:
        fence = self._leases.acquire(name, wait_s)
        self._lease_held = None if fence is None else (name, fence)
        return fence is not None

    def release(self) -> None:
        """Give up the lease that is held."""
        if self._lease_held is not None:
            held, self._lease_held = self._lease_held, None
            self._leases.release(*held)
