"""Point splat: every pixel of a frame is lifted by its depth and drawn by another camera.

Shapes: T frames, C channels, source H x W, target h x w. Positions are pixels with the center of the first pixel at 0.5.

Projection (no point cloud in memory). With K1, K2 the intrinsics, R, t the new camera's world-to-camera relative to
the source, M = K2 R K1^-1 and b = K2 t, a source position u at inverse depth q = 1/z lands at

    [X, Y, D] = M [u, 1] + b q,    x = X / D,  y = Y / D,    z' = D z.

Sky has q = 0: it is drawn by rotation alone and its z' stays infinite, behind everything finite. What has z' <= 0 lies
behind the camera. M and b are computed in float64 and rounded once; the rest is float32 without contraction, so that
every backend rounds alike: with no pose and equal intrinsics D is 1 and a pixel lands on itself to the last bit.

Visibility. The nearest surface of a target pixel is the least 64-bit key (bits of z' << 32 | source index v W + u) of
what reaches it: independent of the order of drawing, ties to the lowest index. The winner's index is kept, and
`warp` takes any other field of the source (latents, masks, flow) along by a gather.

Footprints.
    nearest  A point draws the pixel it falls into. Exact and fast; it cracks where the view magnifies.
    soft     A point reaches the 2x2 pixels around it with bilinear weights; those within a relative band of depth of the
             nearest are averaged, in fixed point, so that the sum does not depend on its order. A pixel is a small plane
             (linear in 1/z, like every plane in space) over its cell: where the view magnifies, it is drawn by as
             many samples as keep a surface closed, an axis at a time. Cracks of one pixel are closed from both sides,
             whether they are empty or a farther surface shows that the source did not see between the two.
    mesh     Pixel centers are the vertices of triangles, torn where neighbors are not one surface: no cracks at any
             magnification, and hard edges at disocclusions. What is torn on all sides is drawn as points.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, get_args

import torch
from torch import Tensor

from ..backends import Backend, choose

Footprint = Literal["soft", "nearest", "mesh"]
MOST_DENSITY = 64
"""Samples a source pixel and axis, at most; a pixel that is drawn larger is worth nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splat:
    """What the new camera sees.

    Attributes:
        color: float32 [T, C, h, w], zero where nothing was drawn.
        depth: float32 [T, h, w], z of the winner in the new camera; inf is sky, NaN where nothing was drawn.
        mask: bool [T, h, w], True where a real surface (or real sky) covers the pixel.
        winner: int32 [T, h, w], v W + u of the source pixel in front, -1 where nothing was drawn.
    """

    color: Tensor
    depth: Tensor
    mask: Tensor
    winner: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SplatOptions:
    """What `splat` was asked for, as the backends take it: see its arguments."""

    size: tuple[int, int]
    depth_tolerance: float
    min_coverage: float
    max_density: int
    flying_pixel_threshold: float


