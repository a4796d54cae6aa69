"""The rules of a job: first as a value, then the same on both databases."""

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from recapture.client.schema import UploadCreate
from recapture.engine.errors import InputError
from recapture.serve import database as db
from recapture.serve.database import Database, ensure_tenant
from recapture.serve.jobs.jobs import IdempotencyConflict, Jobs, QueueFull, Quota, UploadGone
from recapture.serve.jobs.records import FINAL, MOST_ATTEMPTS, Claim, Job, Refused
from recapture.serve.jobs.worker_registry import WorkerRegistry
from recapture.serve.settings import Settings
from recapture.serve.uploads.uploads import UNFINISHED_S, Uploads

from .databases import postgres_binaries, postgres_server

LEASE_S = 10.0
ERROR = {"code": "broken", "message": "it broke", "param": None}


class Ledger:
    """The pure rules alone, with a dictionary for a database."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.records: dict[str, Job] = {}
        self.clock = clock

    def submit(self, tenant: str, kind: str, request: dict[str, Any], fingerprint: str, *, deadline_s: float | None):
        now = self.clock()
        job = Job(
            id=secrets.token_hex(8),
            tenant=tenant,
            kind=kind,
            fingerprint=fingerprint,
            request=request,
            created_at=now,
            deadline_at=None if deadline_s is None else now + deadline_s,
        )
        self.records[job.id] = job
        return job, True

    def get(self, tenant: str, job: str) -> Job | None:
        return self.records[job]

    def take(self, worker: str, kinds: list[str], *, lease_s: float) -> Job | None:
        for job in list(self.records.values()):
            if job.free(self.clock()):
                taken = self._set(job.taken(worker, now=self.clock(), lease_s=lease_s))
                if not taken.final:
                    return taken
        return None

    def renew(self, claim: Claim, *, lease_s: float) -> bool:
        try:
            self._set(self.records[claim.job].renewed(claim, until=self.clock() + lease_s))
        except Refused:
            return False
        return True

    def holds(self, claim: Claim) -> bool:
        return self.records[claim.job].holds(claim)

    def advance(self, claim: Claim, **what: Any) -> Job:
        return self._set(self.records[claim.job].advanced(claim, **what))

    def complete(self, claim: Claim, result: dict[str, Any], *, warnings: list[str]) -> Job:
        return self._set(self.records[claim.job].completed(claim, result, now=self.clock(), warnings=warnings))

    def fail(self, claim: Claim, error: dict[str, Any]) -> Job:
        return self._set(self.records[claim.job].failed(claim, error, now=self.clock()))

    def give_back(self, claim: Claim) -> Job:
        return self._set(self.records[claim.job].given_back(claim))

    def cancel(self, job: str) -> Job:
        return self._set(self.records[job].cancelled(now=self.clock()))

    def expire_overdue(self) -> int:
        overdue = [job for job in self.records.values() if job.overdue(self.clock())]
        for job in overdue:
            self._set(job.expired(now=self.clock()))
        return len(overdue)

    def _set(self, job: Job) -> Job:
        self.records[job.id] = job
        return job


class JobMachine(RuleBasedStateMachine):
    """Workers that are slow, die, come back and race with their owner."""

    make: Callable[[Callable[[], float]], Any] = Ledger
    ids = Bundle("ids")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.jobs = type(self).make(lambda: self.now)
        self.seen: dict[str, Job] = {}
        self.holder: dict[str, Claim] = {}
        self.results: dict[str, list[int]] = {}

    def look(self, job: str) -> Job:
        found = self.jobs.get("a", job)
        assert found is not None
        return found

    def zombie(self, claim: Claim) -> bool:
        return self.holder.get(claim.job) != claim or self.look(claim.job).status != "in_progress"

    def commit(self, claim: Claim, act: Callable[[], Any]) -> bool:
        """Do something under a claim; a zombie is refused and changes nothing."""
        zombie, before = self.zombie(claim), self.look(claim.job)
        assert self.jobs.holds(claim) is not zombie
        if zombie:
            with pytest.raises(Refused):
                act()
            assert self.look(claim.job) == before
            return False
        act()
        return True

    @rule(target=ids, deadline_s=st.sampled_from([None, None, 15.0, 60.0]))
    def submit(self, deadline_s: float | None) -> str:
        self.now += 1e-3  # no two jobs of one age: ids, which would decide, are drawn anew when an example is repeated
        job, new = self.jobs.submit("a", "render", {"x": 1}, "f" * 64, deadline_s=deadline_s)
        assert new
        assert job.status == "queued"
        self.seen[job.id] = job
        return job.id

    @rule(target=claims)
    def take(self) -> Any:
        free = [job for job in self.seen if self.look(job).free(self.now)]
        taken = self.jobs.take("w", ["render"], lease_s=LEASE_S)
        if taken is None:
            # Whatever was free had lost too many workers, and has ended for it.
            assert all(self.look(job).error["code"] == "worker_lost" for job in free)
            return multiple()
        assert taken.id in free
        before = self.holder.get(taken.id)
        assert before is None or taken.fence > before.fence
        self.holder[taken.id] = taken.claim
        return taken.claim

    @rule(claim=claims, progress=st.floats(0, 1), stage=st.sampled_from(["depth", "sample"]))
    def advance(self, claim: Claim, progress: float, stage: str) -> None:
        before = self.look(claim.job).progress
        if self.commit(claim, lambda: self.jobs.advance(claim, stage=stage, progress=progress)):
            assert self.look(claim.job).progress == max(before, progress)

    @rule(claim=claims)
    def renew(self, claim: Claim) -> None:
        zombie = self.zombie(claim)
        assert self.jobs.renew(claim, lease_s=LEASE_S) is not zombie

    @rule(claim=claims, value=st.integers(0, 9))
    def complete(self, claim: Claim, value: int) -> None:
        if self.commit(claim, lambda: self.jobs.complete(claim, {"value": value}, warnings=[])):
            self.results.setdefault(claim.job, []).append(value)

    @rule(claim=claims)
    def fail(self, claim: Claim) -> None:
        self.commit(claim, lambda: self.jobs.fail(claim, ERROR))

    @rule(claim=consumes(claims))
    def give_back(self, claim: Claim) -> None:
        if self.commit(claim, lambda: self.jobs.give_back(claim)):
            assert self.look(claim.job).status == "queued"

    @rule(job=ids)
    def cancel(self, job: str) -> None:
        before = self.look(job)
        after = self.jobs.cancel(job)
        assert after == before if before.final else after.status == "cancelled"

    @rule()
    def expire(self) -> None:
        overdue = sum(self.look(job).overdue(self.now) for job in self.seen)
        assert self.jobs.expire_overdue() == overdue

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_goes_back(self) -> None:
        for job, before in self.seen.items():
            now = self.look(job)
            assert now.progress >= before.progress
            assert now.revision >= before.revision
            assert now.fence >= before.fence
            assert not before.final or now == before
            assert now == replace(before, lease_until=now.lease_until) or now.revision > before.revision
            assert now.attempt <= MOST_ATTEMPTS
            assert (now.status == "completed") == (now.result is not None)
            assert (now.completed_at is not None) == now.final
            if now.status == "completed":
                assert self.results[job] == [now.result["value"]]  # published once
            self.seen[job] = now


def run_machine(make: Callable[[Callable[[], float]], Any], examples: int) -> None:
    machine = type("Machine", (JobMachine,), {"make": staticmethod(make)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.fixture(scope="module")
def postgres():
    if postgres_binaries() is None:
        pytest.skip("the Debian package postgresql is not installed")
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    url = f"sqlite:///{tmp_path / 'records.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres")
    database = Database(url)
    empty(database)
    yield database
    database.close()


def empty(database: Database) -> None:
    with database.writing() as connection:
        for table in ("idempotency", "jobs", "turns", "uploads"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
        for tenant in ("a", "b"):
            ensure_tenant(connection, tenant)


def test_the_rules_alone():
    run_machine(Ledger, 100)


@pytest.mark.slow
@pytest.mark.ci
def test_the_same_rules_on_a_database(database):
    quota = Quota(max_active=10**6, max_running=10**6)

    def make(clock):
        empty(database)
        return Jobs(database, quota=quota, clock=clock)

    run_machine(make, 15)


def submit(jobs: Jobs, tenant: str = "a", **more: Any) -> Job:
    return jobs.submit(tenant, "render", {}, "f" * 64, **more)[0]


def test_an_idempotency_key_is_one_job(database):
    jobs = Jobs(database)
    first, new = jobs.submit("a", "render", {"n": 1}, "1" * 64, key="k")
    again, renewed = jobs.submit("a", "render", {"n": 1}, "1" * 64, key="k")
    assert (new, renewed) == (True, False)
    assert again == first
    with pytest.raises(IdempotencyConflict):
        jobs.submit("a", "render", {"n": 2}, "2" * 64, key="k")
    other, new = jobs.submit("b", "render", {"n": 2}, "2" * 64, key="k")
    assert new  # keys are each tenant's own
    assert other.id != first.id
    assert jobs.get("b", first.id) is None
    assert jobs.get("a", first.id, "preview") is None
    jobs.delete(first.id)
    assert jobs.submit("a", "render", {"n": 2}, "2" * 64, key="k")[1]


def test_quotas_and_the_cap_of_the_queue(database):
    jobs = Jobs(database, quota=Quota(max_active=2, max_queue=3, max_running=1))
    submit(jobs)
    submit(jobs)
    with pytest.raises(QueueFull) as refused:
        submit(jobs)
    assert refused.value.code == "quota_used"
    submit(jobs, "b")
    with pytest.raises(QueueFull) as refused:
        submit(jobs, "b")
    assert refused.value.code == "queue_full"
    assert jobs.take("w", ["render"], lease_s=60)
    assert jobs.take("w", ["render"], lease_s=60)
    assert jobs.take("w", ["render"], lease_s=60) is None  # one of each tenant runs, no more may


def test_tenants_take_turns(database):
    now = [1000.0]
    jobs = Jobs(database, clock=lambda: now[0])
    for tenant in "aaab":
        now[0] += 1
        submit(jobs, tenant)
    order = []
    for _ in range(4):
        now[0] += 1
        job = jobs.take("w", ["render"], lease_s=60)
        order.append(job.tenant)
        jobs.complete(job.claim, {}, warnings=[])
    assert order == ["a", "b", "a", "a"]


def work_of_a_poll(path: Path, ended: int) -> int:
    """Instructions of SQLite's machine for a poll of a worker, beside so many jobs that have ended."""
    database, steps = Database(f"sqlite:///{path}"), []
    with database.writing() as connection:
        for tenant in ("a", "b"):
            ensure_tenant(connection, tenant)
        row = {
            "kind": "render",
            "fingerprint": "f" * 64,
            "request": {},
            "status": "completed",
            "revision": 3,
            "attempt": 1,
            "fence": 1,
            "progress": 1.0,
            "compute_s": 0.0,
            "warnings": [],
            "deadline_at": 9.0,
        }
        ids = [{"id": f"rnd_{n}", "tenant": "ab"[n % 2], "created_at": n, "started_at": n} for n in range(ended)]
        connection.execute(db.jobs.insert(), [{**row, **more} for more in ids])
    jobs = Jobs(database)
    for tenant in "aabb":
        submit(jobs, tenant)
    sa.event.listen(database.engine, "checkout", lambda raw, *_: raw.set_progress_handler(lambda: steps.append(1), 1))
    assert jobs.expire_overdue() == 0
    assert jobs.take("w", ["preview", "estimate"], lease_s=60) is None
    assert jobs.take("w", ["render"], lease_s=60).status == "in_progress"
    database.close()
    return len(steps)


