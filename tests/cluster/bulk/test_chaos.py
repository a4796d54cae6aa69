"""Bulk under attack. After each: the results of the undisturbed run, no row lost or doubled, nothing left behind."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray
from pyarrow import fs

from recapture.cluster.bulk.driver import Policy
from recapture.cluster.bulk.ownership import read_owner
from recapture.cluster.bulk.ray_pool import RayPool
from recapture.cluster.bulk.resume import Resume
from recapture.cluster.session import connect
from recapture.engine.errors import RecaptureError
from recapture.engine.store import Store, remote_path
from recapture.engine.store.durable import busy
from recapture.engine.store.remote_path import RemotePath, open_remote_path

from .faulty_filesystem import Faulty
from .rows import Bulk, SketchSetup, files_below, make_bulk

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list:
    bulk = make_bulk(tmp_path_factory.mktemp("undisturbed"), clips=2, paths=2)
    bulk.run()
    return bulk.essence()


def assert_as_undisturbed(bulk: Bulk, undisturbed: list) -> None:
    assert bulk.essence() == undisturbed
    names = [row["row_id"] for row in bulk.results()]
    assert sorted(names) == sorted(bulk.manifest().row_ids)
    left = {name for name in files_below(bulk.out) if name.endswith(".part") or ".scratch/" in name}
    assert not left
    assert not any(name.startswith((".runs/", ".live/")) for name in files_below(bulk.out / "stages"))
    scratch = Path(tempfile.gettempdir()).glob("recapture-bulk-*")
    assert [path for path in scratch if not busy(path)] == []


def kill_at(folder: Path, counts: list[int]) -> list[str]:
    for count in counts:
        (folder / str(count)).mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.bulk.victim", folder, *map(str, counts)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()[1::2]


def go_on(folder: Path, count: int) -> Bulk:
    bulk = make_bulk(folder / str(count), clips=2, paths=2)
    assert bulk.run().exit_code == 0
    return bulk


@pytest.mark.ci
def test_a_driver_killed_between_any_two_lasting_steps_is_taken_up(tmp_path, undisturbed):
    """First the number of steps, then a kill at every fourth of them."""
    counts = [1, *range(2, 60, 4)]
    ends = kill_at(tmp_path, counts)
    assert ends[0] == str(int(signal.SIGKILL))
    killed = [count for count, end in zip(counts, ends, strict=True) if end != "ended"]
    assert len(killed) >= 8, ends
    assert len(killed) < len(counts), "the last kills come after the end: every moment was tried"
    for count in killed:
        assert_as_undisturbed(go_on(tmp_path, count), undisturbed)


def test_rows_that_were_recorded_are_not_touched_again(tmp_path):
    """Killed late: what the shards hold is as it was, to the byte."""
    (killed,) = kill_at(tmp_path, [24])
    assert killed == str(int(signal.SIGKILL))
    bulk = make_bulk(tmp_path / "24", clips=2, paths=2)
    before = {row["row_id"]: row for row in bulk.results()}
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "24/out/clips").rglob("*") if path.is_file()}
    assert before
    bulk.run()
    after = {row["row_id"]: row for row in bulk.results()}
    assert len(after) == 4
    for name, row in before.items():
        assert after[name] == row
        assert name not in bulk.pool.rendered
    assert all(path.stat().st_mtime_ns == when for path, when in files.items() if path.parent.name in before)


# Stores


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote_path, "_PAUSES_S", (0.0, 0.0, 0.0))


def faulty_bulk(folder: Path, fails) -> tuple[Bulk, Faulty]:
    (folder / "store").mkdir()
    handler = Faulty(fs.SubTreeFileSystem(str(folder / "store"), fs.LocalFileSystem()), fails)
    bulk = make_bulk(folder, clips=2, paths=2)
    bulk.place = RemotePath(fs.PyFileSystem(handler), "bucket", "faulty://bucket")
    return bulk, handler


@pytest.mark.ci
@pytest.mark.parametrize("how", ["timeout", "error", "half", "silent half"])
def test_a_store_that_fails_now_and_then_changes_nothing(tmp_path, undisturbed, no_pauses, monkeypatch, how):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chance = random.Random(0)
    bulk, handler = faulty_bulk(tmp_path, lambda count: how if chance.random() < 0.05 else None)
    policy = Policy(workers=2, shard_rows=3, beat_s=0.2, max_attempts=50)
    for _ in range(20):  # a run that the store breaks off goes on
        try:
            progress = bulk.run(policy=policy, resume=Resume(takeover=True))
        except (RecaptureError, OSError):
            continue
        if progress.exit_code == 0:
            break
    handler._fails = lambda count: None
    assert how in handler.failed
    assert bulk.essence() == undisturbed
    assert sorted(row["row_id"] for row in bulk.results()) == sorted(bulk.manifest().row_ids)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB; its size can be changed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("full", ["stages", "out"])
def test_a_full_disk_fails_rows_and_room_mends_them(small_disk, tmp_path, undisturbed, full):
    bulk = make_bulk(tmp_path, clips=2, paths=2)
    if full == "out":
        bulk.place = open_remote_path(str(small_disk / "out"), param="out")
    else:
        bulk.stages = open_remote_path(str(small_disk / "stages"), param="store")
        Store(small_disk / "stages")
    ballast = small_disk / "ballast"
    fd = os.open(ballast, os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while os.write(fd, bytes(4096)):
            pass
    os.close(fd)
    if full == "out":
        with pytest.raises(RecaptureError) as caught:
            bulk.run()
        assert caught.value.code == "disk_full"
    else:
        assert bulk.run().exit_code == 3
        assert {row["error_code"] for row in bulk.results()} == {"disk_full"}
    ballast.unlink()
    assert bulk.run(resume=Resume(retry_failed=True, takeover=True)).exit_code == 0
    assert_as_undisturbed(bulk, undisturbed)


# Workers


@pytest.fixture(scope="module")
def cluster():
    with connect(None, cpus=2):
        yield


def die_once(folder: Path, at: str, stage: str, row) -> None:
    marker = folder / f"died-at-{at}"
    if stage == at and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def pool(bulk: Bulk, **more) -> RayPool:
    setup = SketchSetup(stages=str(bulk.folder / "out" / "stages"), roots=(str(bulk.folder),), **more)
    return RayPool(setup, driver="d", shared=str(bulk.folder))


def living_workers() -> list:
    return [
        actor
        for actor in ray._private.state.actors().values()
        if actor["State"] != "DEAD" and actor["ActorClassName"].endswith("Worker")
    ]


@pytest.mark.ci
def test_a_worker_killed_in_the_middle_of_a_row(cluster, tmp_path, undisturbed):
    bulk = make_bulk(tmp_path, clips=2, paths=2)
    progress = bulk.run(pool(bulk, on_stage=partial(die_once, tmp_path, "path")))
    assert (progress.exit_code, progress.retries) == (0, 1)
    assert sorted(row["attempts"] for row in bulk.results()) == [1, 1, 1, 2]
    assert_as_undisturbed(bulk, undisturbed)
    deadline = time.monotonic() + 20
    while living_workers() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert living_workers() == []


@pytest.mark.parametrize("at", ["shared", "publish"])
def test_a_worker_killed_at_other_moments(cluster, tmp_path, undisturbed, at):
    bulk = make_bulk(tmp_path, clips=2, paths=2)
    assert bulk.run(pool(bulk, on_stage=partial(die_once, tmp_path, at))).exit_code == 0
    assert_as_undisturbed(bulk, undisturbed)


def meet(folder: Path, stage: str, row) -> None:
    """Both workers are in the shared stage before either goes on."""
    if stage == "shared":
        (folder / f"in-{os.getpid()}").touch()
        while len(list(folder.glob("in-*"))) < 2:
            time.sleep(0.02)


def test_two_workers_publish_one_stage(cluster, tmp_path):
    """Without leases, as when their table is lost."""
    bulk = make_bulk(tmp_path, clips=1, paths=4)
    (tmp_path / "quiet").mkdir()
    quiet = make_bulk(tmp_path / "quiet", clips=1, paths=4)
    quiet.run()
    progress = bulk.run(pool(bulk, on_stage=partial(meet, tmp_path), alone=True), policy=Policy(workers=2, beat_s=0.2))
    assert progress.waits == 0
    assert progress.stages_reused["shared"] == 2  # both computed it
    assert_as_undisturbed(bulk, quiet.essence())
    assert Store(tmp_path / "out" / "stages").verify() == []


LOSS = (
    '{"CoreWorkerService.grpc_client.PushTask":'
    '{"num_failures": 3, "req_failure_prob": 40, "resp_failure_prob": 40, "in_flight_failure_prob": 10}}'
)


def test_lost_calls_between_driver_and_workers(tmp_path, undisturbed):
    """In a process of its own: Ray reads which calls to lose when it is imported."""
    code = """
