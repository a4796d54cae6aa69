"""Point splat: every pixel of a frame is lifted by its depth and drawn by another camera.

Shapes: T frames, source H x W, target h x w. Positions are pixels with the centre of the first pixel at 0.5.

Projection (no point cloud in memory). With K1, K2 the intrinsics, R, t the new camera's world-to-camera relative to
the source, a source pixel u at depth z lands at  z K2 R K1^-1 [u, 1] + K2 t;  an infinite depth drops the second term.

Drawing. Each point reaches the 2x2 target pixels around it with bilinear weights. The nearest surface of a pixel is
the minimum of z over its taps; a tap counts when its z lies within a relative band of that minimum, and the pixel's
colour is the weighted mean of those. Where the view magnifies, the source is sampled more densely so that a surface
stays closed; single-pixel cracks that remain on grazing surfaces are closed from both sides.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEAREST = 1e-6
"""Points closer than this, or behind the camera, are never drawn."""

_SKY = 1e30
"""Stand-in for an infinite depth in comparisons: behind everything finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splat:
    """What the new camera sees.

    Attributes:
        color: float32 [T, C, h, w], zero where nothing was drawn.
        depth: float32 [T, h, w], z in the new camera; inf is sky, NaN where nothing was drawn.
        mask: bool [T, h, w], True where a real surface (or real sky) covers the pixel.
    """

    color: Tensor
    depth: Tensor
    mask: Tensor


def splat(
    frames: Tensor,
    depth: Tensor,
    source_K_px: Tensor,
    w2c: Tensor,
    target_K_px: Tensor,
    size: tuple[int, int],
    *,
    valid: Tensor | None = None,
    band: float = 0.05,
    coverage: float = 0.5,
    max_density: int = 3,
) -> Splat:
    """Draw frames from new cameras.

    Args:
        frames: float [T, C, H, W], any number of channels.
        depth: float [T, H, W], z in scene units; inf is sky; NaN and non-positive are never drawn.
        source_K_px: [T, 3, 3] intrinsics in pixels of (W, H).
        w2c: [T, 4, 4] world-to-camera of the new camera, the world being the source camera of the same frame.
        target_K_px: [T, 3, 3] intrinsics in pixels of (w, h).
        size: (h, w) of the target.
        valid: bool [T, H, W]; False pixels are not drawn.
        band: Relative depth within which taps belong to one surface.
        coverage: Least summed weight of a pixel that counts as covered (1 is a fully covered pixel).
        max_density: At most this many samples a source pixel and axis where the view magnifies.

    Raises:
        ValueError: shapes that do not belong together.
    """
    count, _, height, width = frames.shape
    if depth.shape != (count, height, width):
        raise ValueError(f"depth is {tuple(depth.shape)}, the frames ask for {(count, height, width)}")
    if not (len(source_K_px) == len(w2c) == len(target_K_px) == count):
        raise ValueError(f"cameras are given for {len(w2c)} frames, the clip has {count}")
    drawn = depth > 0 if valid is None else (depth > 0) & valid  # False for NaN too
    results = []
    for t in range(count):
        homography, offset = _projection(source_K_px[t], w2c[t], target_K_px[t])
        density = _density(depth[t], drawn[t], homography, offset, max_density)
        color_t, depth_t, drawn_t = _densify(frames[t].float(), depth[t].float(), drawn[t], density, band)
        results.append(_splat_frame(color_t, depth_t, drawn_t, homography, offset, size, density, band, coverage))
    color, z, mask = (torch.stack(parts) for parts in zip(*results, strict=True))
    return Splat(color=color, depth=z, mask=mask)


def _projection(source_K_px: Tensor, w2c: Tensor, target_K_px: Tensor) -> tuple[Tensor, Tensor]:
    """The 3x3 and the 3-vector of the module's formula, in float64 and then rounded once."""
    K1, pose, K2 = source_K_px.double(), w2c.double(), target_K_px.double()
    homography = K2 @ pose[:3, :3] @ torch.linalg.inv(K1)
    return homography, K2 @ pose[:3, 3]


