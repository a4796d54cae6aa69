"""What a run holds, counted without computing, against what torch's allocator gave out; and the choice that fits a limit."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from recapture.engine.config import RunConfig, check, override
from recapture.engine.errors import InputError, ResourceError
from recapture.engine.graph.context import StageContext
from recapture.engine.graph.device_memory import DeviceBudget, available_bytes
from recapture.engine.graph.executor import LocalExecutor
from recapture.engine.graph.request import RenderRequest
from recapture.engine.graph.warm_models import WarmModels
from recapture.engine.hub import EMBEDDED
from recapture.engine.models import adapters
from recapture.engine.models.checkpointing import checkpointed
from recapture.engine.models.multiview import DirectoryMultiview, find_multiview_model
from recapture.engine.models.temporal_bypass import temporal_bypass
from recapture.engine.models.video import VideoModel
from recapture.engine.pipeline import Recapture
from recapture.engine.planning.memory import GIB, Choice, asked, bound, fit, limit_of, plan, settled
from recapture.engine.planning.tensor_memory import decode_bytes, encode_bytes, forward_bytes, shapes_of, step_bytes

from .test_pipeline import OPTIONS, clip, depth_dir  # noqa: F401

SIZE = (64, 96)


def allocated_at_most(work: Callable[[], object]) -> int:
    """Bytes beyond those of before that torch's CPU allocator had given out at once, by its own record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    now = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.fixture(scope="module")
def model(small_svd) -> VideoModel:
    made = VideoModel(small_svd, device=torch.device("cpu"), dtype=torch.float32)
    adapters.inject(made.unet, 4)
    return made


@pytest.fixture(scope="module")
def shapes(small_svd) -> Any:
    return shapes_of(small_svd, torch.float32, 4, cuda=False)


def real_inputs(shapes: Any, batch: int, frames: int) -> list[torch.Tensor]:
    return [torch.zeros(each.shape) for each in shapes.inputs(batch, frames, SIZE)]


@pytest.mark.parametrize("tuned", ["spatial", "temporal"])
@pytest.mark.parametrize("how", ["none", "balanced", "full", "stock"])
def test_a_training_step_is_counted_as_it_is(model, shapes, how, tuned):
    frames = 1 if tuned == "spatial" else 4

    def step() -> None:
        adapters.train_only(model.unet, [tuned])
        with checkpointed(model.unet, how):
            on = adapters.enabled(model.unet, [tuned] if frames == 1 else adapters.ADAPTERS)
            with on, temporal_bypass(model.unet) if frames == 1 else nullcontext():
                output = model.unet(*real_inputs(shapes, 2, frames)).sample
            output.square().mean().backward()
        model.unet.zero_grad(set_to_none=True)

    counted = step_bytes(shapes, tuned, 2, 4, SIZE, how)
    assert counted.kept < counted.peak
    assert counted.peak == pytest.approx(allocated_at_most(step), rel=0.1)