import sys
from pathlib import Path
from tests.test_bulk_chaos import make_bulk, pool
from recapture.cluster.bulk.driver import Policy
from recapture.cluster.session import connect
from recapture.cluster.bulk.pool import Died
bulk, lost = make_bulk(Path(sys.argv[1]), clips=2, paths=2), []
with connect(None, cpus=2):
    workers = pool(bulk)
    wait = workers.wait
    def watched(timeout_s):
        events = wait(timeout_s)
        lost.extend(event for event in events if isinstance(event, Died))
        return events
    workers.wait = watched
    print(bulk.run(workers, policy=Policy(workers=2, beat_s=0.2, max_attempts=10)).exit_code, len(lost))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "RAY_testing_rpc_failure": LOSS},
    )
    exit_code, lost = done.stdout.split()[-2:]
    assert exit_code == "0", done.stderr
    assert int(lost) > 0
    assert_as_undisturbed(make_bulk(tmp_path, clips=2, paths=2), undisturbed)


def wait_while_it_is_there(folder: Path, stage: str, row) -> None:
    """The first row that gets here waits for its node to be taken away."""
    marker = folder / "node"
    if stage == "path" and not marker.exists():
        marker.write_text(ray.get_runtime_context().get_node_id())
        time.sleep(120)


NODE_REMOVAL = """
import sys, threading, time
from functools import partial
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from recapture.cluster.bulk.driver import Policy
from tests.test_bulk_chaos import make_bulk, pool, wait_while_it_is_there

folder = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]  # one to spare
ray.init(address=cluster.address, namespace="recapture", log_to_driver=False)

def take_away():
    while not (folder / "node").exists() or not (folder / "node").read_text():
        time.sleep(0.1)
    (gone,) = [node for node in nodes if node.node_id == (folder / "node").read_text()]
    cluster.remove_node(gone, allow_graceful=False)

thread = threading.Thread(target=take_away)
thread.start()
bulk = make_bulk(folder, clips=2, paths=2)
workers = pool(bulk, on_stage=partial(wait_while_it_is_there, folder))
progress = bulk.run(workers, policy=Policy(workers=2, beat_s=0.5))
thread.join()
print("ended", progress.exit_code, progress.retries)
ray.shutdown()
cluster.shutdown()
"""


