"""Turns a Stable Video Diffusion directory, of any size, into an anchor-guided one.

    python -m recapture.priors.train_guided_svd --model MODEL --latents DIR/latents-svd --run DIR/runs/svd --out GUIDED

The UNet's input grows from noise and image prompt (2 C channels) by the anchor's latents and its mask (3 C + 1). The new
channels of `conv_in` start at zero, so training begins exactly at the plain model. What trains is `conv_in` and one LoRA
on the attention and feed-forward layers of the spatial and temporal transformer blocks, on the pairs that latents.py
encoded with the same model's VAE; checkpoints hold nothing else. At the end the averaged adapters are merged into the
weights, and `--out` is a model directory like the one it came from. Conditioning and loss are those of train_unet.py.
Legend: B clips, T frames, C latent channels, h and w latent cells.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import warnings
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import UNetSpatioTemporalConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn

from ..engine.catalog import find_model
from ..engine.diffusion.edm import training_sigmas
from ..engine.hub import weights_digest
from ..engine.layout import COMPONENTS
from ..engine.models.adapters import ADAPTERS, target_names
from ..engine.models.temporal_bypass import temporal_bypass
from ..engine.models.video import ModelShape, VideoModel
from ..engine.pipeline import pick_device
from .train_unet import MOTION_BUCKET, NOISE_AUGMENTATION, HeldOut, Latents, denoising_loss, widen_input
from .training import Run, recipe_arguments

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def widen(unet: UNetSpatioTemporalConditionModel) -> None:
    """Give `unet` the input channels of a guided model, in place; a guided one stays as it is."""
    channels = 3 * unet.config.out_channels + 1
    unet.conv_in.weight = nn.Parameter(widen_input(unet.conv_in.weight.data, channels))
    unet.conv_in.in_channels = channels
    unet.register_to_config(in_channels=channels)


def adapted_layers(unet: nn.Module) -> list[str]:
    """The linear layers that get a LoRA: those of both of the engine's adapters, and the spatial feed-forward."""
    names = [name for adapter in ADAPTERS for name in target_names(unet, adapter)]
    for name, module in unet.named_modules():
        parts = name.split(".")
        if isinstance(module, nn.Linear) and "transformer_blocks" in parts and "ff" in parts:
            names.append(name)
    return names


class GuidedSVD:
    """A model directory with a wide input and fresh adapters, as a `Prior` for `denoising_loss`."""

    def __init__(self, folder: Path, rank: int, *, device: torch.device, dtype: torch.dtype) -> None:
        """Base weights in `dtype`, what trains in fp32. Raises ModelError: `folder` is no such model."""
        self.model = VideoModel(folder, device=device, dtype=dtype)
        self.model.vae.to("cpu")  # only its scaling factor is needed
        self.model.shape = replace(self.model.shape, guided=True)
        self.unet = self.model.unet
        widen(self.unet)
        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=adapted_layers(self.unet))
        inject_adapter_in_model(lora, self.unet)
        trained = {}
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_(name.startswith("conv_in.") or ".lora_" in name)
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
                trained[name.replace(".", "/")] = parameter  # a module's parameter may have no dot in its name
        self.trained = nn.ParameterDict(trained)
        """What a checkpoint holds: the same parameters as in the UNet, not copies."""

    def precision(self) -> AbstractContextManager:
        """The products of the model's own precision, whatever the caller's are."""
        return torch.autocast(self.model.device.type, self.model.dtype, enabled=self.model.dtype != torch.float32)

    def token(self, images: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 -> [B, 1, D]"""
        with self.precision():
            return self.model.embed(images.permute(0, 3, 1, 2).float() / 255)

    def __call__(
        self, noisy: Tensor, sigma: Tensor, prompt: Tensor, token: Tensor, fps: Tensor, guide: Tensor
    ) -> Tensor:
        """F [B, T, C, h, w] as `VideoPrior` gives it, by the very call that the engine samples with."""
        ids = noisy.new_tensor([0.0, MOTION_BUCKET, NOISE_AUGMENTATION]).repeat(len(noisy), 1)
        ids[:, 0] = fps - 1
        with self.precision():
            return self.model.predict(noisy, sigma, prompt, token, ids, guide[:, :, :-1], guide[:, :, -1])

    def merge(self) -> None:
        """Add the adapters to the weights they sit on and take them out, in place."""
        for name, module in list(self.unet.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge(safe_merge=True)
                self.unet.set_submodule(name, module.get_base_layer())


def check_latents(latents: Latents, shape: ModelShape) -> int:
    """Frames of the shortest clip. Raises ValueError: these latents are not this model's."""
    cells = shape.multiple // shape.vae_scale
    for channels, *extent in latents.by_shape:
        height, width = (min(sides) for sides in zip(extent, latents.crop or extent, strict=True))
        if channels != shape.latent_channels:
            raise ValueError(
                f"--latents have {channels} channels, the model's have {shape.latent_channels}: "
                "encode the clips with recapture.priors.latents --vae MODEL"
            )
        if height % cells or width % cells:
            raise ValueError(
                f"windows of {height}x{width} latent cells do not fit the model: give latents.py --sizes in "
                f"multiples of {shape.multiple} pixels, and --crop in multiples of {cells} cells"
            )
    return min(len(clip["latents"]) for clips in latents.by_shape.values() for clip in clips)


def check_start(run: Path, folder: Path, rank: int) -> None:
    """Notes what a new run starts from. Raises ValueError: the run was started from other weights or another rank."""
    start, note = {"rank": rank, "unet": weights_digest(folder, ("unet",))}, run / "start.json"
    if note.exists() and json.loads(note.read_text()) != start:
        raise ValueError(f"--run {run} was started with another --model or --rank; give them, or another --run")
    run.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(start))


