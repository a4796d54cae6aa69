"""The stage store: keys, round trips, publication, crashes, full disks, garbage, object stores."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from filelock import lock_descriptor, unlock_descriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyarrow import fs

from recapture.engine.errors import StoreError
from recapture.engine.store import Entry, Store, canonical_json, stage_key
from recapture.engine.store.arrays import ArrayWriter, read_array

from ..cluster.bulk.faulty_filesystem import Faulty

KEY = "ab" + "0" * 62
OTHER = "cd" + "1" * 62

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
configs = st.dictionaries(st.text(), values, max_size=4)
digests = st.dictionaries(st.text(), st.text(alphabet="0123456789abcdef", min_size=4, max_size=4), max_size=3)
parts = st.fixed_dictionaries(
    {
        "stage": st.text(min_size=1),
        "version": st.integers(0, 99),
        "config": configs,
        "inputs": digests,
        "weights": st.none() | st.text(),
    }
)


few = settings(max_examples=40, deadline=None)


def publish(store: Store, key: str = KEY, *, stage: str = "depth", value: float = 1.0) -> Entry:
    with store.begin(stage, key) as writer:
        writer.save_array("depth_m", np.full((3, 4, 5), value, np.float32))
        writer.json("notes", {"scale": 2.0})
        (writer.path / "adapter").mkdir()
        (writer.path / "adapter" / "weights.bin").write_bytes(b"\0" * 100)
        return writer.publish({"model": "tiny"})


def leftovers(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / ".scratch").glob("[!.]*"))


def shuffled(value: Any) -> Any:
    """The same JSON value with every object's fields in the opposite order."""
    if isinstance(value, dict):
        return {name: shuffled(value[name]) for name in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


# Keys


@few
@given(values)
def test_canonical_json_ignores_order_and_keeps_the_value(value: object) -> None:
    data = canonical_json(value)
    assert data == canonical_json(shuffled(value))
    assert json.loads(data) == value


@few
@given(parts, parts)
def test_key_changes_iff_a_part_does(a: dict, b: dict) -> None:
    assert stage_key(**a) == stage_key(**shuffled(a))
    # Compared as text: to Python 1, 1.0 and True are equal, to a stage's config they are not.
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (stage_key(**a) == stage_key(**b)) == same


@few
@given(parts, parts, st.sampled_from(["stage", "version", "config", "inputs", "weights"]))
def test_key_changes_with_any_single_part(a: dict, b: dict, name: str) -> None:
    mixed = {**a, name: b[name]}
    same = json.dumps(a[name], sort_keys=True) == json.dumps(b[name], sort_keys=True)
    assert (stage_key(**a) == stage_key(**mixed)) == same


def test_every_option_counts() -> None:
    same = {"stage": "depth", "version": 1, "inputs": {"clip": "aa"}, "weights": None}
    configs = [{"a": 1}, {"a": 2}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": None}, {"a": [1]}, {"b": 1}]
    assert len({stage_key(config=config, **same) for config in configs}) == len(configs)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"loss": [1.0, float("nan")]}, ValueError),
        (float("inf"), ValueError),
        ({"rate": Fraction(24000, 1001)}, TypeError),
        ({"path": Path("a")}, TypeError),
        ({1: "a"}, TypeError),
        ({"a": {1, 2}}, TypeError),
        (np.int64(1), TypeError),
        (b"a", TypeError),
    ],
)
def test_what_json_cannot_say_is_refused(value: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        canonical_json(value)


def test_refusal_names_the_place() -> None:
    with pytest.raises(ValueError, match=r"value\.curve\[1\] is nan"):
        canonical_json({"curve": [0.5, float("nan")]})


# Arrays

DTYPES = [np.uint8, np.bool_, np.float16, np.float32, np.int64, np.float64, np.int16]


@few
@given(
    hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)),
    st.data(),
)
def test_arrays_round_trip_however_they_were_chunked(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("arrays")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(array)), max_size=3)))
    for name, chunks in (("cut", np.split(array, cuts)), ("whole", [array])):
        with ArrayWriter(folder / name, shape_per_row=array.shape[1:], dtype=array.dtype) as rows:
            for chunk in chunks:
                rows.append(chunk)
    back = read_array(folder / "cut")
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(back, array)
    assert (folder / "cut").read_bytes() == (folder / "whole").read_bytes()
    assert len(list(folder.iterdir())) == 2


