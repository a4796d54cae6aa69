"""Measures the multiview model on held-out second views, beside trivial fills of what the points leave open.

    python -m recapture.priors.evaluate_multiview --data DIR --out priors/results/multiview.json

Points are drawn with true depth. PSNR of the holes is of their pixels alone, a mean over clips in dB; so is that of the
pixels that are confident, and of those that are not.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..engine.anchor.render import draw_anchor, to_tensor
from ..engine.cameras import CameraPath
from ..engine.imaging.push_pull import push_pull
from ..engine.models.multiview import UNCERTAIN, DirectoryMultiview, NovelView, synthesize
from .evaluate import WEIGHTS, Row
from .frames import ClipFolder

MOMENT, LEAST_HOLES = 11, 0.1
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Asked:
    view: NovelView
    truth: Tensor
    """[3, h, w]"""


def asked(clips: ClipFolder, name: str, moments: range) -> list[Asked]:
    """What the engine would ask of the model for some frames of a clip, and what is true."""
    info, rgb, depth = clips.info(name), np.asarray(clips.rgb(name)), clips.depth(name).astype(np.float32)
    path = CameraPath.from_json(json.dumps(info["view"]))
    K_px = clips.K_px(name)
    drawn = draw_anchor(
        rgb,
        depth,
        moments,
        np.broadcast_to(K_px, (len(rgb), 3, 3)),
        path,
        plate=None,
        depth_tolerance=0.05,
        valid=None,
        device=CPU,
    )
    unit = float(np.median(depth[np.isfinite(depth)]))
    return [
        Asked(
            view=NovelView(
                source=to_tensor(rgb[t : t + 1])[0],
                source_K_px=K_px,
                c2w=path.c2w[t],
                K_px=path.K_px[t],
                unit=unit,
                points=to_tensor(drawn["color"][k : k + 1])[0],
                covered=torch.from_numpy(drawn["validity_mask"][k].copy()),
            ),
            truth=to_tensor(clips.view(name)[t : t + 1])[0],
        )
        for k, t in enumerate(moments)
    ]


def psnr(made: Tensor, truth: Tensor, where: Tensor) -> float:
    """In dB over the pixels [h, w] of pictures [3, h, w]; NaN where there are none."""
    return -10 * math.log10(float((made - truth)[:, where].square().mean())) if where.any() else math.nan


def fills(model: DirectoryMultiview, one: Asked) -> Iterator[tuple[str, Tensor]]:
    """Name and picture of each way to fill the holes."""
    view, covered = one.view, one.view.covered
    mean = view.points[:, covered].mean(1)[:, None, None] if covered.any() else torch.full((3, 1, 1), 0.5)
    yield "mean color", mean.expand_as(view.points)
    yield "push-pull", push_pull(view.points[None], covered[None])[0]
    blind = replace(view, points=torch.zeros_like(view.points), covered=torch.zeros_like(covered))
    yield "model, rays alone", model(blind, 0)
    first, second = model(view, 0), model(view, 1)
    yield "model, rays and points", first
    yield "the same, mean of two seeds", (first + second) / 2
    own = model.steps, model.guidance
    for steps, guidance in ((4, 1.0), (8, 1.0), (own[0], 1.5), (own[0], 2.5)):
        model.steps, model.guidance = steps, guidance
        yield f"the same, {steps} steps, guidance {guidance}", model(view, 0)
    model.steps, model.guidance = own


def hole_rows(model: DirectoryMultiview, clips: ClipFolder, names: list[str]) -> list[Row]:
    scores: dict[str, list[float]] = defaultdict(list)
    uncertainties: list[tuple[Tensor, Tensor]] = []
    for name in names:
        one = asked(clips, name, range(MOMENT, MOMENT + 1))[0]
        holes = ~one.view.covered
        if holes.float().mean() < LEAST_HOLES:
            continue
        for fill, picture in fills(model, one):
            scores[fill].append(psnr(picture, one.truth, holes))
        picture, uncertainty = synthesize(model, one.view, 0)
        uncertainties.append((uncertainty[holes], (picture - one.truth).square().mean(0)[holes]))
    rows: list[Row] = [
        {"model": "multiview", "fill": fill, "psnr_holes_db": float(np.mean(values)), "clips": len(values)}
        for fill, values in scores.items()
    ]
    uncertainty, error = (torch.cat(parts) for parts in zip(*uncertainties, strict=True))
    for bound in (0.02, UNCERTAIN, 0.06, 0.1, 0.2):
        sure = uncertainty < bound
        rows.append(
            {
                "model": "multiview",
                "confident below": bound,
                "share of holes": float(sure.float().mean()),
                "psnr_confident_db": -10 * math.log10(max(float(error[sure].mean()), 1e-9)),
                "psnr_others_db": -10 * math.log10(max(float(error[~sure].mean()), 1e-9)),
            }
        )
    return rows


def flicker_rows(model: DirectoryMultiview, clips: ClipFolder, names: list[str]) -> list[Row]:
    """Mean change from frame to frame in the holes of both, levels of 255: with one noise for the clip, or one a frame."""
    changes: dict[str, list[float]] = defaultdict(list)
    for name in names:
        every = asked(clips, name, range(6, 12))
        for noise in ("one for the clip", "one a frame"):
            pictures = [model(each.view, 0 if noise == "one for the clip" else k) for k, each in enumerate(every)]
            changes[noise].append(_change(pictures, every))
        changes["truth"].append(_change([each.truth for each in every], every))
    return [
        {"model": "multiview", "noise": noise, "change_levels": float(np.mean(values)), "clips": len(values)}
        for noise, values in changes.items()
    ]


def _change(pictures: list[Tensor], every: list[Asked]) -> float:
    steps = []
    for k in range(1, len(pictures)):
        open_in_both = ~every[k].view.covered & ~every[k - 1].view.covered
        if open_in_both.any():
            steps.append(255 * float((pictures[k] - pictures[k - 1]).abs().mean(0)[open_in_both].mean()))
    return float(np.mean(steps)) if steps else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the rendered held-out clips")
    parser.add_argument("--weights", type=Path, default=WEIGHTS / "multiview")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    clips, model = ClipFolder(args.data, "held_out"), DirectoryMultiview(args.weights, CPU)
    names = [name for name in clips.names if clips.has_view(name)][: args.clips]
    rows = hole_rows(model, clips, names) + flicker_rows(model, clips, names[:4])
    rows = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
