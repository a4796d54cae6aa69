"""Encodes pairs of views for the multiview model: a moment as its own camera sees it, and as the second one does.

    python -m recapture.priors.two_views --data DIR --model engine/weights/tiny --out DIR/two_views --split train

One safetensors file a clip that was rendered with `--second-view`, whole frames: `source`, `target` and `anchor`
[T, C, h, w] (scaled latents), `mask` [T, h, w], `token` [T, 1, D] (of the source) and `rays` [2, T, 6, h, w]. Existing
files are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..engine.anchor.render import to_tensor
from ..engine.cameras import CameraPath
from ..engine.diffusion.encoding import to_working, working_anchor
from ..engine.models.multiview import ray_map
from ..engine.models.video import VideoModel
from ..kernels.latent_mask import latent_mask
from .frames import ClipFolder, recolor, size_px
from .latents import drawn_anchor, encode

SIZE_PX = (192, 288)
MOMENTS = slice(1, None, 2)
"""Frames of a clip that are taken: neighbors differ little, and at the first the two cameras are mostly one."""


@torch.no_grad()
def encode_pair(model: VideoModel, clips: ClipFolder, name: str, size: tuple[int, int]) -> dict[str, Tensor]:
    """The tensors of one clip; recolored half the time, all pictures alike."""
    rng = np.random.default_rng([int(name), 3])
    info, rgb, depth = clips.info(name), clips.rgb(name)[MOMENTS], clips.depth(name).astype(np.float32)
    path = CameraPath.from_json(json.dumps(info["view"]))
    filled, real = working_anchor(*(part[MOMENTS] for part in drawn_anchor(rng, clips, name)), size)
    pictures = [to_working(to_tensor(rgb), size), to_working(to_tensor(clips.view(name)[MOMENTS]), size), filled]
    count = len(rgb)
    images = torch.cat(pictures).clamp(0, 1)
    if rng.random() < 0.5:
        images = torch.from_numpy(recolor(rng, images.permute(0, 2, 3, 1).numpy(), 0.7)).permute(0, 3, 1, 2)
    latents = (encode(model.vae, images * 2 - 1) * model.scaling).half()
    height, width = rgb.shape[1:3]
    cells = latents.shape[-2:]
    unit = float(np.median(depth[np.isfinite(depth)]))
    given = ray_map(clips.K_px(name), np.eye(4), (height, width), cells, unit).expand(count, -1, -1, -1)
    asked = torch.stack(
        [
            ray_map(K, c2w, (path.height, path.width), cells, unit)
            for K, c2w in zip(path.K_px[MOMENTS], path.c2w[MOMENTS], strict=True)
        ]
    )
    cell = (model.shape.vae_scale,) * 2
    tensors = {
        "source": latents[:count],
        "target": latents[count : 2 * count],
        "anchor": latents[2 * count :],
        "mask": latent_mask(real, cell).byte(),
        "token": model.embed(images[:count]).half(),
        "rays": torch.stack([given, asked]).half(),
    }
    return {name: values.clone(memory_format=torch.contiguous_format) for name, values in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="directory whose VAE and image encoder are used")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=["train", "held_out"], default="train")
    parser.add_argument("--size", type=size_px, default=SIZE_PX, metavar="HxW")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)
    model, clips = (
        VideoModel(args.model, device=torch.device("cpu"), dtype=torch.float32),
        ClipFolder(args.data, args.split),
    )
    folder = args.out / args.split
    folder.mkdir(parents=True, exist_ok=True)
    for name in clips.names:
        path = folder / f"{name}.safetensors"
        if path.exists() or not clips.has_view(name):
            continue
        aside = path.with_suffix(".partial")
        save_file(encode_pair(model, clips, name, args.size), aside)
        os.replace(aside, path)
    print(f"{len(list(folder.glob('*.safetensors')))} files in {folder}")


class Pairs:
    """Every encoded pair of a split, in memory."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.clips = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
        if not self.clips:
            raise ValueError(f"no pairs in {folder}: run recapture.priors.two_views first")

    def draw(self, count: int) -> dict[str, Tensor]:
        """`count` moments of as many clips: source, target, anchor [B, C, h, w], mask, token, rays [B, 2, 6, h, w]."""
        chosen = []
        for clip in (self.clips[self.rng.integers(len(self.clips))] for _ in range(count)):
            t = int(self.rng.integers(len(clip["source"])))
            moment = {name: values[t] for name, values in clip.items() if name != "rays"}
            chosen.append(moment | {"rays": clip["rays"][:, t]})
        return {name: torch.stack([moment[name].float() for moment in chosen]) for name in chosen[0]}


if __name__ == "__main__":
    main()
