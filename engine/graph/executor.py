"""Work that goes frame by frame, and who does it: this process, or workers that `cluster` sends it to.

Such work is an object that holds what it reads, and is called with a run and a range of frames. Ranges begin at multiples
of the work's own batch, counted from frame 0, and each is one call: whoever makes it, the bits are the same.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from .context import Run

Part = dict[str, np.ndarray]
"""What a call gives, by name; the first axis of each array is the frames of the call."""


class FrameWork(Protocol):
    """A dataclass that can be sent to another process; what it reads lies in the store, or is small."""

    @property
    def batch(self) -> int:
        """Frames per call. The last call may get fewer."""
        ...

    def __call__(self, run: "Run", frames: range) -> Part: ...


class FrameMap(Protocol):
    """Does the work for frames 0 to count - 1."""

    def __call__(self, run: "Run", work: FrameWork, count: int, *, scratch: Path) -> Iterator[Part]:
        """Parts in the order of the frames, each of one batch or of several that follow each other.

        Args:
            scratch: folder of the stage that is being written; what is left below it must be gone in the end.
        """
        ...


def batches(count: int, batch: int) -> list[range]:
    return [range(start, min(start + batch, count)) for start in range(0, count, batch)]


def in_process(run: "Run", work: FrameWork, count: int, *, scratch: Path) -> Iterator[Part]:
    for frames in batches(count, work.batch):
        yield work(run, frames)
