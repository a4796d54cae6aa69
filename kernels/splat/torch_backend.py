"""The splat in plain torch: what the fast backends must equal, and the fallback where neither runs.

The formulas are those of `splat.py`. One frame at a time, float32, and the order of every sum written out: the fast
backends follow it operation by operation.
"""

import math
import struct
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .api import Splat, SplatOptions


def float32(value: float) -> float:
    """The nearest float32: what a kernel that takes the number as float32 computes with."""
    return struct.unpack("f", struct.pack("f", value))[0]


def least_weight(min_coverage: float) -> int:
    """The summed weight from which a pixel counts as covered, in integer units; at least one tap."""
    return max(1, math.ceil(min_coverage * FULL_WEIGHT))


# The fast backends take these numbers over. numba keeps machine code by the file that a function stands in: after a change
# here, touch numba_backend.py and mesh_numba.py.
EMPTY = 2**63 - 1
"""The key of a pixel that nothing reaches: behind every other."""
NEAREST = float32(1e-6)
"""Points closer than this, or behind the camera, are never drawn."""
JOINED = float32(0.02)
"""Neighbors whose inverse depths differ by less than this share are one surface ..."""
STRAIGHT = float32(0.005)
"""... and so are three in a line whose middle departs by less than this share from the mean of the others (steep planes)."""
SPACING = 1.1
"""Samples of a magnified pixel are at most this many target pixels apart."""
PARTED_PX = 0.5
"""The surfaces on both sides of a flying pixel part when parallax moves them this far from each other."""
STRETCH = 2
"""Pixels of the source this far apart along each axis draw one stretch of a surface: at most one was lost between them."""
FRACTION = 7
"""Bits of a position within its pixel: tap weights are integers that sum to 2^14."""
FULL_WEIGHT = 1 << 2 * FRACTION
COLOR_ONE = 2.0**31
"""Fixed-point units of a color: every 8-bit level over 255 is held exactly."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """The pixels of a frame and where they land. All [H, W] float32 but `drawn`.

    Attributes:
        u, v: position in the source.
        q: inverse depth, 0 for sky, -1 for what has no depth.
        x, y: position in the target; z: depth there; D: the third homogeneous coordinate.
        drawn: bool, in front of the camera and not flying.
    """

    u: Tensor
    v: Tensor
    q: Tensor
    x: Tensor
    y: Tensor
    z: Tensor
    D: Tensor
    drawn: Tensor


def nearest(frames: Tensor, depth: Tensor, cameras: Tensor, options: SplatOptions) -> Splat:
    """Every point into the pixel it falls into."""
    return each_frame(_nearest_frame, frames, depth, cameras, options)


def soft(frames: Tensor, depth: Tensor, cameras: Tensor, options: SplatOptions) -> Splat:
    """Every point onto the 2x2 pixels around it, averaged within a band of depth."""
    return each_frame(_soft_frame, frames, depth, cameras, options)


def each_frame(draw, frames, depth, cameras, options) -> Splat:
    count, channels = frames.shape[:2]
    color = frames.new_empty(count, channels, *options.size)
    z = depth.new_empty(count, *options.size)
    winner = torch.empty(z.shape, dtype=torch.int32, device=z.device)
    for t in range(count):
        color[t], z[t], winner[t] = draw(frames[t], depth[t], cameras[t], options)
    return Splat(color=color, depth=z, mask=winner >= 0, winner=winner)


def project(camera: Tensor, u: Tensor, v: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, y in target pixels and the homogeneous D of source positions at inverse depth q; `camera` is M and b, [12]."""
    X, Y, D = (camera[3 * i] * u + camera[3 * i + 1] * v + camera[3 * i + 2] + camera[9 + i] * q for i in range(3))
    s = 1 / D
    return X * s, Y * s, D


def project_pixels(depth: Tensor, camera: Tensor, options: SplatOptions) -> Pixels:
    """Where the pixels of a frame land, and which are drawn."""
    height, width = depth.shape
    q = 1 / depth
    q = torch.where((depth > 0) & torch.isfinite(q), q, -1.0)  # False for NaN too
    u = (torch.arange(width, device=depth.device) + 0.5).expand(height, width)
    v = (torch.arange(height, device=depth.device) + 0.5)[:, None].expand(height, width)
    x, y, D = project(camera, u, v, q)
    z = D * depth
    drawn = (q >= 0) & (z > NEAREST)
    if options.flying_pixel_threshold > 0:
        drawn &= ~_flying(q, x, y, 1 / D, camera, options.flying_pixel_threshold)
    return Pixels(u, v, q, x, y, z, D, drawn)


