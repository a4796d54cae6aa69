"""Bulk on a real Ray: warm workers, single flight, the command with the real engine."""

import json
import os
import re
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest
import ray

from recapture.cluster.bulk.driver import Policy
from recapture.cluster.bulk.metrics import BulkMetrics
from recapture.cluster.bulk.ray_pool import RayLeases, RayPool, lease_table
from recapture.cluster.session import connect
from recapture.engine.stages import STAGES

from ...cli.test_cli import recapture  # noqa: F401 - the fixture
from ...engine.test_pipeline import write_clip
from .rows import SketchSetup, make_bulk

OPTIONS = {
    "condition": {"augmentations": 6},
    "tune": {"rank": 2, "spatial_steps": 2, "temporal_steps": 2},
    "sample": {"steps": 1, "overlap": 2},
    "refine": {"steps": 1},
}


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs' worth of Ray on this machine."""
    with connect(None, cpus=2):
        yield


def ray_pool(bulk, driver: str, **more) -> RayPool:
    setup = SketchSetup(stages=str(bulk.folder / "out" / "stages"), roots=(str(bulk.folder),), **more)
    return RayPool(setup, driver=driver, shared=str(bulk.folder))


def wait_for_company(folder: Path, stage: str, row) -> None:
    """The shared stage takes until the other worker is there, and then long enough for it to ask for the same."""
    while stage == "shared" and len(list(folder.glob("made-*"))) < 2:
        time.sleep(0.05)
    time.sleep(1.0 if stage == "shared" else 0.0)


def say_that_it_is_there(folder: Path) -> None:
    (folder / f"made-{os.getpid()}").touch()


@pytest.mark.slow
@pytest.mark.ci
def test_workers_do_all_rows_and_load_once_each(cluster, tmp_path):
    bulk = make_bulk(tmp_path, clips=4, paths=3, broken=(2,))
    progress = bulk.run(ray_pool(bulk, "d"))
    assert progress.rows == {"completed": 9, "failed": 3}
    assert progress.model_loads == progress.workers  # one may have done it all before the other was up
    assert progress.stages_reused["shared"] == 6  # three good clips, their first path made it
    assert len({row["row_id"] for row in bulk.results()}) == 12


@pytest.mark.slow
@pytest.mark.ci
def test_two_workers_on_one_clip_compute_its_shared_stage_once(cluster, tmp_path):
    bulk = make_bulk(tmp_path, clips=1, paths=4)
    pool = ray_pool(
        bulk, "d", on_stage=partial(wait_for_company, tmp_path), on_make=partial(say_that_it_is_there, tmp_path)
    )
    progress = bulk.run(pool, policy=Policy(workers=2, beat_s=0.2))
    assert progress.rows == {"completed": 4}
    assert (progress.waits, progress.stages_reused["shared"]) == (1, 3)
    assert progress.waited_s > 0


@pytest.mark.slow
@pytest.mark.ci
def test_leases_are_handed_on(cluster):
    first, second = RayLeases("leases-test", "a"), RayLeases("leases-test", "b")
    fence = first.acquire("k", 0.0)
    assert first.acquire("k", 0.0) == fence
    assert second.acquire("k", 0.1) is None
    threading.Timer(0.3, first.release, ("k", fence)).start()
    later = second.acquire("k", 20.0)
    assert later > fence
    first.release("k", fence)  # a late release of what is no longer its own
    assert first.acquire("k", 0.0) is None
    ray.get(lease_table("leases-test").drop.remote("b"))  # as when its worker died
    assert first.acquire("k", 0.0) > later
    ray.kill(lease_table("leases-test"))
    assert second.acquire("k", 20.0) is not None  # without a table work goes on, and the next call finds a new one
    last = second.acquire("k", 0.0)
    assert last is not None
    second.release("k", last)
    ray.kill(lease_table("leases-test"))


def manifest_of(folder: Path, cameras: list[str], clips: list[Path]) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text(
        "".join(
            json.dumps({"clip_id": clip.stem, "input_uri": str(clip), "camera": camera, "options": OPTIONS}) + "\n"
            for clip in clips
            for camera in cameras
        )
    )
    return path


@pytest.mark.slow
@pytest.mark.ci
def test_the_command_films_every_row_and_keeps_what_it_is_told(cluster, recapture, small_svd, tmp_path):  # noqa: F811
    clip, broken = write_clip(tmp_path / "walk.mp4"), tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:600])
    manifest, out = manifest_of(tmp_path, ["truck(0.1)", "truck(-0.1)"], [clip, broken]), tmp_path / "out"
    words = [manifest, "--out", out, "--model", small_svd, "--concurrency", 1]
    priced = recapture("bulk", *words, "--dry-run", "--json")
    assert priced.code == 2, priced.out  # a sampled row is no video: named before anything is paid for
    answer = recapture("bulk", *words, "--keep", "adapters", "--json")
    assert answer.code == 3, answer.err
    said = json.loads(answer.out)
    assert said["rows"] == {"completed": 2, "failed": 2}
    assert said["model_loads"] == 1
    shared = {stage.name for stage in STAGES if stage.per_clip}
    assert said["stages_reused"] == dict.fromkeys(shared, 1)
    bundles = sorted((out / "clips").iterdir())
    assert len(bundles) == 2
    for bundle in bundles:
        assert (bundle / "adapters" / "temporal" / "adapter_model.safetensors").exists()
        assert json.loads((bundle / "result.json").read_text())["metrics"]["frames"] == 6
    assert not [path for path in (out / "stages").rglob("*.arrow")]
    again = recapture("bulk", *words, "--keep", "adapters")
    assert again.code == 3
    assert "2 completed, 2 failed of 4" in again.out
    left = recapture("bulk", *words, "--dry-run", "--json", "--usd-per-gpu-hour", 2)
    assert json.loads(left.out)["rows"] == 0


@pytest.mark.slow
def test_metrics_reach_the_nodes_exporter(cluster, tmp_path):
    """What Prometheus would read of a run: rows by outcome, seconds by stage, hits, the queue."""
    bulk, metrics = make_bulk(tmp_path, clips=2, paths=2, broken=(1,)), BulkMetrics("run-1")
    bulk.run(ray_pool(bulk, "d"), on_outcome=metrics.on_outcome, on_heartbeat=metrics.on_heartbeat)
    (node,) = ray.nodes()
    wanted = [
        'ray_recapture_bulk_rows_total{[^}]*outcome="ok"[^}]*run="run-1"[^}]*} 2.0',
        'ray_recapture_bulk_rows_total{[^}]*outcome="invalid_video"[^}]*} 2.0',
        'ray_recapture_bulk_cache_hits_total{[^}]*stage="shared"[^}]*} 1.0',
        'ray_recapture_bulk_gpu_seconds_total{[^}]*stage="path"',
        "ray_recapture_bulk_rows_waiting{[^}]*} 0.0",
    ]
    deadline, missing = time.monotonic() + 60, wanted
    while missing and time.monotonic() < deadline:
        time.sleep(1.0)
        page = urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics").read().decode()
        missing = [pattern for pattern in wanted if not re.search(pattern, page)]
    assert missing == [], [line for line in page.splitlines() if "recapture" in line]
