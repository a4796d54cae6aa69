"""The points of a COLMAP model: how far the scene is away tells what its unit is."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from .strict import MAX_BYTES

_MOST_POINTS = 300_000


def read_points(path: Path) -> np.ndarray:
    """Positions [P, 3] of `points3D.txt` or `points3D.bin`; none where the file is missing, too large or damaged.

    Points are a hint and no pose: a model without them is as good.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return np.zeros((0, 3))
        data = path.read_bytes()
        points = _binary(data) if path.suffix == ".bin" else _text(data)
    except (OSError, ValueError, struct.error):
        return np.zeros((0, 3))
    return points[np.isfinite(points).all(-1)]


def scene_depth(points: np.ndarray, w2c: np.ndarray) -> float | None:
    """Median depth of the points before a camera [4, 4], in the model's units; None where there are too few."""
    with np.errstate(over="ignore", invalid="ignore"):
        depth = points @ w2c[2, :3] + w2c[2, 3]
    depth = depth[np.isfinite(depth) & (depth > 0)]
    return float(np.median(depth)) if len(depth) >= 10 else None


def _text(data: bytes) -> np.ndarray:
    rows = [line.split(maxsplit=4)[1:4] for line in data.decode().splitlines() if line.strip() and line[0] != "#"]
    return np.array(rows[:_MOST_POINTS], dtype=np.float64).reshape(-1, 3)


def _binary(data: bytes) -> np.ndarray:
    (count,) = struct.unpack_from("<Q", data)
    found, at = [], 8
    for _ in range(min(count, _MOST_POINTS)):
        _, x, y, z, _, _, _, _, track = struct.unpack_from("<Q3d3BdQ", data, at)
        found.append((x, y, z))
        at += 51 + 8 * track
        if at > len(data):
            raise struct.error("a track is longer than the file")
    return np.array(found, dtype=np.float64).reshape(-1, 3)
