"""Trains the embedded multiview model: a view of one frame from another camera, diffused on the embedded VAE's latents.

    python -m recapture.priors.train_multiview --pairs DIR/two_views --model engine/weights/tiny --run DIR/runs/multiview

The same command with `--export engine/weights/multiview` writes the averaged weights.

Begins as the spatial layers of an anchor-guided video UNet (`--model`), whose input already has the anchor and its mask:
the ray maps count nothing at first, and the constant ids of the video model are folded into the time embedding. The point
anchor is dropped for a share of the moments, the source for another, so that one network answers with rays alone, too.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from ..engine.diffusion.edm import training_sigmas
from ..engine.models.multiview import attend_across_views, input_channels, predict
from ..engine.models.video import load_network
from .train_unet import MOTION_BUCKET, NOISE_AUGMENTATION
from .training import Run, mixed_precision, recipe_arguments
from .two_views import Pairs

TYPICAL_FPS = 7
CLIPS_HELD_OUT = 32


def build_unet(video: dict[str, Any]) -> UNet2DConditionModel:
    """A picture UNet with the spatial layers of the video UNet of this config; attention runs across the views."""
    channels = video["out_channels"]
    kinds = {"CrossAttnDownBlockSpatioTemporal": "CrossAttnDownBlock2D", "DownBlockSpatioTemporal": "DownBlock2D"}
    kinds |= {"CrossAttnUpBlockSpatioTemporal": "CrossAttnUpBlock2D", "UpBlockSpatioTemporal": "UpBlock2D"}
    unet = UNet2DConditionModel(
        sample_size=30,  # (30 * 8)^2 pixels is about the area of 192x288, which it is trained at
        in_channels=input_channels(channels),
        out_channels=channels,
        down_block_types=[kinds[name] for name in video["down_block_types"]],
        up_block_types=[kinds[name] for name in video["up_block_types"]],
        block_out_channels=video["block_out_channels"],
        layers_per_block=video["layers_per_block"],
        cross_attention_dim=video["cross_attention_dim"],
        use_linear_projection=True,
        attention_head_dim=video["num_attention_heads"],  # the number of heads: diffusers' name is historical
    )
    attend_across_views(unet)
    return unet


def spatial_weights(video: UNetSpatioTemporalConditionModel) -> dict[str, Tensor]:
    """The state of `build_unet`'s network that answers as the guided video UNet does for single frames."""
    channels = video.config["out_channels"]
    state = {}
    for name, value in video.state_dict().items():
        if re.search(r"temporal_(res_block|transformer_blocks)|time_mixer|time_pos_embed|^add_embedding", name):
            continue
        state[name.replace(".spatial_res_block.", ".")] = value.clone()
    wide = state["conv_in.weight"].new_zeros(
        state["conv_in.weight"].shape[0], input_channels(channels), *state["conv_in.weight"].shape[2:]
    )
    wide[:, :channels] = state["conv_in.weight"][:, :channels]
    wide[:, channels : 2 * channels + 1] = state["conv_in.weight"][:, 2 * channels :]  # the anchor and its mask
    state["conv_in.weight"] = wide
    ids = torch.tensor([[TYPICAL_FPS - 1.0, MOTION_BUCKET, NOISE_AUGMENTATION]])
    with torch.no_grad():
        known = video.add_embedding(video.add_time_proj(ids.flatten()).reshape(1, -1))
    state["time_embedding.linear_2.bias"] += known[0]
    return state


