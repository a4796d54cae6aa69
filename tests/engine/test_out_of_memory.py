"""A device that is full all the same: the plan is lowered once, and the run goes on from the stage that failed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from recapture.engine.config import override
from recapture.engine.diffusion import tuner
from recapture.engine.errors import ResourceError
from recapture.engine.models.video import Codec, VideoModel
from recapture.engine.pipeline import Recapture
from recapture.engine.result import Result

from .test_pipeline import OPTIONS, clip, depth_dir  # noqa: F401

FULL: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
]


@pytest.fixture
def film(small_svd, clip, depth_dir, tmp_path) -> Callable[..., Result]:  # noqa: F811
    def run(name: str = "store", **more: Any) -> Result:
        engine = Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path / name)
        config = override(
            engine.default_config(), {**OPTIONS, "condition": {"augmentations": 6, "height": 64, "width": 96}}
        )
        return engine(clip, "truck(0.1)", config=config, depth_dir=depth_dir, **more)

    return run


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let calls of a function find no memory, by their number."""

    def fail(owner: Any, name: str, error: Exception, calls: range) -> list[int]:
        real, made = getattr(owner, name), [0]

        def call(*args: Any, **kwargs: Any) -> Any:
            made[0] += 1
            if made[0] - 1 in calls:
                raise error
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)
        return made

    return fail


def entered(result: Result, name: str) -> np.ndarray:
    return np.asarray(result.entries[name].array("latents"))


@pytest.mark.slow
@pytest.mark.ci
def test_tuning_goes_on_from_its_checkpoint_with_less(film, full_at):
    undisturbed = film("undisturbed")
    assert undisturbed.memory is not None
    assert undisturbed.memory.choice.checkpointing == "none"
    # Two spatial steps, four held-out draws of no adapter, two temporal steps and their checkpoint; then the third.
    full_at(tuner, "masked_loss", FULL[0], range(8, 9))
    started: list[str] = []
    result = film(on_stage_start=lambda name, result: started.append(name))
    assert started.count("temporal") == 2
    assert started.count("spatial") == 1
    assert [record.name for record in result.records] == [record.name for record in undisturbed.records]
    assert result.warnings == [
        "the stage temporal ran out of memory, and went on with less: checkpointing none to balanced"
    ]
    assert result.memory is not None
    assert result.config.tune.checkpointing == result.memory.choice.checkpointing == "balanced"
    # Checkpointing changes no bit, nor does resuming.
    assert np.array_equal(entered(result, "sample"), entered(undisturbed, "sample"))


@pytest.mark.slow
def test_sampling_goes_on_at_a_smaller_size(film, full_at):
    full_at(VideoModel, "predict", FULL[2], range(2 + 4 + 4 + 12 + 1, 24))  # both stages of tuning with their measures
    result = film(until="generate")
    (warning,) = result.warnings
    assert warning.startswith("the stage sample ran out of memory, and went on with less: size 96x64 to ")
    assert result.context.size[0] < 64
    assert result.generated.shape[1:3] == result.context.size
    names = [record.name for record in result.records]
    assert len(names) == len(set(names)) == len(result.entries)


@pytest.mark.slow
@pytest.mark.parametrize("error", FULL, ids=["cuda", "python", "cpu"])
def test_a_second_time_is_the_end(film, full_at, error):
    made = full_at(Codec, "decode", error, range(1000))
    with pytest.raises(ResourceError, match="out of memory; lower `memory`") as refused:
        film(until="generate")
    assert refused.value.param == "memory"
    assert made[0] == 2


def test_a_stage_without_the_model_has_nothing_to_lower(film):
    def no_memory(name: str, result: Result) -> None:
        raise MemoryError

    with pytest.raises(ResourceError, match="out of memory in the stage frames") as refused:
        film(until="generate", on_stage_start=no_memory)
    assert refused.value.param == "memory"
