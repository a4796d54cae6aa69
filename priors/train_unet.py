"""Trains the embedded video UNet and its image encoder, in Stable Video Diffusion's conventions.

    python -m recapture.priors.train_unet --latents DIR/latents --scaling S --run DIR/runs/unet
    python -m recapture.priors.train_unet --latents DIR/latents --scaling S --run DIR/runs/guided --guided --start MODEL

Two kinds. The plain one is the paper's: noise and image prompt. The guided one also sees the anchor's latents and the
latent mask, and learns from pairs (a second view's truth and the anchor that the engine would draw of it); it begins as
the plain one whose extra channels count nothing.

EDM with v-prediction: the loss is taken on the network's output F (DESIGN.md, section 1). Single frames with the
temporal layers skipped come first, then mostly clips; some single frames stay in the mix, because the engine's spatial
pass uses the network that way. Legend: B clips, T frames, C latent channels, h and w latent cells.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from diffusers import UNetSpatioTemporalConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..engine.diffusion.edm import training_sigmas
from ..engine.models.temporal_bypass import temporal_bypass
from .train_vae import CONFIG as VAE_CONFIG
from .training import Run, mixed_precision, recipe_arguments

CHANNELS = VAE_CONFIG["latent_channels"]
TOKEN = 128
UNET_CONFIG = {
    "sample_size": 31,  # (31 * 8)^2 pixels is the area of 192x320 and 160x384
    "in_channels": 2 * CHANNELS,
    "out_channels": CHANNELS,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 2 + ("DownBlockSpatioTemporal",),
    "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 2,
    "block_out_channels": (64, 64, 96),
    "num_attention_heads": (2, 2, 3),
    "layers_per_block": 1,
    "cross_attention_dim": TOKEN,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 96,
    "num_frames": 14,
}
MOTION_BUCKET, NOISE_AUGMENTATION = 127, 0.02
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def build_unet(guided: bool = False) -> UNetSpatioTemporalConditionModel:
    config = UNET_CONFIG | ({"in_channels": 3 * CHANNELS + 1} if guided else {})
    return UNetSpatioTemporalConditionModel(**config)


def widen_input(weight: Tensor, channels: int) -> Tensor:
    """`conv_in`'s weight [O, I, 3, 3] for `channels` input channels: the new ones count nothing yet."""
    wide = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    wide[:, : weight.shape[1]] = weight
    return wide


def build_image_encoder() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=TOKEN,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=224,
        patch_size=32,
        hidden_act="gelu",
    )
    return CLIPVisionModelWithProjection(config)


class VideoPrior(nn.Module):
    """The UNet and the image encoder, trained together. Residual branches start at zero: it learns faster."""

    def __init__(self, guided: bool = False) -> None:
        super().__init__()
        self.unet, self.image_encoder = build_unet(guided), build_image_encoder()
        for name, parameter in self.unet.named_parameters():
            if name.endswith(("conv2.weight", "conv2.bias", "proj_out.weight")):
                nn.init.zeros_(parameter)
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def load_directory(self, folder: Path) -> None:
        """The weights of a model directory; a guided network may start from a plain one."""
        unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        unet["conv_in.weight"] = widen_input(unet["conv_in.weight"], self.unet.config["in_channels"])
        self.unet.load_state_dict({name: value.float() for name, value in unet.items()})
        encoder = load_file(folder / "image_encoder" / "model.safetensors")
        self.image_encoder.load_state_dict({name: value.float() for name, value in encoder.items()}, strict=False)

    def token(self, images: Tensor) -> Tensor:
        """[B, 224, 224, 3] uint8 -> [B, 1, TOKEN]"""
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.image_encoder(pixels).image_embeds[:, None]

    def forward(
        self, noisy: Tensor, sigma: Tensor, prompt: Tensor, token: Tensor, fps: Tensor, guide: Tensor | None = None
    ) -> Tensor:
        """F [B, T, C, h, w] of scaled noisy latents [B, T, C, h, w] at `sigma` [B]; prompt unscaled [B, C, h, w].

        `guide` [B, T, C + 1, h, w] is the scaled anchor and its mask; zeros tell a guided network nothing.
        """
        s = sigma.view(-1, 1, 1, 1, 1)
        inputs = torch.cat([noisy / (s * s + 1).sqrt(), prompt[:, None].expand_as(noisy)], 2)
        if self.unet.config["in_channels"] > inputs.shape[2]:
            blank = inputs.new_zeros(*noisy.shape[:2], CHANNELS + 1, *noisy.shape[3:])
            inputs = torch.cat([inputs, blank if guide is None else guide], 2)
        ids = torch.tensor([[0.0, MOTION_BUCKET, NOISE_AUGMENTATION]]).repeat(len(noisy), 1)
        ids[:, 0] = fps - 1
        return self.unet(inputs, 0.25 * sigma.log(), token, added_time_ids=ids).sample


