"""Encodes every training clip once with the trained VAE, so that the UNet trains from latents alone.

    python -m recapture.priors.latents --data DIR --vae DIR/runs/vae --out DIR/latents --split train
    python -m recapture.priors.latents --data DIR --vae MODEL --sizes 576x1024 --out DIR/latents-svd

The VAE is the one that train_vae.py trained, or that of any model directory in Stable Video Diffusion's layout.
Writes one safetensors file a clip, in alternating shapes: `latents` [T, C, h, w] (unscaled `mode()`), `prompt` [C, h, w]
(of the first frame plus 0.02 noise), `image` [224, 224, 3] uint8 (for the image encoder), `fps`. A clip that was also
filmed from a second path gives that view instead, and with it what the engine would know of it: `anchor` [T, C, h, w]
(hole-filled) and `mask` [T, h, w] (latent mask). Existing files are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..engine.anchor.render import to_tensor
from ..engine.cameras import CameraPath
from ..engine.diffusion.encoding import working_anchor
from ..engine.models.video import load_network
from ..engine.pipeline import pick_device
from ..kernels.latent_mask import latent_mask
from ..kernels.splat import splat
from .frames import ClipFolder, photographs, recolor, size_px
from .render import FRAMES
from .train_vae import build_vae, without_full_resolution
from .training import mixed_precision

SIZES_PX = ((192, 320), (160, 384))
"""Heights and widths that the embedded model trains at; equal areas, multiples of 32."""
PAIR_SIZES_PX = ((192, 288), (192, 320), (160, 352))
"""The same for pairs; the first shows whole frames."""
NOISE_AUGMENTATION = 0.02
PROMPT_PX = 224
CHUNK_PX = 16 * 192 * 320
"""Pixels encoded at a time: a whole clip of the sizes above, single frames of Stable Video Diffusion's."""


