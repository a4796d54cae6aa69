"""Trains the embedded video UNet and its image encoder, in Stable Video Diffusion's conventions.

    python -m recapture.priors.train_unet --latents DIR/latents --vae DIR/runs/vae --run DIR/runs/unet

EDM with v-prediction: the loss is taken on the network's output F (DESIGN.md, section 1). Single frames with the
temporal layers skipped come first, then mostly clips; some single frames stay in the mix, because the engine's spatial
pass uses the network that way. Legend: B clips, T frames, C latent channels, h and w latent cells.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNetSpatioTemporalConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..engine.bypass import temporal_bypass
from .train_vae import CONFIG as VAE_CONFIG
from .training import Run, recipe_arguments

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


def build_unet() -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(**UNET_CONFIG)


def build_image_encoder() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, projection_dim=TOKEN, num_hidden_layers=3, num_attention_heads=4,
        image_size=224, patch_size=32, hidden_act="gelu",
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config)


class VideoPrior(nn.Module):
    """The UNet and the image encoder, trained together. Residual branches start at zero: it learns faster."""

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.image_encoder = build_unet(), build_image_encoder()
        for name, parameter in self.unet.named_parameters():
            if name.endswith(("conv2.weight", "conv2.bias", "proj_out.weight")):
                nn.init.zeros_(parameter)
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def token(self, images: Tensor) -> Tensor:
        """[B, 224, 224, 3] uint8 -> [B, 1, TOKEN]"""
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.image_encoder(pixels).image_embeds[:, None]

    def forward(self, noisy: Tensor, sigma: Tensor, prompt: Tensor, token: Tensor, fps: Tensor) -> Tensor:
        """F [B, T, C, h, w] of scaled noisy latents [B, T, C, h, w] at `sigma` [B]; prompt unscaled [B, C, h, w]."""
        s = sigma.view(-1, 1, 1, 1, 1)
        inputs = torch.cat([noisy / (s * s + 1).sqrt(), prompt[:, None].expand_as(noisy)], 2)
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


class Latents:
    """Every encoded clip of a split, in memory, by shape."""

    def __init__(self, folder: Path, scaling: float, seed: int) -> None:
        self.scaling, self.rng = scaling, np.random.default_rng(seed)
        self.by_shape: dict[tuple[int, ...], list[dict[str, Tensor]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            clip = load_file(path)
            self.by_shape.setdefault(tuple(clip["prompt"].shape), []).append(clip)
        if not self.by_shape:
            raise ValueError(f"no latents in {folder}: run recapture.priors.latents first")

    def draw(self, clips: int, frames: int, apart: bool) -> Batch:
        """The first `frames` of some clips, or that many random ones, never the prompt's, as one-frame clips."""
        shapes = list(self.by_shape)
        pool = self.by_shape[shapes[self.rng.integers(len(shapes))]]
        chosen = [pool[self.rng.integers(len(pool))] for _ in range(clips)]
        parts = []
        for clip in chosen:
            latents = clip["latents"].float() * self.scaling
            if not apart:
                parts.append((latents[None, :frames], 1, clip))
            else:
                index = 1 + self.rng.permutation(len(latents) - 1)[:frames]
                parts.append((latents[index, None], len(index), clip))
        return Batch(
            torch.cat([latents for latents, _, _ in parts]),
            torch.cat([clip["prompt"].float()[None].repeat(n, 1, 1, 1) for _, n, clip in parts]),
            torch.cat([clip["image"][None].repeat(n, 1, 1, 1) for _, n, clip in parts]),
            torch.cat([clip["fps"].float().view(1).repeat(n) for _, n, clip in parts]),
        )


def denoising_loss(prior: VideoPrior, batch: Batch, sigma: Tensor, drop: Tensor, bypass: bool) -> Tensor:
    """Mean squared error of F per sample [B]; `drop` [B] bool removes the image prompt (for guidance)."""
    keep = (~drop).float()
    noise = torch.randn_like(batch.clean)
    noisy = batch.clean + sigma.view(-1, 1, 1, 1, 1) * noise
    with torch.autocast("cpu", torch.bfloat16), temporal_bypass(prior.unet) if bypass else nullcontext():
        token = prior.token(batch.images) * keep[:, None, None]
        output = prior(noisy, sigma, batch.prompt * keep[:, None, None, None], token, batch.fps)
    return (output.float() - velocity(batch.clean, noise, sigma)).square().mean((1, 2, 3, 4))


def main() -> None:
    parser = recipe_arguments(__doc__.splitlines()[0], steps=2500, lr=1.2e-3, batch=1)
    parser.add_argument("--latents", type=Path, required=True, help="folder that latents.py wrote")
    parser.add_argument("--scaling", type=float, required=True, help="1 / standard deviation, printed by latents.py")
    parser.add_argument("--frames", type=int, default=14, help="leading frames of each clip; fewer is cheaper at first")
    parser.add_argument("--images-until", type=int, default=600, help="steps on single frames only")
    parser.add_argument("--image-share", type=float, default=0.25, help="share of single-frame steps afterwards")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    prior = VideoPrior().train()
    run = Run(prior, args.run, lr=args.lr, steps=args.steps, decay=0.998)
    torch.manual_seed(args.seed + run.step)
    latents = Latents(args.latents / "train", args.scaling, args.seed + run.step)
    losses: dict[str, list[float]] = {"image": [], "video": []}
    while run.step < args.steps:
        bypass = run.step < args.images_until or latents.rng.random() < args.image_share
        batch = latents.draw(4, 3, True) if bypass else latents.draw(args.batch, args.frames, False)
        sigma = (0.7 + 1.6 * torch.randn(len(batch.clean))).exp()
        loss = denoising_loss(prior, batch, sigma, torch.rand(len(sigma)) < 0.1, bypass).mean()
        run.update(loss)
        losses["image" if bypass else "video"].append(loss.item())
        if run.step % 50 == 0:
            run.log(**{kind: np.mean(values) if values else np.nan for kind, values in losses.items()})
            losses = {"image": [], "video": []}
        if run.step % args.save_every == 0 or run.step == args.steps:
            run.save()


if __name__ == "__main__":
    main()
