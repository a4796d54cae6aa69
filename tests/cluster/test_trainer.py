"""Tuning by DeepSpeed: one process is the in-process trainer to the bit, several follow it, a killed one resumes."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from recapture.cluster.frames.ray_executor import ray_executor
from recapture.cluster.session import connect
from recapture.cluster.tuning.deepspeed_optimizer import read_settings
from recapture.cluster.tuning.trainer import Tuning, failure_of
from recapture.engine.config import override
from recapture.engine.errors import ClusterError, InputError, ResourceError
from recapture.engine.pipeline import Recapture
from recapture.engine.result import Result
from recapture.engine.store import Store

from ..engine.test_pipeline import OPTIONS, write_clip

pytestmark = pytest.mark.slow

TOLERANCE = 2e-3
"""Relative, of each step's loss: half a batch each adds up in another order, and AdamW's first steps are signs."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "walk.mp4")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path_factory.mktemp("token") / "auth_token"))
        with connect(None, cpus=2):
            yield


def tuned(model: Path, clip: Path, folder: Path, tuning: Tuning | None = None, **tune: Any) -> Result:
    """The run up to the temporal stage, in this process or on devices."""
    store = Store(folder)
    engine = Recapture.from_pretrained(model, device="cpu", store=store)
    config = override(engine.default_config(), {**OPTIONS, "tune": {**OPTIONS["tune"], **tune}})
    if tuning is None:
        return engine(clip, "truck(0.1)", config=config, until="temporal")
    with ray_executor(engine.models, store, count=1, tuning=tuning, patience_s=240) as executor:
        spread = Recapture(engine.models, store=store, executor=executor)
        result = spread(clip, "truck(0.1)", config=config, until="temporal")
    assert not list((store.root / ".scratch").iterdir())
    assert not list((store.root / ".checkpoints").iterdir())
    return result


def on(devices: int, stage: int = 0, **more: Any) -> Tuning:
    settings = {**read_settings(None), "zero_optimization": {"stage": stage}}
    return Tuning(devices=devices, settings=settings, gpu=False, **more)


def curve(result: Result) -> np.ndarray:
    return np.array(result.entries["temporal"].json("tuning")["losses"]["temporal"])


@pytest.mark.ci
def test_one_process_is_the_in_process_trainer_to_the_bit(cluster, small_svd, clip, tmp_path):
    alone = tuned(small_svd, clip, tmp_path / "alone")
    one = tuned(small_svd, clip, tmp_path / "one", on(1))
    assert one.entries["spatial"].json("tuning") == alone.entries["spatial"].json("tuning")
    assert one.entries["temporal"].json("tuning") == alone.entries["temporal"].json("tuning")
    assert one.entries["temporal"].digest == alone.entries["temporal"].digest


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_processes_with_half_the_batch_each_follow(cluster, small_svd, clip, tmp_path, stage):
    options = {"spatial_steps": 0, "temporal_steps": 8, "temporal_batch": 2}
    alone = tuned(small_svd, clip, tmp_path / "alone", **options)
    two = tuned(small_svd, clip, tmp_path / "two", on(2, stage), **options)
    assert np.abs(curve(two) / curve(alone) - 1).max() < TOLERANCE
    assert len(curve(two)) == 8
    held_out = [result.entries["temporal"].json("tuning")["held_out"] for result in (alone, two)]
    assert held_out[1]["none"] == held_out[0]["none"]  # the network itself came back as it was
    assert held_out[1]["temporal"] == pytest.approx(held_out[0]["temporal"], rel=TOLERANCE)
    assert held_out[1]["temporal"] != held_out[1]["none"]
    assert set(two.entries["temporal"].files) == set(alone.entries["temporal"].files)


@pytest.mark.chaos
@pytest.mark.parametrize("stage", [0, 2])
def test_a_killed_process_resumes_to_the_same_bits(cluster, small_svd, clip, tmp_path, stage):
    options = {"spatial_steps": 0, "temporal_steps": 30, "temporal_batch": 2, "checkpoint_every": 5}
    whole = tuned(small_svd, clip, tmp_path / "whole", on(2, stage), **options)
    killer = threading.Thread(target=kill_after_checkpoint, args=(tmp_path / "killed" / ".checkpoints",))
    killer.start()
    killed = tuned(small_svd, clip, tmp_path / "killed", on(2, stage), **options)
    killer.join()
    assert killed.entries["temporal"].json("tuning") == whole.entries["temporal"].json("tuning")
    assert killed.entries["temporal"].digest == whole.entries["temporal"].digest


@pytest.mark.chaos
def test_processes_that_die_too_often_are_a_cluster_error(cluster, small_svd, clip, tmp_path):
    options = {"spatial_steps": 0, "temporal_steps": 30, "temporal_batch": 2, "checkpoint_every": 5}
    killer = threading.Thread(target=kill_after_checkpoint, args=(tmp_path / ".checkpoints",))
    killer.start()
    with pytest.raises(ClusterError, match=r"tuning on 2 devices failed: process \d: "):
        tuned(small_svd, clip, tmp_path, on(2, retries=0), **options)
    killer.join()


@pytest.mark.ci
def test_of_all_processes_errors_the_one_that_says_why_is_raised():
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242\nmore")
    own = ResourceError("not enough memory", param="memory")
    full = torch.OutOfMemoryError("CUDA out of memory")  # the pipeline names the knob
    for told in (own, full, MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")):
        assert failure_of(WorkerGroupError("2 failed", {0: lost, 1: told}), 2) is told
    gone = failure_of(WorkerGroupError("2 failed", {1: RuntimeError(), 0: lost}), 2)
    assert isinstance(gone, ClusterError)
    assert ": process 0: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242; " in str(gone)
    assert "; process 1: RuntimeError; " in str(gone)
    for empty in (WorkerGroupError("a hang", {}), ControllerError(RuntimeError("a hang"))):
        assert isinstance(failure_of(empty, 2), ClusterError)


def kill_after_checkpoint(checkpoints: Path) -> None:
    """SIGKILL one of the training processes as soon as there is a checkpoint to resume from."""
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("temporal-*/0*")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)
    os.kill(training_processes()[-1], signal.SIGKILL)


def training_processes() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"RayTrainWorker" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def test_what_cannot_be_shared_is_refused(small_svd, tmp_path):
    engine = Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path)
    for tune, match in [
        ({"temporal_batch": 3}, "--temporal-batch: a batch of 3 cannot be shared evenly by 2"),
        ({"schedule": "joint", "spatial_steps": 2, "temporal_steps": 2}, "one adapter at a time"),
    ]:
        with pytest.raises(InputError, match=match):
            on(2).check(override(engine.default_config(), {"tune": {"spatial_batch": 2, "temporal_batch": 2, **tune}}))
    on(2).check(override(engine.default_config(), {"tune": {"spatial_batch": 2, "temporal_batch": 4}}))


def test_deepspeeds_own_json(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}')
    assert read_settings(path)["zero_optimization"] == {"stage": 2}
    assert read_settings(path)["gradient_clipping"] == 1.0
    assert read_settings(None)["zero_optimization"] == {"stage": 0}
    path.write_text('{"optimizer": {"type": "Adam"}}')
    with pytest.raises(InputError, match=r"deepspeed: .* sets 'optimizer': the optimizer is AdamW"):
        read_settings(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="not a JSON object"):
        read_settings(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_settings(tmp_path / "none.json")
