"""Windows, noise levels and the sampler against a model whose answer is known."""

from itertools import pairwise

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from recapture.engine.diffusion.conditioning import AnchorConditioning
from recapture.engine.diffusion.edm import karras_sigmas
from recapture.engine.diffusion.sampler import denoise, plan_windows, sample
from recapture.engine.imaging.metrics import frame_changes, psnr, seam_ratios
from recapture.engine.models.video import ModelShape, VideoModel


@pytest.mark.parametrize("count", [2, 14, 15, 24, 25, 40, 101])
@pytest.mark.parametrize("overlap", [1, 4, 20])
def test_windows_cover_everything_and_overlap(count, overlap):
    windows = plan_windows(count, 14, overlap)
    assert sorted({frame for window in windows for frame in window}) == list(range(count))
    assert all(len(window) == min(14, count) for window in windows)
    for a, b in pairwise(windows):
        assert a.stop - b.start >= min(overlap, 13)
        assert b.stop > a.stop


def test_sigmas_are_the_schedulers_own(small_svd):
    scheduler = EulerDiscreteScheduler.from_pretrained(small_svd / "scheduler")
    scheduler.set_timesteps(25)
    ours = torch.tensor(karras_sigmas(25, 700.0, 0.002))
    assert torch.allclose(ours, scheduler.sigmas.float(), rtol=1e-4)


@pytest.fixture(scope="module")
def model(small_svd) -> VideoModel:
    return VideoModel(small_svd, device=torch.device("cpu"), dtype=torch.float32)


def known(model: VideoModel, clean: torch.Tensor, monkeypatch) -> AnchorConditioning:
    """Let the network know the answer: F is the v that leads to `clean` from wherever it is asked."""
    asked = []

    def predict(noisy, sigma, image_latents, image_embeds, added_time_ids, anchor=None, mask=None):
        s = sigma.view(-1, 1, 1, 1, 1)
        asked.append(float(sigma[0]))
        return (noisy / (s**2 + 1) - clean[: noisy.shape[1]]) * (s**2 + 1) ** 0.5 / s

    monkeypatch.setattr(model, "predict", predict)
    count = len(clean)
    return AnchorConditioning(
        latents=clean,
        latent_mask=torch.ones(count, 4, 4),
        image_latents=clean,
        image_embeds=torch.zeros(count, 1, 16),
        added_time_ids=torch.zeros(3),
    )


def test_euler_steps_reach_what_the_network_knows(model, monkeypatch):
    clean = torch.randn(4, 4, 4, 4)
    conditioning = known(model, clean, monkeypatch)
    sigmas = karras_sigmas(5, 700.0, 0.002)
    result = denoise(
        model,
        700 * torch.randn(4, 4, 4, 4),
        sigmas,
        conditioning,
        range(4),
        image_latents=clean[0],
        image_embeds=conditioning.image_embeds[0],
    )
    assert torch.allclose(result, clean, atol=1e-3)


def test_overlap_is_carried_into_the_next_window(model, monkeypatch):
    constant = torch.full((4, 4, 4, 4), 0.7)
    conditioning = known(model, constant.repeat(3, 1, 1, 1)[:10], monkeypatch)
    image_latents = []

    def encode_image(latent):
        image_latents.append(latent)
        return latent, conditioning.image_embeds[0]

    parts = list(
        sample(
            model,
            torch.zeros(10, 4, 4, 4),
            conditioning,
            plan_windows(10, 4, 2),
            karras_sigmas(4, 10.0, 0.01),
            encode_image=encode_image,
            first_image=(conditioning.image_latents[0], conditioning.image_embeds[0]),
            seed=0,
            on_step=lambda window, step, latents: None,
        )
    )
    assert [len(part) for part in parts] == [4, 2, 2, 2]
    assert torch.allclose(torch.cat(parts), torch.full((10, 4, 4, 4), 0.7), atol=1e-3)
    assert len(image_latents) == 3


def test_vae_and_prompt_conventions_are_the_stock_pipelines(model, small_svd):
    from diffusers import StableVideoDiffusionPipeline

    stock = StableVideoDiffusionPipeline.from_pretrained(small_svd)
    image = torch.rand(1, 3, 64, 64)
    theirs = stock._encode_vae_image(image * 2 - 1, "cpu", 1, False)
    assert torch.equal(model.encode(image), theirs)
    latents = torch.randn(1, 3, 4, 8, 8)
    frames = stock.decode_latents(latents, 3, 3)[0].permute(1, 0, 2, 3)
    assert torch.allclose(model.decode(latents[0]), (frames / 2 + 0.5).clamp(0, 1), atol=1e-6)
    image_embeds = stock._encode_image(
        torch.nn.functional.interpolate(image, (224, 224), mode="bicubic", antialias=True), "cpu", 1, False
    )
    assert torch.allclose(model.embed(image), image_embeds, atol=1e-5)


def test_working_sizes_follow_the_training_area():
    svd = ModelShape(latent_channels=4, frames=14, vae_scale=8, multiple=64, area_px=(96 * 8) ** 2, guided=False)
    assert svd.working_size(1920, 1080) == (576, 1024)
    assert svd.working_size(1080, 1920) == (1024, 576)
    for width, height in [(640, 272), (100, 100), (4096, 1024)]:
        rows, columns = svd.working_size(width, height)
        assert rows % 64 == columns % 64 == 0
        assert 0.7 < rows * columns / svd.area_px < 1.4


def test_measures():
    frames = torch.zeros(10, 4, 4, 3, dtype=torch.uint8).numpy()
    frames[:] = torch.arange(10).view(10, 1, 1, 1).numpy()
    frames[5:] += 50
    changes = frame_changes(frames)
    assert changes == [1, 1, 1, 1, 51, 1, 1, 1, 1]
    assert seam_ratios(changes, [5, 7]) == {5: 51, 7: 1}
    assert psnr(frames, frames) == float("inf")
    assert abs(psnr(frames[0], frames[1]) - 48.13) < 0.01
    assert psnr(frames[:1], frames[1:2], frames[:1, ..., 0] > 0) != psnr(frames[:1], frames[1:2])
