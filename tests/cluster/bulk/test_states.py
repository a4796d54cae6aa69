"""Bulk's state machines, without Ray: which row is whose, who may compute what, who owns an output."""

import errno
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pyarrow import fs

from recapture.cluster.bulk.driver import Policy
from recapture.cluster.bulk.leases import Leases
from recapture.cluster.bulk.ownership import Ownership, OwnershipError, read_owner
from recapture.cluster.bulk.resume import Resume
from recapture.cluster.bulk.schedule import Schedule
from recapture.engine.errors import OutputError
from recapture.engine.store import remote_path
from recapture.engine.store.references import STALE_S, References, live_keys
from recapture.engine.store.remote_path import RemotePath, open_remote_path

from .faulty_filesystem import Faulty
from .rows import Bulk, make_bulk

WORKERS = ["a", "b", "c"]


class ScheduleMachine(RuleBasedStateMachine):
    """Whatever workers do, every row is finished exactly once, tried at most three times, and never on two workers."""

    @initialize(
        rows=st.lists(st.tuples(st.sampled_from("uvwxyz"), st.integers(-1, 1)), min_size=1, max_size=14),
    )
    def begin(self, rows):
        self.clips, self.priorities = [clip for clip, _ in rows], [priority for _, priority in rows]
        self.schedule = Schedule(self.clips, self.priorities, range(len(rows)), max_attempts=3)
        self.finished: Counter[int] = Counter()
        self.tries: Counter[int] = Counter()
        self.ended_clips: set[str] = set()

    @rule(worker=st.sampled_from(WORKERS))
    def take(self, worker):
        if worker in self.schedule.running:
            return
        waiting = self.schedule.rest()
        claim = self.schedule.take(worker)
        assert (claim is None) == (not waiting)
        if claim is not None:
            assert claim.row in waiting
            self.tries[claim.row] += 1
            assert claim.attempt == self.tries[claim.row] <= 3

    @rule(worker=st.sampled_from(WORKERS))
    def finish(self, worker):
        claim = self.schedule.running.get(worker)
        if claim is None:
            return
        clip = self.clips[claim.row]
        self.finished[claim.row] += 1
        last = self.schedule.finish(worker)
        assert last == all(self.finished[row] for row, of in enumerate(self.clips) if of == clip)
        if last:
            assert clip not in self.ended_clips
            self.ended_clips.add(clip)

    @rule(worker=st.sampled_from(WORKERS))
    def lose(self, worker):
        claim = self.schedule.running.get(worker)
        if claim is not None and not self.schedule.retry(worker):
            assert claim.attempt == 3
            self.finished[claim.row] += 1
            self.schedule.finish(worker)
        self.schedule.leave(worker)

    @rule(worker=st.sampled_from(WORKERS))
    def fail_softly(self, worker):
        if worker in self.schedule.running and not self.schedule.retry(worker):
            self.finished[self.schedule.running[worker].row] += 1
            self.schedule.finish(worker)

    @invariant()
    def every_row_is_in_one_place(self):
        if not hasattr(self, "schedule"):
            return
        running = [claim.row for claim in self.schedule.running.values()]
        everywhere = sorted([*self.schedule.rest(), *running, *self.finished.elements()])
        assert everywhere == list(range(len(self.clips)))
        assert self.schedule.waiting == len(self.schedule.rest())

    def teardown(self):
        """And it can always be brought to an end."""
        if not hasattr(self, "schedule"):
            return
        for worker in list(self.schedule.running):
            self.finish(worker)
        while not self.schedule.finished:
            self.take("a")
            self.finish("a")
        assert set(self.finished.values()) == {1}


class LeaseMachine(RuleBasedStateMachine):
    """At most one live holder a key; fences only grow; who is not heard of loses, and its release changes nothing."""

    def __init__(self):
        super().__init__()
        self.leases, self.now_s, self.fence = Leases(ttl_s=10.0), 0.0, 0
        self.model: dict[str, tuple[str, int, float]] = {}

    def alive(self, key):
        holder = self.model.get(key)
        return holder if holder is not None and holder[2] > self.now_s else None

    @rule(key=st.sampled_from("kl"), worker=st.sampled_from(WORKERS))
    def acquire(self, key, worker):
        before, fence = self.alive(key), self.leases.acquire(key, worker, self.now_s)
        if before is not None and before[0] != worker:
            assert fence is None
            return
        assert fence is not None
        if before is None:
            assert fence > self.fence
            self.fence = fence
        else:
            assert fence == before[1]
        self.model[key] = worker, fence, self.now_s + 10.0

    @rule(key=st.sampled_from("kl"), back=st.integers(0, 3))
    def release(self, key, back):
        fence, held = self.fence - back, self.model.get(key)
        done = self.leases.release(key, fence)
        assert done == (held is not None and held[1] == fence)
        if done:
            del self.model[key]

    @rule(worker=st.sampled_from(WORKERS))
    def renew(self, worker):
        self.leases.renew(worker, self.now_s)
        for key, (holder, fence, _) in self.model.items():
            if holder == worker and self.alive(key):
                self.model[key] = holder, fence, self.now_s + 10.0

    @rule(worker=st.sampled_from(WORKERS))
    def drop(self, worker):
        self.leases.drop(worker)
        self.model = {key: held for key, held in self.model.items() if held[0] != worker}

    @rule(seconds=st.floats(0.1, 12.0))
    def time_goes_by(self, seconds):
        self.now_s += seconds

    @precondition(lambda self: self.model)
    @invariant()
    def holders_agree(self):
        for key in "kl":
            alive = self.alive(key)
            assert self.leases.holder(key, self.now_s) == (None if alive is None else alive[0])


