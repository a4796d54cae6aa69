"""Work that goes frame by frame, as an object that another process can be given.

A task holds what it reads, and is called with a context and a range of frame indices. Ranges begin at multiples of the
task's own batch, counted from frame 0, and each is one call: whoever makes it, the bits are the same.
"""

from typing import Any, Protocol

import numpy as np

FrameBatch = dict[str, np.ndarray]
"""What a call gives, by name; the first axis of each array is the frames of the call."""


class FrameTask(Protocol):
    """A dataclass that can be pickled; what it reads lies in the store, or is small."""

    @property
    def batch(self) -> int:
        """Frames per call; the last call may have fewer."""
        ...

    def __call__(self, context: Any, indices: range) -> FrameBatch:
        """Compute these frames. `context` is a `StageContext`; tasks that run no network ignore it."""
        ...


def batches(count: int, batch: int) -> list[range]:
    """The ranges of frames 0 to count - 1 that a task is called with."""
    return [range(start, min(start + batch, count)) for start in range(0, count, batch)]
