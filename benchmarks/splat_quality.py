"""How well each footprint draws what the source shows: the table behind the splat's defaults.

    python -m recapture.benchmarks.splat_quality DATASET [--out ROWS.jsonl] [--every N]

DATASET is laid out like kubric4d. The anchor is drawn with true depth (and, for the flying pixels, with depth that
went through half the resolution, as a network's does) and compared with the truth, a frame at a time, means over frames:

    visible_covered  PSNR over pixels that the source shows and the anchor covers: what the footprint blurs
    visible          PSNR over all pixels that the source shows, holes filled after Telea: what its holes cost, too
    covered          PSNR over all that the anchor claims: false surfaces count
    coverage         share of the picture that is covered
    recall           share of what the source shows that is covered
    false            share of the picture that is covered though the source does not show it
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..evaluation.dataset import Shot, read_dataset
from ..kernels.splat import splat
from .timing import versions

VARIANTS: list[dict[str, Any]] = [
    {},
    {"footprint": "nearest"},
    {"footprint": "mesh"},
    *({"depth_tolerance": depth_tolerance} for depth_tolerance in (0.01, 0.02, 0.1)),
    *({"min_coverage": share} for share in (0.4, 0.5, 0.7)),
    *({"max_density": density} for density in (1, 3, 10)),
    *({"flying_pixel_threshold": jump} for jump in (0.0, 0.05, 0.2)),
    {"footprint": "nearest", "flying_pixel_threshold": 0.0},
    {"footprint": "mesh", "flying_pixel_threshold": 0.0},
    *({"depth": "smeared", "flying_pixel_threshold": jump} for jump in (0.0, 0.05, 0.1, 0.2)),
]
"""Options that differ from the defaults."""
FIELDS = ("visible_covered", "visible", "covered", "coverage", "recall", "false")


def smear(depth: np.ndarray) -> np.ndarray:
    """Depth [T, H, W] through half the resolution, linear in inverse depth: borders get depths that nothing is at."""
    height, width = depth.shape[1:]
    inverse = [cv2.resize(1 / z, (width // 2, height // 2), interpolation=cv2.INTER_AREA) for z in depth]
    with np.errstate(divide="ignore"):
        return np.stack([1 / cv2.resize(q, (width, height), interpolation=cv2.INTER_LINEAR) for q in inverse])


def measure(shot: Shot, times: Iterable[int], variant: dict[str, Any]) -> np.ndarray:
    """FIELDS of each frame of a shot, [len(times), 6]."""
    options = dict(variant)
    depth = smear(shot.depth) if options.pop("depth", "true") == "smeared" else shot.depth
    K_px = torch.from_numpy(shot.K_px)[None]
    found = []
    for t in times:
        frame = _tensor(shot.source[t])
        pose = torch.from_numpy(np.linalg.inv(shot.target_c2w[t]) @ shot.source_c2w[t])[None]
        drawn = splat(frame[None], torch.from_numpy(depth[t])[None], K_px, pose, K_px, depth.shape[1:], **options)
        found.append(_score(drawn.color[0], drawn.mask[0], _tensor(shot.truth[t]), shot.visible[t] & shot.known[t]))
    return np.array(found)


def _score(color: Tensor, mask: Tensor, truth: Tensor, seen: np.ndarray) -> list[float]:
    visible = torch.from_numpy(seen)
    picture = (color * 255).round().byte().permute(1, 2, 0).numpy()
    filled = _tensor(cv2.inpaint(picture, (~mask).byte().numpy(), 3, cv2.INPAINT_TELEA))
    return [
        _psnr_db(color, truth, visible & mask),
        _psnr_db(filled, truth, visible),
        _psnr_db(color, truth, mask),
        float(mask.float().mean()),
        float(mask[visible].float().mean()),
        float((mask & ~visible).float().mean()),
    ]


def _psnr_db(a: Tensor, b: Tensor, where: Tensor) -> float:
    error = (a - b).square().mean(0)[where]
    return float(-10 * torch.log10(error.mean().clamp(min=1e-9))) if error.numel() else float("nan")


def _tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("dataset", type=Path)
    arguments.add_argument("--out", type=Path, help="append the rows here, one JSON document a line")
    arguments.add_argument("--every", type=int, default=1, help="of the frames after the first, take each N-th")
    given = arguments.parse_args()
    scores: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)
    for entry in read_dataset(given.dataset):
        shot = entry.load()
        for index, variant in enumerate(VARIANTS):
            # The first frame of a path is the source's own view.
            scores[index, entry.kind].append(measure(shot, range(1, len(shot.source), given.every), variant))
    print(f"{'variant':42}{'path':10}" + "".join(f"{field:>16}" for field in FIELDS))
    rows = []
    for (index, kind), parts in sorted(scores.items()):
        means = np.nanmean(np.concatenate(parts), axis=0).round(3)
        name = " ".join(f"{key}={value}" for key, value in VARIANTS[index].items()) or "defaults"
        print(f"{name:42}{kind:10}" + "".join(f"{value:16.3f}" for value in means))
        rows.append(
            {
                "table": "splat_quality",
                "dataset": given.dataset.name,
                "path": kind,
                "variant": VARIANTS[index],
                "frames": sum(map(len, parts)),
                **dict(zip(FIELDS, means.tolist(), strict=True)),
                "versions": versions(),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        with given.out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
