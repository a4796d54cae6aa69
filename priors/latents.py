"""Encodes every training clip once with the trained VAE, so that the UNet trains from latents alone.

    python -m recapture.priors.latents --data DIR --vae DIR/runs/vae --out DIR/latents --split train

Writes one safetensors file a clip, in alternating shapes: `latents` [T, C, h, w] (unscaled `mode()`), `prompt` [C, h, w] (of the
first frame plus 0.02 noise), `image` [224, 224, 3] uint8 (for the image encoder), `fps`. Existing files are kept.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from safetensors.torch import load_file, save_file
from torch import Tensor

from .frames import ClipFolder, photographs, recolor
from .render import FRAMES
from .train_vae import build_vae, without_full_resolution

SIZES_PX = ((192, 320), (160, 384))
"""Heights and widths trained at; equal areas, multiples of 32."""
NOISE_AUGMENTATION = 0.02
PROMPT_PX = 224


def load_vae(run: Path) -> AutoencoderKLTemporalDecoder:
    """The averaged VAE of a training run, in evaluation mode."""
    vae = build_vae()
    average = torch.load(run / "checkpoint.pt", weights_only=True)["average"]
    vae.load_state_dict(average)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKLTemporalDecoder, images: Tensor, chunk: int = 14) -> Tensor:
    """Unscaled `mode()` [N, C, h, w] of images [N, 3, H, W] in -1..1."""
    with torch.autocast("cpu", torch.bfloat16), without_full_resolution(vae, decoder=False):
        return torch.cat([vae.encode(piece).latent_dist.mode().float() for piece in images.split(chunk)])


def fit(rng: np.random.Generator, clip: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A window of `size` (h, w) of the clip [T, H, W, 3], as large as fits, mirrored half the time."""
    h, w = size
    scale = max(h / clip.shape[1], w / clip.shape[2])
    shape = (max(w, round(clip.shape[2] * scale)), max(h, round(clip.shape[1] * scale)))
    if scale != 1:
        clip = np.stack([cv2.resize(np.ascontiguousarray(f), shape, interpolation=cv2.INTER_AREA) for f in clip])
    top, left = rng.integers(clip.shape[1] - h + 1), rng.integers(clip.shape[2] - w + 1)
    clip = clip[:, top : top + h, left : left + w]
    return clip[:, :, ::-1] if rng.random() < 0.5 else clip


def camera_over_photograph(rng: np.random.Generator, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A clip [FRAMES, h, w, 3] of a window that slides and zooms over a photograph."""
    h, w = size
    limit = min(picture.shape[0] / h, picture.shape[1] / w)
    scales = np.linspace(*rng.uniform(0.5, 0.95, 2), FRAMES) * limit
    starts, ends = rng.random(2), rng.random(2)
    frames = []
    for k, scale in enumerate(scales):
        u = k / (FRAMES - 1)
        room = np.array([picture.shape[0] - h * scale, picture.shape[1] - w * scale])
        top, left = room * (starts * (1 - u) + ends * u)
        matrix = np.array([[scale, 0, left + 0.5 * scale - 0.5], [0, scale, top + 0.5 * scale - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frames.append(cv2.warpAffine(np.ascontiguousarray(picture), matrix, (w, h), flags=flags))
    return np.stack(frames)


def write(vae: AutoencoderKLTemporalDecoder, clip: np.ndarray, fps: int, path: Path, rng: np.random.Generator) -> None:
    """Encodes `clip` [T, h, w, 3] uint8 to `path`, recoloured half the time."""
    images = clip.astype(np.float32) / 255
    images = recolor(rng, images, 0.7) if rng.random() < 0.5 else images
    first = cv2.resize(images[0], (PROMPT_PX, PROMPT_PX), interpolation=cv2.INTER_AREA)
    frames = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2) * 2 - 1
    noise = torch.from_numpy(rng.standard_normal(frames[:1].shape).astype(np.float32))
    latents = encode(vae, torch.cat([frames, frames[:1] + NOISE_AUGMENTATION * noise]), chunk=len(frames) + 1)
    tensors = {
        "latents": latents[:-1].half().contiguous(),
        "prompt": latents[-1].half().contiguous(),
        "fps": torch.tensor(fps),
    }
    tensors["image"] = torch.from_numpy((first * 255).astype(np.uint8))
    aside = path.with_suffix(".partial")
    save_file(tensors, aside)
    os.replace(aside, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True, help="run folder of train_vae.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=["train", "held_out"], default="train")
    parser.add_argument("--photo-clips", type=int, default=40, help="clips made by moving a window over a photograph")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)
    vae, clips, photos = load_vae(args.vae), ClipFolder(args.data, args.split), photographs(args.data, args.split)
    folder = args.out / args.split
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(clips.names):
        size = SIZES_PX[index % len(SIZES_PX)]
        path = folder / f"{name}-{size[0]}x{size[1]}.safetensors"
        if not path.exists():
            rng = np.random.default_rng([index, 0])
            write(vae, fit(rng, np.asarray(clips.rgb(name)), size), clips.info(name)["fps"], path, rng)
    for index in range(args.photo_clips if photos else 0):
        size = SIZES_PX[index % len(SIZES_PX)]
        path = folder / f"photo{index:04d}-{size[0]}x{size[1]}.safetensors"
        if not path.exists():
            rng = np.random.default_rng([index, 1])
            clip = camera_over_photograph(rng, photos[rng.integers(len(photos))], size)
            write(vae, clip, int(rng.integers(8, 25)), path, rng)
    paths = sorted(folder.glob("*.safetensors"))
    spread = torch.stack([load_file(path)["latents"].float().std() for path in paths]).square().mean().sqrt()
    print(f"{len(paths)} files in {folder}; scaling factor {1 / float(spread):.4f}")


if __name__ == "__main__":
    main()