def train(args: argparse.Namespace, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Brings the run `args.run` to `args.steps`, from where it stands."""
    torch.manual_seed(args.seed)
    guided = GuidedSVD(folder, args.rank, device=device, dtype=dtype)
    if args.checkpointing:
        guided.unet.enable_gradient_checkpointing()
    splits = [args.latents / "train"]
    if any((args.latents / "held_out").glob("pair*")):
        splits.append(args.latents / "held_out")
    pairs = [Latents(split, guided.model.scaling, args.seed, args.crop, pairs_only=True) for split in splits]
    shortest = min(check_latents(latents, guided.model.shape) for latents in pairs)
    frames = min(guided.model.shape.frames, shortest) if args.frames is None else args.frames
    if not 2 <= frames <= shortest:
        raise ValueError(f"windows of {frames} frames: --frames takes 2 to {shortest}, which the shortest clip has")
    held_out = HeldOut(pairs[1], frames) if len(pairs) > 1 else None
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    run = Run(guided.trained, args.run, lr=args.lr, steps=args.steps, decay=0.998, scaler=scaler)
    losses: dict[str, list[float]] = defaultdict(list)
    while run.step < args.steps:
        # Every step draws from its own seed, so that a resumed run continues bit for bit.
        torch.manual_seed((args.seed << 32) + run.step)
        pairs[0].rng = np.random.default_rng([args.seed, run.step])
        bypass = pairs[0].rng.random() < args.image_share
        # As one-frame clips all but the first, which is what the image prompt shows.
        batch = pairs[0].draw(args.batch, frames - 1 if bypass else frames, bypass).to(device)
        sigma = training_sigmas(len(batch.clean), mean=0.7, std=1.6).to(device)
        drop, blind = (torch.rand(2, len(sigma)) < 0.1).to(device)
        # Held over the backward pass: checkpointing runs the blocks once more there.
        with temporal_bypass(guided.unet) if bypass else nullcontext():
            loss = denoising_loss(guided, batch, sigma, drop, blind).mean()
            run.update(loss)
        losses["image" if bypass else "video"].append(loss.item())
        if run.step % args.log_every == 0 or run.step == args.steps:
            row = {kind: np.mean(losses[kind]) if losses[kind] else np.nan for kind in ("image", "video")}
            if held_out is not None:
                with run.averaged():
                    row["held_out"] = held_out(guided)
            run.log(**row)
            losses.clear()
        if run.step % args.save_every == 0 or run.step == args.steps:
            run.save()


def export(folder: Path, run: Path, rank: int, out: Path) -> None:
    """Write the model directory `out`: `folder` with a wide UNet, the averaged adapters of `run` merged into it.

    Merged in fp32 whatever was trained in, and stored in the precision of the start's own file.
    """
    with safe_open(max((folder / "unet").glob("*.safetensors")), "pt") as file:
        stored = file.get_tensor(next(iter(file.keys()))).dtype
    guided = GuidedSVD(folder, rank, device=torch.device("cpu"), dtype=torch.float32)
    guided.trained.load_state_dict(torch.load(run / "checkpoint.pt", weights_only=True, map_location="cpu")["average"])
    guided.merge()
    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    guided.unet.register_to_config(_name_or_path="")  # where the start lay is nobody else's concern
    nn.Module.to(guided.unet, stored).save_pretrained(aside / "unet")  # diffusers' own `to` warns of nothing at all
    for part in COMPONENTS:
        if part != "unet":
            shutil.copytree(folder / part, aside / part)
    for file in (folder / "model_index.json", *folder.glob("LICENSE*")):
        if file.is_file():
            shutil.copy(file, aside)
    os.replace(aside, out)


def main() -> None:
    parser = recipe_arguments(__doc__.splitlines()[0], steps=4000, lr=1e-4, batch=1)
    parser.add_argument("--model", required=True, help="directory in the layout of StableVideoDiffusionPipeline")
    parser.add_argument("--latents", type=Path, required=True, help="folder that latents.py wrote with its VAE")
    parser.add_argument("--out", type=Path, required=True, help="the guided model's directory, not there yet")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--frames", type=int, help="frames of a window; default: the model's, or the clips' if fewer")
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), help="train on windows of this many cells")
    parser.add_argument("--image-share", type=float, default=0.25, help="share of steps on single frames")
    parser.add_argument("--log-every", type=int, default=200, help="steps between rows of the curve")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["auto", *PRECISIONS], default="auto", help="half on a GPU by default")
    parser.add_argument("--checkpointing", action="store_true", help="less memory: activations are computed twice")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if args.out.exists():
        raise ValueError(f"--out {args.out} exists; give a new directory")
    if args.rank < 1:
        raise ValueError(f"--rank {args.rank}: give 1 or more")
    torch.set_num_threads(args.threads)
    device, (_, folder) = pick_device(args.device), find_model(args.model)
    dtype = PRECISIONS.get(args.precision, torch.float32)
    if args.precision == "auto" and device.type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    check_start(args.run, folder, args.rank)
    train(args, folder, device, dtype)
    export(folder, args.run, args.rank, args.out)


if __name__ == "__main__":
    main()