def test_sampling_encoding_and_decoding_are_counted_as_they_are(model, shapes):
    @torch.no_grad()
    def forward() -> None:
        _ = model.unet(*real_inputs(shapes, 2, 4)).sample

    assert forward_bytes(shapes, 2, 4, SIZE) == pytest.approx(allocated_at_most(forward), rel=0.1)
    pictures = torch.zeros(4, 3, *SIZE)
    encoded = max(allocated_at_most(lambda: model.encode(pictures)), allocated_at_most(lambda: model.embed(pictures)))
    assert encode_bytes(shapes, 4, SIZE) == pytest.approx(encoded, rel=0.1)
    for chunk in (1, 4):
        latents = torch.zeros(chunk, 4, SIZE[0] // 8, SIZE[1] // 8)
        decoded = allocated_at_most(lambda latents=latents: model.decode(latents))
        # The CPU's kernel for convolutions over time makes a copy of its input that no operation returns.
        assert decode_bytes(shapes, chunk, SIZE) == pytest.approx(decoded, rel=0.15)


def unstarted(folder: Path, config: RunConfig, *, width: int, height: int, frames: int) -> Any:
    """What the plan reads of a run before it starts."""
    models = WarmModels(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    info: Any = SimpleNamespace(width=width, height=height, frame_count=frames)
    nothing: Any = None
    request = RenderRequest(
        clip=Path("clip"),
        clip_path=Path("clip"),
        clip_name="clip",
        clip_sha256="",
        info=info,
        limits=nothing,
        camera=nothing,
        config=config,
    )
    return StageContext(request=request, models=models, executor=LocalExecutor(models=models))


def with_config(context: StageContext, config: RunConfig) -> StageContext:
    return replace(context, request=replace(context.request, config=config))


@pytest.mark.slow
def test_svd_in_22_gib(svd_configs):
    """The target: 14 frames of 576x1024 in half precision on a GPU, as large as asked."""
    run = unstarted(svd_configs, RunConfig(memory=22), width=1024, height=576, frames=14)
    card = DeviceBudget(device="cuda", dtype=torch.float16, free=80 * GIB)
    made = fit(run, card)
    assert made.choice.size == (576, 1024)
    assert made.peaks["temporal"] <= made.peak <= 22 * GIB
    assert made.choice.checkpointing == "full"
    assert 1 < made.choice.decode_chunk < 14
    assert plan(run, card).peak > 60 * GIB  # with nothing lowered
    less = fit(with_config(run, RunConfig(memory=12)), card)
    assert less.choice.offload
    assert less.choice.size[0] < 576
    assert less.peak <= 12 * GIB


CPU = DeviceBudget(device="cpu", dtype=torch.float32, free=1 << 40)
CUDA = DeviceBudget(device="cuda", dtype=torch.float32, free=1 << 40)


@pytest.mark.slow
def test_what_costs_least_is_lowered_first(small_svd):
    config = override(RunConfig(), {"condition": {"height": 64, "width": 64}})
    run = unstarted(small_svd, config, width=128, height=128, frames=6)
    wanted = asked(run)
    assert (
        fit(run, CPU, exact=True).choice
        == wanted
        == Choice(size=run.size, checkpointing="none", offload=False, decode_chunk=4)
    )

    def choice(memory: float, budget: DeviceBudget = CUDA, config: RunConfig = run.config) -> Choice:
        made = fit(with_config(run, replace(config, memory=memory)), budget)
        assert made.peak <= memory * GIB
        assert bool(made.lowered) == (made.choice != wanted)
        return made.choice

    def fits(memory: float) -> bool:
        try:
            return bool(choice(memory))
        except ResourceError:
            return False

    everything = plan(run, CUDA).peak / GIB
    assert choice(everything) == wanted
    seen = [wanted]
    while fits(just_under := plan(run, CUDA, seen[-1]).peak / GIB * 0.999):
        seen.append(choice(just_under))
    with pytest.raises(ResourceError, match="GiB are not enough") as refused:
        choice(just_under)
    assert refused.value.param == "memory"
    sizes = [each.size for each in seen]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1][0] >= wanted.size[0] / 2
    assert all(each.size == wanted.size for each in seen[:2])  # the size goes last
    assert {each.offload for each in seen} == {False, True}
    assert not choice(everything * 0.9, CPU).offload  # it would give nothing back there


def test_what_stays_on_the_device_is_counted(small_svd):
    run = unstarted(small_svd, RunConfig(), width=128, height=128, frames=6)
    held = plan(run, CPU).held
    assert held["multiview model"] == 0
    longer = plan(unstarted(small_svd, RunConfig(), width=128, height=128, frames=600), CPU)
    assert longer.held["clip's latents"] == 100 * held["clip's latents"] > 0
    source = find_multiview_model("embedded")
    model = DirectoryMultiview(source.folder, torch.device("cpu"))
    parts = (model.unet, model.codec.vae, model.codec.image_encoder)
    weights = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    imagining = with_config(run, override(RunConfig(), {"anchor": {"route": "auto"}}))
    assert plan(imagining, CPU).held["multiview model"] == pytest.approx(weights, rel=0.01)
    # On a CPU an offloaded encoder is where it was.
    offloaded = replace(asked(run), offload=True)
    assert plan(run, CPU, offloaded).held["VAE and image encoder"] == held["VAE and image encoder"]
    assert plan(run, CUDA, offloaded).held["VAE and image encoder"] == 0


def test_a_bound_is_no_less_than_the_count(small_svd):
    """It spares most runs the counting."""
    run = unstarted(small_svd, RunConfig(), width=96, height=64, frames=6)
    counted, most = plan(run, CPU), bound(run, CPU)
    assert most.peak >= counted.peak
    assert fit(run, CPU) == replace(most, limit=CPU.usable)
    assert next(most.sentences()).startswith("at most ")
    close = replace(CPU, free=int(counted.peak / 0.9) + 10)
    assert fit(run, close) == replace(counted, limit=close.usable)


@pytest.mark.slow
def test_the_bound_holds_for_the_models_by_name(svd_configs):
    for folder, width, height, frames in ((svd_configs, 1024, 576, 14), (EMBEDDED / "tiny", 320, 192, 16)):
        run = unstarted(folder, RunConfig(), width=width, height=height, frames=frames)
        most, counted = bound(run, CPU).work, plan(run, CPU).work
        assert most["tuning"] >= max(counted["spatial"], counted["temporal"])
        for stage in ("sample", "source", "generate"):
            assert most[stage] >= counted[stage]


def test_a_tenth_of_the_device_stays_free(small_svd):
    card = DeviceBudget(device="cuda", dtype=torch.bfloat16, free=70 * GIB, total=80 * GIB)
    assert limit_of(RunConfig(), card) == 62 * GIB
    assert limit_of(RunConfig(memory=20), card) == 20 * GIB
    assert limit_of(RunConfig(memory=75), card) == 62 * GIB  # a limit only narrows
    assert card.shared(2).usable == 31 * GIB
    assert replace(card, free=7 * GIB).usable == 0


def test_nothing_is_raised_above_what_was_asked(small_svd):
    options = {
        "tune": {"checkpointing": "balanced"},
        "sample": {"decode_chunk": 2},
        "condition": {"height": 32, "width": 64},
    }
    run = unstarted(small_svd, replace(override(RunConfig(), options), memory="auto"), width=128, height=128, frames=6)
    made = fit(run, CUDA)
    assert made.choice == Choice(size=(32, 64), checkpointing="balanced", offload=False, decode_chunk=2)
    assert made.limit == CUDA.free - CUDA.free // 10
    assert settled(run.config, asked(run), made) == replace(override(RunConfig(), options), memory=None)
    assert (
        fit(with_config(run, override(RunConfig(), {"tune": {"checkpointing": "stock"}})), CPU).choice.checkpointing
        == "stock"
    )


def test_several_devices_share_a_step(small_svd):
    config = override(RunConfig(), {"tune": {"temporal_batch": 4, "spatial_batch": 4}})
    run = unstarted(small_svd, config, width=128, height=128, frames=6)
    assert plan(run, CPU, devices=4).work["temporal"] < 0.5 * plan(run, CPU).work["temporal"]


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_within_a_limit(small_svd, clip, depth_dir, tmp_path):  # noqa: F811
    engine = Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path)
    config = override(engine.default_config(), OPTIONS)
    free = engine(clip, "truck(0.1)", config=config, depth_dir=depth_dir, until="anchor").context
    limit = plan(free, engine.models.budget()).peak / GIB * 0.9
    result = engine(clip, "truck(0.1)", config=replace(config, memory=limit), depth_dir=depth_dir)
    made = result.memory
    assert made is not None
    assert made.peak <= limit * GIB < plan(free, engine.models.budget()).peak
    assert result.config.memory is None
    assert asked(result.context) == made.choice != asked(free)
    assert result.generated.shape[1:3] == made.choice.size
    again = engine(clip, "truck(0.1)", config=replace(config, memory=limit), depth_dir=depth_dir)
    assert all(record.reused for record in again.records)
    with pytest.raises(ResourceError, match="GiB are not enough"):
        engine(clip, "truck(0.1)", config=replace(config, memory=1e-4), depth_dir=depth_dir)


