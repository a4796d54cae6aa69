"""Results that workers report for rows."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from .manifest import Row

Entries = tuple[tuple[str, str], ...]
"""(stage, key) of results in the stage store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """The result of a row.

    Attributes:
        status: `retry` is not final: a store failed, or only a new process can repair the device's state.
        gpu_seconds: how long the worker's device was held.
        sha256: of the delivered video.
        stage_seconds: duration of the stages that this row ran.
        reused: stages found in the store.
        entries: (stage, key) of all entries of the row's clip in the stage store.
        stage_bytes: what the row added to the stage store.
        waits: how often another worker was waited for, and for how many seconds in all.
        broken: this worker must not be used again.
    """

    status: Literal["completed", "failed", "retry"]
    error_code: str | None = None
    error_message: str | None = None
    gpu_seconds: float = 0.0
    sha256: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    reused: tuple[str, ...] = ()
    entries: Entries = ()
    output_bytes: int = 0
    stage_bytes: int = 0
    waits: tuple[int, float] = (0, 0.0)
    broken: bool = False


class Renderer(Protocol):
    """Does rows, one at a time, with models that stay warm. Made once in each worker's process."""

    @property
    def pipeline(self) -> str:
        """Digest of everything that decides a row's pixels besides the row itself."""
        ...

    @property
    def loads(self) -> int:
        """How often the video model was loaded."""
        ...

    def render(self, row: Row) -> RowResult:
        """Do a row. Errors are outcomes; only a stop from outside is raised."""
        ...

    def evict(self, entries: Entries) -> Entries:
        """The clip is finished, its stages may go; those that cannot yet are returned."""
        ...

    def release(self) -> None:
        """Nothing more comes for now: hold nothing that another could remove."""
        ...

    def close(self) -> None: ...