def load_vae(run: Path) -> AutoencoderKLTemporalDecoder:
    """The averaged VAE of a training run, or that of a model directory, in evaluation mode."""
    if (run / "vae").is_dir():
        vae = load_network(AutoencoderKLTemporalDecoder, run / "vae", torch.float32)
        return vae.eval().requires_grad_(False)
    vae = build_vae()
    average = torch.load(run / "checkpoint.pt", weights_only=True)["average"]
    vae.load_state_dict(average)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKLTemporalDecoder, images: Tensor, chunk: int = 14) -> Tensor:
    """Unscaled `mode()` [N, C, h, w] of images [N, 3, H, W] in -1..1, on the CPU; `chunk` images at a time at most."""
    chunk = max(1, min(chunk, CHUNK_PX // (images.shape[2] * images.shape[3])))
    # A VAE says by `force_upcast` that half precision is too coarse for it, as Stable Video Diffusion's does.
    precision = nullcontext() if vae.config.force_upcast else mixed_precision()
    with precision, without_full_resolution(vae, decoder=False):
        return torch.cat(
            [vae.encode(piece.to(vae.device)).latent_dist.mode().float().cpu() for piece in images.split(chunk)]
        )


def cell_px(vae: AutoencoderKLTemporalDecoder) -> int:
    """Pixels a latent cell and axis."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a picture at another scale, mirrored or not."""

    scaled: tuple[int, int]
    """(h, w) of the whole picture at the scale of the window."""
    size: tuple[int, int]
    top: int
    left: int
    mirrored: bool

    @staticmethod
    def draw(rng: np.random.Generator, picture: tuple[int, int], size: tuple[int, int]) -> Window:
        """A random window of `size` (h, w), as large as fits into a picture of (h, w), mirrored half the time."""
        h, w = size
        scale = max(h / picture[0], w / picture[1])
        scaled = max(h, round(picture[0] * scale)), max(w, round(picture[1] * scale))
        top, left = int(rng.integers(scaled[0] - h + 1)), int(rng.integers(scaled[1] - w + 1))
        return Window(scaled, size, top, left, bool(rng.random() < 0.5))

    def cut(self, clip: np.ndarray) -> np.ndarray:
        """The window of frames [T, H, W, ...] that have the scale of `scaled`."""
        clip = clip[:, self.top : self.top + self.size[0], self.left : self.left + self.size[1]]
        return clip[:, :, ::-1] if self.mirrored else clip

    def scale(self, clip: np.ndarray) -> np.ndarray:
        """Frames [T, H, W, 3] resized to `scaled`."""
        if clip.shape[1:3] == self.scaled:
            return clip
        shape = self.scaled[::-1]
        return np.stack([cv2.resize(np.ascontiguousarray(f), shape, interpolation=cv2.INTER_AREA) for f in clip])


def fit(rng: np.random.Generator, clip: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A random window of `size` (h, w) of the clip [T, H, W, 3]."""
    window = Window.draw(rng, clip.shape[1:3], size)
    return window.cut(window.scale(clip))


def drawn_anchor(rng: np.random.Generator, clips: ClipFolder, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The clip as its second path sees it by its depth: color uint8 [T, H, W, 3] and mask bool [T, H, W].

    The depth of one clip in three is bent a little, as an estimate's would be.
    """
    info, rgb, depth = clips.info(name), np.asarray(clips.rgb(name)), clips.depth(name).astype(np.float32)
    path = CameraPath.from_json(json.dumps(info["view"]))
    count, height, width = depth.shape
    if rng.random() < 1 / 3:
        bend = cv2.resize(
            rng.normal(0, 0.05, (4, 6)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
        depth = depth * np.exp(bend)
    K_px, K2_px = torch.from_numpy(clips.K_px(name)).expand(count, 3, 3), torch.from_numpy(path.K_px.copy())
    w2c = torch.from_numpy(path.w2c.copy())
    drawn = splat(to_tensor(rgb), torch.from_numpy(depth), K_px, w2c, K2_px, (height, width))
    color = (drawn.color.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return color, drawn.mask.numpy()


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


def write(
    vae: AutoencoderKLTemporalDecoder,
    clip: np.ndarray,
    fps: int,
    path: Path,
    rng: np.random.Generator,
    anchor: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Encodes `clip` [T, h, w, 3] uint8 to `path`, recolored half the time.

    Args:
        anchor: hole-filled frames, float [T, h, w, 3] in 0..1, and which pixels of them are real, bool [T, h, w].
    """
    count = len(clip)
    images = clip.astype(np.float32) / 255
    if anchor is not None:
        images = np.concatenate([images, anchor[0]])
    images = recolor(rng, images, 0.7) if rng.random() < 0.5 else images
    first = cv2.resize(images[0], (PROMPT_PX, PROMPT_PX), interpolation=cv2.INTER_AREA)
    frames = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2) * 2 - 1
    noise = torch.from_numpy(rng.standard_normal(frames[:1].shape).astype(np.float32))
    latents = encode(vae, torch.cat([frames, frames[:1] + NOISE_AUGMENTATION * noise]), chunk=count + 1).half()
    tensors = {"latents": latents[:count].contiguous(), "prompt": latents[-1].contiguous(), "fps": torch.tensor(fps)}
    tensors["image"] = torch.from_numpy((first * 255).astype(np.uint8))
    if anchor is not None:
        tensors["anchor"] = latents[count:-1].contiguous()
        tensors["mask"] = latent_mask(torch.from_numpy(anchor[1].copy()), (cell_px(vae),) * 2).byte()
    aside = path.with_suffix(".partial")
    save_file(tensors, aside)
    os.replace(aside, path)


def write_pair(
    vae: AutoencoderKLTemporalDecoder, clips: ClipFolder, name: str, size: tuple[int, int], path: Path
) -> None:
    """Encodes a clip's second view and its anchor."""
    rng = np.random.default_rng([int(name), 2])
    view = np.asarray(clips.view(name))
    window = Window.draw(rng, view.shape[1:3], size)
    filled, real = working_anchor(*drawn_anchor(rng, clips, name), window.scaled)
    anchor = window.cut(filled.permute(0, 2, 3, 1).numpy()), window.cut(real.numpy())
    write(vae, window.cut(window.scale(view)), clips.info(name)["fps"], path, rng, anchor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True, help="run folder of train_vae.py, or a model directory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=["train", "held_out"], default="train")
    parser.add_argument("--sizes", type=size_px, nargs="+", metavar="HxW", help="pixels; default: the embedded model's")
    parser.add_argument("--photo-clips", type=int, default=40, help="clips made by moving a window over a photograph")
    parser.add_argument("--part", type=int, default=0, help="this command's share of the clips, of --parts")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)
    vae, clips, photos = load_vae(args.vae), ClipFolder(args.data, args.split), photographs(args.data, args.split)
    sizes, pair_sizes = (args.sizes, args.sizes) if args.sizes else (SIZES_PX, PAIR_SIZES_PX)
    for size in sizes:
        if any(side < 1 or side % cell_px(vae) for side in size):
            raise ValueError(f"--sizes {size[0]}x{size[1]}: this VAE needs multiples of {cell_px(vae)} pixels")
    vae.to(pick_device(args.device))
    folder = args.out / args.split
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in list(enumerate(clips.names))[args.part :: args.parts]:
        if clips.has_view(name):
            size = pair_sizes[int(name) % len(pair_sizes)]
            path = folder / f"pair{name}-{size[0]}x{size[1]}.safetensors"
            if not path.exists():
                write_pair(vae, clips, name, size, path)
            continue
        size = sizes[index % len(sizes)]
        path = folder / f"{name}-{size[0]}x{size[1]}.safetensors"
        if not path.exists():
            rng = np.random.default_rng([index, 0])
            write(vae, fit(rng, np.asarray(clips.rgb(name)), size), clips.info(name)["fps"], path, rng)
    for index in range(args.part, args.photo_clips if photos else 0, args.parts):
        size = sizes[index % len(sizes)]
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