def splat(
    frames: Tensor,
    depth: Tensor,
    source_K_px: Tensor,
    w2c: Tensor,
    target_K_px: Tensor,
    size: tuple[int, int],
    *,
    valid: Tensor | None = None,
    footprint: Footprint = "soft",
    backend: Backend = "auto",
    depth_tolerance: float = 0.05,
    min_coverage: float = 0.6,
    max_density: int = 6,
    flying_pixel_threshold: float = 0.1,
) -> Splat:
    """Draw frames from new cameras. No gradient runs through it: `warp` has one.

    Args:
        frames: float [T, C, H, W], any number of finite channels. `soft` adds them in units of 2^-31: a pixel that n
            points of magnitude v share must keep n v below 2^17.
        depth: float [T, H, W], z in scene units; inf is sky; NaN and non-positive are never drawn.
        source_K_px: [T, 3, 3] intrinsics in pixels of (W, H). Cameras are read on the CPU: kept there, nothing waits.
        w2c: [T, 4, 4] world-to-camera of the new camera, the world being the source camera of the same frame.
        target_K_px: [T, 3, 3] intrinsics in pixels of (w, h).
        size: (h, w) of the target.
        valid: bool [T, H, W]; False pixels are not drawn.
        footprint: `soft`, `nearest` or `mesh`: see the module.
        backend: `auto` takes Triton on CUDA, numba on the CPU where it is installed, and torch otherwise.
        depth_tolerance: Relative depth within which taps belong to one surface (soft, mesh).
        min_coverage: Least summed weight of a pixel that counts as covered; 1 is a fully covered pixel (soft).
        max_density: At most this many samples a source pixel and axis where the view magnifies (soft).
        flying_pixel_threshold: A pixel between a nearer and a farther neighbor, both by more than this share of their
            depths, is taken for a smeared border and not drawn, as soon as the new view parts those two by half a pixel.
            0 keeps all.

    Raises:
        ValueError: shapes that do not belong together, more source or target pixels than an index holds, an unknown
            footprint, or a backend that cannot run here.
    """
    count, _, height, width = frames.shape
    if depth.shape != (count, height, width):
        raise ValueError(f"depth is {tuple(depth.shape)}, the frames ask for {(count, height, width)}")
    if not (len(source_K_px) == len(w2c) == len(target_K_px) == count):
        raise ValueError(f"cameras are given for {len(w2c)} frames, the clip has {count}")
    if valid is not None and valid.shape != depth.shape:
        raise ValueError(f"valid is {tuple(valid.shape)}, the frames ask for {(count, height, width)}")
    for what, rows, columns in (("source", height, width), ("target", *size)):
        if (rows + 2) * (columns + 2) >= 2**30:
            raise ValueError(f"a {what} of {columns}x{rows} has more pixels than a 32-bit index holds")
    if not 1 <= max_density <= MOST_DENSITY:
        raise ValueError(f"max_density is {max_density}, it must be 1 to {MOST_DENSITY}")
    draw = _implementation(footprint, backend, frames.device)
    if 0 in (count, height, width, *size):
        return _nothing(frames, size)
    depth = depth.detach().float()
    if valid is not None:
        depth = depth.masked_fill(~valid, 0.0)
    options = SplatOptions(
        size=size,
        depth_tolerance=depth_tolerance,
        min_coverage=min_coverage,
        max_density=max_density,
        flying_pixel_threshold=flying_pixel_threshold,
    )
    cameras = camera_rows(source_K_px, w2c, target_K_px).to(frames.device)
    return draw(frames.detach().float().contiguous(), depth.contiguous(), cameras, options)


def _nothing(frames: Tensor, size: tuple[int, int]) -> Splat:
    """What a source or a target without pixels gives."""
    shape = (len(frames), *size)
    return Splat(
        color=frames.new_zeros(len(frames), frames.shape[1], *size, dtype=torch.float32),
        depth=frames.new_full(shape, torch.nan, dtype=torch.float32),
        mask=torch.zeros(shape, dtype=torch.bool, device=frames.device),
        winner=torch.full(shape, -1, dtype=torch.int32, device=frames.device),
    )


def warp(field: Tensor, winner: Tensor) -> Tensor:
    """Take a field of the source along to the new view: each target pixel gets its winner's value, 0 where there is none.

    Differentiable in the field: a source pixel's gradient is the sum over the target pixels it won.

    Args:
        field: [T, C, H, W] of any type.
        winner: int [T, h, w] of `Splat`.

    Returns:
        [T, C, h, w].
    """
    count, channels = field.shape[:2]
    if field.numel() == 0:
        return field.new_zeros(count, channels, *winner.shape[1:])
    index = winner.long().clamp(min=0).flatten(1)[:, None].expand(-1, channels, -1)
    taken = field.flatten(2).gather(2, index).view(count, channels, *winner.shape[1:])
    return torch.where(winner[:, None] >= 0, taken, torch.zeros((), dtype=field.dtype, device=field.device))


def camera_rows(source_K_px: Tensor, w2c: Tensor, target_K_px: Tensor) -> Tensor:
    """M row by row, then b, of the module's formula: float32 [T, 12], computed in float64."""
    K1, pose, K2 = (x.detach().cpu().double() for x in (source_K_px, w2c, target_K_px))
    M = K2 @ pose[:, :3, :3] @ torch.linalg.inv(K1)
    b = K2 @ pose[:, :3, 3:]
    return torch.cat([M.flatten(1), b.flatten(1)], dim=1).float()


Draw = Callable[[Tensor, Tensor, Tensor, SplatOptions], Splat]
"""A backend's footprint, of (frames, depth, cameras, options)."""


def _implementation(footprint: Footprint, backend: Backend, device: torch.device) -> Draw:
    """The backend's function for a footprint; imports only what it needs."""
    if footprint not in get_args(Footprint):
        raise ValueError(f"no footprint {footprint!r}; there are {', '.join(get_args(Footprint))}")
    if footprint == "mesh":
        if backend == "triton":
            raise ValueError("footprint 'mesh' has no Triton kernel; backend 'torch' draws it on CUDA")
        if device.type != "cpu" and backend == "auto":
            backend = "torch"
    chosen = choose(backend, device)
    module = f"mesh_{chosen}" if footprint == "mesh" else f"{chosen}_backend"
    return getattr(import_module(f".{module}", __package__), footprint)