def test_a_poll_does_not_read_the_jobs_that_have_ended(tmp_path):
    few, many = (work_of_a_poll(tmp_path / f"{ended}.db", ended) for ended in (10, 2000))
    assert many < 2 * few


def test_a_resample_is_left_to_the_worker_that_it_was_offered_to_for_a_while(database):
    now = [1000.0]
    jobs = Jobs(database, quota=Quota(max_running=3), clock=lambda: now[0])
    plain = submit(jobs)
    again = jobs.submit("a", "render", {"tuned_by": plain.id}, "f" * 64)[0]
    now[0] += 0.5
    other = {"worker": "other", "kinds": ["render"], "lease_s": 60, "head_start_s": 1.0}
    assert jobs.take(**other).id == plain.id
    assert jobs.take(**other) is None
    assert jobs.take("holder", ["render"], lease_s=60, job="rnd_none") is None
    assert jobs.take("holder", ["preview"], lease_s=60, job=again.id) is None
    assert jobs.take("holder", ["render"], lease_s=60, job=again.id).worker == "holder"
    assert jobs.take("late", ["render"], lease_s=60, job=again.id) is None  # another was faster
    third = jobs.submit("b", "render", {"tuned_by": plain.id}, "f" * 64)[0]
    fourth = jobs.submit("a", "render", {"tuned_by": plain.id}, "f" * 64)[0]
    assert jobs.take("holder", ["render"], lease_s=60, job=fourth.id) is None  # it is the other tenant's turn
    now[0] += 1  # nobody heard of the offer
    assert [jobs.take(**other).id for _ in range(2)] == [third.id, fourth.id]


