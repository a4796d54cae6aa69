"""The life of a job, as a value: who may change what, and when. No clock, no database, no file is touched here.

    queued -> in_progress -> completed | failed
       ^          |
       +----------+  the worker gave it back, or its lease ran out

    From both of the first two also to cancelled and expired. The last five states are final: nothing changes them.

A worker that takes a job gets a `Claim` with a fence that no earlier claim had. Every change it makes is checked against
it, so one that was thought dead and comes back (its machine slept, its lease went to another) changes nothing.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled", "expired"]
UNENDED: frozenset[Status] = frozenset({"queued", "in_progress"})
FINAL: frozenset[Status] = frozenset({"completed", "failed", "cancelled", "expired"})

MOST_ATTEMPTS = 5
"""A job that took this many workers with it is not given to another."""


class Refused(Exception):
    """The change is not allowed any more: the job ended, or another worker holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A worker's claim on a job; the database checks by it that the claim still holds."""

    job: str
    attempt: int
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A record. Its methods give the record after a change, or raise Refused. Times are Unix seconds."""

    id: str
    tenant: str
    kind: str
    fingerprint: str
    """Digest of everything that decides the result: input, camera, options, seed, model."""
    request: dict[str, Any]
    created_at: float
    status: Status = "queued"
    revision: int = 1
    """Grows with every change that a caller can see."""
    attempt: int = 0
    fence: int = 0
    worker: str | None = None
    lease_until: float | None = None
    deadline_at: float | None = None
    started_at: float | None = None
    completed_at: float | None = None
    stage: str | None = None
    progress: float = 0.0
    checkpoint: str | None = None
    """The last stage whose result is in the store; the next attempt continues after it."""
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    compute_s: float = 0.0
    warnings: list[str] = field(default_factory=list)

    @property
    def final(self) -> bool:
        return self.status in FINAL

    @property
    def claim(self) -> Claim:
        return Claim(job=self.id, attempt=self.attempt, fence=self.fence)

    def free(self, now: float) -> bool:
        """Whether a worker may take it: it is unclaimed, or its holder was silent for a lease's time."""
        lapsed = self.status == "in_progress" and self.lease_until is not None and self.lease_until <= now
        return (self.status == "queued" or lapsed) and not self.overdue(now)

    def overdue(self, now: float) -> bool:
        return not self.final and self.deadline_at is not None and self.deadline_at <= now

    def taken(self, worker: str, *, now: float, lease_s: float) -> "Job":
        """Held by a worker; its attempts before are spent. One attempt too many ends it."""
        if not self.free(now):
            raise Refused(f"{self.id} is {self.status} and not free")
        if self.attempt >= MOST_ATTEMPTS:
            error = {
                "code": "worker_lost",
                "message": f"{self.attempt} workers ended while they held this render; the last stage was {self.stage}",
                "param": None,
            }
            return self._ended("failed", now, error=error)
        return self._changed(
            status="in_progress",
            worker=worker,
            attempt=self.attempt + 1,
            fence=self.fence + 1,
            lease_until=now + lease_s,
            started_at=now if self.started_at is None else self.started_at,
        )

    def renewed(self, claim: Claim, *, until: float) -> "Job":
        """The lease is longer; no caller sees it."""
        self._check(claim)
        return replace(self, lease_until=until)

    def advanced(
        self, claim: Claim, *, stage: str, progress: float, checkpoint: str | None = None, compute_s: float = 0.0
    ) -> "Job":
        """Further on; progress never falls, also when a new attempt begins again."""
        self._check(claim)
        return self._changed(
            stage=stage,
            progress=max(self.progress, min(1.0, progress)),
            checkpoint=checkpoint or self.checkpoint,
            compute_s=self.compute_s + compute_s,
        )

    def completed(
        self, claim: Claim, result: dict[str, Any], *, now: float, warnings: list[str], compute_s: float = 0.0
    ) -> "Job":
        self._check(claim)
        done = self._ended("completed", now, result=result, warnings=warnings, compute_s=self.compute_s + compute_s)
        return replace(done, progress=1.0)

    def failed(self, claim: Claim, error: dict[str, Any], *, now: float, compute_s: float = 0.0) -> "Job":
        self._check(claim)
        return self._ended("failed", now, error=error, compute_s=self.compute_s + compute_s)

    def given_back(self, claim: Claim) -> "Job":
        """Back in the queue at once: the worker had to stop, which does not count against the job."""
        self._check(claim)
        return self._changed(status="queued", worker=None, lease_until=None, attempt=self.attempt - 1)

    def cancelled(self, *, now: float) -> "Job":
        """Ended by its owner; the worker learns of it at its next step. One that has ended stays as it ended."""
        return self if self.final else self._ended("cancelled", now)

    def expired(self, *, now: float) -> "Job":
        if not self.overdue(now):
            raise Refused(f"{self.id} is {self.status} and not overdue")
        error = {"code": "deadline_exceeded", "message": "it was not done before its deadline", "param": "deadline_s"}
        return self._ended("expired", now, error=error)

    def holds(self, claim: Claim) -> bool:
        return self.status == "in_progress" and self.claim == claim

    def _check(self, claim: Claim) -> None:
        if not self.holds(claim):
            raise Refused(f"{self.id} is {self.status} under fence {self.fence}, not in progress under {claim.fence}")

    def _changed(self, **changes: Any) -> "Job":
        return replace(self, revision=self.revision + 1, **changes)

    def _ended(self, status: Status, now: float, **changes: Any) -> "Job":
        return self._changed(status=status, completed_at=now, worker=None, lease_until=None, **changes)
