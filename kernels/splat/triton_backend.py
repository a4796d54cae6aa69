"""The splat on CUDA: one launch draws a batch of frames, straight from the depth map.

Operation for operation `torch_backend.py`: division and square root round to nearest, and nothing is contracted
(`enable_fp_fusion=False` at each launch), so that a point falls into the same pixel on every machine. What many points
write to is reduced in integers, whose order does not matter: minima of 64-bit keys, sums of fixed-point colors.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import interpreted, on_device
from . import torch_backend as twin
from .api import Splat, SplatOptions

BLOCK, WARPS = (4096 if interpreted() else 128), 4
"""One point a thread: it needs many registers, and what it reads its neighbors read too. The interpreter counts calls."""
_GRID = 65535
"""Most frames of a launch: what a grid's second dimension holds."""
_SCRATCH_BYTES = 1 << 30
"""Frames of one launch share scratch memory of at most this much (never less than one frame's)."""

_SIZES = ["height", "width", "h", "w", "channels"]
"""Arguments that are numbers even where they are 1: a size of 1 would otherwise become a constant without a type."""

# To the right of an operator: the interpreter wraps what such a constant begins.
_EMPTY = tl.constexpr(twin.EMPTY)
_NEAREST = tl.constexpr(twin.NEAREST)
_JOINED = tl.constexpr(twin.JOINED)
_STRAIGHT = tl.constexpr(twin.STRAIGHT)
_PARTED = tl.constexpr(twin.PARTED_PX)
_PER_SPACING = tl.constexpr(twin.float32(1 / twin.SPACING))
_STRETCH = tl.constexpr(twin.STRETCH)
_UNIT = tl.constexpr(1 << twin.FRACTION)
_COLOR_ONE = tl.constexpr(twin.COLOR_ONE)


@triton.jit
def _inverse(depth_ptr, v, u, height, width, mask):
    """Inverse depth, 0 for sky, -1 for what has no depth or lies beyond the frame."""
    inside = mask & (v >= 0) & (v < height) & (u >= 0) & (u < width)
    z = tl.load(depth_ptr + v * width + u, mask=inside, other=0.0)
    q = tl.div_rn(1.0, z)
    return tl.where((z > 0.0) & (q < float("inf")), q, -1.0)


@triton.jit
def _camera(camera_ptr):
    """M row by row, then b."""
    m0, m1, m2 = tl.load(camera_ptr), tl.load(camera_ptr + 1), tl.load(camera_ptr + 2)
    m3, m4, m5 = tl.load(camera_ptr + 3), tl.load(camera_ptr + 4), tl.load(camera_ptr + 5)
    m6, m7, m8 = tl.load(camera_ptr + 6), tl.load(camera_ptr + 7), tl.load(camera_ptr + 8)
    b0, b1, b2 = tl.load(camera_ptr + 9), tl.load(camera_ptr + 10), tl.load(camera_ptr + 11)
    return m0, m1, m2, m3, m4, m5, m6, m7, m8, b0, b1, b2


@triton.jit
def _project(camera, u, v, q):
    """x, y, D and 1 / D of a source position at inverse depth q."""
    D = camera[6] * u + camera[7] * v + camera[8] + camera[11] * q
    s = tl.div_rn(1.0, D)
    x = (camera[0] * u + camera[1] * v + camera[2] + camera[9] * q) * s
    y = (camera[3] * u + camera[4] * v + camera[5] + camera[10] * q) * s
    return x, y, D, s


