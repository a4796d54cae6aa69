"""The scheduler as a plain state machine: it picks a worker's next row without a clock and without Ray.

A clip's rows go to the worker whose stages of it are warm; priority comes before warmth; a worker with nothing left takes
rows of the clip that has the most waiting.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """A row that a worker shall do now; `attempt` counts from 1."""

    row: int
    attempt: int


class Schedule:
    """Rows that wait, rows that run, and nothing of rows that are finished.

    Args:
        clips: by row, what its shared stages belong to.
        priorities: by row; higher ones first.
        waiting: the rows to do.
        max_attempts: how often a row may lose its worker, or meet a failing store, before that is its error.
    """

    def __init__(
        self, clips: Sequence[str], priorities: Sequence[int], waiting: Iterable[int], *, max_attempts: int = 3
    ) -> None:
        self._clips, self._priorities, self._max_attempts = clips, priorities, max_attempts
        self._rows: dict[str, list[tuple[int, int]]] = {}
        """Clip -> heap of (-priority, row): its rows that wait."""
        self._unfinished: dict[str, int] = {}
        for row in waiting:
            clip = clips[row]
            self._rows.setdefault(clip, []).append((-priorities[row], row))
            self._unfinished[clip] = self._unfinished.get(clip, 0) + 1
        self.waiting = sum(self._unfinished.values())
        self._free: list[tuple[int, int, str]] = []
        """Heap of (-priority, row, clip): a first row of each clip without a worker. Old entries are dropped late."""
        for clip, rows in self._rows.items():
            heapq.heapify(rows)
            self._free.append((*rows[0], clip))
        heapq.heapify(self._free)
        self._clip_of: dict[str, str] = {}
        """Worker -> the clip that it is warm for."""
        self.running: dict[str, Claim] = {}
        """Worker -> what it does now."""
        self._attempts: dict[int, int] = {}

    @property
    def finished(self) -> bool:
        return not self.waiting and not self.running

    def take(self, worker: str) -> Claim | None:
        """The worker's next row, None where none waits."""
        assert worker not in self.running, f"{worker} has a row"
        own = self._clip_of.get(worker)
        mine = self._rows.get(own, []) if own is not None else []
        free = self._first_free()
        if own is None or not mine or (free is not None and free[0] < mine[0][0]):
            clip = free[2] if free is not None else self._fullest()
            if clip is None:
                return None
            self._go_to(worker, clip)
        clip = self._clip_of[worker]
        _, row = heapq.heappop(self._rows[clip])
        self.waiting -= 1
        claim = Claim(row, self._attempts.pop(row, 0) + 1)
        self.running[worker] = claim
        return claim

    def finish(self, worker: str) -> bool:
        """The worker's row has its result; True when it was the last unfinished one of its clip."""
        clip = self._clips[self.running.pop(worker).row]
        self._unfinished[clip] -= 1
        if self._unfinished[clip]:
            return False
        del self._unfinished[clip], self._rows[clip]
        for other in [name for name, at in self._clip_of.items() if at == clip]:
            del self._clip_of[other]
        return True

    def retry(self, worker: str) -> bool:
        """The row was not done; it waits again. False, and nothing changed, when it has had all its attempts."""
        claim = self.running[worker]
        if claim.attempt >= self._max_attempts:
            return False
        del self.running[worker]
        clip = self._clips[claim.row]
        self._attempts[claim.row] = claim.attempt
        heapq.heappush(self._rows[clip], (-self._priorities[claim.row], claim.row))
        self.waiting += 1
        return True

    def leave(self, worker: str) -> None:
        """An idle worker is gone: other workers may take its clip."""
        assert worker not in self.running, f"{worker} has a row"
        clip = self._clip_of.pop(worker, None)
        if clip is not None:
            self._set_free(clip)

    def rest(self) -> list[int]:
        """Rows that wait, in the manifest's order."""
        return sorted(row for rows in self._rows.values() for _, row in rows)

    def _go_to(self, worker: str, clip: str) -> None:
        before = self._clip_of.get(worker)
        self._clip_of[worker] = clip
        if before is not None and before != clip:
            self._set_free(before)

    def _set_free(self, clip: str) -> None:
        rows = self._rows.get(clip)
        if rows and clip not in self._clip_of.values():
            heapq.heappush(self._free, (*rows[0], clip))

    def _first_free(self) -> tuple[int, int, str] | None:
        """The best clip without a worker."""
        taken = set(self._clip_of.values())
        while self._free:
            clip = self._free[0][2]
            rows = self._rows.get(clip)
            if rows and clip not in taken and self._free[0][:2] == rows[0]:
                return self._free[0]
            heapq.heappop(self._free)  # `_set_free` adds another when the clip is free again
        return None

    def _fullest(self) -> str | None:
        clips = [clip for clip in set(self._clip_of.values()) if self._rows[clip]]
        return max(clips, key=lambda clip: (len(self._rows[clip]), clip), default=None)
