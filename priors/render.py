"""Renders the training and held-out clips.

    python -m recapture.priors.render --data DIR --split train --clips 700 --part 0 --parts 2

Each clip is three files under DIR/clips/SPLIT: `NNNN.rgb.npy` uint8 [T, H, W, 3], `NNNN.depth.npy` float16 [T, H, W]
(planar, metres, inf = sky), `NNNN.json` (camera, kind, fps). Existing clips are kept, so a rerun continues.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np

FRAMES = 14
WIDTH, HEIGHT = 384, 256


def render_clip(rasterizer, scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rgb [T, H, W, 3] uint8, depth [T, H, W] float32 and c2w [T, 4, 4] of a scene."""
    rasterizer.load(scene.objects, scene.sky)
    frames, depths, poses = [], [], []
    for k in range(FRAMES):
        models = [motion(k / scene.fps) for motion in scene.motions]
        c2w = scene.camera(k / (FRAMES - 1))
        rgb, depth = rasterizer.draw(models, c2w, scene.tan_x, scene.lighting, scene.sky_turn)
        frames.append(rgb)
        depths.append(depth)
        poses.append(c2w)
    return np.stack(frames), np.stack(depths), np.stack(poses)


def usable(rgb: np.ndarray, depth: np.ndarray) -> bool:
    """False for clips with the camera inside an object, nothing but sky, or hardly any contrast."""
    nearest = np.percentile(depth, 5, axis=(1, 2))
    sky = np.isinf(depth).mean()
    return bool(nearest.min() > 0.35 and sky < 0.8 and rgb[::4].std(axis=(1, 2)).mean() > 18)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", choices=["train", "held_out"], default="train")
    parser.add_argument("--clips", type=int, default=700)
    parser.add_argument("--first", type=int, default=0, help="index to start from")
    parser.add_argument("--kinds", nargs="+", default=["indoor", "outdoor"], choices=["indoor", "outdoor", "street"])
    parser.add_argument("--part", type=int, default=0, help="this process draws clips with index % parts == part")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # The software rasterizer would start a thread a core in every process.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    from .rasterizer import Rasterizer
    from .scenes import Assets, indoor_scene, outdoor_scene
    from .streets import street_scene

    builders = {"indoor": indoor_scene, "outdoor": outdoor_scene, "street": street_scene}
    assets = Assets(args.data / "assets", args.split)
    out = args.data / "clips" / args.split
    out.mkdir(parents=True, exist_ok=True)
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    for index in range(args.first + args.part, args.clips, args.parts):
        if (out / f"{index:04d}.json").exists():
            continue
        for attempt in range(20):
            rng = np.random.default_rng([args.seed, args.split == "held_out", index, attempt])
            scene = builders[rng.choice(args.kinds)](rng, assets)
            rgb, depth, c2w = render_clip(rasterizer, scene)
            if usable(rgb, depth):
                break
        np.save(out / f"{index:04d}.rgb.npy", rgb)
        np.save(out / f"{index:04d}.depth.npy", depth.astype(np.float16))
        record = {"kind": scene.kind, "fps": scene.fps, "tan_x": scene.tan_x, "c2w": c2w.round(5).tolist()}
        (out / f"{index:04d}.json").write_text(json.dumps(record))
        print(index, scene.kind, attempt, flush=True)


if __name__ == "__main__":
    main()
