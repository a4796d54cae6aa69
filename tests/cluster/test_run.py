"""Runs on Ray's workers: the bits of the in-process run, models loaded once, nothing large through Ray, deaths survived."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray import cloudpickle
from ray.util.placement_group import placement_group_table

from recapture.cluster.frames.ray_executor import RayExecutor, order_of, ray_executor
from recapture.cluster.session import connect
from recapture.engine.config import override
from recapture.engine.errors import CameraError, Cancelled, InputError
from recapture.engine.frame_tasks import DrawAnchor, PredictDepth
from recapture.engine.pipeline import Recapture
from recapture.engine.result import Result
from recapture.engine.store import Store

from ..engine.test_pipeline import OPTIONS, write_clip
from ..small_models import write_small_multiview

pytestmark = pytest.mark.slow

FRAMES = 11


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "walk.mp4", FRAMES)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path_factory.mktemp("token") / "auth_token"))
        with connect(None, cpus=3):
            yield


def film(engine: Recapture, clip: Path, camera: str = "truck(0.1)", anchor=None, **more) -> Result:
    config = override(engine.default_config(), OPTIONS)
    return engine(clip, camera, config=override(config, {"anchor": anchor or {}}), **more)


def digests(result: Result) -> dict[str, str]:
    return {name: entry.digest for name, entry in result.entries.items()}


@pytest.fixture(scope="module")
def alone(small_svd, clip, tmp_path_factory) -> Result:
    """The run in one process."""
    return film(Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path_factory.mktemp("alone")), clip)


@pytest.fixture
def executor_of(small_svd, cluster, tmp_path) -> Callable[[int], "Filming"]:
    return lambda count: Filming(small_svd, tmp_path / f"store-{count}", count)


class Filming:
    """An engine whose work is done by so many workers; checks afterwards that they left nothing."""

    def __init__(self, model: Path, folder: Path, count: int) -> None:
        self.store = Store(folder)
        self.engine = Recapture.from_pretrained(model, device="cpu", store=self.store)
        self.made = ray_executor(self.engine.models, self.store, count=count, patience_s=240)

    def __enter__(self) -> tuple[Recapture, RayExecutor]:
        executor = self.made.__enter__()
        return Recapture(self.engine.models, store=self.store, executor=executor), executor

    def __exit__(self, *error: object) -> None:
        self.made.__exit__(*error)
        assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}
        assert not list((self.store.root / ".scratch").iterdir())


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.ci), 3])
def test_any_number_of_workers_gives_the_bits_of_one_process(executor_of, clip, alone, count):
    with executor_of(count) as (engine, executor):
        first = film(engine, clip)
        assert digests(first) == digests(alone)
        second = film(engine, clip, "truck(-0.1)")
        assert {record.name for record in second.records if record.reused} >= {"frames", "depth", "source", "spatial"}
        # Everybody encodes, and one of them tunes and samples: each has loaded once, for both paths.
        assert executor.ask("loads") == [1] * count
        assert engine.models.loads == 0


@pytest.mark.ci
def test_synthesized_anchors_have_the_bits_of_one_process_too(executor_of, small_svd, clip, tmp_path):
    folder = write_small_multiview(tmp_path / "multiview", small_svd)
    options = {"route": "auto", "multiview": str(folder)}
    alone = Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path / "alone")
    expected = film(alone, clip, "arc(80deg)", options, until="anchor")
    assert expected.entries["anchor"].json("coverage")["route"] == "multiview"
    with executor_of(2) as (engine, _):
        assert digests(film(engine, clip, "arc(80deg)", options, until="anchor")) == digests(expected)


@pytest.mark.ci
def test_a_callback_that_would_not_be_called_is_refused(executor_of, clip):
    with executor_of(1) as (engine, _), pytest.raises(InputError, match="on_progress does on both"):
        film(engine, clip, callback_on_step_end=lambda *of: {})


def test_arrays_do_not_go_through_ray(alone):
    """Also after the work was done here once, and has its arrays at hand."""
    for work in (PredictDepth(frames=alone.entries["frames"]), DrawAnchor(inputs=alone.entries)):
        work(alone.context, range(0, work.batch))
        assert len(cloudpickle.dumps(work)) > alone.source.nbytes
        assert len(cloudpickle.dumps(order_of(alone.context, work))) < 40_000


def test_errors_of_the_work_arrive_as_they_are(executor_of, clip, tmp_path):
    picture = tmp_path / "masks" / "0.png"
    picture.parent.mkdir()
    picture.write_bytes(b"no picture")
    with executor_of(1) as (engine, executor):
        pids = executor.ask("pid")
        with pytest.raises(InputError, match=r"mask_dir: .*cannot be read as a PNG"):
            film(engine, clip, mask_dir=picture.parent, until="anchor")
        with pytest.raises(CameraError, match="sees nothing"):
            film(engine, clip, "pan(150deg, start=150deg)", until="anchor")
        assert executor.ask("pid") == pids


def test_a_stopped_run_stops_the_worker_and_goes_on_from_its_checkpoint(executor_of, clip, alone):
    def stop(stage: str, done: int, total: int, detail: object) -> None:
        if stage == "temporal":
            raise Cancelled("stop")

    steps: list[int] = []
    with executor_of(1) as (engine, _):
        with pytest.raises(Cancelled):
            film(engine, clip, on_progress=stop)
        result = film(
            engine, clip, on_progress=lambda stage, done, *_: steps.append(done) if stage == "temporal" else None
        )
    assert digests(result) == digests(alone)
    assert steps[-1] == 4


@pytest.mark.ci
def test_what_cannot_be_is_refused(small_svd, cluster, tmp_path):
    engine = Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path)
    with (
        pytest.raises(InputError, match="needs 9 CPUs, the cluster has 3"),
        ray_executor(engine.models, engine.store, count=9),
    ):
        pytest.fail("there is no room")
    with (
        pytest.raises(InputError, match="needs 1 GPU, the cluster has 0"),
        ray_executor(engine.models, engine.store, count=2, gpus=1),
    ):
        pytest.fail("there is no GPU")


def test_workers_on_one_machine_share_what_is_free(executor_of):
    with executor_of(2) as (engine, executor):
        budget, whole = executor.budget(), engine.models.budget()
    assert (budget.device, budget.dtype) == (whole.device, whole.dtype)
    assert 0 < budget.free < 0.75 * whole.free