def _flying(q: Tensor, x: Tensor, y: Tensor, s: Tensor, camera: Tensor, jump: float) -> Tensor:
    """Pixels between a nearer and a farther neighbor, of the eight, that part in the new view."""
    near = F.max_pool2d(q[None], 3, 1, 1)[0]
    far = -F.max_pool2d(-torch.where(q >= 0, q, torch.inf)[None], 3, 1, 1)[0]
    between = (near > q * float32(1 + jump)) & (q > far * float32(1 + jump))
    parallax = ((camera[9] - x * camera[11]).abs() + (camera[10] - y * camera[11]).abs()) * s
    return between & (parallax * (near - far) > PARTED_PX)


def slopes(q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The plane of each pixel: change of q a pixel to the right and down, and whether it goes on left, right, up, down."""
    padded = F.pad(q, (1, 1, 1, 1), value=-1.0)
    right, joins_left, joins_right = _slope(q, padded[1:-1, :-2], padded[1:-1, 2:])
    down, joins_up, joins_down = _slope(q, padded[:-2, 1:-1], padded[2:, 1:-1])
    return right, down, joins_left, joins_right, joins_up, joins_down


def _slope(q: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b = q - before, after - q
    straight = (before >= 0) & (after >= 0) & (((before + after) - 2 * q).abs() <= STRAIGHT * q)
    joins_before = (before >= 0) & (a.abs() <= JOINED * torch.minimum(q, before))
    joins_after = (after >= 0) & (b.abs() <= JOINED * torch.minimum(q, after))
    # At a crease the flatter side: the other may be a border that just passes the test.
    one_side = torch.where(joins_before & (~joins_after | (a.abs() < b.abs())), a, torch.where(joins_after, b, 0.0))
    slope = torch.where(straight, (after - before) * 0.5, one_side)
    return slope, straight | joins_before, straight | joins_after


def point_keys(z: Tensor, index: Tensor) -> Tensor:
    """z bits above the index: as integers, positive floats keep their order."""
    return (z.contiguous().view(torch.int32).long() << 32) | index


def key_depth(keys: Tensor) -> Tensor:
    return (keys >> 32).int().view(torch.float32)


def key_index(keys: Tensor) -> Tensor:
    return keys & 0xFFFFFFFF


def _nearest_frame(
    frame: Tensor, depth: Tensor, camera: Tensor, options: SplatOptions
) -> tuple[Tensor, Tensor, Tensor]:
    h, w = options.size
    pixels = project_pixels(depth, camera, options)
    x, y = pixels.x, pixels.y
    kept = (pixels.drawn & (x >= 0) & (x < w) & (y >= 0) & (y < h)).flatten().nonzero()[:, 0]
    x, y, z = (part.flatten()[kept] for part in (x, y, pixels.z))
    keys = torch.full((h * w,), EMPTY, device=depth.device)
    keys.scatter_reduce_(0, y.long() * w + x.long(), point_keys(z, kept), "amin")
    hit = keys != EMPTY
    index = torch.where(hit, key_index(keys), 0)
    if not kept.numel():  # an empty source has nothing to gather from
        return frame.new_zeros(len(frame), h, w), depth.new_full((h, w), torch.nan), index.int().view(h, w) - 1
    color = torch.where(hit, frame.flatten(1)[:, index], 0.0)
    z = torch.where(hit, key_depth(keys), torch.nan)
    return color.view(-1, h, w), z.view(h, w), torch.where(hit, index, -1).int().view(h, w)


@dataclass(frozen=True, slots=True)
class _Samples:
    """N samples of a frame: source pixel, its color there [C, N], and the first of its four taps in a padded target."""

    index: Tensor
    color: Tensor
    z: Tensor
    cell: Tensor
    ax: Tensor
    ay: Tensor

    def taps(self, width: int):
        """(cell, integer weight) of the four; the target has a border of one cell, which takes what falls outside."""
        for dy, wy in ((0, (1 << FRACTION) - self.ay), (1, self.ay)):
            for dx, wx in ((0, (1 << FRACTION) - self.ax), (1, self.ax)):
                yield self.cell + dy * (width + 2) + dx, wx * wy


def _soft_frame(frame: Tensor, depth: Tensor, camera: Tensor, options: SplatOptions) -> tuple[Tensor, Tensor, Tensor]:
    h, w = options.size
    beyond = float32(1 + options.depth_tolerance)
    samples = _sample(frame, depth, camera, options)
    keys = torch.full(((h + 2) * (w + 2),), EMPTY, device=depth.device)
    for part in samples:
        key = point_keys(part.z, part.index)
        for cell, weight in part.taps(w):
            keys.scatter_reduce_(0, cell, torch.where(weight > 0, key, EMPTY), "amin")
    sums = torch.zeros(len(frame) + 1, len(keys), dtype=torch.int64, device=depth.device)  # colors, then weight
    for part in samples:
        color = (part.color * COLOR_ONE).long()
        for cell, weight in part.taps(w):
            weight = torch.where(part.z <= key_depth(keys[cell]) * beyond, weight, 0)
            sums[:-1].index_add_(1, cell, color * weight)
            sums[-1].index_add_(0, cell, weight)
    keys, sums = (part.view(*part.shape[:-1], h + 2, w + 2)[..., 1:-1, 1:-1] for part in (keys, sums))
    covered = sums[-1] >= least_weight(options.min_coverage)
    scale = 1 / (torch.where(covered, sums[-1], 1).double() * COLOR_ONE)
    color = torch.where(covered, sums[:-1].double() * scale, 0.0).float()
    color, keys = _close_cracks(color, torch.where(covered, keys, EMPTY), beyond, frame.shape[-1])
    hit = keys != EMPTY
    return color, torch.where(hit, key_depth(keys), torch.nan), torch.where(hit, key_index(keys), -1).int()


def _sample(frame: Tensor, depth: Tensor, camera: Tensor, options: SplatOptions) -> list[_Samples]:
    """One sample at the center of each pixel; where the view magnifies, a grid of them over the pixel's plane."""
    h, w = options.size
    pixels = project_pixels(depth, camera, options)
    counts = [n.flatten() for n in _density(pixels, camera, options.max_density)]
    q, u, v, drawn = (part.flatten() for part in (pixels.q, pixels.u, pixels.v, pixels.drawn))
    right, down, *joins = (part.flatten() for part in slopes(pixels.q))
    once = (counts[0] * counts[1]) == 1
    found = []
    half = torch.arange(options.max_density, device=depth.device) + 0.5
    most = [int(n.max()) if n.numel() else 1 for n in counts]
    for j in range(most[1]):
        for i in range(most[0]):
            index = (drawn & ~once & (counts[0] > i) & (counts[1] > j)).nonzero()[:, 0]
            # A tensor over a tensor: torch computes a number over one by its reciprocal, which rounds twice.
            du, dv = (half[k] / n[index].float() - 0.5 for k, n in ((i, counts[0]), (j, counts[1])))
            q_there = q[index] + right[index] * du + down[index] * dv
            x, y, D = project(camera, u[index] + du, v[index] + dv, q_there)
            z = D * (1 / q_there)
            color = _color_between(frame, index, du, dv, [part[index] for part in joins])
            found.append(_taps_of(index, color, x, y, torch.where(q_there >= 0, z, -1.0), h, w))
    index = (drawn & once).nonzero()[:, 0]
    x, y, z = (part.flatten()[index] for part in (pixels.x, pixels.y, pixels.z))
    found.append(_taps_of(index, frame.flatten(1)[:, index], x, y, z, h, w))
    return found


def _density(pixels: Pixels, camera: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Samples along u and v: the length in target pixels of a step of one source pixel on the pixel's plane."""
    s = 1 / pixels.D
    counts = []
    for axis, slope in enumerate(slopes(pixels.q)[:2]):
        w = camera[6 + axis] + camera[11] * slope
        x = (camera[axis] + camera[9] * slope - pixels.x * w) * s
        y = (camera[3 + axis] + camera[10] * slope - pixels.y * w) * s
        samples = (x * x + y * y).sqrt() * float32(1 / SPACING)
        counts.append(torch.where(samples < most, samples, float(most)).ceil().clamp(min=1).int())
    return counts[0], counts[1]


def _color_between(frame: Tensor, index: Tensor, du: Tensor, dv: Tensor, joins: list[Tensor]) -> Tensor:
    """Bilinear color within a surface: a neighbor beyond a border lends none. [C, N]"""
    _, height, width = frame.shape
    u, v = index % width, index // width
    near_u = torch.where(du < 0, u - 1, u + 1).clamp(0, width - 1)
    near_v = torch.where(dv < 0, v - 1, v + 1).clamp(0, height - 1)
    au = torch.where(torch.where(du < 0, joins[0], joins[1]), du.abs(), 0.0)
    av = torch.where(torch.where(dv < 0, joins[2], joins[3]), dv.abs(), 0.0)
    here = (1 - au) * frame[:, v, u] + au * frame[:, v, near_u]
    there = (1 - au) * frame[:, near_v, u] + au * frame[:, near_v, near_u]
    return (1 - av) * here + av * there


def _taps_of(index: Tensor, color: Tensor, x: Tensor, y: Tensor, z: Tensor, h: int, w: int) -> _Samples:
    x, y = x - 0.5, y - 0.5  # index coordinates: pixel i's center at i
    kept = (z > NEAREST) & (x >= -1) & (x < w) & (y >= -1) & (y < h)
    index, color, x, y, z = index[kept], color[:, kept], x[kept], y[kept], z[kept]
    x0, y0 = x.floor(), y.floor()
    ax, ay = (((p - p0) * (1 << FRACTION) + 0.5).long() for p, p0 in ((x, x0), (y, y0)))
    return _Samples(index, color, z, (y0.long() + 1) * (w + 2) + x0.long() + 1, ax, ay)


def _close_cracks(color: Tensor, keys: Tensor, beyond: float, width: int) -> tuple[Tensor, Tensor]:
    """Fill what is a crack, not a disocclusion: a pixel between two opposite pixels of one surface, if it is open, or
    shows something farther through a surface that goes on in the source (`width` wide).
    """
    h, w = keys.shape
    padded, colors = keys.new_full((h + 2, w + 2), EMPTY), F.pad(color, (1, 1, 1, 1))
    padded[1:-1, 1:-1] = keys  # F.pad takes its value as a float
    summed, closing = torch.zeros_like(color), torch.full_like(keys, EMPTY)
    pairs = torch.zeros_like(keys)
    for dx, dy in ((1, 0), (0, 1)):
        a, b = (
            (slice(1 + dy, 1 + dy + h), slice(1 + dx, 1 + dx + w)),
            (slice(1 - dy, 1 - dy + h), slice(1 - dx, 1 - dx + w)),
        )
        key = torch.minimum(padded[a], padded[b])
        last = torch.maximum(padded[a], padded[b])
        one_surface = key_depth(last) <= key_depth(key) * beyond  # the depth of an empty key is NaN
        behind = _goes_on(padded[a], padded[b], keys, width) & (key_depth(keys) > key_depth(last) * beyond)
        crack = one_surface & ((keys == EMPTY) | behind)
        summed += torch.where(crack, colors[:, *a] + colors[:, *b], 0.0)
        closing = torch.where(crack, torch.minimum(closing, key), closing)
        pairs += crack
    closed = pairs > 0
    return torch.where(closed, summed * (0.5 / pairs.clamp(min=1)), color), torch.where(closed, closing, keys)


def _goes_on(a: Tensor, b: Tensor, between: Tensor, width: int) -> Tensor:
    """Whether two keys' pixels are of one stretch of the source, and that of the key between them is not of it.

    A farther pixel that the source saw between the two is no crack's: there the surface has a hole.
    """
    close, seen = torch.ones_like(a, dtype=torch.bool), torch.ones_like(a, dtype=torch.bool)
    for axis in (lambda key: key_index(key) % width, lambda key: key_index(key) // width):
        first, last = torch.minimum(axis(a), axis(b)), torch.maximum(axis(a), axis(b))
        close &= last - first <= STRETCH
        seen &= (axis(between) >= first) & (axis(between) <= last)
    return close & ~seen