def _project(u: Tensor, v: Tensor, z: Tensor, homography: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Target x, y in pixels and z. Sky is drawn by rotation alone and gets the depth `_SKY`."""
    ray = [homography[i, 0] * u + homography[i, 1] * v + homography[i, 2] for i in range(3)]
    sky = torch.isinf(z)
    scale = torch.where(sky, 1.0, z)
    x, y, w = (ray[i] * scale + torch.where(sky, 0.0, offset[i]) for i in range(3))
    safe = torch.where(w > NEAREST, w, 1.0)
    return x / safe, y / safe, torch.where(sky & (w > NEAREST), _SKY, w)


def _pixel_centres(height: int, width: int, step: float, like: Tensor) -> tuple[Tensor, Tensor]:
    v = (torch.arange(height, dtype=torch.float64, device=like.device) + 0.5) * step
    u = (torch.arange(width, dtype=torch.float64, device=like.device) + 0.5) * step
    return u[None, :], v[:, None]


def _density(depth: Tensor, drawn: Tensor, homography: Tensor, offset: Tensor, most: int) -> int:
    """Samples a source pixel and axis that keep neighbours within about one target pixel of each other.

    The 90th percentile of the projected spacing, so that depth edges (which tear, and should) do not count.
    """
    u, v = _pixel_centres(depth.shape[0], depth.shape[1], 1.0, depth)
    x, y, z = _project(u, v, depth.double(), homography, offset)
    seen = drawn & (z > NEAREST)
    across = torch.hypot(x[:, 1:] - x[:, :-1], y[:, 1:] - y[:, :-1])[seen[:, 1:] & seen[:, :-1]]
    down = torch.hypot(x[1:] - x[:-1], y[1:] - y[:-1])[seen[1:] & seen[:-1]]
    spacing = [float(part.kthvalue(max(1, int(0.9 * part.numel()))).values) for part in (across, down) if part.numel()]
    return min(most, max(1, int(-(-max(spacing, default=1.0) // 1.25))))


def _densify(color: Tensor, depth: Tensor, drawn: Tensor, density: int, band: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sample the frame `density` times an axis: colour bilinear, depth bilinear inside a surface and nearest at its edge."""
    if density == 1:
        return color, depth, drawn
    size = (depth.shape[0] * density, depth.shape[1] * density)
    nearest = F.interpolate(depth[None, None], size=size, mode="nearest")[0, 0]
    low = -F.max_pool2d(-depth[None, None], 3, 1, 1)
    high = F.max_pool2d(depth[None, None], 3, 1, 1)
    flat = (high <= low * (1 + band)).float()  # False next to sky, and at NaN
    smooth = F.interpolate(torch.nan_to_num(depth, posinf=0.0)[None, None], size=size, mode="bilinear")[0, 0]
    inside = F.interpolate(flat, size=size, mode="nearest")[0, 0] > 0
    return (
        F.interpolate(color[None], size=size, mode="bilinear")[0],
        torch.where(inside, smooth, nearest),
        F.interpolate(drawn[None, None].float(), size=size, mode="nearest")[0, 0] > 0,
    )


def _splat_frame(
    color: Tensor,  # [C, H, W]
    depth: Tensor,  # [H, W]
    drawn: Tensor,  # [H, W]
    homography: Tensor,
    offset: Tensor,
    size: tuple[int, int],
    density: int,
    band: float,
    coverage: float,
) -> tuple[Tensor, Tensor, Tensor]:
    h, w = size
    u, v = _pixel_centres(depth.shape[0], depth.shape[1], 1.0 / density, depth)
    x, y, z = _project(u, v, depth.double(), homography, offset)
    x, y = x - 0.5, y - 0.5  # index coordinates: pixel i's centre at i
    # A static camera must land on pixel centres exactly; rounding noise would spread a pixel over four.
    x, y = (torch.where((p - p.round()).abs() < 1e-4, p.round(), p) for p in (x, y))
    kept = (drawn & (z > NEAREST) & (x > -1) & (x < w) & (y > -1) & (y < h)).flatten().nonzero()[:, 0]
    x, y, z = (part.flatten()[kept] for part in (x, y, z.float()))
    values = torch.cat([color.flatten(1).T[kept], z[:, None]], dim=1)  # [N, C + 1]: depth is averaged like a colour
    x0, y0 = x.floor(), y.floor()
    fx, fy = (x - x0).float(), (y - y0).float()
    # A border of one cell around the target takes the taps that fall outside.
    first = (y0.long() + 1) * (w + 2) + x0.long() + 1
    taps = [
        (first + dy * (w + 2) + dx, (fx if dx else 1 - fx) * (fy if dy else 1 - fy))
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1))
    ]

    nearest = z.new_full(((h + 2) * (w + 2),), torch.inf)
    for cell, weight in taps:
        nearest.scatter_reduce_(0, cell, torch.where(weight > 0, z, torch.inf), "amin")
    total = torch.zeros_like(nearest)
    mean = values.new_zeros(len(nearest), values.shape[1])
    for cell, weight in taps:
        front = torch.where(z <= nearest[cell] * (1 + band), weight, 0.0)
        total.index_add_(0, cell, front)
        mean.index_add_(0, cell, values * front[:, None])

    total, mean = (part.view(h + 2, w + 2, -1)[1:-1, 1:-1].permute(2, 0, 1) for part in (total, mean))
    mask = total[0] >= coverage
    mean = torch.where(mask, mean / torch.where(mask, total, 1.0), 0.0)
    mean, mean_z = mean[:-1], torch.where(mask, mean[-1], torch.nan)
    mean, mean_z, mask = _close_cracks(mean, mean_z, mask, band)
    return mean, torch.where(mean_z >= 0.9 * _SKY, torch.inf, mean_z), mask


def _close_cracks(color: Tensor, depth: Tensor, mask: Tensor, band: float) -> tuple[Tensor, Tensor, Tensor]:
    """Fill an uncovered pixel whose two opposite neighbours are one surface: a crack, not a disocclusion."""
    h, w = mask.shape
    weight = mask.float()
    values = torch.cat([color, torch.nan_to_num(depth, nan=0.0)[None], weight[None]])  # [C + 2, h, w]
    padded = F.pad(values, (1, 1, 1, 1))
    summed = torch.zeros_like(values)
    for dx, dy in ((1, 0), (0, 1)):
        a = padded[:, 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
        b = padded[:, 1 - dy : 1 - dy + h, 1 - dx : 1 - dx + w]
        low, high = torch.minimum(a[-2], b[-2]), torch.maximum(a[-2], b[-2])
        crack = (a[-1] > 0) & (b[-1] > 0) & ~mask & (high <= low * (1 + band))
        summed += torch.where(crack, a + b, 0.0)
    closed = summed[-1] > 0
    mean = summed / torch.where(closed, summed[-1], 1.0)
    return torch.where(closed, mean[:-2], color), torch.where(closed, mean[-2], depth), mask | closed