def test_lists_page_through_everything_once(database):
    now = [1000.0]
    jobs = Jobs(database, clock=lambda: now[0])
    made = []
    for n in range(7):
        now[0] += n % 2  # some in one moment
        made.append(submit(jobs).id)
    found, after = [], None
    while page := jobs.page("a", "render", limit=3, after=after):
        found += [job.id for job in page]
        after = found[-1]
    assert sorted(found) == sorted(made)
    assert jobs.page("b", "render", limit=3) == []
    for unknown in ("rnd_" + "0" * 24, jobs.submit("b", "render", {}, "f" * 64)[0].id):  # none, and another's
        with pytest.raises(InputError) as refused:
            jobs.page("a", "render", limit=3, after=unknown)
        assert refused.value.param == "after"
    assert jobs.page("a", "render", limit=9, status="completed") == []
    assert set(FINAL).isdisjoint({job.status for job in jobs.page("a", "render", limit=9)})


def test_uploads_that_nobody_uses_are_removed(database, tmp_path):
    settings = Settings(data=tmp_path / "data", upload_days=7)
    days_ago = [0.0]
    jobs, uploads = Jobs(database, clock=lambda: time.time() - 86_400 * days_ago[0]), Uploads(database, settings)

    def upload(*, days_old: float) -> str:
        record = uploads.create("a", UploadCreate(bytes=1, sha256="0" * 64, filename=None), key=secrets.token_hex(4))
        with database.writing() as connection:
            old = {"created_at": record.created_at - 86_400 * days_old}
            connection.execute(db.uploads.update().where(db.uploads.c.id == record.id).values(old))
        return record.id

    def rendered(name: str, *, days_old: float) -> Job:
        days_ago[0] = days_old
        return jobs.submit("a", "render", {"input": name}, "f" * 64)[0]

    fresh, idle, waiting, lately, long_ago = (upload(days_old=days) for days in (6, 8, 30, 30, 30))
    rendered(waiting, days_old=20)
    for name, ended in ((lately, 1), (long_ago, 8)):
        job = rendered(name, days_old=20)
        days_ago[0] = ended
        jobs.cancel(job.id)
    assert Uploads(database, settings.model_copy(update={"upload_days": None})).remove_unused() == 0
    assert uploads.remove_unused() == 2
    there = {name for name in (fresh, idle, waiting, lately, long_ago) if uploads.get("a", name)}
    assert there == {fresh, waiting, lately}
    assert {path.name for path in settings.upload_path(fresh).parent.parent.iterdir()} == there
    with pytest.raises(UploadGone):
        rendered(idle, days_old=0)
    assert uploads.remove_unused() == 0