def test_a_node_is_taken_away_while_its_row_runs(tmp_path, undisturbed):
    done = subprocess.run(
        [sys.executable, "-c", NODE_REMOVAL, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert "ended 0 1" in done.stdout.splitlines(), done.stderr  # Ray says things of its own
    assert_as_undisturbed(make_bulk(tmp_path, clips=2, paths=2), undisturbed)


def test_two_drivers_on_one_output(tmp_path, undisturbed):
    """The second refuses while the first lives, takes over when told to, and what the first then writes does not count."""
    bulk = make_bulk(tmp_path, clips=2, paths=2)
    taken = []

    def take_over(outcome, attempts) -> None:
        if not taken:
            taken.append(make_bulk(tmp_path, clips=2, paths=2))
            with pytest.raises(RecaptureError, match="`takeover`"):
                taken[0].run(policy=replace(bulk.policy, beat_s=0.05))
            taken[0].run(resume=Resume(takeover=True))

    with pytest.raises(RecaptureError, match="has taken over"):
        bulk.run(on_outcome=take_over)
    assert_as_undisturbed(taken[0], undisturbed)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_writes_down_where_it_is(tmp_path, how):
    """As a cluster ends a job, and as a person does."""
    bulk = make_bulk(tmp_path, clips=1, paths=1)  # no video: the workers are never got so far
    (tmp_path / "m.csv").write_text(f"clip_id,input_uri,camera\na,{bulk.rows[0]['input_uri']},static\n")
    command = subprocess.Popen(
        [sys.executable, "-m", "recapture", "bulk", "m.csv", "--out", "out", "--concurrency", "1", "--device", "cpu"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    progress = tmp_path / "out" / "progress.json"
    while not progress.exists():
        assert command.poll() is None, command.stderr.read()
        time.sleep(0.02)
    command.send_signal(how)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 130, said
    assert said.strip().endswith("run the same command again and it goes on from here")
    assert json.loads(progress.read_text())["state"] == "interrupted"
    assert read_owner(bulk.out).released
