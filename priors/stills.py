"""Renders still pictures with depth, through any lens: game tracks, rooms, yards, moments of the clips' scenes.

    python -m recapture.priors.stills --data DIR --split train --places 1200

Files as those of `render.py`, in DIR/stills/SPLIT: the frames of `NNNN.rgb.npy` are views of one place in no order, and
`tan_x` in the JSON is a list. Existing places are kept, so a rerun continues.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np

from .frames import size_px
from .render import usable

SIZE_PX = (384, 576)
KINDS = ("world", "room", "yard", "floating", "indoor", "outdoor", "level", "street")
SHARES = (0.3, 0.2, 0.15, 0.15, 0.05, 0.03, 0.05, 0.07)


def render_place(rasterizer, place) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """rgb [V, H, W, 3] uint8, depth [V, H, W] float32 and tan_x of the views worth keeping, V may be 0."""
    rasterizer.load(place.objects, place.sky)
    kept = []
    for view in place.views:
        rgb, depth = rasterizer.draw(place.models, view.c2w, view.tan_x, view.lighting, view.sky_turn)
        finite = depth[np.isfinite(depth)]
        if usable(rgb[None], depth[None]) and np.log(finite).std() > 0.12:
            kept.append((rgb, depth, round(view.tan_x, 4)))
    if not kept:
        return np.zeros((0, 1, 1, 3), np.uint8), np.zeros((0, 1, 1), np.float32), []
    rgb, depth, lenses = zip(*kept, strict=True)
    return np.stack(rgb), np.stack(depth), list(lenses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", choices=["train", "held_out"], default="train")
    parser.add_argument("--places", type=int, default=1200)
    parser.add_argument("--first", type=int, default=0, help="index to start from")
    parser.add_argument("--views", type=int, default=2, help="pictures taken at each place, unusable ones left out")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="of equal chance; without, as the recipe mixes them")
    parser.add_argument("--size", type=size_px, default=SIZE_PX, metavar="HxW")
    parser.add_argument("--part", type=int, default=0, help="this process draws places with index %% parts == part")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # The software rasterizer would start a thread a core in every process.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    from .rasterizer import Rasterizer
    from .rooms import floating_place, room_place, yard_place
    from .scenes import Assets, indoor_scene, level_scene, outdoor_scene
    from .streets import street_scene
    from .views import moments, world_place

    places = {"world": world_place, "room": room_place, "yard": yard_place, "floating": floating_place}
    scenes = {"indoor": indoor_scene, "outdoor": outdoor_scene, "level": level_scene, "street": street_scene}
    assets = Assets(args.data / "assets", args.split)
    out = args.data / "stills" / args.split
    out.mkdir(parents=True, exist_ok=True)
    height, width = args.size
    rasterizer = Rasterizer(width, height)
    for index in range(args.first + args.part, args.places, args.parts):
        if (out / f"{index:05d}.json").exists():
            continue
        for attempt in range(20):
            rng = np.random.default_rng([args.seed, args.split == "held_out", index, attempt, 1])
            kind = str(rng.choice(args.kinds) if args.kinds else rng.choice(KINDS, p=SHARES))
            if kind in places:
                place = places[kind](rng, assets, args.views)
            else:
                place = moments(rng, scenes[kind](rng, assets), args.views)
            rgb, depth, lenses = render_place(rasterizer, place)
            if len(rgb):
                break
        np.save(out / f"{index:05d}.rgb.npy", rgb)
        np.save(out / f"{index:05d}.depth.npy", depth.astype(np.float16))
        (out / f"{index:05d}.json").write_text(json.dumps({"kind": kind, "tan_x": lenses}))
        print(index, kind, attempt, len(rgb), flush=True)


if __name__ == "__main__":
    main()
