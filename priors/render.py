"""Renders the training and held-out clips.

    python -m recapture.priors.render --data DIR --split train --clips 700 --second-view --part 0 --parts 2

Each clip is three files under DIR/clips/SPLIT: `NNNN.rgb.npy` uint8 [T, H, W, 3], `NNNN.depth.npy` float16 [T, H, W]
(planar, meters, inf = sky), `NNNN.json` (camera, kind, fps). With `--second-view` the same moments are also filmed from
a path relative to the clip's own camera (`NNNN.view.rgb.npy`, its camera in the JSON): what an anchor of the clip should
have looked like. Existing clips are kept, so a rerun continues.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np

from ..engine.cameras import CameraPath, SourceView, parse_camera
from .frames import size_px

FRAMES = 14
SIZE_PX = (256, 384)


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


OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
"""OpenCV camera axes to OpenGL's."""


def random_path(rng: np.random.Generator) -> str:
    """A camera expression: mostly arcs that rise or sink, some with a dolly or zoom, some trucks, cranes and spirals."""
    angle, height = rng.choice([-1, 1]) * rng.uniform(8, 80), rng.uniform(-12, 30)
    side, near = rng.choice([-1, 1]) * rng.uniform(0.08, 0.5), rng.uniform(-0.35, 0.3)
    ease = rng.choice(["in_out", "linear"])
    arc = f"arc({angle:.1f}deg, elevation={height:.1f}deg, ease={ease})"
    return str(
        rng.choice(
            [
                arc,
                f"{arc} + dolly({near:.2f}, ease={ease})",
                f"{arc} + zoom({rng.uniform(0.75, 1.3):.2f})",
                f"truck({side:.2f}, ease={ease})",
                f"truck({side:.2f}, look_at=subject)",
                f"dolly({near:.2f})",
                f"crane({abs(side):.2f})",
                f"spiral({abs(side) / 2:.2f}, turns=1)",
                f"pan({angle / 4:.1f}deg)",
            ],
            p=[0.4, 0.2, 0.08, 0.06, 0.08, 0.04, 0.06, 0.05, 0.03],
        )
    )


def path_from_clip(text: str, depth: np.ndarray, tan_x: float, fps: float) -> CameraPath:
    """The camera expression for a clip with this depth [T, H, W] in meters."""
    count, height, width = depth.shape
    finite, middle = (
        depth[np.isfinite(depth)],
        depth[:, height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8],
    )
    middle = middle[np.isfinite(middle)]
    focal = width / 2 / tan_x
    view = SourceView(
        K_px=np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]),
        width=width,
        height=height,
        times_s=np.arange(count) / fps,
        median_depth=float(np.median(finite)),
        subject_depth=float(np.median(middle if middle.size else finite)),
    )
    return parse_camera(text).resolve(view)


def render_view(rasterizer, scene, c2w: np.ndarray, path: CameraPath) -> tuple[np.ndarray, np.ndarray]:
    """rgb [T, H, W, 3] and depth [T, H, W] of the loaded scene from a path relative to its own camera."""
    frames, depths = [], []
    for k in range(FRAMES):
        models = [motion(k / scene.fps) for motion in scene.motions]
        pose = c2w[k] @ OPENGL @ path.c2w[k] @ OPENGL
        tan_x = path.width / 2 / path.K_px[k, 0, 0]
        rgb, depth = rasterizer.draw(models, pose, tan_x, scene.lighting, scene.sky_turn)
        frames.append(rgb)
        depths.append(depth)
    return np.stack(frames), np.stack(depths)


def usable(rgb: np.ndarray, depth: np.ndarray) -> bool:
    """False for clips with the camera inside an object, nothing but sky, or hardly any contrast."""
    nearest = np.percentile(depth, 5, axis=(1, 2), method="lower")  # never between two infinities
    sky = np.isinf(depth).mean()
    return bool(nearest.min() > 0.35 and sky < 0.8 and rgb[::4].std(axis=(1, 2)).mean() > 18)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", choices=["train", "held_out"], default="train")
    parser.add_argument("--clips", type=int, default=700)
    parser.add_argument("--first", type=int, default=0, help="index to start from")
    parser.add_argument(
        "--kinds", nargs="+", default=["indoor", "outdoor"], choices=["indoor", "outdoor", "level", "street"]
    )
    parser.add_argument("--size", type=size_px, default=SIZE_PX, metavar="HxW", help="pixels of new clips")
    parser.add_argument("--second-view", action="store_true", help="film each clip from a second path too")
    parser.add_argument("--part", type=int, default=0, help="this process draws clips with index %% parts == part")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # The software rasterizer would start a thread a core in every process.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    from .rasterizer import Rasterizer
    from .scenes import Assets, indoor_scene, level_scene, outdoor_scene
    from .streets import street_scene

    builders = {"indoor": indoor_scene, "outdoor": outdoor_scene, "level": level_scene, "street": street_scene}
    assets = Assets(args.data / "assets", args.split)
    out = args.data / "clips" / args.split
    out.mkdir(parents=True, exist_ok=True)
    height, width = args.size
    rasterizer = Rasterizer(width, height)
    for index in range(args.first + args.part, args.clips, args.parts):
        if (out / f"{index:04d}.json").exists():
            continue
        for attempt in range(20):
            rng = np.random.default_rng([args.seed, args.split == "held_out", index, attempt])
            scene = builders[rng.choice(args.kinds)](rng, assets)
            rgb, depth, c2w = render_clip(rasterizer, scene)
            if not usable(rgb, depth):
                continue
            if not args.second_view:
                break
            path = path_from_clip(random_path(rng), depth, scene.tan_x, scene.fps)
            view_rgb, view_depth = render_view(rasterizer, scene, c2w, path)
            if usable(view_rgb, view_depth):
                break
        np.save(out / f"{index:04d}.rgb.npy", rgb)
        np.save(out / f"{index:04d}.depth.npy", depth.astype(np.float16))
        record = {"kind": scene.kind, "fps": scene.fps, "tan_x": scene.tan_x, "c2w": c2w.round(5).tolist()}
        if args.second_view:
            np.save(out / f"{index:04d}.view.rgb.npy", view_rgb)
            record["view"] = json.loads(path.to_json())
        (out / f"{index:04d}.json").write_text(json.dumps(record))
        print(index, scene.kind, attempt, flush=True)


if __name__ == "__main__":
    main()