def velocity(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The target v of F: (noise - sigma clean) / sqrt(sigma^2 + 1); clean and noise [B, T, C, h, w], sigma [B]."""
    s = sigma.view(-1, 1, 1, 1, 1)
    return (noise - s * clean) / (s * s + 1).sqrt()


@dataclass(slots=True)
class Batch:
    clean: Tensor
    """[B, T, C, h, w] scaled latents"""
    prompt: Tensor
    """[B, C, h, w] unscaled"""
    images: Tensor
    """[B, 224, 224, 3] uint8"""
    fps: Tensor
    """[B]"""
    guide: Tensor
    """[B, T, C + 1, h, w]: scaled anchor and mask, zeros where a clip has none"""

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, part.name).to(device) for part in fields(self)))


class Latents:
    """Every encoded clip of a split, in memory, by shape."""

    def __init__(
        self, folder: Path, scaling: float, seed: int, crop: tuple[int, int] | None = None, pairs_only: bool = False
    ) -> None:
        self.scaling, self.crop, self.rng = scaling, crop, np.random.default_rng(seed)
        self.by_shape: dict[tuple[int, ...], list[dict[str, Tensor]]] = {}
        for path in sorted(folder.glob("pair*.safetensors" if pairs_only else "*.safetensors")):
            clip = load_file(path)
            self.by_shape.setdefault(tuple(clip["prompt"].shape), []).append(clip)
        if not self.by_shape:
            raise ValueError(f"no latents in {folder}: run recapture.priors.latents first")

    def draw(self, clips: int, frames: int, apart: bool) -> Batch:
        """`frames` frames of some clips, evenly from the first on, or random ones but the first as one-frame clips.

        With `crop` set, a random window of that many cells of all of them, the same for frames, prompt and anchor.
        """
        shapes = list(self.by_shape)
        pool = self.by_shape[shapes[self.rng.integers(len(shapes))]]
        chosen = [pool[self.rng.integers(len(pool))] for _ in range(clips)]
        parts = []
        for clip in chosen:
            latents = clip["latents"].float() * self.scaling
            guide = torch.zeros_like(torch.cat([latents, latents[:, :1]], 1))
            if "anchor" in clip:
                guide = torch.cat([clip["anchor"].float() * self.scaling, clip["mask"].float()[:, None]], 1)
            both = torch.cat([latents, guide], 1)
            if not apart:
                parts.append((both[None, :: len(both) // frames][:, :frames], 1, clip))
            else:
                index = 1 + self.rng.permutation(len(latents) - 1)[:frames]
                parts.append((both[index, None], len(index), clip))
        both = torch.cat([values for values, _, _ in parts])
        prompt = torch.cat([clip["prompt"].float()[None].repeat(n, 1, 1, 1) for _, n, clip in parts])
        channels, height, width = prompt.shape[1:]
        if self.crop is not None:
            rows, columns = min(height, self.crop[0]), min(width, self.crop[1])
            top, left = self.rng.integers(height - rows + 1), self.rng.integers(width - columns + 1)
            both, prompt = (x[..., top : top + rows, left : left + columns] for x in (both, prompt))
        stride = 1 if apart else len(chosen[0]["latents"]) // frames
        return Batch(
            both[:, :, :channels],
            prompt,
            torch.cat([clip["image"][None].repeat(n, 1, 1, 1) for _, n, clip in parts]),
            torch.cat([(clip["fps"].float() / stride).clamp(min=1).view(1).repeat(n) for _, n, clip in parts]),
            both[:, :, channels:],
        )


class Prior(Protocol):
    """What the loss needs of a model: `VideoPrior`, or anything else that is conditioned as it is."""

    unet: UNetSpatioTemporalConditionModel

    def token(self, images: Tensor) -> Tensor: ...

    def __call__(
        self, noisy: Tensor, sigma: Tensor, prompt: Tensor, token: Tensor, fps: Tensor, guide: Tensor
    ) -> Tensor: ...


def denoising_loss(prior: Prior, batch: Batch, sigma: Tensor, drop: Tensor, blind: Tensor | None = None) -> Tensor:
    """Mean squared error of F per sample [B]; `drop` [B] bool removes the image prompt, `blind` [B] the anchor."""
    keep = (~drop).float()
    guide = batch.guide if blind is None else batch.guide * (~blind).float().view(-1, 1, 1, 1, 1)
    noise = torch.randn_like(batch.clean)
    noisy = batch.clean + sigma.view(-1, 1, 1, 1, 1) * noise
    with mixed_precision():
        token = prior.token(batch.images) * keep[:, None, None]
        output = prior(noisy, sigma, batch.prompt * keep[:, None, None, None], token, batch.fps, guide)
    return (output.float() - velocity(batch.clean, noise, sigma)).square().mean((1, 2, 3, 4))


class HeldOut:
    """The loss on clips of the other split: the same windows, noise levels and noise each time."""

    def __init__(self, latents: Latents, frames: int, count: int = 12) -> None:
        self.batches = [latents.draw(1, frames, False) for _ in range(count)]
        self.sigma = (0.7 + 1.6 * torch.linspace(-1.3, 1.3, count)).exp()  # evenly over nine in ten of what is trained

    @torch.no_grad()
    def __call__(self, prior: Prior) -> float:
        device = prior.unet.device
        state, keep = torch.get_rng_state(), torch.zeros(1, dtype=torch.bool, device=device)
        torch.manual_seed(0)
        losses = [
            denoising_loss(prior, batch.to(device), sigma[None].to(device), keep)
            for batch, sigma in zip(self.batches, self.sigma, strict=True)
        ]
        torch.set_rng_state(state)
        return float(torch.cat(losses).mean())


def main() -> None:
    parser = recipe_arguments(__doc__.splitlines()[0], steps=2500, lr=1.2e-3, batch=1)
    parser.add_argument("--latents", type=Path, required=True, help="folder that latents.py wrote")
    parser.add_argument("--scaling", type=float, required=True, help="1 / standard deviation, printed by latents.py")
    parser.add_argument("--frames", type=int, default=14, help="frames of each clip; fewer is cheaper at first")
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), help="train on windows of this many cells")
    parser.add_argument("--log-every", type=int, default=200, help="steps between rows of the curve")
    parser.add_argument("--images-until", type=int, default=600, help="steps on single frames only")
    parser.add_argument("--guided", action="store_true", help="also give the network the anchor and its mask")
    parser.add_argument("--start", type=Path, help="model directory to begin from")
    parser.add_argument("--image-share", type=float, default=0.25, help="share of single-frame steps afterwards")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    prior = VideoPrior(args.guided).train()
    if args.start is not None:
        prior.load_directory(args.start)
    run = Run(prior, args.run, lr=args.lr, steps=args.steps, decay=0.998)
    torch.manual_seed(args.seed + run.step)
    latents = Latents(args.latents / "train", args.scaling, args.seed + run.step, args.crop)
    others = args.latents / "held_out"
    held_out = None
    if any(others.glob("pair*")):
        held_out = HeldOut(Latents(others, args.scaling, seed=0, pairs_only=True), args.frames)
    losses: dict[str, list[float]] = {"image": [], "video": []}
    while run.step < args.steps:
        bypass = run.step < args.images_until or latents.rng.random() < args.image_share
        batch = latents.draw(4, 3, True) if bypass else latents.draw(args.batch, args.frames, False)
        sigma = training_sigmas(len(batch.clean), mean=0.7, std=1.6)
        drop, blind = torch.rand(len(sigma)) < 0.1, torch.rand(len(sigma)) < 0.1
        with temporal_bypass(prior.unet) if bypass else nullcontext():
            loss = denoising_loss(prior, batch, sigma, drop, blind).mean()
        run.update(loss)
        losses["image" if bypass else "video"].append(loss.item())
        if run.step % args.log_every == 0 or run.step == args.steps:
            row = {kind: np.mean(values) if values else np.nan for kind, values in losses.items()}
            if held_out is not None:
                with run.averaged():
                    row["held_out"] = held_out(prior)
            run.log(**row)
            losses = {"image": [], "video": []}
        if run.step % args.save_every == 0 or run.step == args.steps:
            run.save()


if __name__ == "__main__":
    main()
