"""Point splat: the warper that the field shares and packed torch against ours, and the copy that bounds them.

Targets on a CPU, one thread: nearest >= 50x the warper and >= 8x packed torch, >= 0.40 of the copy, soft >= 18x
the warper, two threads over frames >= 1.75x one. On a GPU: nearest >= 20 Gpoints/s and >= 0.30 of the copy,
soft >= 5 Gpoints/s. The copy moves 44 bytes per point: depth in, keys out and in, color in and out.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.backends import Backend, installed
from ..kernels.splat import Footprint, camera_rows, splat
from .timing import COPY, Row, compare, copy_of, one_thread

OP = "splat"
HEIGHT, WIDTH = 576, 1024
BYTES_A_POINT = 44
CPU_FRAMES, CUDA_FRAMES = 2, 14
"""Frames a call: what the engine draws at once, and a window of the model."""

WARPER, PACKED, LEXSORT = "shared warper (index_put_)", "torch packed amin", "numpy lexsort"


def rows(device: str, quick: bool) -> list[Row]:
    """Rows of this operation; `quick` leaves out the slow rivals and repeats less."""
    if device == "cuda":
        return _compare(Scene(CUDA_FRAMES, device), device, repeats=20 if quick else 100, slow=not quick)
    with one_thread():
        found = _compare(Scene(CPU_FRAMES, device), device, repeats=5 if quick else 20, slow=not quick)
    return found + (_threads(3 if quick else 12) if installed("numba") else [])


class Scene:
    """A wavy wall behind a board that stands out, seen by a camera that moves a little and turns by 4 degrees."""

    def __init__(self, frames: int, device: str) -> None:
        torch.manual_seed(0)
        y, x = torch.meshgrid(torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH), indexing="ij")
        depth = 6 + 1.5 * torch.sin(3 * x) * torch.cos(2 * y)
        depth[HEIGHT // 4 : 3 * HEIGHT // 4, WIDTH // 3 : WIDTH // 2] = 3
        self.depth = depth.repeat(frames, 1, 1).to(device)
        self.frames = torch.rand(frames, 3, HEIGHT, WIDTH).to(device)
        K = torch.tensor([[900.0, 0, WIDTH / 2], [0, 900, HEIGHT / 2], [0, 0, 1]])
        a = math.radians(4)
        pose = torch.eye(4)
        pose[:3, :3] = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
        pose[:3, 3] = torch.tensor([0.3, 0.1, 0.1])
        self.K_px, self.w2c = K.repeat(frames, 1, 1), pose.repeat(frames, 1, 1)
        self.size, self.points = (HEIGHT, WIDTH), frames * HEIGHT * WIDTH
        self.shape = f"{frames}x3x{HEIGHT}x{WIDTH}"

    def ours(self, footprint: Footprint, backend: Backend) -> Callable[[], Any]:
        """A call that draws the scene, without the test for flying pixels: its rivals have none."""
        return lambda: splat(
            self.frames,
            self.depth,
            self.K_px,
            self.w2c,
            self.K_px,
            self.size,
            footprint=footprint,
            backend=backend,
            flying_pixel_threshold=0.0,
        )


def _compare(scene: Scene, device: str, *, repeats: int, slow: bool) -> list[Row]:
    fast: Backend = "triton" if device == "cuda" else "numba"
    K_px, w2c, cameras = (part.to(device) for part in (scene.K_px, scene.w2c, _cameras(scene)))
    rivals: dict[str, Callable[[], Any]] = {
        WARPER: lambda: shared_warper(scene.frames, scene.depth, K_px, w2c),
        PACKED: lambda: packed_amin(scene.frames, scene.depth, cameras),
    }
    if slow:
        compiled = torch.compile(packed_amin)
        rivals["torch packed amin, compiled"] = lambda: compiled(scene.frames, scene.depth, cameras)
        rivals["soft torch"] = scene.ours("soft", "torch")
    if slow and device == "cpu":
        rivals[LEXSORT] = lambda: lexsort(scene.frames, scene.depth, cameras)
    if installed(fast):
        rivals |= {f"{name} {fast}": scene.ours(name, fast) for name in ("nearest", "soft")}
        if device == "cpu":
            rivals[f"mesh {fast}"] = scene.ours("mesh", fast)
    rivals[COPY] = copy_of(BYTES_A_POINT * scene.points, device)
    found = compare(OP, scene.shape, rivals, baseline=WARPER, device=device, repeats=repeats)
    packed_ms = next(row["p50_ms"] for row in found if row["implementation"] == PACKED)
    for row in found:
        row |= {
            "mpoints_s": round(scene.points / row["p50_ms"] / 1e3, 1),
            "speedup_over_packed": round(packed_ms / row["p50_ms"], 3),
        }
    return found


def _threads(repeats: int) -> list[Row]:
    """A clip by one thread and by two, over frames; beside it the copy, which shows what the memory gives to two."""
    scene = Scene(8, "cpu")

    def threads(count: int, draw: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            before = torch.get_num_threads()
            torch.set_num_threads(count)
            draw()
            torch.set_num_threads(before)

        return run

    found = []
    calls = {f"{name} numba": scene.ours(name, "numba") for name in ("nearest", "soft")}
    calls["copy"] = copy_of(BYTES_A_POINT * scene.points, "cpu")
    for name, call in calls.items():
        rivals = {f"{name}, {count} threads": threads(count, call) for count in (1, 2)}
        found += compare(OP, scene.shape, rivals, baseline=next(iter(rivals)), device="cpu", repeats=repeats)
    return found


def _cameras(scene: Scene) -> Tensor:
    return camera_rows(scene.K_px, scene.w2c, scene.K_px)


def shared_warper(frames: Tensor, depth: Tensor, K_px: Tensor, w2c: Tensor) -> tuple[Tensor, Tensor]:
    """The forward warp that TrajectoryCrafter, CogNVS and GEN3C share: bilinear, soft-z, 8 accumulating `index_put_`.

    Points of the whole clip are lifted as homogeneous columns; each adds its color, weighted by its share of the pixel over
    exp(50 log(1 + z) / max log(1 + z)), to four pixels of a padded target; what got any weight counts as covered.
    """
    count, channels, height, width = frames.shape
    u = torch.arange(width, device=depth.device) + 0.5
    v = torch.arange(height, device=depth.device) + 0.5
    grid = torch.stack([*torch.meshgrid(u, v, indexing="xy"), torch.ones(height, width, device=depth.device)], -1)
    lifted = torch.linalg.inv(K_px)[:, None, None] @ grid[None, ..., None] * depth[..., None, None]
    lifted = torch.cat([lifted, torch.ones_like(lifted[..., :1, :])], dim=-2)
    seen = K_px[:, None, None] @ (w2c[:, None, None] @ lifted)[..., :3, :]  # [T, H, W, 3, 1]
    z = seen[..., 2, 0]
    place = seen[..., :2, 0] / seen[..., 2:, 0] + 0.5  # index coordinates of the padded target
    limit = torch.tensor([width + 1, height + 1], device=depth.device)
    low, high = (part.long().clamp(min=0).minimum(limit) for part in (place.floor(), place.ceil()))
    place = place.clamp(min=0).minimum(limit.to(place.dtype))
    logarithm = torch.log1p(z.clamp(0, 1000))
    hardness = torch.exp(50 * logarithm / logarithm.max())
    color = frames.permute(0, 2, 3, 1)
    summed = color.new_zeros(count, height + 2, width + 2, channels)
    total = color.new_zeros(count, height + 2, width + 2, 1)
    frame = torch.arange(count, device=depth.device)[:, None, None]
    for column, share_x in ((low[..., 0], 1 - (place - low)[..., 0]), (high[..., 0], 1 - (high - place)[..., 0])):
        for row, share_y in ((low[..., 1], 1 - (place - low)[..., 1]), (high[..., 1], 1 - (high - place)[..., 1])):
            weight = (share_x * share_y / hardness)[..., None]
            summed.index_put_((frame, row, column), color * weight, accumulate=True)
            total.index_put_((frame, row, column), weight, accumulate=True)
    summed, total = summed[:, 1:-1, 1:-1], total[:, 1:-1, 1:-1]
    mask = total > 0
    return torch.where(mask, summed / torch.where(mask, total, 1.0), 0.0).permute(0, 3, 1, 2), mask[..., 0]


def packed_amin(frames: Tensor, depth: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest splat in torch, eagerly: one `scatter_reduce_` of 64-bit keys, then a gather."""
    count, channels, height, width = frames.shape
    u = torch.arange(width, device=depth.device) + 0.5
    v = (torch.arange(height, device=depth.device) + 0.5)[:, None]
    q = 1 / depth
    m = cameras[:, :, None, None]
    X, Y, D = (m[:, 3 * i] * u + m[:, 3 * i + 1] * v + m[:, 3 * i + 2] + m[:, 9 + i] * q for i in range(3))
    x, y, z = X / D, Y / D, D * depth
    drawn = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    cell = torch.where(drawn, y.long() * width + x.long(), height * width).view(count, -1)
    index = torch.arange(height * width, device=depth.device).view(1, height, width)
    key = ((z.view(torch.int32).long() << 32) | index).view(count, -1)
    empty = torch.iinfo(torch.int64).max
    keys = torch.full((count, height * width + 1), empty, device=depth.device)
    keys = keys.scatter_reduce_(1, cell, key, "amin")[:, :-1]
    mask = keys != empty
    winner = torch.where(mask, keys & 0xFFFFFFFF, 0)
    color = frames.flatten(2).gather(2, winner[:, None].expand(-1, channels, -1)) * mask[:, None]
    return color.view(frames.shape), mask.view(depth.shape)


def lexsort(frames: Tensor, depth: Tensor, cameras: Tensor) -> np.ndarray:
    """Nearest splat in numpy: sort by cell and depth, keep the first of each cell."""
    count, channels, height, width = frames.shape
    v, u = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
    color = np.zeros((count, height * width, channels), np.float32)
    for t in range(count):
        z, m = depth[t].numpy(), cameras[t].numpy()
        q = 1 / z
        X, Y, D = (m[3 * i] * u + m[3 * i + 1] * v + m[3 * i + 2] + m[9 + i] * q for i in range(3))
        x, y, z = X / D, Y / D, D * z
        kept = np.flatnonzero((z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height))
        cell = y.ravel()[kept].astype(np.int64) * width + x.ravel()[kept].astype(np.int64)
        order = np.lexsort((z.ravel()[kept], cell))
        cells, first = np.unique(cell[order], return_index=True)
        color[t, cells] = frames[t].flatten(1).T.numpy()[kept[order[first]]]
    return color