@triton.jit
def _flying(camera, depth_ptr, v, u, height, width, mask, q, x, y, s, jump):
    """Pixels between a nearer and a farther neighbor, of the eight, that part in the new view."""
    near, far = q, tl.where(q >= 0.0, q, float("inf"))
    for k in tl.static_range(9):
        n = _inverse(depth_ptr, v + k // 3 - 1, u + k % 3 - 1, height, width, mask)
        near = tl.where(n > near, n, near)
        far = tl.where((n >= 0.0) & (n < far), n, far)
    parallax = (tl.abs(camera[9] - x * camera[11]) + tl.abs(camera[10] - y * camera[11])) * s
    return (near > q * jump) & (q > far * jump) & (parallax * (near - far) > _PARTED)


@triton.jit
def _slope(q, before, after):
    """Change of q a pixel on the surface, and whether it goes on before and after."""
    a, b = q - before, after - q
    straight = (before >= 0.0) & (after >= 0.0) & (tl.abs((before + after) - 2.0 * q) <= q * _STRAIGHT)
    joins_before = (before >= 0.0) & (tl.abs(a) <= tl.where(q < before, q, before) * _JOINED)
    joins_after = (after >= 0.0) & (tl.abs(b) <= tl.where(q < after, q, after) * _JOINED)
    flatter = joins_before & ((joins_after == 0) | (tl.abs(a) < tl.abs(b)))
    one_side = tl.where(flatter, a, tl.where(joins_after, b, 0.0))
    slope = tl.where(straight, (after - before) * 0.5, one_side)
    return slope, straight | joins_before, straight | joins_after


@triton.jit
def _count(dx, dy, most):
    """Samples along an axis, as a float."""
    samples = tl.sqrt_rn(dx * dx + dy * dy) * _PER_SPACING
    samples = tl.ceil(tl.where(samples < most, samples, most))
    return tl.where(samples > 1.0, samples, 1.0)


@triton.jit
def _point_key(z, index):
    return (z.to(tl.int32, bitcast=True).to(tl.int64) << 32) | index.to(tl.int64)


@triton.jit
def _key_depth(key):
    return (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=_SIZES)
def _nearest_kernel(
    keys_ptr,  # [T, h w] int64
    depth_ptr,  # [T, H, W]
    cameras_ptr,  # [T, 12]
    height,
    width,
    h,
    w,
    jump,  # 1 + flying_pixel_threshold
    FLYING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """keys[y, x] = min (bits of z, v W + u) over the points that fall into the pixel."""
    t = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < height * width
    v, u = i // width, i % width
    camera = _camera(cameras_ptr + 12 * t)
    depth_ptr += t * height * width
    q = _inverse(depth_ptr, v, u, height, width, mask)
    x, y, D, s = _project(camera, u.to(tl.float32) + 0.5, v.to(tl.float32) + 0.5, q)
    z = D * tl.load(depth_ptr + i, mask=mask, other=0.0)
    drawn = (q >= 0.0) & (z > _NEAREST)
    drawn = drawn & (x >= 0.0) & (x < w.to(tl.float32)) & (y >= 0.0) & (y < h.to(tl.float32))
    if FLYING:
        drawn = drawn & (_flying(camera, depth_ptr, v, u, height, width, mask, q, x, y, s, jump) == 0)
    cell = t * h * w + y.to(tl.int32) * w + x.to(tl.int32)
    tl.atomic_min(keys_ptr + cell, _point_key(z, i), mask=drawn, sem="relaxed")


@triton.jit(do_not_specialize=_SIZES)
def _nearest_resolve_kernel(
    color_ptr,  # [T, C, h w]
    z_ptr,  # [T, h w]
    winner_ptr,  # [T, h w] int32
    keys_ptr,  # [T, h w]
    frames_ptr,  # [T, C, H W]
    source,  # H W
    target,  # h w
    channels,
    BLOCK: tl.constexpr,
):
    """Take each winner's color along."""
    t = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < target
    key = tl.load(keys_ptr + t * target + i, mask=mask, other=_EMPTY)
    hit = key != _EMPTY
    index = tl.where(hit, key, 0).to(tl.int32)
    tl.store(winner_ptr + t * target + i, tl.where(hit, index, -1), mask=mask)
    tl.store(z_ptr + t * target + i, tl.where(hit, _key_depth(key), float("nan")), mask=mask)
    for c in range(channels):
        plane = t * channels + c
        value = tl.load(frames_ptr + plane * source + index, mask=hit, other=0.0)
        tl.store(color_ptr + plane * target + i, value, mask=mask)


@triton.jit
def _in_band(key_ptr, weight, z, beyond, kept):
    """The weight of a tap within the band behind the nearest, else 0."""
    key = tl.load(key_ptr, mask=kept & (weight > 0), other=0)  # a depth of 0
    return tl.where(kept & (z <= _key_depth(key) * beyond), weight, 0)


@triton.jit(do_not_specialize=_SIZES)
def _soft_kernel(
    keys_ptr,  # [T, (h + 2) (w + 2)] int64: a border of one cell takes what falls outside
    sums_ptr,  # [T, C + 1, (h + 2) (w + 2)] int64: colors, then weight
    frames_ptr,  # [T, C, H, W]
    depth_ptr,  # [T, H, W]
    cameras_ptr,  # [T, 12]
    counts_ptr,  # [T, H W] int16: 256 times the samples along u, plus those along v; 0 for what is not drawn
    height,
    width,
    h,
    w,
    channels,
    jump,  # 1 + flying_pixel_threshold
    beyond,  # 1 + depth_tolerance
    most,  # samples a pixel and axis, as a float
    FLYING: tl.constexpr,
    ADDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The taps of each pixel's samples: find the nearest key of each cell, or add up what lies within the band behind it.

    Adding, a program takes one channel (or, last, the weights): where points lie costs less to find again than the
    registers that would keep it.
    """
    t = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < height * width
    v, u = pixel // width, pixel % width
    camera = _camera(cameras_ptr + 12 * t)
    depth_ptr += t * height * width
    cells, source = (h + 2).to(tl.int64) * (w + 2), height.to(tl.int64) * width
    keys_ptr += t * cells
    channel = tl.program_id(2)
    sums_ptr += (t * (channels + 1) + channel) * cells
    frames_ptr += (t * channels + channel) * source

    q = _inverse(depth_ptr, v, u, height, width, mask)
    left, after = _inverse(depth_ptr, v, u - 1, height, width, mask), _inverse(depth_ptr, v, u + 1, height, width, mask)
    right, joins_left, joins_right = _slope(q, left, after)
    above, after = (
        _inverse(depth_ptr, v - 1, u, height, width, mask),
        _inverse(depth_ptr, v + 1, u, height, width, mask),
    )
    down, joins_up, joins_down = _slope(q, above, after)
    if ADDING:
        density = tl.load(counts_ptr + t * source + pixel, mask=mask, other=0).to(tl.int32)
    else:
        x, y, D, s = _project(camera, u.to(tl.float32) + 0.5, v.to(tl.float32) + 0.5, q)
        drawn = (q >= 0.0) & (D * tl.load(depth_ptr + pixel, mask=mask, other=0.0) > _NEAREST)
        if FLYING:
            drawn = drawn & (_flying(camera, depth_ptr, v, u, height, width, mask, q, x, y, s, jump) == 0)
        g = camera[6] + camera[11] * right
        across = _count((camera[0] + camera[9] * right - x * g) * s, (camera[3] + camera[10] * right - y * g) * s, most)
        g = camera[7] + camera[11] * down
        along = _count((camera[1] + camera[9] * down - x * g) * s, (camera[4] + camera[10] * down - y * g) * s, most)
        density = tl.where(drawn, across.to(tl.int32) * 256 + along.to(tl.int32), 0)
        tl.store(counts_ptr + t * source + pixel, density.to(tl.int16), mask=mask)
    samples = (density // 256) * (density % 256)
    columns, rows = tl.maximum(density // 256, 1), tl.maximum(density % 256, 1)
    once = samples == 1

    for k in range(tl.max(samples)):
        # The only sample of a pixel that is drawn once has offset 0: its place and color are the pixel's, to the bit.
        row = k // columns
        du = tl.div_rn((k - row * columns).to(tl.float32) + 0.5, columns.to(tl.float32)) - 0.5
        dv = tl.div_rn(row.to(tl.float32) + 0.5, rows.to(tl.float32)) - 0.5
        there = q + right * du + down * dv
        x, y, D, s = _project(camera, u.to(tl.float32) + 0.5 + du, v.to(tl.float32) + 0.5 + dv, there)
        z = D * tl.where(once, tl.load(depth_ptr + pixel, mask=mask, other=0.0), tl.div_rn(1.0, there))
        x, y = x - 0.5, y - 0.5
        kept = (k < samples) & (there >= 0.0) & (z > _NEAREST)
        kept = kept & (x >= -1.0) & (x < w.to(tl.float32)) & (y >= -1.0) & (y < h.to(tl.float32))
        x0, y0 = tl.floor(x), tl.floor(y)
        ax, ay = ((x - x0) * _UNIT + 0.5).to(tl.int32), ((y - y0) * _UNIT + 0.5).to(tl.int32)
        first = (y0.to(tl.int32) + 1) * (w + 2) + x0.to(tl.int32) + 1
        below = first + (w + 2)
        w0, w1, w2, w3 = (-ax + _UNIT) * (-ay + _UNIT), ax * (-ay + _UNIT), (-ax + _UNIT) * ay, ax * ay
        if ADDING:
            w0, w1 = (
                _in_band(keys_ptr + first, w0, z, beyond, kept),
                _in_band(keys_ptr + first + 1, w1, z, beyond, kept),
            )
            w2, w3 = (
                _in_band(keys_ptr + below, w2, z, beyond, kept),
                _in_band(keys_ptr + below + 1, w3, z, beyond, kept),
            )
            value = tl.full([BLOCK], 1, tl.int64)
            if channel < channels:
                # Bilinear color within the surface: a neighbor beyond a border lends none.
                apart = kept & (once == 0)
                au = tl.where(tl.where(du < 0.0, joins_left, joins_right), tl.abs(du), 0.0)
                av = tl.where(tl.where(dv < 0.0, joins_up, joins_down), tl.abs(dv), 0.0)
                beside = tl.where(du < 0.0, tl.maximum(u - 1, 0), tl.minimum(u + 1, width - 1)) - u
                at = frames_ptr + pixel
                here = (1.0 - au) * tl.load(at, mask=kept, other=0.0) + au * tl.load(at + beside, mask=apart, other=0.0)
                at += (tl.where(dv < 0.0, tl.maximum(v - 1, 0), tl.minimum(v + 1, height - 1)) - v) * width
                there = (1.0 - au) * tl.load(at, mask=apart, other=0.0) + au * tl.load(
                    at + beside, mask=apart, other=0.0
                )
                value = (((1.0 - av) * here + av * there) * _COLOR_ONE).to(tl.int64)
            tl.atomic_add(sums_ptr + first, value * w0, mask=w0 > 0, sem="relaxed")
            tl.atomic_add(sums_ptr + first + 1, value * w1, mask=w1 > 0, sem="relaxed")
            tl.atomic_add(sums_ptr + below, value * w2, mask=w2 > 0, sem="relaxed")
            tl.atomic_add(sums_ptr + below + 1, value * w3, mask=w3 > 0, sem="relaxed")
        else:
            key = _point_key(z, pixel)
            tl.atomic_min(keys_ptr + first, key, mask=kept & (w0 > 0), sem="relaxed")
            tl.atomic_min(keys_ptr + first + 1, key, mask=kept & (w1 > 0), sem="relaxed")
            tl.atomic_min(keys_ptr + below, key, mask=kept & (w2 > 0), sem="relaxed")
            tl.atomic_min(keys_ptr + below + 1, key, mask=kept & (w3 > 0), sem="relaxed")


@triton.jit
def _scale(weight):
    return 1.0 / (weight.to(tl.float64) * _COLOR_ONE)


@triton.jit
def _crack(keys_ptr, weights_ptr, cell, step, inside, own, open_, least, beyond, width):
    """The nearer key of two opposite cells if what is between is a crack; their scales."""
    weight_a = tl.load(weights_ptr + cell + step, mask=inside, other=0)
    weight_b = tl.load(weights_ptr + cell - step, mask=inside, other=0)
    a = tl.load(keys_ptr + cell + step, mask=inside, other=_EMPTY)
    b = tl.load(keys_ptr + cell - step, mask=inside, other=_EMPTY)
    near, far = tl.minimum(a, b), tl.maximum(a, b)
    far_z = _key_depth(far)
    crack = inside & (weight_a >= least) & (weight_b >= least) & (far_z <= _key_depth(near) * beyond)
    i, j, k = a.to(tl.int32), b.to(tl.int32), own.to(tl.int32)
    left, right = tl.minimum(i % width, j % width), tl.maximum(i % width, j % width)
    top, bottom = tl.minimum(i // width, j // width), tl.maximum(i // width, j // width)
    u, v = k % width, k // width
    seen = (u >= left) & (u <= right) & (v >= top) & (v <= bottom)
    goes_on = (right - left <= _STRETCH) & (bottom - top <= _STRETCH) & (seen == 0)
    crack = crack & (open_ | (goes_on & (_key_depth(own) > far_z * beyond)))
    return tl.where(crack, near, _EMPTY), _scale(weight_a), _scale(weight_b)


@triton.jit(do_not_specialize=_SIZES)
def _soft_resolve_kernel(
    color_ptr,  # [T, C, h w]
    z_ptr,  # [T, h w]
    winner_ptr,  # [T, h w] int32
    keys_ptr,  # [T, (h + 2) (w + 2)]
    sums_ptr,  # [T, C + 1, (h + 2) (w + 2)]
    width,  # of the source
    h,
    w,
    channels,
    least,  # weight that covers a pixel
    beyond,  # 1 + depth_tolerance
    BLOCK: tl.constexpr,
):
    """Means of the covered pixels; a crack takes the mean of the pixels beside it (`torch_backend._close_cracks`)."""
    t = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < h * w
    py, px = i // w, i % w
    cells = (h + 2).to(tl.int64) * (w + 2)
    keys_ptr += t * cells
    sums_ptr += t * (channels + 1) * cells
    cell = (py + 1) * (w + 2) + px + 1
    weight = tl.load(sums_ptr + channels * cells + cell, mask=mask, other=0)
    covered = mask & (weight >= least)
    key = tl.load(keys_ptr + cell, mask=covered, other=_EMPTY)
    open_ = mask & (weight < least)
    weights_ptr = sums_ptr + channels * cells
    inside = mask & (px > 0) & (px < w - 1)
    across, scale_right, scale_left = _crack(keys_ptr, weights_ptr, cell, 1, inside, key, open_, least, beyond, width)
    inside = mask & (py > 0) & (py < h - 1)
    along, scale_below, scale_above = _crack(
        keys_ptr, weights_ptr, cell, w + 2, inside, key, open_, least, beyond, width
    )
    closes_across, closes_along = across != _EMPTY, along != _EMPTY
    closes = closes_across | closes_along
    key = tl.where(closes, tl.minimum(across, along), key)
    hit = key != _EMPTY
    tl.store(winner_ptr + t * h * w + i, tl.where(hit, key.to(tl.int32), -1), mask=mask)
    tl.store(z_ptr + t * h * w + i, tl.where(hit, _key_depth(key), float("nan")), mask=mask)
    scale = _scale(weight)
    share = tl.where(closes_across & closes_along, 0.25, 0.5)
    for c in range(channels):
        sums = sums_ptr + c * cells + cell
        value = (tl.load(sums, mask=covered, other=0).to(tl.float64) * scale).to(tl.float32)
        right = (tl.load(sums + 1, mask=closes_across, other=0).to(tl.float64) * scale_right).to(tl.float32)
        left = (tl.load(sums - 1, mask=closes_across, other=0).to(tl.float64) * scale_left).to(tl.float32)
        below = (tl.load(sums + (w + 2), mask=closes_along, other=0).to(tl.float64) * scale_below).to(tl.float32)
        above = (tl.load(sums - (w + 2), mask=closes_along, other=0).to(tl.float64) * scale_above).to(tl.float32)
        closed = tl.where(closes_across, right + left, 0.0) + tl.where(closes_along, below + above, 0.0)
        value = tl.where(closes, closed * share, tl.where(covered, value, 0.0))
        tl.store(color_ptr + (t * channels + c) * h * w + i, value, mask=mask)


def nearest(frames: Tensor, depth: Tensor, cameras: Tensor, options: SplatOptions) -> Splat:
    """`torch_backend.nearest`, bit for bit."""
    (count, channels, height, width), (h, w) = frames.shape, options.size
    color, z, winner = _outputs(frames, options)
    at_once = min(_GRID, max(1, _SCRATCH_BYTES // (8 * h * w)))
    with on_device(frames.device):
        for start in range(0, count, at_once):
            part = slice(start, min(start + at_once, count))
            frames_at_once = part.stop - part.start
            keys = torch.full((frames_at_once, h * w), twin.EMPTY, device=frames.device)
            _nearest_kernel[(triton.cdiv(height * width, BLOCK), frames_at_once)](
                keys,
                depth[part],
                cameras[part],
                height,
                width,
                h,
                w,
                1 + options.flying_pixel_threshold,
                FLYING=options.flying_pixel_threshold > 0,
                BLOCK=BLOCK,
                num_warps=WARPS,
                enable_fp_fusion=False,
            )
            _nearest_resolve_kernel[(triton.cdiv(h * w, BLOCK), frames_at_once)](
                color[part],
                z[part],
                winner[part],
                keys,
                frames[part],
                height * width,
                h * w,
                channels,
                BLOCK=BLOCK,
                num_warps=WARPS,
                enable_fp_fusion=False,
            )
    return Splat(color=color, depth=z, mask=winner >= 0, winner=winner)


def soft(frames: Tensor, depth: Tensor, cameras: Tensor, options: SplatOptions) -> Splat:
    """`torch_backend.soft`, bit for bit."""
    (count, channels, height, width), (h, w) = frames.shape, options.size
    color, z, winner = _outputs(frames, options)
    cells, beyond = (h + 2) * (w + 2), 1 + options.depth_tolerance
    at_once = min(_GRID, max(1, _SCRATCH_BYTES // (8 * cells * (channels + 2))))
    with on_device(frames.device):
        for start in range(0, count, at_once):
            part = slice(start, min(start + at_once, count))
            frames_at_once = part.stop - part.start
            keys = torch.full((frames_at_once, cells), twin.EMPTY, device=frames.device)
            sums = torch.zeros((frames_at_once, channels + 1, cells), dtype=torch.int64, device=frames.device)
            counts = torch.empty((frames_at_once, height * width), dtype=torch.int16, device=frames.device)
            for adding in (False, True):
                _soft_kernel[(triton.cdiv(height * width, BLOCK), frames_at_once, channels + 1 if adding else 1)](
                    keys,
                    sums,
                    frames[part],
                    depth[part],
                    cameras[part],
                    counts,
                    height,
                    width,
                    h,
                    w,
                    channels,
                    1 + options.flying_pixel_threshold,
                    beyond,
                    float(options.max_density),
                    FLYING=options.flying_pixel_threshold > 0 and not adding,
                    ADDING=adding,
                    BLOCK=BLOCK,
                    num_warps=WARPS,
                    enable_fp_fusion=False,
                )
            _soft_resolve_kernel[(triton.cdiv(h * w, BLOCK), frames_at_once)](
                color[part],
                z[part],
                winner[part],
                keys,
                sums,
                width,
                h,
                w,
                channels,
                twin.least_weight(options.min_coverage),
                beyond,
                BLOCK=BLOCK,
                num_warps=WARPS,
                enable_fp_fusion=False,
            )
    return Splat(color=color, depth=z, mask=winner >= 0, winner=winner)


def _outputs(frames: Tensor, options: SplatOptions) -> tuple[Tensor, Tensor, Tensor]:
    shape = (len(frames), *options.size)
    color = frames.new_empty(len(frames), frames.shape[1], *options.size)
    return color, frames.new_empty(shape), torch.empty(shape, dtype=torch.int32, device=frames.device)
