"""Drawn surface textures, so that floors and walls are not limited to the photographed ones."""

from __future__ import annotations

import cv2
import numpy as np

SIZE_PX = 256


def noise(rng: np.random.Generator, octaves: int = 5) -> np.ndarray:
    """Smooth random field [SIZE_PX, SIZE_PX] in 0..1 with detail at every scale."""
    total = np.zeros((SIZE_PX, SIZE_PX))
    decay = rng.uniform(0.45, 0.8)
    for octave in range(octaves):
        cells = 4 * 2**octave
        grid = np.pad(rng.random((cells, cells)), (0, 1), mode="wrap")
        total += decay**octave * cv2.resize(grid, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_CUBIC)
    return (total - total.min()) / (np.ptp(total) + 1e-9)


def procedural_texture(rng: np.random.Generator) -> np.ndarray:
    """Clouded color, stripes, checks, bricks or tiles with worn edges: [SIZE_PX, SIZE_PX, 3] uint8."""
    row, column = np.mgrid[0:SIZE_PX, 0:SIZE_PX] / SIZE_PX
    count = int(rng.integers(1, 7)) * 2
    kind = rng.choice(["clouds", "stripes", "checks", "bricks", "tiles"])
    if kind == "stripes":
        pattern = (np.floor(column * count) % 2).astype(float)
    elif kind == "checks":
        pattern = (np.floor(column * count) + np.floor(row * count)) % 2
    elif kind in ("bricks", "tiles"):
        shift = 0.5 * (np.floor(row * count) % 2) if kind == "bricks" else 0.0
        aspect = 0.5 if kind == "bricks" else 1.0
        u, v = (column * count * aspect + shift) % 1, (row * count) % 1
        gap = rng.uniform(0.03, 0.1)
        pattern = ((u < gap * aspect) | (v < gap)).astype(float)
    else:
        pattern = noise(rng)
    pattern = np.clip(pattern + rng.uniform(0, 0.5) * (noise(rng) - 0.5), 0, 1)[..., None]
    a, b = rng.uniform(0.1, 1, 3), rng.uniform(0.05, 1, 3)
    if rng.random() < 0.6:  # most real surfaces are close to gray
        a, b = a.mean() * 0.7 + a * 0.3, b.mean() * 0.7 + b * 0.3
    shade = 1 + rng.uniform(0.05, 0.4) * (noise(rng, 6) - 0.5)[..., None]
    return (np.clip((a * pattern + b * (1 - pattern)) * shade, 0, 1) * 255).astype(np.uint8)