def test_any_arrow_reader_reads_an_array(tmp_path: Path) -> None:
    depth_m = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with ArrayWriter(tmp_path / "d.arrow", shape_per_row=(3, 4), dtype="float32") as rows:
        rows.append(np.asfortranarray(depth_m))
    column = pa.ipc.open_file(pa.memory_map(str(tmp_path / "d.arrow"))).read_all().column("rows").combine_chunks()
    np.testing.assert_array_equal(column.to_numpy_ndarray(), depth_m)


def test_array_is_mapped_not_loaded(tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    with ArrayWriter(tmp_path / "a.arrow", shape_per_row=(1 << 20,), dtype=np.uint8) as rows:
        for i in range(8):
            rows.append(np.full((1, 1 << 20), i, np.uint8))
    array = read_array(tmp_path / "a.arrow")
    assert array[5, 7] == 5
    assert not array.flags.writeable
    assert pa.total_allocated_bytes() - before < 1 << 20


@pytest.mark.parametrize(
    "rows", [np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float64), np.zeros(2, np.float32), np.float32(1)]
)
def test_rows_are_never_cast(tmp_path: Path, rows: np.ndarray) -> None:
    with (
        pytest.raises(ValueError, match="float"),
        ArrayWriter(tmp_path / "a.arrow", shape_per_row=(2,), dtype=np.float32) as writer,
    ):
        writer.append(np.asarray(rows))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["O", "U4", "complex64", ">f4", "M8[s]"])
def test_other_dtypes_are_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(TypeError, match="arrays hold"):
        ArrayWriter(tmp_path / "a.arrow", shape_per_row=(2,), dtype=dtype)


# Entries


