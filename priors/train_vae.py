"""Trains the embedded VAE: `AutoencoderKLTemporalDecoder`, 8x downsampling.

    python -m recapture.priors.train_vae --data DIR --run DIR/runs/vae

The spatial layers learn from single frames; the temporal layers start as the identity and are tuned at the end on
short pieces of clips (`--temporal-from`), so they can only improve what the spatial decoder gives.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from ..engine.models.temporal_bypass import temporal_bypass
from .frames import ClipFolder, photographs, random_crop, recolor
from .training import Run, mixed_precision, recipe_arguments
from .warm_start import start_as_linear_codec

CONFIG = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    # The output layer normalizes in 32 groups: with 32 channels it would erase each channel's mean, the image's color.
    "block_out_channels": (64, 64, 96, 128),
    "layers_per_block": 1,
    "latent_channels": 12,
    "sample_size": 256,
    "force_upcast": False,
}
CROPS_PX = (64, 128)
"""Crop side before and after `--large-from`: small crops give many cheap steps while the basics are learned."""
PIECE = 4
KL_WEIGHT = 1e-4


def full_resolution_blocks(vae: AutoencoderKLTemporalDecoder, decoder: bool = True) -> list[nn.Module]:
    """The residual blocks that work at image resolution: half of the compute, a small part of the quality.

    The encoder's stay the identity for good, the decoder's join at `--full-from`.
    """
    return [*vae.encoder.down_blocks[0].resnets, *(vae.decoder.up_blocks[-1].resnets if decoder else ())]


def _is_identity(block: nn.Module) -> bool:
    """Whether a residual block adds nothing: its branches end in zeros, and no shortcut changes the channels."""
    weights = dict(block.named_parameters())
    branch_ends = [value for name, value in weights.items() if "conv2." in name]
    return not any("conv_shortcut." in name for name in weights) and not any(value.any() for value in branch_ends)


@contextmanager
def without_full_resolution(vae: AutoencoderKLTemporalDecoder, decoder: bool = True) -> Iterator[None]:
    """Skips those full-resolution residual blocks that are the identity; a VAE from elsewhere has none."""
    blocks = [block for block in full_resolution_blocks(vae, decoder) if _is_identity(block)]
    for block in blocks:
        block.forward = lambda hidden_states, *args, **kwargs: hidden_states
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def build_vae() -> AutoencoderKLTemporalDecoder:
    """A new VAE whose temporal layers and full-resolution residual blocks are the identity."""
    vae = AutoencoderKLTemporalDecoder(**CONFIG)
    for block in full_resolution_blocks(vae):
        nn.init.zeros_(getattr(block, "spatial_res_block", block).conv2.weight)
        nn.init.zeros_(getattr(block, "spatial_res_block", block).conv2.bias)
    for name, parameter in vae.decoder.named_parameters():
        if "temporal_res_block.conv2" in name:
            nn.init.zeros_(parameter)
    nn.init.zeros_(vae.decoder.time_conv_out.bias)
    nn.init.zeros_(vae.decoder.time_conv_out.weight)
    with torch.no_grad():
        vae.decoder.time_conv_out.weight[:, :, 1, 0, 0] = torch.eye(3)
    return vae


class Pictures:
    """Batches of crops: rendered frames and real photographs."""

    def __init__(self, data: Path, seed: int) -> None:
        self.clips, self.photos = ClipFolder(data, "train"), photographs(data, "train")
        self.rng = np.random.default_rng(seed)

    def piece(self, frames: int, side: int) -> np.ndarray:
        """[frames, side, side, 3] float32 0..1: consecutive frames of a clip, or one photograph."""
        rng = self.rng
        if self.photos and frames == 1 and rng.random() < 0.3:
            crop = random_crop(rng, self.photos[rng.integers(len(self.photos))], (side, side))[None]
        else:
            rgb = self.clips.rgb(self.clips.names[rng.integers(len(self.clips.names))])
            start = rng.integers(len(rgb) - frames + 1)
            if frames == 1:
                crop = random_crop(rng, rgb[start], (side, side))[None]
            else:
                top, left = (rng.integers(extent - side + 1) for extent in rgb.shape[1:3])
                crop = rgb[start : start + frames, top : top + side, left : left + side]
        crop = crop.astype(np.float32) / 255
        return recolor(rng, crop, 0.7) if rng.random() < 0.5 else crop

    def batch(self, count: int, frames: int, side: int) -> Tensor:
        """[count * frames, 3, side, side] in -1..1"""
        images = np.concatenate([self.piece(frames, side) for _ in range(count)])
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() * 2 - 1


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1, squared error (it sets PSNR) and L1 of the finite differences (it keeps edges); images in -1..1."""
    edges = sum(F.l1_loss(torch.diff(output, dim=d), torch.diff(target, dim=d)) for d in (2, 3))
    return F.l1_loss(output, target) + 2 * F.mse_loss(output, target) + 0.5 * edges


def main() -> None:
    parser = recipe_arguments(__doc__.splitlines()[0], steps=2400, lr=9e-4, batch=6)
    parser.add_argument("--data", type=Path, required=True, help="folder that assets.py and render.py filled")
    parser.add_argument("--large-from", type=int, default=1200, help="step at which the crops double in size")
    parser.add_argument("--full-from", type=int, default=2000, help="step at which the full-resolution blocks join")
    parser.add_argument("--temporal-from", type=int, default=2200, help="step at which clips replace single frames")
    args = parser.parse_args()
    # diffusers 0.38+ names this class deprecated for a video VAE of its own; the Stable Video Diffusion layout needs it.
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    vae = build_vae().train()
    with temporal_bypass(vae), without_full_resolution(vae):
        start_as_linear_codec(vae, Pictures(args.data, args.seed).batch(16, 1, CROPS_PX[-1]))
    run = Run(vae, args.run, lr=args.lr, steps=args.steps, decay=0.998)
    pictures = Pictures(args.data, args.seed + run.step)
    errors = []
    while run.step < args.steps:
        temporal = run.step >= args.temporal_from
        frames = PIECE if temporal else 1
        images = pictures.batch(max(1, args.batch // frames), frames, CROPS_PX[run.step >= args.large_from])
        light = without_full_resolution(vae, decoder=run.step < args.full_from)
        with mixed_precision(), nullcontext() if temporal else temporal_bypass(vae), light:
            posterior = vae.encode(images).latent_dist
            # Without the bypass the output layer would mix the unrelated frames of the batch.
            decoded = vae.decode(posterior.sample(), num_frames=frames).sample.float()
        loss = reconstruction_loss(decoded, images) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        run.update(loss)
        errors.append(F.mse_loss(decoded.detach(), images).item() / 4)
        if run.step % 100 == 0:
            run.log(loss=loss, psnr=-10 * math.log10(np.mean(errors)), latent_std=posterior.mean.std())
            errors.clear()
        if run.step % args.save_every == 0 or run.step == args.steps:
            run.save()
            pictures.clips.refresh()


if __name__ == "__main__":
    main()
