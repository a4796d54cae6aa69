"""A worker's hold on a job while it works: signs of life, progress, and the word to stop."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from ...engine.stages import STAGES, stages_until
from ..logs import get_logger
from .jobs import Jobs
from .records import Job, Refused

_SAID_EVERY_S = 0.25

log = get_logger("lease")


class Lost(Exception):
    """The job is not this worker's any more: cancelled, past its deadline, or given to another."""


class Stopped(Exception):
    """The worker was told to end."""


class Lease:
    """Holds a job; use as a context manager around the work.

    A thread renews the lease, because a step may take longer than one. `check` is what the work calls at each of its
    steps, and what ends it there.
    """

    def __init__(
        self, jobs: Jobs, job: Job, *, lease_s: float, stop: threading.Event, beat: Callable[[], None]
    ) -> None:
        self.jobs, self.job, self.claim = jobs, job, job.claim
        self._lease_s, self._stop, self._beat = lease_s, stop, beat
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {job.id}", daemon=True)
        self._stage, self._said_at, self._counted_from = "", 0.0, time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Raises Lost or Stopped when the work shall end."""
        if self._stop.is_set():
            raise Stopped
        if not self.jobs.holds(self.claim):
            raise Lost

    def on_progress(self, stage: str, done: int, total: int, detail: Mapping[str, Any]) -> None:
        """The engine's callback: called after every step."""
        self.check()
        now = time.monotonic()
        if stage != self._stage or now - self._said_at >= _SAID_EVERY_S:
            self._stage, self._said_at = stage, now
            self._advance(stage, progress_of(stage, done / max(1, total)))

    def stage_done(self, stage: str) -> None:
        """Its result is in the store: a worker after this one begins behind it."""
        self._advance(stage, progress_of(stage, 1.0), checkpoint=stage)

    def spent_s(self) -> float:
        """Seconds of work since this was asked last."""
        since, self._counted_from = self._counted_from, time.monotonic()
        return self._counted_from - since

    def _advance(self, stage: str, progress: float, checkpoint: str | None = None) -> None:
        try:
            self.jobs.advance(
                self.claim, stage=stage, progress=progress, checkpoint=checkpoint, compute_s=self.spent_s()
            )
        except Refused:
            raise Lost from None

    def _renew(self) -> None:
        while not self._over.wait(self._lease_s / 3):
            try:
                self.jobs.expire_overdue()
                self._beat()
                if not self.jobs.renew(self.claim, lease_s=self._lease_s):
                    return  # `check` tells the work
            except Exception:  # the database is away: the lease runs out by itself if that lasts
                log.exception("lease_not_renewed", job=self.job.id)


def progress_of(stage: str, share: float) -> float:
    """0 to 1 over the whole render, when this share of a stage is done."""
    efforts = {each.name: each.effort for each in STAGES}
    before = sum(each.effort for each in stages_until(stage)[:-1])
    return (before + efforts[stage] * share) / sum(efforts.values())