def test_what_is_no_memory_is_refused():
    for wrong in ("lots", 0.0, -1.0, float("inf"), True):
        with pytest.raises(InputError, match="GiB") as refused:
            check(RunConfig(memory=wrong))  # pyright: ignore[reportArgumentType]
        assert refused.value.param == "memory"
    assert RunConfig.from_json(json.loads(json.dumps(RunConfig(memory="auto").to_json()))).memory == "auto"


def test_free_memory_is_the_machines_or_the_containers(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (cgroup / "job").mkdir(parents=True)
    limit = cgroup / "job" / "memory.max"
    (cgroup / "job" / "memory.current").write_text(f"{300 << 10}\n")
    (cgroup / "job" / "memory.stat").write_text(f"anon 1\ninactive_file {100 << 10}\n")
    limit.write_text(f"{500 << 10}\n")
    assert 1 << 20 < available_bytes(proc, cgroup) <= psutil.virtual_memory().total  # no container is named
    (proc / "self" / "cgroup").write_text("0::/job\n")
    assert available_bytes(proc, cgroup) == 300 << 10
    for no_limit in ("max", str(1 << 60)):
        limit.write_text(f"{no_limit}\n")
        assert 1 << 20 < available_bytes(proc, cgroup) <= psutil.virtual_memory().total


@pytest.mark.gpu
def test_a_training_step_on_a_gpu(small_svd):
    """In half precision, with offloaded encoders."""
    device = torch.device("cuda")
    model = VideoModel(small_svd, device=device, dtype=torch.float16)
    model.offload = True
    adapters.inject(model.unet, 4)
    shapes = shapes_of(small_svd, torch.float16, 4, cuda=True)
    size = (256, 384)
    latents = model.encode(torch.zeros(4, 3, *size))
    image_latents, image_embeds, added_time_ids = (
        latents[:1],
        torch.zeros(1, 1, 16, device=device),
        torch.zeros(1, 3, device=device),
    )
    model.predict(latents[None], torch.ones(1, device=device), image_latents, image_embeds, added_time_ids)
    assert next(model.vae.parameters()).device.type == "cpu"
    adapters.train_only(model.unet, ["temporal"])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = (
            model.predict(latents[None], torch.ones(1, device=device), image_latents, image_embeds, added_time_ids)
            .square()
            .mean()
        )
    loss.backward()
    measured = torch.cuda.max_memory_allocated() - before
    assert step_bytes(shapes, "temporal", 1, 4, size, "none").peak == pytest.approx(measured, rel=0.2)