TestSchedule = ScheduleMachine.TestCase
TestLeases = LeaseMachine.TestCase
for case in (TestSchedule, TestLeases):
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def taken(schedule: Schedule, *workers: str) -> list[int]:
    return [schedule.take(worker).row for worker in workers]


def test_a_clips_rows_stay_with_the_worker_that_is_warm():
    schedule = Schedule(["u", "v", "u", "v", "u"], [0] * 5, range(5))
    assert taken(schedule, "a", "b") == [0, 1]
    assert not schedule.finish("a")
    assert not schedule.finish("b")
    assert taken(schedule, "b", "a") == [3, 2]


def test_priority_comes_before_warmth_and_order_after():
    schedule = Schedule(["u", "u", "v", "w"], [0, 0, 5, -1], range(4))
    assert taken(schedule, "a") == [2]
    schedule.finish("a")
    assert taken(schedule, "a") == [0]
    schedule.finish("a")
    assert taken(schedule, "a") == [1]
    schedule.finish("a")
    assert taken(schedule, "a") == [3]


def test_an_idle_worker_takes_from_the_clip_with_most_rows():
    schedule = Schedule(["u", "u", "v", "v", "v"], [0] * 5, range(5))
    assert taken(schedule, "a", "b", "c") == [0, 2, 3]


@pytest.fixture
def out(tmp_path: Path):
    return open_remote_path(str(tmp_path), param="out")


def claim(out, *, takeover: bool = False, last: dict[int, int] | None = None) -> Ownership:
    return Ownership.claim(out, lambda: dict(last or {}), takeover=takeover, beat_s=0.05)


def as_elsewhere(out, owned: Ownership) -> None:
    """As if the owner ran on another machine, where this one cannot see whether its process lives."""
    owned.owner = replace(owned.owner, host="elsewhere")
    owned.renew()


def test_a_living_driver_is_not_disturbed_and_a_released_output_is_free(out):
    first = claim(out)
    as_elsewhere(out, first)
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.02):
            first.renew()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(OwnershipError, match="`takeover`"):
            claim(out)
    finally:
        stop.set()
        thread.join()
    first.release()
    assert claim(out).owner.fence == first.owner.fence + 1


def test_a_silent_driver_loses_and_notices(out):
    first = claim(out)
    as_elsewhere(out, first)
    second = claim(out, last={1: 7})
    assert (second.owner.fence, second.owner.sealed) == (2, {1: 7})
    with pytest.raises(OwnershipError, match="has taken over"):
        first.renew()
    first.release()  # and cannot undo it
    second.renew()
    assert not read_owner(out).released


def test_takeover_does_not_ask(out):
    first = claim(out)
    assert claim(out, takeover=True).owner.fence == 2
    with pytest.raises(OwnershipError):
        first.check()


def test_what_the_last_owner_sealed_stays_sealed(out):
    claim(out, last={}).release()
    claim(out, last={1: 3}).release()
    late = {1: 9, 2: 4}  # the first driver, long taken over, wrote on
    assert claim(out, last=late).owner.sealed == {1: 3, 2: 4}


def test_a_broken_signature_is_no_owner(out):
    claim(out, last={})
    (out / "owner.json").write(b'{"driver": "x", "fen')
    assert read_owner(out) is None
    assert claim(out, last={1: 2}).owner.fence == 2  # above every shard that is there


def test_live_runs_are_told_from_dead_ones(out):
    here = References(out, "here")
    here.renew(["k1", "k2"])
    References(out, "gone").renew(["k3"])
    assert live_keys(out) == {"k1", "k2", "k3"}
    assert live_keys(out, now=1e12 + STALE_S) == set()
    here.drop()
    assert live_keys(out) == {"k3"}


class SilentOwner(Faulty):
    """Does not answer the next `left` questions after the owner."""

    left = 0

    def open_input_stream(self, path):
        if path.endswith("owner.json") and self.left:
            self.left -= 1
            raise OSError(errno.ETIMEDOUT, "the store did not answer in time")
        return super().open_input_stream(path)


@pytest.fixture
def silent_owner(tmp_path, monkeypatch) -> tuple[Bulk, SilentOwner]:
    monkeypatch.setattr(remote_path, "_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "store").mkdir()
    handler = SilentOwner(fs.SubTreeFileSystem(str(tmp_path / "store"), fs.LocalFileSystem()), lambda count: None)
    bulk = make_bulk(tmp_path)
    bulk.place = RemotePath(fs.PyFileSystem(handler), "bucket", "faulty://bucket")
    bulk.policy = Policy(workers=1, shard_rows=1, beat_s=0.0)
    return bulk, handler


def test_a_store_that_is_silent_for_a_while_ends_no_run(silent_owner):
    bulk, handler = silent_owner
    silences = iter([8])  # two looks of four tries, after the first row

    def silence(outcome, attempts):
        handler.left = next(silences, 0)

    assert bulk.run(on_outcome=silence).rows == {"completed": 6}
    assert len(bulk.results()) == 6


def test_a_store_that_stays_silent_ends_the_run_by_name_and_finished_rows_are_written(silent_owner):
    bulk, handler = silent_owner
    finished = []

    def silence(outcome, attempts):
        finished.append(outcome)
        handler.left = 10**9

    with pytest.raises(OutputError, match=r"cannot read faulty://bucket/owner\.json: the store did not answer"):
        bulk.run(on_outcome=silence)
    handler.left = 0
    assert 0 < len(finished) == len(bulk.results()) < 6
    assert bulk.run(resume=Resume(takeover=True)).rows == {"completed": 6}
    assert len(bulk.pool.rendered) == 6 - len(finished)
