"""The driver's interface to workers. `ray_pool.py` implements it on a cluster."""

from dataclasses import dataclass
from typing import Protocol

from .manifest import Row
from .outcome import Entries, RowResult


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has its models and waits for rows."""

    worker: str
    pipeline: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A worker is through with its row."""

    worker: str
    outcome: RowResult


@dataclass(frozen=True, slots=True)
class Died:
    """A worker, and whatever it was doing, is gone."""

    worker: str
    why: str


@dataclass(frozen=True, slots=True)
class StillInUse:
    """A worker has removed what `evict` named, but for these, which others still use."""

    worker: str
    entries: Entries


Event = Ready | Finished | Died | StillInUse


class Pool(Protocol):
    """Workers by name. Nothing here blocks but `wait`, `release` and `close`."""

    def start(self, worker: str) -> None:
        """Begin to make a worker; `Ready` or `Died` follows."""
        ...

    def submit(self, worker: str, row: Row) -> None:
        """Give a ready worker a row; `Finished` or `Died` follows."""
        ...

    def evict(self, worker: str, entries: Entries) -> None:
        """Have a worker without a row remove a finished clip's stages before its next row; `StillInUse` follows, always."""
        ...

    def wait(self, timeout_s: float) -> list[Event]:
        """The next events; empty after the timeout."""
        ...

    def stop(self, worker: str) -> None:
        """End a worker at once, whatever it does."""
        ...

    def release(self) -> int:
        """Have all workers, none of which has a row, let go of their last clip; how often the model was loaded."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
