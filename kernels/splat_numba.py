"""The splat on the CPU: one thread a frame, frames side by side.

Each step is one loop over the whole frame, which the compiler makes vector code where nothing is scattered: loops that
did several steps at once ran several times slower. Operation for operation this is `splat_torch.py`: no fast-math, so
that nothing is contracted and both give the same bits.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import splat_torch as twin
from .backends import njit

if TYPE_CHECKING:
    from .splat import Options

# Division by zero gives infinity, as everywhere else; Python's exception for it would keep the loops scalar.
jit: Callable[[Callable[..., Any]], Callable[..., Any]] = partial(njit, error_model="numpy")
inlined: Callable[[Callable[..., Any]], Callable[..., Any]] = partial(njit, error_model="numpy", inline="always")

f32, i32, i64 = np.float32, np.int32, np.int64
ZERO, HALF, ONE, TWO, NONE, INFINITE = f32(0), f32(0.5), f32(1), f32(2), f32(-1), f32(np.inf)
ONE_ON, COLOR_UNITS = np.uint64(1), float(twin.COLOR_ONE)
NEAREST, JOINED, STRAIGHT = f32(twin.NEAREST), f32(twin.JOINED), f32(twin.STRAIGHT)
PARTED, PER_SPACING = f32(twin.PARTED_PX), f32(1 / twin.SPACING)
EMPTY, UNIT, COLOR_ONE = i64(twin.EMPTY), i64(1 << twin.FRACTION), f32(twin.COLOR_ONE)
FRACTION_ONE = f32(1 << twin.FRACTION)


def nearest(frames: Tensor, depth: Tensor, cameras: Tensor, options: "Options") -> tuple[Tensor, Tensor, Tensor]:
    """`splat_torch.nearest`, bit for bit."""
    return each_frame(_draw_nearest, frames, depth, cameras, options.size, f32(options.flying))


def soft(frames: Tensor, depth: Tensor, cameras: Tensor, options: "Options") -> tuple[Tensor, Tensor, Tensor]:
    """`splat_torch.soft`, bit for bit."""
    settings = (
        f32(options.flying), f32(1 + options.band), i64(twin.least_weight(options.coverage)), f32(options.max_density),
    )  # fmt: skip
    return each_frame(_draw_soft, frames, depth, cameras, options.size, *settings)


def each_frame(
    draw: Callable[..., None], frames: Tensor, depth: Tensor, cameras: Tensor, size: tuple[int, int], *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a frame's function over the clip, on as many threads as torch may use: which thread draws what changes no bit."""
    count, channels, height, width = frames.shape
    # One block of numpy's, not three of torch's: it comes in huge pages; touching small ones first costs more than the splat.
    block = np.empty((channels + 2, count * size[0] * size[1]), f32)
    color = block[:channels].reshape(count, channels, *size)
    z, winner = (part.reshape(count, *size) for part in (block[channels], block[channels + 1].view(i32)))
    source, depths = frames.detach().numpy(), depth.detach().numpy()
    # A tuple of numbers, not an array: a store to an array may change another, and every loop would read it again.
    numbers = [tuple(f32(value) for value in camera) for camera in cameras.tolist()]
    workers = max(1, min(count, torch.get_num_threads()))

    def work(first: int) -> None:
        with _borrowed(channels, height, width, *size) as scratch:
            for t in range(first, count, workers):
                draw(color[t], z[t].view(i32), winner[t], source[t], depths[t], numbers[t], scratch, *settings)

    if workers == 1:
        work(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    return torch.from_numpy(color), torch.from_numpy(z), torch.from_numpy(winner)


class Scratch:
    """Memory that a worker uses frame after frame, made when first asked for."""

    def __init__(self, channels: int, height: int, width: int, h: int, w: int) -> None:
        self.shape = channels, height, width, h, w
        self.channels, self.source, self.target = channels, (height, width), (h, w)

    def bytes(self) -> int:
        return sum(part.nbytes for part in vars(self).values() if isinstance(part, np.ndarray))

    @cached_property
    def q(self) -> np.ndarray:
        """Inverse depth within a border of one pixel."""
        height, width = self.source
        return np.empty((height + 2, width + 2), f32)

    @cached_property
    def places(self) -> np.ndarray:
        """x, y, z in the target of every pixel, and 1 / D."""
        return np.empty((4, *self.source), f32)

    @cached_property
    def counts(self) -> np.ndarray:
        """Samples of every pixel along u and v."""
        return np.empty((2, *self.source), np.uint8)

    @cached_property
    def cells(self) -> np.ndarray:
        """The (first) cell of every pixel in the target; -1 for none, -2 for several."""
        return np.empty(self.source, i32)

    @cached_property
    def fractions(self) -> np.ndarray:
        """How far every pixel is towards the second of its cells along x and y."""
        return np.empty((2, *self.source), np.uint8)

    @cached_property
    def keys(self) -> np.ndarray:
        h, w = self.target
        return np.empty((h, w), i64)

    @cached_property
    def bordered_keys(self) -> np.ndarray:
        """With a border of one cell, which takes what falls outside."""
        h, w = self.target
        return np.empty((h + 2, w + 2), i64)

    @cached_property
    def sums(self) -> np.ndarray:
        """Sums of the colours, then of the weights, within the same border."""
        return np.empty((self.bordered_keys.size, self.channels + 1), i64)


_KEPT_BYTES = 128 << 20
"""Scratch memory up to this size, in all, is kept for the next clip: getting it again would cost as much as a frame."""
_kept: list[Scratch] = []


@contextmanager
def _borrowed(*shape: int) -> Iterator[Scratch]:
    """Scratch memory for frames of this shape, kept from before or new; nobody else has it meanwhile."""
    try:
        scratch = _kept.pop()
    except IndexError:
        scratch = Scratch(*shape)
    if scratch.shape != shape:
        scratch = Scratch(*shape)
    yield scratch
    if scratch.bytes() + sum(other.bytes() for other in tuple(_kept)) <= _KEPT_BYTES:
        _kept.append(scratch)


def _draw_nearest(color, z_bits, winner, frame, depth, camera, scratch: Scratch, flying):
    places, cells, keys, (h, w) = scratch.places, scratch.cells, scratch.keys, winner.shape
    project_frame(scratch, depth, camera, flying)
    _nearest_cells(cells, places, h, w)
    keys.fill(EMPTY)
    _nearest_keys(keys.reshape(-1), cells, places[2].view(i32))
    _write_keys(z_bits, winner, keys)
    planes = frame.reshape(len(frame), depth.size)
    threes = len(frame) - len(frame) % 3
    for c in range(0, threes, 3):
        _gather_three(*color[c : c + 3], *planes[c : c + 3], winner)
    for c in range(threes, len(frame)):
        _gather(color[c], planes[c], winner)


def _draw_soft(color, z_bits, winner, frame, depth, camera, scratch: Scratch, flying, beyond, least, most):
    q, places, counts, cells, fractions = scratch.q, scratch.places, scratch.counts, scratch.cells, scratch.fractions
    keys, sums, (h, w) = scratch.bordered_keys, scratch.sums, winner.shape
    # Planes of known number: the compiler writes the loops over them out, which is twice as fast.
    planes, colors = (tuple(part) if len(part) == 3 else part for part in (frame, color))
    project_frame(scratch, depth, camera, flying)
    _density(counts, places, q, camera, most)
    _soft_cells(cells, fractions, places, counts, h, w)
    keys.fill(EMPTY)
    _soft_keys(keys.reshape(-1), cells, fractions, places[2].view(i32), w + 2)
    _soft_keys_magnified(keys.reshape(-1), cells, counts, q, camera, h, w)
    sums.fill(0)
    _soft_add(sums, keys.reshape(-1), cells, fractions, places[2], planes, beyond, w + 2)
    _soft_add_magnified(sums, keys.reshape(-1), cells, counts, q, planes, camera, beyond, h, w)
    _soft_means(colors, keys, sums, least)
    _write_keys(z_bits, winner, keys[1:-1, 1:-1])
    _close_cracks(colors, z_bits, winner, keys, beyond)


def project_frame(scratch: Scratch, depth, camera, flying) -> None:
    """Fill `scratch.q` and `scratch.places`; z is -1 for what is not drawn, and not positive behind the camera."""
    _invert(scratch.q, depth)
    _project_rows(scratch.places, scratch.q, depth, camera)
    if flying > 0:
        _drop_flying(scratch.places, scratch.q, camera, flying)


# The vector part.


@jit
def _invert(q, depth):
    height, width = depth.shape
    q[0] = q[height + 1] = NONE
    for v in range(height):
        row, z = q[v + 1], depth[v]
        row[0] = row[width + 1] = NONE
        for u in range(width):
            inverse = ONE / z[u]
            row[u + 1] = inverse if (z[u] > ZERO) & (inverse < INFINITE) else NONE


@jit
def _project_rows(places, q, depth, camera):
    for v in range(len(depth)):
        _project_row(places[0, v], places[1, v], places[2, v], places[3, v], depth[v], q[v + 1], v, camera)


@jit
def _drop_flying(places, q, camera, flying):
    """z = -1 for the pixels that `splat_torch._flying` finds."""
    for v in range(places.shape[1]):
        _drop_flying_row(places[2, v], places[0, v], places[1, v], q[v], q[v + 1], q[v + 2], v, camera, flying)


@jit
def _drop_flying_row(z, x, y, above, row, below, v, camera, flying):
    # 1 / D anew: with one array more the compiler gives up proving that they are apart, and with it vector code.
    jump, vv = f32(1 + flying), f32(v) + HALF
    for u in range(len(z)):
        q = row[u + 1]
        near, far = NONE, INFINITE
        for other in (above, row, below):
            for k in (u, u + 1, u + 2):
                n = other[k]
                near = n if n > near else near
                far = n if (n >= ZERO) & (n < far) else far
        s = ONE / (camera[6] * (f32(i32(u)) + HALF) + camera[7] * vv + camera[8] + camera[11] * q)
        parallax = (abs(camera[9] - x[u] * camera[11]) + abs(camera[10] - y[u] * camera[11])) * s
        flies = (near > q * jump) & (q > far * jump) & (parallax * (near - far) > PARTED)
        z[u] = NONE if flies else z[u]


@jit
def _project(camera, u, v, q):
    """x, y, D of `splat_torch.project`, and 1 / D."""
    D = camera[6] * u + camera[7] * v + camera[8] + camera[11] * q
    s = ONE / D
    x = (camera[0] * u + camera[1] * v + camera[2] + camera[9] * q) * s
    y = (camera[3] * u + camera[4] * v + camera[5] + camera[10] * q) * s
    return x, y, D, s


@jit
def _project_row(x, y, z, s, depth, row, v, camera):
    vv = f32(v) + HALF
    for u in range(len(x)):
        q = row[u + 1]
        x[u], y[u], D, s[u] = _project(camera, f32(i32(u)) + HALF, vv, q)
        z[u] = D * depth[u] if q >= ZERO else NONE


@jit
def slope(q, before, after):
    """`splat_torch._slope`: change of q a pixel, whether the surface goes on before and after."""
    a, b = q - before, after - q
    straight = (before >= ZERO) & (after >= ZERO) & (abs((before + after) - TWO * q) <= STRAIGHT * q)
    joins_before = (before >= ZERO) & (abs(a) <= JOINED * (q if q < before else before))
    joins_after = (after >= ZERO) & (abs(b) <= JOINED * (q if q < after else after))
    other = b if joins_after else ZERO
    one_side = a if joins_before & ((not joins_after) | (abs(a) < abs(b))) else other
    slope = (after - before) * HALF if straight else one_side
    return slope, straight | joins_before, straight | joins_after


@jit
def _density(counts, places, q, camera, most):
    """Samples of each pixel along u and v, `splat_torch._density`."""
    _, height, width = counts.shape
    for v in range(height):
        across, along, x, y, s = counts[0, v], counts[1, v], places[0, v], places[1, v], places[3, v]
        above, row, below = q[v], q[v + 1], q[v + 2]
        for u in range(width):
            here = row[u + 1]
            right, _, _ = slope(here, row[u], row[u + 2])
            down, _, _ = slope(here, above[u + 1], below[u + 1])
            w = camera[6] + camera[11] * right
            dx, dy = (
                (camera[0] + camera[9] * right - x[u] * w) * s[u],
                (camera[3] + camera[10] * right - y[u] * w) * s[u],
            )
            across[u] = np.uint8(i32(_count(dx, dy, most)))
            w = camera[7] + camera[11] * down
            dx, dy = (camera[1] + camera[9] * down - x[u] * w) * s[u], (camera[4] + camera[10] * down - y[u] * w) * s[u]
            along[u] = np.uint8(i32(_count(dx, dy, most)))


@jit
def _count(dx, dy, most):
    samples = np.sqrt(dx * dx + dy * dy) * PER_SPACING
    samples = np.ceil(samples if samples < most else most)
    return samples if samples > ONE else ONE


# The scattering part: `nearest`.


@jit
def _nearest_cells(cells, places, h, w):
    height, width = cells.shape
    last_x, last_y, stride = f32(w), f32(h), i32(w)
    for v in range(height):
        cell, x, y, z = cells[v], places[0, v], places[1, v], places[2, v]
        for u in range(width):
            inside = (z[u] > NEAREST) & (x[u] >= ZERO) & (x[u] < last_x) & (y[u] >= ZERO) & (y[u] < last_y)
            at = i32(i32(y[u] if inside else ZERO) * stride + i32(x[u] if inside else ZERO))
            cell[u] = at if inside else i32(-1)


@jit
def _nearest_keys(keys, cells, z_bits):
    height, width = cells.shape
    for v in range(height):
        for u in range(width):
            cell = cells[v, u]
            if cell >= 0:
                key = i64(z_bits[v, u]) << 32 | i64(v * width + u)
                if key < keys[cell]:
                    keys[cell] = key


@jit
def _write_keys(z_bits, winner, keys):
    h, w = winner.shape
    for py in range(h):
        row, index, bits = keys[py], winner[py], z_bits[py]
        for px in range(w):
            key = row[px]
            index[px] = i32(key & 0xFFFFFFFF) if key != EMPTY else i32(-1)
            bits[px] = i32(key >> 32) if key != EMPTY else i32(0x7FC00000)  # NaN


@jit
def _gather(color, plane, winner):
    h, w = winner.shape
    for py in range(h):
        for px in range(w):
            at = winner[py, px]
            color[py, px] = plane[np.uint32(at)] if at >= 0 else ZERO  # unsigned: no test for counting from the end


@jit
def _gather_three(red, green, blue, from_red, from_green, from_blue, winner):
    """`_gather` for three channels at once: whether a pixel was drawn can only be guessed, so it is asked once."""
    h, w = winner.shape
    for py in range(h):
        r, g, b, index = red[py], green[py], blue[py], winner[py]
        for px in range(w):
            if index[px] >= 0:
                at = np.uint32(index[px])
                r[px], g[px], b[px] = from_red[at], from_green[at], from_blue[at]
            else:
                r[px], g[px], b[px] = ZERO, ZERO, ZERO


# The scattering part: `soft`.


@jit
def _soft_cells(cells, fractions, places, counts, h, w):
    """First of the 2x2 cells of the pixels that are drawn once, and how far they are towards the others."""
    height, width = cells.shape
    last_x, last_y, stride = f32(w), f32(h), i32(w + 2)
    for v in range(height):
        cell, right, down, across, along = cells[v], fractions[0, v], fractions[1, v], counts[0, v], counts[1, v]
        x, y, z = places[0, v], places[1, v], places[2, v]
        for u in range(width):
            px, py = x[u] - HALF, y[u] - HALF
            inside = (z[u] > NEAREST) & (px >= NONE) & (px < last_x) & (py >= NONE) & (py < last_y)
            once = (across[u] == 1) & (along[u] == 1)
            several = (z[u] > NEAREST) & ~once
            inside &= once
            px, py = px if inside else ZERO, py if inside else ZERO
            x0, y0 = np.floor(px), np.floor(py)
            at = i32((i32(y0) + i32(1)) * stride + i32(x0) + i32(1))
            cell[u] = at if inside else i32(-2) if several else i32(-1)
            right[u] = np.uint8(i32((px - x0) * FRACTION_ONE + HALF))
            down[u] = np.uint8(i32((py - y0) * FRACTION_ONE + HALF))


@jit
def _soft_keys(keys, cells, fractions, z_bits, stride):
    """The nearest key of each cell, over the pixels that are drawn once."""
    height, width = cells.shape
    for v in range(height):
        for u in range(width):
            if cells[v, u] >= 0:
                key = i64(z_bits[v, u]) << 32 | i64(v * width + u)
                _key_taps(keys, np.uint64(cells[v, u]), stride, i64(fractions[0, v, u]), i64(fractions[1, v, u]), key)


@inlined
def _key_taps(keys, first, stride, ax, ay, key):
    below = first + np.uint64(stride)
    _key_tap(keys, first, key, (UNIT - ax) * (UNIT - ay))
    _key_tap(keys, first + ONE_ON, key, ax * (UNIT - ay))
    _key_tap(keys, below, key, (UNIT - ax) * ay)
    _key_tap(keys, below + ONE_ON, key, ax * ay)


@inlined
def _key_tap(keys, cell, key, weight):
    keys[cell] = min(keys[cell], key if weight > 0 else EMPTY)  # no branch: which is nearer cannot be predicted


@jit
def _soft_add(sums, keys, cells, fractions, z, planes, beyond, stride):
    """Add up what lies within the band behind the nearest, over the pixels that are drawn once."""
    height, width = cells.shape
    value = np.empty(len(planes), i64)
    for v in range(height):
        for u in range(width):
            if cells[v, u] >= 0:
                for c in range(len(planes)):
                    value[c] = i64(planes[c][v, u] * COLOR_ONE)
                ax, ay = i64(fractions[0, v, u]), i64(fractions[1, v, u])
                _add_taps(sums, keys, np.uint64(cells[v, u]), stride, ax, ay, z[v, u], value, len(planes), beyond)


@inlined
def _add_taps(sums, keys, first, stride, ax, ay, z, value, channels, beyond):
    k1, k2 = first + ONE_ON, first + np.uint64(stride)
    k3 = k2 + ONE_ON
    w0 = (UNIT - ax) * (UNIT - ay) if z <= _key_depth(keys[first]) * beyond else i64(0)
    w1 = ax * (UNIT - ay) if z <= _key_depth(keys[k1]) * beyond else i64(0)
    w2 = (UNIT - ax) * ay if z <= _key_depth(keys[k2]) * beyond else i64(0)
    w3 = ax * ay if z <= _key_depth(keys[k3]) * beyond else i64(0)
    for c in range(channels):
        sums[first, c] += value[c] * w0
        sums[k1, c] += value[c] * w1
        sums[k2, c] += value[c] * w2
        sums[k3, c] += value[c] * w3
    sums[first, channels] += w0
    sums[k1, channels] += w1
    sums[k2, channels] += w2
    sums[k3, channels] += w3


@jit
def _key_depth(key):
    return i32(key >> 32).view(f32)


@jit
def _soft_keys_magnified(keys, cells, counts, q, camera, h, w):
    """`_soft_keys` over the pixels that are drawn by several samples."""
    height, width = cells.shape
    for v in range(height):
        for u in range(width):
            if cells[v, u] == -2:
                across, along = counts[0, v, u], counts[1, v, u]
                plane = _plane(q, u, v)
                for j in range(along):
                    for i in range(across):
                        du, dv = _offset(i, across), _offset(j, along)
                        first, ax, ay, z = _magnified_taps(plane, u, v, du, dv, camera, h, w)
                        if first >= 0:
                            key = i64(f32(z).view(i32)) << 32 | i64(v * width + u)
                            _key_taps(keys, np.uint64(first), w + 2, ax, ay, key)


@jit
def _soft_add_magnified(sums, keys, cells, counts, q, planes, camera, beyond, h, w):
    """`_soft_add` over the pixels that are drawn by several samples."""
    height, width = cells.shape
    value = np.empty(len(planes), i64)
    for v in range(height):
        for u in range(width):
            if cells[v, u] == -2:
                across, along = counts[0, v, u], counts[1, v, u]
                plane = _plane(q, u, v)
                for j in range(along):
                    for i in range(across):
                        du, dv = _offset(i, across), _offset(j, along)
                        first, ax, ay, z = _magnified_taps(plane, u, v, du, dv, camera, h, w)
                        if first >= 0:
                            _color_between(value, planes, plane, u, v, du, dv)
                            _add_taps(sums, keys, np.uint64(first), w + 2, ax, ay, z, value, len(planes), beyond)


@jit
def _plane(q, u, v):
    """q, its slopes to the right and down, and whether the surface goes on left, right, up and down."""
    here = q[v + 1, u + 1]
    right, joins_left, joins_right = slope(here, q[v + 1, u], q[v + 1, u + 2])
    down, joins_up, joins_down = slope(here, q[v, u + 1], q[v + 2, u + 1])
    return here, right, down, joins_left, joins_right, joins_up, joins_down


@jit
def _offset(i, count):
    return (f32(i32(i)) + HALF) / f32(count) - HALF


@jit
def _magnified_taps(plane, u, v, du, dv, camera, h, w):
    """First cell, fractions and z of a sample of a pixel's plane; cell -1 for what is not drawn."""
    q = plane[0] + plane[1] * du + plane[2] * dv
    x, y, D, _ = _project(camera, f32(i32(u)) + HALF + du, f32(i32(v)) + HALF + dv, q)
    x, y, z = x - HALF, y - HALF, D * (ONE / q)
    inside = (q >= ZERO) & (z > NEAREST) & (x >= NONE) & (x < f32(w)) & (y >= NONE) & (y < f32(h))
    if not inside:
        return i64(-1), i64(0), i64(0), z
    x0, y0 = np.floor(x), np.floor(y)
    ax, ay = i64((x - x0) * FRACTION_ONE + HALF), i64((y - y0) * FRACTION_ONE + HALF)
    return (i64(y0) + 1) * (w + 2) + i64(x0) + 1, ax, ay, z


@jit
def _color_between(value, planes, plane, u, v, du, dv):
    """`splat_torch._color_between`, in fixed point."""
    _, _, _, left, right, up, down = plane
    height, width = planes[0].shape
    au = abs(du) if (left if du < ZERO else right) else ZERO
    av = abs(dv) if (up if dv < ZERO else down) else ZERO
    near_u = max(u - 1, 0) if du < ZERO else min(u + 1, width - 1)
    near_v = max(v - 1, 0) if dv < ZERO else min(v + 1, height - 1)
    for c in range(len(planes)):
        here = (ONE - au) * planes[c][v, u] + au * planes[c][v, near_u]
        there = (ONE - au) * planes[c][near_v, u] + au * planes[c][near_v, near_u]
        value[c] = i64(((ONE - av) * here + av * there) * COLOR_ONE)


@jit
def _soft_means(colors, keys, sums, least):
    """Means of the covered pixels; the others' keys are emptied."""
    channels = len(colors)
    h, w = colors[0].shape
    for py in range(h):
        for px in range(w):
            cell = np.uint64((py + 1) * (w + 2) + px + 1)
            weight = sums[cell, channels]
            covered = weight >= least
            scale = 1.0 / (float(weight) * COLOR_UNITS) if covered else 0.0
            for c in range(channels):
                colors[c][py, px] = f32(float(sums[cell, c]) * scale)
            if not covered:
                keys[py + 1, px + 1] = EMPTY


@jit
def _close_cracks(colors, z_bits, winner, keys, beyond):
    """An uncovered pixel between two opposite pixels of one surface takes their mean, and the nearer's key."""
    h, w = winner.shape
    for py in range(h):
        for px in range(w):
            if keys[py + 1, px + 1] != EMPTY:
                continue
            across = _crack(keys[py + 1, px], keys[py + 1, px + 2], beyond) if 0 < px < w - 1 else EMPTY
            along = _crack(keys[py, px + 1], keys[py + 2, px + 1], beyond) if 0 < py < h - 1 else EMPTY
            key = min(across, along)
            if key == EMPTY:
                continue
            winner[py, px], z_bits[py, px] = i32(key & 0xFFFFFFFF), i32(key >> 32)
            share = f32(0.25) if across != EMPTY and along != EMPTY else HALF
            for c in range(len(colors)):
                color = ZERO
                if across != EMPTY:
                    color += colors[c][py, px + 1] + colors[c][py, px - 1]
                if along != EMPTY:
                    color += colors[c][py + 1, px] + colors[c][py - 1, px]
                colors[c][py, px] = color * share


@jit
def _crack(a, b, beyond):
    """The nearer of two keys if both are there and of one surface."""
    near, far = min(a, b), max(a, b)
    return near if far != EMPTY and _key_depth(far) <= _key_depth(near) * beyond else EMPTY
