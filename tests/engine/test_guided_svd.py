"""The anchor-guided recipe on real small Stable Video Diffusion directories: start, training, resuming, export."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from recapture.engine.catalog import find_model
from recapture.engine.models.temporal_bypass import temporal_bypass
from recapture.engine.models.video import VideoModel
from recapture.priors import latents, train_guided_svd
from recapture.priors.render import path_from_clip
from recapture.priors.train_guided_svd import GuidedSVD, adapted_layers, check_latents, export, widen
from recapture.priors.train_unet import Batch, HeldOut, Latents, denoising_loss
from recapture.priors.training import Run

from ..small_models import write_small_svd

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

CPU = torch.device("cpu")
RANK, FRAMES = 4, 5


def call(main: Callable[[], None], *arguments: object) -> None:
    """Runs a recipe's command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["recipe", *map(str, arguments)])
        main()


def write_clips(data: Path) -> None:
    """Clips of a bar before a wall that shift sideways, each also seen from a truck past it, in render.py's layout."""
    for index, split in enumerate(["train", "train", "held_out"]):
        folder = data / "clips" / split
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(index)
        wall = np.kron(rng.integers(0, 256, (8, 16, 3)), np.ones((6, 6, 1))).astype(np.uint8)
        rgb = np.stack([np.roll(wall, 2 * k, 1)[:, :72] for k in range(FRAMES)])
        depth = np.full(rgb.shape[:3], 6.0, np.float32)
        depth[:, :, 28:40] = 2
        path = path_from_clip("truck(0.2)", depth, 0.7, 12)
        info = {"fps": 12, "kind": "indoor", "tan_x": 0.7, "view": json.loads(path.to_json())}
        np.save(folder / f"{index:04d}.rgb.npy", rgb)
        np.save(folder / f"{index:04d}.view.rgb.npy", np.roll(rgb, -4, 2))
        np.save(folder / f"{index:04d}.depth.npy", depth.astype(np.float16))
        (folder / f"{index:04d}.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def encoded(small_svd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of both splits that the recipe's own command encoded with the small model's VAE."""
    folder = tmp_path_factory.mktemp("pairs")
    write_clips(folder)
    for split in ("train", "held_out"):
        options = ["--data", folder, "--out", folder / "latents", "--split", split, "--threads", 1]
        call(latents.main, *options, "--vae", small_svd, "--sizes", "32x48")
    return folder / "latents"


def train(small_svd: Path, encoded: Path, folder: Path, *options: object) -> None:
    call(
        train_guided_svd.main,
        "--model",
        small_svd,
        "--latents",
        encoded,
        "--run",
        folder / "run",
        "--rank",
        RANK,
        "--out",
        folder / "guided",
        "--steps",
        6,
        "--lr",
        1e-2,
        "--image-share",
        0.5,
        "--threads",
        1,
        *options,
    )


@pytest.fixture(scope="module")
def finished(small_svd: Path, encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted `run` of six steps and the `guided` model that came of it."""
    folder = tmp_path_factory.mktemp("finished")
    train(small_svd, encoded, folder, "--log-every", 3, "--save-every", 2)
    return folder


def guided_svd(folder: Path, dtype: torch.dtype = torch.float32) -> GuidedSVD:
    torch.manual_seed(0)
    return GuidedSVD(folder, RANK, device=CPU, dtype=dtype)


def call_inputs() -> tuple[Tensor, ...]:
    """noisy, sigma, prompt, token, fps, guide of two clips of four frames."""
    draw = torch.Generator().manual_seed(1)
    noisy, guide = (torch.randn(2, 4, channels, 8, 8, generator=draw) for channels in (4, 5))
    image_latents, image_embeds = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 1, 16, generator=draw)
    return noisy, torch.tensor([0.5, 3.0]), image_latents, image_embeds, torch.tensor([12.0, 7.0]), guide


def fixed_loss(guided: GuidedSVD, batch: Batch, bypass: bool = False) -> Tensor:
    """The loss of a batch under one noise."""
    torch.manual_seed(3)
    sigma, keep = torch.full((len(batch.clean),), 1.5), torch.zeros(len(batch.clean), dtype=torch.bool)
    with temporal_bypass(guided.unet) if bypass else torch.enable_grad():
        return denoising_loss(guided, batch, sigma, keep).mean()


def same(one: object, other: object) -> bool:
    """Whether two checkpoints' parts hold the same, tensors bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other


@torch.no_grad()
def test_it_begins_as_the_plain_model_whatever_the_anchor(small_svd: Path) -> None:
    plain, guided = VideoModel(small_svd, device=CPU, dtype=torch.float32), guided_svd(small_svd)
    noisy, sigma, image_latents, image_embeds, fps, guide = call_inputs()
    added_time_ids = torch.stack([fps - 1, torch.full((2,), 127.0), torch.full((2,), 0.02)], 1)
    expected = plain.predict(noisy, sigma, image_latents, image_embeds, added_time_ids)
    assert torch.equal(guided(noisy, sigma, image_latents, image_embeds, fps, guide), expected)
    guided.unet.conv_in.weight[:, 8:] = 0.1
    assert not torch.allclose(guided(noisy, sigma, image_latents, image_embeds, fps, guide), expected, atol=1e-3)


def test_adapters_sit_on_every_attention_and_feed_forward_layer_that_can_matter(small_svd: Path) -> None:
    unet = VideoModel(small_svd, device=CPU, dtype=torch.float32).unet
    names = adapted_layers(unet)
    inside = [n for n, m in unet.named_modules() if isinstance(m, nn.Linear) and "transformer_blocks." in n]
    idle = [n for n in inside if n.endswith(("attn2.to_q", "attn2.to_k"))]  # one token: nothing to choose from
    assert sorted(names) == sorted(set(inside) - set(idle))


def test_adapted_layers_of_the_full_size_unet() -> None:
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel()  # the defaults are Stable Video Diffusion's
        widen(unet)
    names = adapted_layers(unet)
    assert len(set(names)) == len(names) == 96 + 160 + 32  # the engine's adapters; two layers of 16 feed-forwards
    assert unet.conv_in.weight.shape == (320, 13, 3, 3)


def test_steps_move_only_the_adapters_and_the_input_layer_and_the_loss_falls(
    small_svd: Path, encoded: Path, tmp_path: Path
) -> None:
    guided = guided_svd(small_svd)
    batch = Latents(encoded / "train", guided.model.scaling, seed=0, pairs_only=True).draw(2, 4, False)
    assert batch.guide.any()
    run = Run(guided.trained, tmp_path, lr=0.05, steps=20)
    before = {name: p.detach().clone() for name, p in guided.unet.named_parameters()}
    first = fixed_loss(guided, batch).item()
    for _ in range(run.steps):
        run.update(fixed_loss(guided, batch))
    moved = {name for name, p in guided.unet.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("conv_in.") or ".lora_" in name}
    assert guided.unet.conv_in.weight[:, 8:].abs().amax((0, 2, 3)).min() > 0  # every channel of the guide is heard
    assert fixed_loss(guided, batch).item() < 0.9 * first
    assert sum(p.numel() for p in guided.trained.values()) < 0.3 * sum(p.numel() for p in before.values())


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    small_svd: Path, encoded: Path, finished: Path, tmp_path: Path
) -> None:
    curve = tmp_path / "run" / "curve.csv"
    curve.mkdir(parents=True)  # the row after step 3 cannot be written; the checkpoint is of step 2
    with pytest.raises(IsADirectoryError):
        train(small_svd, encoded, tmp_path, "--log-every", 3, "--save-every", 2)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 2
    curve.rmdir()
    train(small_svd, encoded, tmp_path, "--log-every", 3, "--save-every", 2)
    ends = [torch.load(folder / "run" / "checkpoint.pt", weights_only=True) for folder in (finished, tmp_path)]
    assert ends[0]["step"] == 6
    assert same(*ends)


def test_checkpointing_changes_nothing_but_memory(
    small_svd: Path, encoded: Path, finished: Path, tmp_path: Path
) -> None:
    train(small_svd, encoded, tmp_path, "--checkpointing")
    ends = [torch.load(folder / "run" / "checkpoint.pt", weights_only=True) for folder in (finished, tmp_path)]
    for name, value in ends[0]["module"].items():
        torch.testing.assert_close(ends[1]["module"][name], value, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_merged_export_is_the_unmerged_network(small_svd: Path, tmp_path: Path) -> None:
    guided, inputs = guided_svd(small_svd), call_inputs()
    start = guided(*inputs)
    for parameter in guided.trained.values():
        parameter += 0.1 * torch.randn(parameter.shape)
    Run(guided.trained, tmp_path / "run", lr=1e-3, steps=1).save()
    export(small_svd, tmp_path / "run", RANK, tmp_path / "guided")

    _, folder = find_model(str(tmp_path / "guided"))
    model = VideoModel(folder, device=CPU, dtype=torch.float32)
    assert model.shape.guided
    noisy, sigma, image_latents, image_embeds, fps, guide = inputs
    added_time_ids = torch.stack([fps - 1, torch.full((2,), 127.0), torch.full((2,), 0.02)], 1)
    merged, unmerged = (
        model.predict(noisy, sigma, image_latents, image_embeds, added_time_ids, guide[:, :, :-1], guide[:, :, -1]),
        guided(*inputs),
    )
    scale = unmerged.std()
    # fp32 rounding of W + BA against Wx + B(Ax): 1e-5 of the output's deviation, while the change itself is of its size.
    torch.testing.assert_close(merged, unmerged, rtol=0, atol=1e-5 * scale.item())
    assert (unmerged - start).std() > 0.3 * scale


def test_an_export_keeps_the_precision_of_the_start_and_may_itself_be_one(tmp_path: Path) -> None:
    plain = write_small_svd(tmp_path / "plain")
    pipeline = StableVideoDiffusionPipeline.from_pretrained(plain, torch_dtype=torch.float16)
    (plain / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipeline.unet.save_pretrained(plain / "unet", max_shard_size="500KB")
    assert len(list((plain / "unet").glob("*.safetensors"))) > 1
    guided = guided_svd(plain)
    Run(guided.trained, tmp_path / "run", lr=1e-3, steps=1).save()
    export(plain, tmp_path / "run", RANK, tmp_path / "guided")
    stored = load_file(tmp_path / "guided" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    again = guided_svd(tmp_path / "guided")
    with torch.no_grad():
        torch.testing.assert_close(again(*call_inputs()), guided(*call_inputs()), rtol=0, atol=1e-6)


def test_from_clips_to_a_guided_model(small_svd: Path, encoded: Path, finished: Path) -> None:
    pairs = [load_file(path) for path in sorted((encoded / "train").glob("*.safetensors"))]
    assert [tuple(pair["latents"].shape) for pair in pairs] == [(FRAMES, 4, 4, 6)] * 2
    assert all(pair["anchor"].shape == pair["latents"].shape for pair in pairs)
    assert all(0 < pair["mask"].float().mean() < 1 for pair in pairs)  # the truck uncovers the wall behind the bar
    rows = np.genfromtxt(finished / "run" / "curve.csv", delimiter=",", names=True)
    assert rows["step"].tolist() == [3, 6]
    assert np.isfinite(rows["held_out"]).all()
    assert np.isfinite(rows["image"]).any()
    assert np.isfinite(rows["video"]).any()

    state = torch.load(finished / "run" / "checkpoint.pt", weights_only=True)
    assert not same(state["average"], state["module"])
    averaged = guided_svd(small_svd)
    averaged.trained.load_state_dict(state["average"])
    others = Latents(encoded / "held_out", averaged.model.scaling, seed=0, pairs_only=True)
    assert HeldOut(others, 4)(averaged) == pytest.approx(rows["held_out"][-1], abs=2e-5)
    exported = load_file(finished / "guided" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(exported["conv_in.weight"], state["average"]["conv_in/weight"])

    pipeline = StableVideoDiffusionPipeline.from_pretrained(finished / "guided", torch_dtype=torch.float32)
    assert pipeline.unet.config.in_channels == 13
    assert str(small_svd) not in (finished / "guided" / "unet" / "config.json").read_text()
    model = VideoModel(find_model(str(finished / "guided"))[1], device=CPU, dtype=torch.float32)
    plain = VideoModel(small_svd, device=CPU, dtype=torch.float32)
    noisy, sigma, image_latents, image_embeds, _, guide = call_inputs()
    added_time_ids = torch.tensor([[11.0, 127.0, 0.02]]).repeat(2, 1)
    with torch.no_grad():
        told = model.predict(
            noisy, sigma, image_latents, image_embeds, added_time_ids, guide[:, :, :-1], guide[:, :, -1]
        )
        untold = model.predict(noisy, sigma, image_latents, image_embeds, added_time_ids)
        before = plain.predict(noisy, sigma, image_latents, image_embeds, added_time_ids)
    assert (told - untold).std() > 1e-3
    assert (untold - before).std() > 1e-3


def test_half_precision_keeps_what_trains_in_single(small_svd: Path, encoded: Path) -> None:
    single, half = guided_svd(small_svd), guided_svd(small_svd, torch.bfloat16)
    assert {p.dtype for p in half.trained.values()} == {torch.float32}
    assert half.unet.conv_out.weight.dtype == torch.bfloat16
    batch = Latents(encoded / "train", single.model.scaling, seed=0, pairs_only=True).draw(1, 4, False)
    losses = [fixed_loss(guided, batch) for guided in (single, half)]
    losses[1].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in half.trained.values())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)


def test_foreign_vaes_are_encoded_whole(small_svd: Path) -> None:
    model = VideoModel(small_svd, device=CPU, dtype=torch.float32)
    frames = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    found = latents.encode(latents.load_vae(small_svd), frames * 2 - 1, chunk=2)
    torch.testing.assert_close(found, model.encode(frames), rtol=0, atol=1e-5)


def test_a_scaler_changes_no_step_skips_overflows_and_is_resumed(tmp_path: Path) -> None:
    def begin(name: str, scaler: torch.amp.GradScaler | None) -> tuple[Run, nn.Linear]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        return Run(layer, tmp_path / name, lr=0.1, steps=10, scaler=scaler), layer

    (run, layer), (scaled, other) = begin("plain", None), begin("scaled", torch.amp.GradScaler("cpu"))
    for _ in range(3):
        run.update(layer(torch.ones(1, 3)).square().mean())
        scaled.update(other(torch.ones(1, 3)).square().mean())
    torch.testing.assert_close(other.weight, layer.weight)
    weight, scale = other.weight.detach().clone(), scaled.scaler.get_scale()
    scaled.update(other(torch.full((1, 3), torch.inf)).sum())
    assert torch.equal(other.weight, weight)
    assert scaled.scaler.get_scale() == scale / 2
    scaled.save()
    resumed, _ = begin("scaled", torch.amp.GradScaler("cpu"))
    assert resumed.scaler.get_scale() == scale / 2


def test_averages_follow_the_weights_and_are_resumed(tmp_path: Path) -> None:
    def begin() -> tuple[Run, nn.Linear]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        return Run(layer, tmp_path, lr=0.1, steps=10, decay=0.5), layer

    run, layer = begin()
    for _ in range(4):
        before = layer.weight.detach().clone()
        run.update(layer(torch.ones(1, 3)).square().mean())
    run.save()
    (resumed, other), now = begin(), layer.weight.detach().clone()
    for one, module in ((run, layer), (resumed, other)):
        assert torch.equal(module.weight, now)
        with one.averaged():
            between = module.weight.detach().clone()
            assert ((between - before) * (now - between) > 0).all()  # of the last weights the newest counts most
        assert torch.equal(module.weight, now)
        one.update(module(torch.ones(1, 3)).square().mean())
    run.save()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed.save()
    again = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert torch.equal(state["average"]["weight"], again["average"]["weight"])


def test_what_does_not_fit_is_refused_by_name(small_svd: Path, encoded: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists; give a new directory"):
        train(small_svd, encoded, finished)
    with pytest.raises(ValueError, match="another --model or --rank"):
        train(small_svd, encoded, finished, "--out", tmp_path / "guided", "--rank", RANK + 1)
    with pytest.raises(ValueError, match="--frames takes 2 to 5"):
        train(small_svd, encoded, tmp_path, "--frames", FRAMES + 1)
    with pytest.raises(ValueError, match="have 4 channels, the model's have 8"):
        train(write_small_svd(tmp_path / "eight", latent_channels=8), encoded, tmp_path / "other")
    shape = VideoModel(small_svd, device=CPU, dtype=torch.float32).shape
    with pytest.raises(ValueError, match="multiples of 2 cells"):
        check_latents(Latents(encoded / "train", 1.0, 0, (3, 4), pairs_only=True), shape)
    options = ["--data", encoded.parent, "--out", tmp_path, "--vae", small_svd, "--sizes", "30x48"]
    with pytest.raises(ValueError, match="multiples of 8 pixels"):
        call(latents.main, *options)