def test_a_failed_upload_stands_in_nobodys_way(database, tmp_path):
    settings = Settings(data=tmp_path / "data", max_tenant_bytes=10)
    uploads, clip = Uploads(database, settings), UploadCreate(bytes=6, sha256="0" * 64, filename=None)
    first = uploads.create("a", clip, key="clip")
    assert uploads.create("a", clip, key="clip").id == first.id
    settings.upload_path(first.id).write_bytes(b"wrong!")
    assert uploads.finish(first).status == "failed"
    second = uploads.create("a", clip, key="clip")  # neither its key nor its bytes are taken
    assert (second.status, second.id == first.id) == ("pending", False)
    assert uploads.create("a", clip, key="clip").id == second.id
    assert uploads.get("a", first.id).error["code"] == "sha256_mismatch"
    with pytest.raises(QueueFull):
        uploads.create("a", clip, key="another")
    # A day later: what failed is gone, and so is what never came; not what still comes, nor what is ready.
    assert uploads.remove_unfinished() == 0
    coming = uploads.create("b", clip, key="coming")
    with database.writing() as connection:
        connection.execute(db.uploads.update().values(created_at=time.time() - UNFINISHED_S - 1))
    assert uploads.remove_unfinished() == 1
    old = time.time() - UNFINISHED_S - 1
    os.utime(settings.upload_path(second.id), (old, old))
    assert uploads.remove_unfinished() == 1
    assert [uploads.get(r.tenant, r.id) is None for r in (first, second, coming)] == [True, True, False]
    assert uploads.create("a", clip, key="clip").status == "pending"


def test_a_worker_that_slept_is_back_with_its_next_sign_of_life(database):
    workers, others = WorkerRegistry(database), WorkerRegistry(database)
    workers.register("sleeper", ["render"], {"id": "tiny"}, "cpu")
    with database.writing() as connection:
        connection.execute(db.workers.update().values(seen_at=time.time() - 3600))
    others.register("other", ["render"], {"id": "tiny"}, "cpu")  # which removes those that are long gone
    assert [worker.id for worker in others.live()] == ["other"]
    for _ in range(2):
        workers.beat("sleeper")
        assert {worker.id for worker in others.live()} == {"sleeper", "other"}
    workers.leave("sleeper")
    others.leave("other")
    workers.beat("sleeper")  # one that left stays away
    assert others.live() == []


def test_a_newer_database_is_refused(tmp_path):
    from recapture.engine.errors import StoreError

    url = f"sqlite:///{tmp_path / 'r.db'}"
    database = Database(url)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '99'")
    database.close()
    with pytest.raises(StoreError, match="newer"):
        Database(url)
    for url in ("mysql://x/y", "nonsense"):
        with pytest.raises(StoreError):
            Database(url)