def test_publish_then_get(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get("depth", KEY) is None
    made = publish(store)
    entry = Store(tmp_path).get("depth", KEY)
    assert entry is not None
    assert entry == made
    assert entry.path == tmp_path / "depth" / "ab" / KEY
    assert entry.meta == {"model": "tiny"}
    assert entry.json("notes") == {"scale": 2.0}
    assert entry.file("adapter/weights.bin").stat().st_size == 100
    np.testing.assert_array_equal(entry.array("depth_m"), np.ones((3, 4, 5), np.float32))
    sizes = [p.stat().st_size for p in entry.path.rglob("*") if p.is_file() and p.name != "manifest.json"]
    assert entry.bytes == sum(sizes)
    assert entry.seconds >= 0
    assert abs(entry.created_at - time.time()) < 60
    with pytest.raises(KeyError, match=r"depth_m\.arrow"):
        entry.file("missing")
    assert leftovers(store) == []


def test_digest_depends_on_content_only(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second, other = publish(store), publish(store, OTHER), publish(store, stage="anchor", value=2.0)
    assert first.digest == second.digest != other.digest


def test_first_publication_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = publish(store, value=1.0)
    again = publish(store, value=2.0)
    assert again == first
    assert again.array("depth_m")[0, 0, 0] == 1.0
    assert store.verify() == []


def test_without_publish_nothing_is_left(tmp_path: Path) -> None:
    def interrupted() -> None:
        with store.begin("depth", KEY) as writer:
            writer.save_array("a", np.zeros((2, 2)))
            raise KeyboardInterrupt

    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with store.begin("depth", KEY) as writer:
        writer.json("a", 1)
    assert store.get("depth", KEY) is None
    assert leftovers(store) == []


@pytest.mark.parametrize("what", ["link", "open array", "manifest"])
def test_only_plain_finished_files_are_published(tmp_path: Path, what: str) -> None:
    with (store := Store(tmp_path)).begin("depth", KEY) as writer:
        if what == "link":
            (writer.path / "a").symlink_to(tmp_path)
        elif what == "manifest":
            writer.json("manifest", {})
        else:
            unfinished = writer.array("a", shape_per_row=(), dtype="u1")
            assert unfinished.rows == 0
        with pytest.raises(ValueError, match="cannot be published"):
            writer.publish()
    assert store.get("depth", KEY) is None


@pytest.mark.parametrize(("stage", "key"), [("../up", KEY), ("depth", "ab"), ("depth", "../" + KEY[3:]), ("", KEY)])
def test_names_cannot_leave_the_store(tmp_path: Path, stage: str, key: str) -> None:
    with pytest.raises(ValueError, match="not the name of a stage"):
        Store(tmp_path).get(stage, key)


@pytest.mark.parametrize("damage", ["truncate", "delete", "torn manifest", "foreign manifest", "escape"])
def test_damage_is_a_miss_and_is_replaced(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    entry = publish(store)
    array, manifest = entry.file("depth_m.arrow"), entry.path / "manifest.json"
    if damage == "truncate":
        os.truncate(array, array.stat().st_size - 1)
    elif damage == "delete":
        array.unlink()
    elif damage == "torn manifest":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    elif damage == "foreign manifest":
        manifest.write_bytes(publish(store, OTHER).path.joinpath("manifest.json").read_bytes())
    else:
        body = json.loads(manifest.read_bytes())
        (tmp_path / "x").touch()
        body["files"]["../../../x"] = [0, hashlib.sha256().hexdigest()]
        body["digest"] = hashlib.sha256(canonical_json({n: s for n, (_, s) in body["files"].items()})).hexdigest()
        manifest.write_bytes(canonical_json(body))
    assert store.get("depth", KEY) is None
    assert store.verify() != []
    assert publish(store, value=7.0).array("depth_m")[0, 0, 0] == 7.0
    assert store.verify() == []


def test_verify_reads_the_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = publish(store).file("adapter/weights.bin")
    path.write_bytes(b"\1" * 100)
    assert store.get("depth", KEY) is not None, "the size is right"
    assert [(p.path, p.what) for p in store.verify()] == [
        (f"depth/ab/{KEY}/adapter/weights.bin", "content differs from what was published")
    ]


def test_a_damaged_array_is_a_store_error(tmp_path: Path) -> None:
    entry = publish(Store(tmp_path))
    path = entry.file("depth_m.arrow")
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(StoreError, match=r"depth_m\.arrow"):
        entry.array("depth_m")


# Checkpoints


def test_checkpoints_outlive_attempts_and_end_with_publication(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in range(3):
        with store.begin("tune", KEY) as writer:
            found = writer.load_checkpoint()
            assert (found / "step.txt").read_text() == str(step - 1) if found else step == 0
            (writer.path / "w").write_bytes(b"w" * step)
            writer.save_checkpoint({"step.txt": str(step).encode(), "rng/s": lambda: b"s", "w": writer.path / "w"})
            assert len(list(writer.checkpoint_dir.iterdir())) == 1
    with store.begin("tune", KEY) as writer:
        last = writer.load_checkpoint()
        assert last is not None
        assert (last / "w").read_bytes() == b"ww"
        writer.publish()
    assert not writer.checkpoint_dir.exists()


def test_a_failed_checkpoint_keeps_the_one_before(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise RuntimeError("lost")

    with Store(tmp_path).begin("tune", KEY) as writer:
        writer.save_checkpoint({"a": b"1"})
        with pytest.raises(RuntimeError, match="lost"):
            writer.save_checkpoint({"a": b"2", "b": fail})
        found = writer.load_checkpoint()
        assert found is not None
        assert (found / "a").read_bytes() == b"1"
        assert list(writer.checkpoint_dir.iterdir()) == [found]


def test_one_owner_of_checkpoints(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.begin("tune", KEY) as first, Store(tmp_path).begin("tune", KEY) as second:
        first.save_checkpoint({"a": b"1"})
        assert second.load_checkpoint() is None
        second.save_checkpoint({"a": b"2"})
        second.publish()
        found = first.load_checkpoint()
        assert found is not None
        assert (found / "a").read_bytes() == b"1"
        first.publish()
    assert not first.checkpoint_dir.exists()


# Garbage


def test_gc_by_age_and_size_and_keep(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        entries = [publish(store, f"{i:02x}" + "0" * 62) for i in range(4)]
        assert store.gc(older_than_s=-1, max_bytes=0).removed == [], "all in use by this process"
    for i, entry in enumerate(entries):
        os.utime(entry.path / "manifest.json", (i, time.time() - 1000 + i))
    assert store.gc().removed == []
    assert [e.key for e in store.gc(older_than_s=998.5, keep=()).removed] == [e.key for e in entries[:2]]
    assert store.gc(max_bytes=entries[0].bytes * 2).removed == []
    report = store.gc(max_bytes=entries[0].bytes, keep={entries[2].key})
    assert [e.key for e in report.removed] == [entries[3].key]
    assert report.bytes == entries[0].bytes
    assert [e.key for e in store.entries()] == [entries[2].key]


def test_gc_stops_when_the_rest_fits(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        entries = [publish(store, f"{i:02x}" + "0" * 62) for i in range(4)]
    for i, entry in enumerate(entries):
        os.utime(entry.path / "manifest.json", (i, i))
    assert [e.key for e in store.gc(max_bytes=entries[0].bytes * 2).removed] == [e.key for e in entries[:2]]


def test_get_is_use(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        entries = [publish(store), publish(store, OTHER)]
        for entry in entries:
            os.utime(entry.path / "manifest.json", (0, 1000))
        store.get("depth", KEY)
    assert [e.key for e in store.gc(older_than_s=500).removed] == [OTHER]


def test_gc_removes_what_no_get_returns(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = publish(store)
    (entry.path / "manifest.json").unlink()
    assert store.gc().leftovers == [f"depth/ab/{KEY}"]
    assert not entry.path.exists()


def test_remove_leaves_an_open_array_readable(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        array = publish(store).array("depth_m")
        assert not store.remove(next(store.entries()))
    assert store.remove(next(store.entries()))
    assert store.get("depth", KEY) is None
    assert array.sum() == 60


# Processes


def test_one_process_at_a_time_changes_the_tree(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store)
    with (tmp_path / ".lock").open("a") as lock, ThreadPoolExecutor(2) as pool:
        lock_descriptor(lock.fileno())
        waiting = [pool.submit(store.get, "depth", KEY), pool.submit(store.gc)]
        assert not wait(waiting, timeout=0.2).done
        unlock_descriptor(lock.fileno())
        assert len(wait(waiting, timeout=10).done) == 2


PROGRAM = """
import os, resource, sys, time
from pathlib import Path
from typing import Any
import numpy as np
from recapture.engine.store import Store
root, key = Path(sys.argv[1]), sys.argv[2]
def step(name): print(name, flush=True); sys.stdin.readline()
"""


def start(root: Path, body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + body, str(root), KEY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == line + "\n", process.communicate()[1]


def test_processes_that_compute_the_same_agree(tmp_path: Path) -> None:
    body = """
with Store(root).begin("depth", key) as writer:
    for i in range(20):
        writer.save_array(f"a{i}", np.full((4, 100), os.getpid()))
    step("ready")
    entry = writer.publish()
print(entry.digest, *{int(entry.array(f"a{i}")[3, 9]) for i in range(20)}, flush=True)
"""
    processes = [start(tmp_path, body) for _ in range(3)]
    for process in processes:
        wait_for(process, "ready")
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in processes]
    assert len({out for out, _ in results}) == 1, results
    digest, winner = results[0][0].split()
    assert int(winner) in {process.pid for process in processes}
    store = Store(tmp_path)
    entry = store.get("depth", KEY)
    assert entry is not None
    assert entry.digest == digest
    assert store.verify() == []
    assert leftovers(store) == []


def test_a_killed_writer_leaves_scratch_for_gc_and_its_checkpoint(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        """
writer = Store(root).begin("tune", key)
writer.save_checkpoint({"step": b"7"})
rows = writer.array("a", shape_per_row=(1000,), dtype="f4")
rows.append(np.zeros((1000, 1000), "f4"))
step("writing")
""",
    )
    wait_for(process, "writing")
    store = Store(tmp_path)
    assert store.gc(older_than_s=-1).leftovers == [], "its owner lives"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert store.get("tune", KEY) is None
    assert [p.what for p in store.verify()] == ["left by a dead process"]
    assert len(store.gc().leftovers) == 1
    assert leftovers(store) == []
    with store.begin("tune", KEY) as writer:
        found = writer.load_checkpoint()
        assert found is not None
        assert (found / "step").read_bytes() == b"7"
    assert store.gc(older_than_s=-1).leftovers == [f".checkpoints/tune-{KEY}"]


def test_gc_spares_what_a_live_process_uses(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        publish(store)
    process = start(tmp_path, 'store = Store(root); entry = store.get("depth", key); step("using")')
    wait_for(process, "using")
    assert store.gc(older_than_s=-1, max_bytes=0).removed == []
    process.kill()
    process.communicate()
    assert len(list((tmp_path / ".live").glob("[!.]*"))) == 1
    store.gc()
    assert list((tmp_path / ".live").iterdir()) == []
    assert [entry.key for entry in store.gc(max_bytes=0).removed] == [KEY]


def test_gc_while_others_come_and_go(tmp_path: Path) -> None:
    def work() -> None:
        for _ in range(50):
            with Store(tmp_path) as store:
                entry = store.get("depth", KEY) or publish(store)
                assert entry.array("depth_m").sum() == 60

    store = Store(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(work) for _ in range(2)]
        while wait(workers, timeout=0).not_done:
            store.gc(max_bytes=0)
            assert store.verify() == []
        for worker in workers:
            worker.result()


def test_a_forked_child_keeps_its_parents_claim(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        """
store = Store(root)
with store.begin("depth", key) as writer: writer.publish()
if os.fork() == 0: sys.exit()
os.wait(); step("forked")
""",
    )
    wait_for(process, "forked")
    assert Store(tmp_path).gc(max_bytes=-1).removed == []
    process.communicate("\n")


# Disks


@pytest.mark.parametrize("writes", ["save_array", "plain file", "safetensors", "checkpoint"])
def test_a_refused_write_is_one_sentence(tmp_path: Path, writes: str) -> None:
    body = {
        "save_array": 'writer.save_array("a", np.zeros((100, 1000)))',
        "plain file": '(writer.path / "a").write_bytes(bytes(100_000))',
        "safetensors": """import safetensors.numpy as s; s.save_file({"a": np.zeros(10**5)}, writer.path / "a")""",
        "checkpoint": 'writer.save_checkpoint({"a": b"1"}); writer.save_checkpoint({"a": bytes(100_000)})',
    }[writes]
    process = start(
        tmp_path,
        f"""
from recapture.engine.errors import StoreError
store = Store(root)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with store.begin("depth", key) as writer:
        {body}
        writer.publish()
except StoreError as error:
    print(error.code, error)
""",
    )
    out, err = process.communicate()
    assert out.startswith("disk_full cannot write"), err
    assert str(tmp_path) in out
    assert "File too large" in out
    store = Store(tmp_path)
    assert store.get("depth", KEY) is None
    assert leftovers(store) == []
    if writes == "checkpoint":
        with store.begin("depth", KEY) as writer:
            found = writer.load_checkpoint()
            assert found is not None
            assert (found / "a").read_bytes() == b"1"


@pytest.mark.chaos
@pytest.mark.parametrize("library", [False, True])
def test_full_disk(tmp_path: Path, library: bool) -> None:
    def fill() -> None:
        with store.begin("flow", KEY) as writer:
            if library:
                save_file = pytest.importorskip("safetensors.numpy").save_file
                save_file({"a": np.zeros(1_000_000)}, writer.path / "a.safetensors")
            with writer.array("flow", shape_per_row=(100_000,), dtype=np.float32) as rows:
                for _ in range(20):
                    rows.append(np.ones((1, 100_000), np.float32))
            writer.publish()

    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        store = Store(tmp_path)
        publish(store)
        with pytest.raises(StoreError, match="No space left on device") as caught:
            fill()
        assert caught.value.code == "disk_full"
        assert str(tmp_path) in str(caught.value)
        assert leftovers(store) == []
        assert store.get("flow", KEY) is None
        assert store.get("depth", KEY) is not None
        assert store.verify() == []
        publish(store, OTHER)
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_an_unusable_store_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        Store(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot use the store"):
        Store("/proc/none")
    with pytest.raises(StoreError, match="foo://") as caught:
        Store("foo://user:secret@host/x")
    assert "secret" not in str(caught.value)
    readonly = fs.SubTreeFileSystem("/proc", fs.LocalFileSystem())
    with pytest.raises(StoreError, match="cannot write"):
        Store("x", filesystem=readonly, local_dir=tmp_path / "cache").begin("depth", KEY)


# Object stores


@pytest.fixture(params=["subtree", "mock"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> fs.FileSystem:
    if request.param == "mock":
        return fs.FileSystem.from_uri("mock:///")[0]
    (tmp_path / "bucket").mkdir()
    return fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem())


def test_an_object_store_serves_two_machines(remote: fs.FileSystem, tmp_path: Path) -> None:
    here = Store("team/store", filesystem=remote, local_dir=tmp_path / "here")
    there = Store("team/store", filesystem=remote, local_dir=tmp_path / "there")
    made = publish(here)
    found = there.get("depth", KEY)
    assert found is not None
    assert (found.digest, found.meta, found.created_at) == (made.digest, made.meta, made.created_at)
    assert found.path.is_relative_to(tmp_path / "there")
    np.testing.assert_array_equal(found.array("depth_m"), made.array("depth_m"))
    assert publish(there, value=2.0).digest == made.digest, "the first wins"
    assert [e.key for e in there.entries()] == [KEY]
    assert here.verify() == there.verify() == []
    here.close()
    assert here.remove(made)
    assert there.get("depth", KEY) is None
    assert Store(tmp_path / "there").verify() == [], "the cache is a store of its own"


def test_a_stale_copy_is_fetched_again(remote: fs.FileSystem, tmp_path: Path) -> None:
    here = Store("s", filesystem=remote, local_dir=tmp_path / "here")
    there = Store("s", filesystem=remote, local_dir=tmp_path / "there")
    first = publish(here)
    assert there.get("depth", KEY) == replace(first, path=tmp_path / "there" / first.where)
    here.close()
    assert here.remove(first)
    second = publish(here, value=2.0)
    found = there.get("depth", KEY)
    assert found is not None
    assert found.digest == second.digest != first.digest
    assert found.array("depth_m")[0, 0, 0] == 2.0


def test_an_object_store_is_checked_on_arrival(remote: fs.FileSystem, tmp_path: Path) -> None:
    publish(Store("s", filesystem=remote, local_dir=tmp_path / "here"))
    there = Store("s", filesystem=remote, local_dir=tmp_path / "there")
    [path] = [
        info.path
        for info in remote.get_file_info(fs.FileSelector("s", recursive=True))
        if info.path.endswith("depth_m.arrow")
    ]
    with remote.open_output_stream(path) as stream:
        stream.write(b"x")
    assert [p.what for p in there.verify()] == ["content differs from what was published"]
    assert there.get("depth", KEY) is None
    assert leftovers(there) == []
    assert publish(there, value=3.0).array("depth_m")[0, 0, 0] == 3.0
    assert there.verify() == []


def test_an_upload_without_manifest_is_no_entry(tmp_path: Path) -> None:
    remote = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    store = Store("s", filesystem=remote, local_dir=tmp_path / "here")
    entry = publish(store, OTHER)
    attempt = tmp_path / "s" / "depth" / "ab" / KEY / "0123"
    attempt.mkdir(parents=True)
    (attempt / "a.json").write_text("1")
    assert store.get("depth", KEY) is None
    assert store.gc().leftovers == [], "it may still be going on"
    for path in (tmp_path / "s").rglob("*"):
        os.utime(path, (0, 0))
    assert store.gc().leftovers == [f"depth/ab/{KEY}/0123/a.json"]
    found = store.get("depth", OTHER)
    assert found is not None
    assert found.digest == entry.digest


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Store(f"file://{tmp_path}/a%20b").root == tmp_path / "a b"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = Store("mock:///x")
    assert store.root.parent == tmp_path / "cache" / "recapture" / "store"
    assert publish(store).path.is_relative_to(store.root)


def test_a_store_that_stumbles_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recapture.engine.store.remote_path._PAUSES_S", (0.0, 0.0, 0.0))
    faulty = Faulty(fs.LocalFileSystem(), lambda number: "timeout" if number % 3 == 0 else None)
    (tmp_path / "bucket").mkdir()
    store = Store(str(tmp_path / "bucket"), filesystem=fs.PyFileSystem(faulty), local_dir=tmp_path / "here")
    entry = publish(store)
    assert faulty.failed
    faulty.failed.clear()
    again = Store(str(tmp_path / "bucket"), filesystem=fs.PyFileSystem(faulty), local_dir=tmp_path / "there")
    found = again.get("depth", KEY)
    assert found is not None
    assert found.digest == entry.digest
    assert faulty.failed
