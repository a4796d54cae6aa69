"""Workers and machines that die in the middle of the work: the result is the undisturbed one, and nothing is left."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle
from ray.cluster_utils import Cluster

from recapture.cluster.session import authenticate, connect
from recapture.engine.config import override
from recapture.engine.graph.frame_task import FrameBatch
from recapture.engine.pipeline import Recapture
from recapture.engine.result import Result

from ..engine.test_pipeline import OPTIONS, write_clip
from .test_run import Filming, digests

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

LONGER = {**OPTIONS, "tune": {**OPTIONS["tune"], "temporal_steps": 40, "checkpoint_every": 5}}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "walk.mp4", 11)


@pytest.fixture(scope="module")
def alone(small_svd, clip, tmp_path_factory) -> Result:
    return film(Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path_factory.mktemp("alone")), clip)


@pytest.fixture
def two_machines(tmp_path) -> Iterator[Cluster]:
    """A head without room for work, and two machines with one place each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
        authenticate(create=True)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            with connect(cluster.address):
                yield cluster
        finally:
            cluster.shutdown()


def film(engine: Recapture, clip: Path, **more) -> Result:
    return engine(clip, "truck(0.1)", config=override(engine.default_config(), LONGER), until="temporal", **more)


def once(when: Callable[..., bool], act: Callable[[], None]) -> Callable[..., None]:
    """A progress callback that acts the first time that a condition of (stage, done) holds."""
    acted: list[bool] = []

    def on_progress(stage: str, done: int, total: int, detail: object) -> None:
        if not acted and when(stage, done):
            acted.append(True)
            act()

    return on_progress


@dataclass(frozen=True)
class DiesOnce:
    """Gives the number of each frame; the first who is asked for frame 5 is killed in the middle of its share."""

    mark: Path
    batch = 1

    def __call__(self, context: object, indices: range) -> FrameBatch:
        if indices.start == 5 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"t": np.array(indices)}


@pytest.mark.ci
def test_a_frame_worker_killed_in_the_middle_of_its_share(two_machines, small_svd, clip, alone, tmp_path):
    cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["DiesOnce"]))
    with Filming(small_svd, tmp_path / "store", 2) as (engine, executor):
        before = executor.ask("pid")
        parts = executor.map_frames(
            alone.context, DiesOnce(tmp_path / "mark"), 11, scratch=executor._store.root / ".scratch"
        )
        assert np.concatenate([part["t"].copy() for part in parts]).tolist() == [*range(11)]
        assert (tmp_path / "mark").exists()
        assert not list((executor._store.root / ".scratch").glob("parts-*"))
        result = film(engine, clip)
        assert executor.ask("pid") != before
    assert digests(result) == digests(alone)


def test_the_tuning_worker_killed_between_two_checkpoints(two_machines, small_svd, clip, alone, tmp_path):
    steps: list[int] = []
    with Filming(small_svd, tmp_path / "store", 1) as (engine, executor):
        (pid,) = executor.ask("pid")
        kill = once(lambda stage, done: stage == "temporal" and done >= 7, lambda: os.kill(pid, signal.SIGKILL))

        def on_progress(stage: str, done: int, total: int, detail: object) -> None:
            kill(stage, done, total, detail)
            if stage == "temporal":
                steps.append(done)

        result = film(engine, clip, on_progress=on_progress)
        assert executor.ask("pid") != [pid]
    assert digests(result) == digests(alone)
    again = next(i for i in range(1, len(steps)) if steps[i] != steps[i - 1] + 1)
    assert (steps[again] - 1) % 5 == 0
    assert steps[again] > 5


def test_a_machine_removed_while_it_works(two_machines, small_svd, clip, alone, tmp_path):
    with Filming(small_svd, tmp_path / "store", 2) as (engine, executor):
        worker_node = two_machines.list_all_nodes()[-1]
        remove = once(lambda stage, done: stage == "depth", lambda: two_machines.remove_node(worker_node))
        result = film(engine, clip, on_progress=remove)
        assert len(executor.ask("pid")) == 1
    assert digests(result) == digests(alone)
