"""Judges a depth directory by one line: held-out renders, scenes with true depth, real frames where only relations are known.

    python -m recapture.priors.rulers --weights DIR/export --data DIR --scenes SCENES --points POINTS \\
      --clips bedroom.mp4 dog.mp4 bikes.mp4 --out priors/results/depth_rulers.csv

A file of POINTS names a clip, a frame, and points in percent of width and height: `same`, of one upright thing at one
distance; `nearer`, pairs whose first is nearer; `plane`, of one flat surface. Without true depth that shows whether
people lean, walls bend and orders hold.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F

from ..engine.geometry.depth_models import EmbeddedDepth, network_size
from ..engine.geometry.steady import SKY
from ..engine.geometry.structure import structured
from .evaluate import depth_errors, kubric_frames, to_tensor
from .frames import ClipFolder

UPRIGHT_SPREAD, NEARER_STEP = 0.2, 0.05
EDGE_WIDTH_PX, EDGE_WINDOW_PX, EDGE_GAP = 640, 15, 0.1
Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Frame [H, W, 3] uint8 to log depth and where it is sky, both [h, w]."""


@torch.no_grad()
def predict_once(model: EmbeddedDepth, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the network says of a frame at the area that it was trained at."""
    size = network_size(frame.shape[1], frame.shape[0], area=model.network.train_area, multiple=32)
    prediction = model.network(F.interpolate(to_tensor(frame[None]), size=size, mode="bilinear", antialias=True))
    return prediction.log_depth[0].numpy(), prediction.sky_logit[0].numpy() > 0


def predict_averaged(model: EmbeddedDepth, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the engine takes: the mean over several areas."""
    log_depth, sky_logit = model.averaged(to_tensor(frame[None]))
    return log_depth[0].numpy(), sky_logit[0].numpy() > 0


def predict_structured(model: EmbeddedDepth, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same with borders made steps, surfaces flat and upright things upright, as a single frame allows."""
    log_depth, sky = predict_averaged(model, frame)
    picture = cv2.resize(frame, log_depth.shape[::-1], interpolation=cv2.INTER_AREA)
    log_depth = structured(picture, np.where(sky, SKY, log_depth).astype(np.float32))
    return log_depth, log_depth >= SKY


COLUMNS = (
    "weights", "predictor", "spread", "upright", "of", "orders", "of_orders", "plane", "in_between"
)  # fmt: skip
WAYS = {"one size": predict_once, "averaged": predict_averaged, "structured": predict_structured}


def at(log_depth: np.ndarray, point: list[float]) -> float:
    """Median of 3x3 pixels at a point in percent of width and height; the sky counts as very far."""
    h, w = log_depth.shape
    x, y = min(w - 1, int(point[0] / 100 * w)), min(h - 1, int(point[1] / 100 * h))
    return float(np.minimum(np.median(log_depth[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]), 14.0))


def off_plane(log_depth: np.ndarray, points: list[list[float]]) -> float:
    """Standard deviation of log depth about the plane that fits best: inverse depth affine in the picture."""
    inverse = np.exp([-at(log_depth, point) for point in points])
    rows = np.column_stack([np.array(points) / 100, np.ones(len(points))]) / inverse[:, None]
    plane, *_ = np.linalg.lstsq(rows, np.ones(len(points)), rcond=None)
    return float(np.log(np.maximum(rows @ plane, 1e-6)).std())


def in_between(log_depth: np.ndarray, aspect: float) -> float:
    """Of the pixels beside a step of depth, the share that lies at neither side of it; `aspect` is height over width."""
    limited = np.minimum(log_depth, np.median(log_depth[np.isfinite(log_depth)]) + 4).astype(np.float32)
    limited = cv2.resize(limited, (EDGE_WIDTH_PX, round(EDGE_WIDTH_PX * aspect)), interpolation=cv2.INTER_NEAREST)
    window = np.ones((1, EDGE_WINDOW_PX), np.uint8)
    near = cv2.erode(limited, window)
    gap = cv2.dilate(limited, window) - near
    share = (limited - near) / np.maximum(gap, 1e-6)
    beside = gap > EDGE_GAP
    return float(((share > 0.2) & (share < 0.8) & beside).sum() / max(beside.sum(), 1))


def point_figures(predict: Predict, frames: list[tuple[dict, np.ndarray]]) -> dict[str, float]:
    """Figures over frames with relations: spread of upright things, orders held, distance from planes, step width."""
    spreads, steps, planes, between = [], [], [], []
    for relations, frame in frames:
        log_depth, sky = predict(frame)
        log_depth = np.where(sky, np.inf, log_depth)
        for group in relations["same"]:
            values = [at(log_depth, point) for point in group]
            spreads.append(max(values) - min(values))
        steps += [at(log_depth, far) - at(log_depth, near) for near, far in relations["nearer"]]
        planes += [off_plane(log_depth, group) for group in relations.get("plane", [])]
        between.append(in_between(log_depth, frame.shape[0] / frame.shape[1]))
    return {
        "spread": np.mean(spreads),
        "upright": sum(s < UPRIGHT_SPREAD for s in spreads),
        "of": len(spreads),
        "orders": sum(s > NEARER_STEP for s in steps),
        "of_orders": len(steps),
        "plane": np.mean(planes),
        "in_between": np.mean(between),
    }


def true_depth_errors(predict: Predict, frames: np.ndarray, depths: np.ndarray) -> float:
    """Mean abs-rel of surfaces after one scale per frame."""
    errors = []
    for frame, depth in zip(frames, depths, strict=True):
        log_depth = cv2.resize(predict(frame)[0], depth.shape[::-1], interpolation=cv2.INTER_NEAREST)
        errors.append(depth_errors(log_depth, depth)[0])
    return float(np.mean(errors))


def video_frame(path: Path, index: int) -> np.ndarray:
    """One frame [H, W, 3] uint8."""
    with av.open(str(path)) as container:
        for k, frame in enumerate(container.decode(video=0)):
            if k == index:
                return frame.to_ndarray(format="rgb24")
    raise ValueError(f"{path} has no frame {index}")


def point_frames(points: Path, clips: list[Path]) -> list[tuple[dict, np.ndarray]]:
    """The relations of each file in `points` with their frame."""
    by_name = {path.name: path for path in clips}
    relations = [json.loads(path.read_text()) for path in sorted(points.glob("*.json"))]
    return [(r, video_frame(by_name[r["clip"].split()[0]], r["frame"])) for r in relations]


def still_frames(data: Path, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One held-out still with its depth of each of the first `count` places."""
    stills = ClipFolder(data, "held_out", "stills")
    names = stills.names[:count]
    return [stills.rgb(name)[0] for name in names], [stills.depth(name)[0].astype(np.float32) for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, nargs="+", required=True, help="depth directories, one row or two each")
    parser.add_argument("--data", type=Path, help="folder with held-out clips and stills")
    parser.add_argument("--scenes", type=Path, help="folder of scenes with true depth (scene_N/source)")
    parser.add_argument("--points", type=Path, help="folder of relations, and --clips the videos that they name")
    parser.add_argument("--clips", type=Path, nargs="*", default=[])
    parser.add_argument("--count", type=int, default=24, help="held-out clips and stills")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV file that rows are added to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    truths = {}
    if args.data is not None:
        clips = ClipFolder(args.data, "held_out")
        names = clips.names[:: max(1, len(clips.names) // args.count)]
        truths["renders"] = [clips.rgb(n)[7] for n in names], [clips.depth(n)[7].astype(np.float32) for n in names]
        truths["stills"] = still_frames(args.data, args.count)
    if args.scenes is not None:
        truths["scenes"] = kubric_frames(args.scenes)
    frames = point_frames(args.points, args.clips) if args.points is not None else []
    for weights in args.weights:
        model = EmbeddedDepth(weights, torch.device("cpu"))
        for name, way in WAYS.items():
            predict = partial(way, model)
            row = {"weights": str(weights), "predictor": name}
            # Structure gives the sky no depth, which true depth of a backdrop would count as an error.
            judged = {} if way is predict_structured else truths
            row |= {f"absrel_{truth}": true_depth_errors(predict, *judged[truth]) for truth in judged}
            row |= point_figures(predict, frames) if frames else {}
            row = {k: round(float(v), 4) if isinstance(v, float | np.floating) else v for k, v in row.items()}
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            if args.out is not None:
                new = not args.out.exists()
                with args.out.open("a", newline="") as file:
                    writer = csv.DictWriter(file, fieldnames=[*COLUMNS, *(f"absrel_{truth}" for truth in truths)])
                    if new:
                        writer.writeheader()
                    writer.writerow(row)


if __name__ == "__main__":
    main()