class MultiviewPrior(nn.Module):
    """The network in training; an export is its averaged weights."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        video = load_network(UNetSpatioTemporalConditionModel, model / "unet", torch.float32)
        self.unet = build_unet(video.config)
        self.unet.load_state_dict(spatial_weights(video))


def denoising_loss(
    unet: UNet2DConditionModel, pairs: dict[str, Tensor], sigma: Tensor, no_source: Tensor, no_points: Tensor
) -> Tensor:
    """Mean squared error of F per moment [B]; two bool [B] say whom the source and the points are hidden from."""
    seen, points = ((~hidden).float().view(-1, 1, 1, 1) for hidden in (no_source, no_points))
    clean, noise = pairs["target"], torch.randn_like(pairs["target"])
    s = sigma.view(-1, 1, 1, 1)
    with mixed_precision():
        output = predict(
            unet,
            clean + s * noise,
            sigma,
            pairs["source"] * seen,
            pairs["anchor"] * points,
            pairs["mask"] * points[:, 0],
            pairs["rays"],
            pairs["token"] * seen[:, 0],
        )
    target = (noise - s * clean) / (s * s + 1).sqrt()
    return (output - target).square().mean((1, 2, 3))


class HeldOut:
    """The loss on moments of the other split, the same noise each time: with the points, and with rays alone."""

    def __init__(self, folder: Path) -> None:
        self.pairs = Pairs(folder, seed=0).draw(CLIPS_HELD_OUT)
        self.sigma = (0.9 + 1.6 * torch.linspace(-1.3, 1.3, CLIPS_HELD_OUT)).exp()

    @torch.no_grad()
    def __call__(self, unet: UNet2DConditionModel) -> dict[str, float]:
        state, never = torch.get_rng_state(), torch.zeros(CLIPS_HELD_OUT, dtype=torch.bool)
        means = {}
        for name, hidden in (("held_out", never), ("held_out_rays", ~never)):
            torch.manual_seed(0)
            losses = []
            for part in range(0, CLIPS_HELD_OUT, 4):
                some = slice(part, part + 4)
                pairs = {key: value[some] for key, value in self.pairs.items()}
                losses.append(denoising_loss(unet, pairs, self.sigma[some], never[some], hidden[some]))
            means[name] = float(torch.cat(losses).mean())
        torch.set_rng_state(state)
        return means


def export(prior: MultiviewPrior, out: Path) -> None:
    """The directory that the engine loads, fp16."""
    prior.unet.half().save_pretrained(out / "unet")
    about = {"encoder": "../tiny", "license": "Apache-2.0", "noncommercial": False, "steps": 2, "guidance": 1.0}
    (out / "multiview.json").write_text(json.dumps(about, indent=2) + "\n")
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)


def main() -> None:
    parser = recipe_arguments(__doc__.splitlines()[0], steps=6000, lr=6e-4, batch=2)
    parser.add_argument("--pairs", type=Path, required=True, help="what two_views.py wrote")
    parser.add_argument("--model", type=Path, required=True, help="anchor-guided video model to begin as")
    parser.add_argument("--export", type=Path, help="write the averaged weights here and stop")
    parser.add_argument("--log-every", type=int, default=200, help="steps between rows of the curve")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    prior = MultiviewPrior(args.model).train()
    run = Run(prior, args.run, lr=args.lr, steps=args.steps, decay=0.998)
    if args.export is not None:
        with run.averaged():
            export(prior, args.export)
        return
    torch.manual_seed(args.seed + run.step)
    pairs, held_out, losses = Pairs(args.pairs / "train", args.seed + run.step), HeldOut(args.pairs / "held_out"), []
    while run.step < args.steps:
        sigma = training_sigmas(args.batch, mean=0.9, std=1.6)
        no_source, no_points = torch.rand(args.batch) < 0.1, torch.rand(args.batch) < 0.25
        loss = denoising_loss(prior.unet, pairs.draw(args.batch), sigma, no_source, no_points).mean()
        run.update(loss)
        losses.append(loss.item())
        if run.step % args.log_every == 0 or run.step == args.steps:
            with run.averaged():
                run.log(train=float(np.mean(losses)), **held_out(prior.unet))
            losses = []
        if run.step % args.save_every == 0 or run.step == args.steps:
            run.save()


if __name__ == "__main__":
    main()
