"""The splat on the CPU: one thread a frame, frames side by side.

Each step is one loop over the whole frame, which the compiler makes vector code where nothing is scattered: loops that
did several steps at once ran several times slower. Operation for operation this is `torch_backend.py`: no fast-math, so
that nothing is contracted and both give the same bits.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from ..backends import njit
from . import torch_backend as twin
from .api import Splat, SplatOptions

# Division by zero gives infinity, as everywhere else; Python's exception for it would keep the loops scalar.
jit: Callable[[Callable[..., Any]], Callable[..., Any]] = partial(njit, error_model="numpy")
inlined: Callable[[Callable[..., Any]], Callable[..., Any]] = partial(njit, error_model="numpy", inline="always")

f32, i32, i64 = np.float32, np.int32, np.int64
ZERO, HALF, ONE, TWO, NONE, INFINITE = f32(0), f32(0.5), f32(1), f32(2), f32(-1), f32(np.inf)
ONE_ON, COLOR_UNITS = np.uint64(1), float(twin.COLOR_ONE)
NEAREST, JOINED, STRAIGHT = f32(twin.NEAREST), f32(twin.JOINED), f32(twin.STRAIGHT)
PARTED, PER_SPACING = f32(twin.PARTED_PX), f32(1 / twin.SPACING)
STRETCH = i64(twin.STRETCH)
EMPTY, UNIT, COLOR_ONE = i64(twin.EMPTY), i64(1 << twin.FRACTION), f32(twin.COLOR_ONE)
FRACTION_ONE = f32(1 << twin.FRACTION)
SEVERAL = i32(-2)
"""In place of a pixel's cell: it is drawn by several samples."""
LINE = 16
"""Values in a line of the cache."""


def nearest(frames: Tensor, depth: Tensor, cameras: Tensor, options: SplatOptions) -> Splat:
    """`torch_backend.nearest`, bit for bit."""
    return each_frame(_draw_nearest, frames, depth, cameras, options.size, f32(options.flying_pixel_threshold))


def soft(frames: Tensor, depth: Tensor, cameras: Tensor, options: SplatOptions) -> Splat:
    """`torch_backend.soft`, bit for bit."""
    settings = (
        f32(options.flying_pixel_threshold),
        f32(1 + options.depth_tolerance),
        i64(twin.least_weight(options.min_coverage)),
        f32(options.max_density),
    )
    return each_frame(_draw_soft, frames, depth, cameras, options.size, *settings)


def each_frame(
    draw: Callable[..., None], frames: Tensor, depth: Tensor, cameras: Tensor, size: tuple[int, int], *settings: Any
) -> Splat:
    """Run a frame's function over the clip, on as many threads as torch may use: which thread draws what changes no bit."""
    count, channels, height, width = frames.shape
    block = _output(channels + 2, count * size[0] * size[1])
    color = block[:channels].reshape(count, channels, *size)
    z, winner = (part.reshape(count, *size) for part in (block[channels], block[channels + 1].view(i32)))
    mask = np.empty(winner.shape, np.bool_)
    source, depths = frames.detach().numpy(), depth.detach().numpy()
    # A tuple of numbers, not an array: a store to an array may change another, and every loop would read it again.
    numbers = [tuple(f32(value) for value in camera) for camera in cameras.tolist()]
    workers = max(1, min(count, torch.get_num_threads()))

    def work(first: int) -> None:
        with _borrowed(channels, height, width, *size) as scratch:
            for t in range(first, count, workers):
                draw(color[t], z[t].view(i32), winner[t], source[t], depths[t], numbers[t], scratch, *settings)
                np.greater_equal(winner[t], 0, out=mask[t])

    if workers == 1:
        work(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    if block.nbytes <= _KEPT_BYTES:
        _outputs[:] = [block]
    color, z, mask, winner = (torch.from_numpy(part) for part in (color, z, mask, winner))
    return Splat(color=color, depth=z, mask=mask, winner=winner)


class DrawingScratch:
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
    def q_rows(self) -> np.ndarray:
        """The three rows of `q` that are in use: row v lies at v modulo 3."""
        return np.empty((3, self.source[1] + 2), f32)

    @cached_property
    def places(self) -> np.ndarray:
        """x, y, z in the target of every pixel, and 1 / D."""
        return np.empty((4, *self.source), f32)

    @cached_property
    def row(self) -> np.ndarray:
        """x, y, z, 1 / D of one row of pixels."""
        return np.empty((4, self.source[1]), f32)

    @cached_property
    def row_cells(self) -> np.ndarray:
        """Cells of one row of pixels."""
        return np.empty(self.source[1], i32)

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
        """Sums of three colors, then of the weights, within the same border; zero from one frame to the next."""
        return np.zeros((self.bordered_keys.size, 4), i64)

    @cached_property
    def crack_rows(self) -> np.ndarray:
        """Keys that close the pixels of one row, along x and y."""
        return np.empty((2, self.target[1]), i64)

    @cached_property
    def closings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixel, key and color of what is closed; of this memory only what is used is ever touched."""
        pixels = self.target[0] * self.target[1]
        return np.empty(pixels, i32), np.empty(pixels, i64), np.empty((self.channels, pixels), f32)


_KEPT_BYTES = 256 << 20
"""Scratch memory up to this size in all, and a result's, is kept for the next clip: new memory costs as much as a frame."""
_kept: list[DrawingScratch] = []


@contextmanager
def _borrowed(*shape: int) -> Iterator[DrawingScratch]:
    """Scratch memory for frames of this shape, kept from before or new; nobody else has it meanwhile."""
    try:
        scratch = _kept.pop()
    except IndexError:
        scratch = DrawingScratch(*shape)
    if scratch.shape != shape:
        scratch = DrawingScratch(*shape)
    yield scratch
    if scratch.bytes() + sum(other.bytes() for other in tuple(_kept)) <= _KEPT_BYTES:
        _kept.append(scratch)


_outputs: list[np.ndarray] = []


def _output(*shape: int) -> np.ndarray:
    """Memory of the last result if nobody refers to it any more, else new.

    A third of `nearest`'s time would go into new pages. One block of numpy's, not three of torch's: it comes in huge
    pages; touching small ones first costs more than the splat.
    """
    try:
        block = _outputs.pop()
    except IndexError:
        return np.empty(shape, f32)
    unused = sys.getrefcount(block) == 2  # the name here, and the argument
    return block if unused and block.shape == shape else np.empty(shape, f32)


def _draw_nearest(color, z_bits, winner, frame, depth, camera, scratch: DrawingScratch, flying):
    keys = scratch.keys
    keys.fill(EMPTY)
    _nearest_keys(
        keys.reshape(-1), scratch.q_rows, scratch.row, scratch.row_cells, depth, camera, flying, *winner.shape
    )
    _write_keys(z_bits, winner, keys)
    for three in _threes(len(frame)):
        _gather(*(color[c] for c in three), *(frame[c].reshape(-1) for c in three), winner)


def _draw_soft(color, z_bits, winner, frame, depth, camera, scratch: DrawingScratch, flying, beyond, least, most):
    q, z, keys, sums = scratch.q, scratch.places[2], scratch.bordered_keys, scratch.sums
    taps = scratch.cells, *scratch.fractions, *scratch.counts
    h, w = winner.shape
    keys.fill(EMPTY)
    _soft_keys(keys.reshape(-1), q, z, taps, scratch.row, depth, camera, flying, most, h, w)
    for three in _threes(len(frame)):
        _soft_add(sums, keys.reshape(-1), q, z, taps, *(frame[c] for c in three), camera, beyond, h, w)
        _soft_means(*(color[c] for c in three), keys, sums, least)
    _write_keys(z_bits, winner, keys[1:-1, 1:-1])
    # Planes of known number: the compiler writes the loops over them out, which is ten times as fast.
    planes = tuple(color) if len(color) == 3 else color
    _close_cracks(planes, z_bits, winner, keys, scratch.crack_rows, scratch.closings, beyond, frame.shape[2])


def _threes(channels: int) -> list[tuple[int, int, int]]:
    """The channels by threes, which stay in registers; the last three may name a channel more than once."""
    return [(c, min(c + 1, channels - 1), min(c + 2, channels - 1)) for c in range(0, channels, 3)]


# The vector part: functions of a row, so that what one leaves is still in the cache when the next one reads it.


@jit
def project_frame(q, places, depth, camera, flying):
    """Fill `Scratch.q` and `Scratch.places`; z is -1 for what is not drawn, and not positive behind the camera."""
    _begin(q, depth)
    for v in range(len(depth)):
        _project(q, places[0, v], places[1, v], places[2, v], places[3, v], depth, v, camera, flying)


@jit
def _begin(q, depth):
    """The first rows of q: `_project` always has the next one filled."""
    q[0] = NONE
    _invert_row(q[1], depth[0])


@jit
def _project(q, x, y, z, s, depth, v, camera, flying):
    """Row v of `Scratch.places`, and row v + 2 of `Scratch.q` or `Scratch.q_rows`."""
    above, row, below = q[v % len(q)], q[(v + 1) % len(q)], q[(v + 2) % len(q)]
    if v + 1 < len(depth):
        _invert_row(below, depth[v + 1])
    else:
        below[:] = NONE
    _project_row(x, y, z, s, depth[v], row, v, camera)
    if flying > ZERO:
        _drop_flying_row(z, x, y, above, row, below, v, camera, flying)


@jit
def _invert_row(row, z):
    row[0] = row[len(z) + 1] = NONE
    for u in range(len(z)):
        inverse = ONE / z[u]
        row[u + 1] = inverse if (z[u] > ZERO) & (inverse < INFINITE) else NONE


@jit
def _drop_flying_row(z, x, y, above, row, below, v, camera, flying):
    """z = -1 for the pixels that `torch_backend._flying` finds."""
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
def _land(camera, u, v, q):
    """x, y, D of `torch_backend.project`, and 1 / D."""
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
        x[u], y[u], D, s[u] = _land(camera, f32(i32(u)) + HALF, vv, q)
        z[u] = D * depth[u] if q >= ZERO else NONE


@jit
def slope(q, before, after):
    """`torch_backend._slope`: change of q a pixel, whether the surface goes on before and after."""
    a, b = q - before, after - q
    straight = (before >= ZERO) & (after >= ZERO) & (abs((before + after) - TWO * q) <= STRAIGHT * q)
    joins_before = (before >= ZERO) & (abs(a) <= JOINED * (q if q < before else before))
    joins_after = (after >= ZERO) & (abs(b) <= JOINED * (q if q < after else after))
    other = b if joins_after else ZERO
    one_side = a if joins_before & ((not joins_after) | (abs(a) < abs(b))) else other
    slope = (after - before) * HALF if straight else one_side
    return slope, straight | joins_before, straight | joins_after


@jit
def _density(across, along, x, y, s, above, row, below, camera, most):
    """Samples of each pixel of a row along u and v, `torch_backend._density`."""
    for u in range(len(across)):
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
def _nearest_keys(keys, q, row, cells, depth, camera, flying, h, w):
    """The nearest key of each cell of the target."""
    height, width = depth.shape
    x, y, z, s = row[0], row[1], row[2], row[3]
    z_bits = z.view(i32)
    _begin(q, depth)
    for v in range(height):
        _project(q, x, y, z, s, depth, v, camera, flying)
        _nearest_cells(cells, x, y, z, h, w)
        for u in range(width):
            if cells[u] >= 0:
                key = i64(z_bits[u]) << 32 | i64(v * width + u)
                if key < keys[cells[u]]:
                    keys[cells[u]] = key


@jit
def _nearest_cells(cells, x, y, z, h, w):
    """The cell of each pixel of a row, -1 for what is not drawn."""
    last_x, last_y, stride = f32(w), f32(h), i32(w)
    for u in range(len(cells)):
        inside = (z[u] > NEAREST) & (x[u] >= ZERO) & (x[u] < last_x) & (y[u] >= ZERO) & (y[u] < last_y)
        at = i32(i32(y[u] if inside else ZERO) * stride + i32(x[u] if inside else ZERO))
        cells[u] = at if inside else i32(-1)


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
def _gather(red, green, blue, from_red, from_green, from_blue, winner):
    """Colors of the winners, three channels at once: whether a pixel was drawn can only be guessed, so it is asked once."""
    h, w = winner.shape
    end, sum_ = 0, ZERO
    for py in range(h):
        r, g, b, index = red[py], green[py], blue[py], winner[py]
        last = end - 1
        for px in range(w):
            last = max(last, index[px])
        # Read in order what this row is the first to need: it takes pixels from many rows at once, too many for the
        # processor to foresee.
        for i in range(end, last + 1, LINE):
            at = np.uint32(i)
            sum_ += from_red[at] + from_green[at] + from_blue[at]
        end = last + 1
        for px in range(w):
            if index[px] >= 0:
                at = np.uint32(index[px])
                r[px], g[px], b[px] = from_red[at], from_green[at], from_blue[at]
            else:
                r[px], g[px], b[px] = ZERO, ZERO, ZERO
    return sum_  # without it the compiler would leave out the reading


# The scattering part: `soft`.


@jit
def _soft_keys(keys, q, zs, taps, row, depth, camera, flying, most, h, w):
    """The nearest key of each cell of the bordered target; fills q, z and the taps of every pixel."""
    cells, rights, downs, acrosses, alongs = taps
    x, y, s = row[0], row[1], row[3]
    _begin(q, depth)
    for v in range(len(depth)):
        z, cell, right, down, across, along = zs[v], cells[v], rights[v], downs[v], acrosses[v], alongs[v]
        _project(q, x, y, z, s, depth, v, camera, flying)
        _density(across, along, x, y, s, q[v], q[v + 1], q[v + 2], camera, most)
        _soft_cells(cell, right, down, x, y, z, across, along, h, w)
        _keys_once(keys, z.view(i32), cell, right, down, v, w + 2)
        _keys_several(keys, q, cell, across, along, v, camera, h, w)


@jit
def _keys_once(keys, z_bits, cell, right, down, v, stride):
    """Keys of a row's pixels that are drawn once."""
    first = v * len(cell)
    for u in range(len(cell)):
        if cell[u] >= 0:
            key = i64(z_bits[u]) << 32 | i64(first + u)
            _key_taps(keys, np.uint64(cell[u]), stride, i64(right[u]), i64(down[u]), key)


@jit
def _keys_several(keys, q, cell, across, along, v, camera, h, w):
    """Keys of a row's pixels that are drawn by several samples."""
    for u in range(len(cell)):
        if cell[u] == SEVERAL:
            plane = _plane(q, u, v)
            for j in range(along[u]):
                for i in range(across[u]):
                    du, dv = _offset(i, across[u]), _offset(j, along[u])
                    first, ax, ay, z = _sample(plane, u, v, du, dv, camera, h, w)
                    if first >= 0:
                        key = i64(f32(z).view(i32)) << 32 | i64(v * len(cell) + u)
                        _key_taps(keys, np.uint64(first), w + 2, ax, ay, key)


@jit
def _soft_cells(cell, right, down, x, y, z, across, along, h, w):
    """First of the 2x2 cells of the pixels of a row that are drawn once, and how far they are towards the others."""
    last_x, last_y, stride = f32(w), f32(h), i32(w + 2)
    for u in range(len(cell)):
        px, py = x[u] - HALF, y[u] - HALF
        inside = (z[u] > NEAREST) & (px >= NONE) & (px < last_x) & (py >= NONE) & (py < last_y)
        once = (across[u] == 1) & (along[u] == 1)
        several = (z[u] > NEAREST) & ~once
        inside &= once
        px, py = px if inside else ZERO, py if inside else ZERO
        x0, y0 = np.floor(px), np.floor(py)
        at = i32((i32(y0) + i32(1)) * stride + i32(x0) + i32(1))
        cell[u] = at if inside else SEVERAL if several else i32(-1)
        right[u] = np.uint8(i32((px - x0) * FRACTION_ONE + HALF))
        down[u] = np.uint8(i32((py - y0) * FRACTION_ONE + HALF))


@inlined
def _key_taps(keys, first, stride, ax, ay, key):
    # With branches: what is in front is in front of its neighbors too, mostly.
    below = first + np.uint64(stride)
    if (ax < UNIT) & (ay < UNIT) & (key < keys[first]):
        keys[first] = key
    if (ax > 0) & (ay < UNIT) & (key < keys[first + ONE_ON]):
        keys[first + ONE_ON] = key
    if (ax < UNIT) & (ay > 0) & (key < keys[below]):
        keys[below] = key
    if (ax > 0) & (ay > 0) & (key < keys[below + ONE_ON]):
        keys[below + ONE_ON] = key


@jit
def _soft_add(sums, keys, q, z, taps, red, green, blue, camera, beyond, h, w):
    """Add up what lies within the band behind the nearest."""
    cells, rights, downs, acrosses, alongs = taps
    for v in range(len(cells)):
        _add_once(sums, keys, z[v], cells[v], rights[v], downs[v], red[v], green[v], blue[v], beyond, w + 2)
        _add_several(sums, keys, q, cells[v], acrosses[v], alongs[v], v, red, green, blue, camera, beyond, h, w)


@jit
def _add_once(sums, keys, z, cell, right, down, red, green, blue, beyond, stride):
    """Colors of a row's pixels that are drawn once."""
    for u in range(len(cell)):
        if cell[u] >= 0:
            r, g, b = i64(red[u] * COLOR_ONE), i64(green[u] * COLOR_ONE), i64(blue[u] * COLOR_ONE)
            ax, ay = i64(right[u]), i64(down[u])
            _add_taps(sums, keys, np.uint64(cell[u]), stride, ax, ay, z[u], r, g, b, beyond)


@jit
def _add_several(sums, keys, q, cell, across, along, v, red, green, blue, camera, beyond, h, w):
    """Colors of a row's pixels that are drawn by several samples."""
    for u in range(len(cell)):
        if cell[u] == SEVERAL:
            plane = _plane(q, u, v)
            for j in range(along[u]):
                for i in range(across[u]):
                    du, dv = _offset(i, across[u]), _offset(j, along[u])
                    first, ax, ay, z = _sample(plane, u, v, du, dv, camera, h, w)
                    if first >= 0:
                        r = _color_between(red, plane, u, v, du, dv)
                        g = _color_between(green, plane, u, v, du, dv)
                        b = _color_between(blue, plane, u, v, du, dv)
                        _add_taps(sums, keys, np.uint64(first), w + 2, ax, ay, z, r, g, b, beyond)


@inlined
def _add_taps(sums, keys, first, stride, ax, ay, z, r, g, b, beyond):
    right, below = first + ONE_ON, first + np.uint64(stride)
    if z <= _key_depth(keys[first]) * beyond:
        _add_weighted(sums, first, r, g, b, (UNIT - ax) * (UNIT - ay))
    if z <= _key_depth(keys[right]) * beyond:
        _add_weighted(sums, right, r, g, b, ax * (UNIT - ay))
    if z <= _key_depth(keys[below]) * beyond:
        _add_weighted(sums, below, r, g, b, (UNIT - ax) * ay)
    if z <= _key_depth(keys[below + ONE_ON]) * beyond:
        _add_weighted(sums, below + ONE_ON, r, g, b, ax * ay)


def _vector_add(context, builder, signature, args):
    array, cell, *numbers, weight = args
    integer, four = ir.IntType(64), ir.VectorType(ir.IntType(64), 4)
    data = context.make_array(signature.args[0])(context, builder, array).data
    place = builder.bitcast(builder.gep(data, [builder.mul(cell, integer(4))]), four.as_pointer())
    values, weights = four([1] * 4), four([0] * 4)
    for i in range(4):
        lane = ir.IntType(32)(i)
        values = builder.insert_element(values, numbers[i], lane) if i < 3 else values
        weights = builder.insert_element(weights, weight, lane)
    total = builder.add(builder.load(place, align=8), builder.mul(values, weights))
    builder.store(total, place, align=8)
    return context.get_dummy_value()


@intrinsic
def _add_weighted(typing, sums, cell, r, g, b, weight):
    """sums[cell] += (r, g, b, 1) weight as one vector operation, which numba's compiler does not find by itself."""
    return types.void(sums, types.uint64, *[types.int64] * 4), _vector_add


@jit
def _key_depth(key):
    return i32(key >> 32).view(f32)


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
def _sample(plane, u, v, du, dv, camera, h, w):
    """First cell, fractions and z of a sample of a pixel's plane; cell -1 for what is not drawn."""
    q = plane[0] + plane[1] * du + plane[2] * dv
    x, y, D, _ = _land(camera, f32(i32(u)) + HALF + du, f32(i32(v)) + HALF + dv, q)
    x, y, z = x - HALF, y - HALF, D * (ONE / q)
    inside = (q >= ZERO) & (z > NEAREST) & (x >= NONE) & (x < f32(w)) & (y >= NONE) & (y < f32(h))
    if not inside:
        return i64(-1), i64(0), i64(0), z
    x0, y0 = np.floor(x), np.floor(y)
    ax, ay = i64((x - x0) * FRACTION_ONE + HALF), i64((y - y0) * FRACTION_ONE + HALF)
    return (i64(y0) + 1) * (w + 2) + i64(x0) + 1, ax, ay, z


@jit
def _color_between(channel, plane, u, v, du, dv):
    """`torch_backend._color_between` of one channel, in fixed point."""
    _, _, _, left, right, up, down = plane
    height, width = channel.shape
    au = abs(du) if (left if du < ZERO else right) else ZERO
    av = abs(dv) if (up if dv < ZERO else down) else ZERO
    near_u = max(u - 1, 0) if du < ZERO else min(u + 1, width - 1)
    near_v = max(v - 1, 0) if dv < ZERO else min(v + 1, height - 1)
    here = (ONE - au) * channel[v, u] + au * channel[v, near_u]
    there = (ONE - au) * channel[near_v, u] + au * channel[near_v, near_u]
    return i64(((ONE - av) * here + av * there) * COLOR_ONE)


@jit
def _soft_means(red, green, blue, keys, sums, least):
    """Means of the covered pixels; the others' keys are emptied, and the sums are zero again."""
    h, w = red.shape
    for py in range(h):
        r, g, b, key = red[py], green[py], blue[py], keys[py + 1, 1:-1]
        row = sums[(py + 1) * (w + 2) + 1 : (py + 2) * (w + 2) - 1]
        for px in range(w):
            weight = row[px, 3]
            covered = weight >= least
            scale = 1.0 / (float(weight) * COLOR_UNITS) if covered else 0.0
            r[px] = f32(float(row[px, 0]) * scale)
            g[px] = f32(float(row[px, 1]) * scale)
            b[px] = f32(float(row[px, 2]) * scale)
            key[px] = key[px] if covered else EMPTY
        sums[(py + 1) * (w + 2) : (py + 2) * (w + 2)] = 0
    sums[: w + 2] = sums[(h + 1) * (w + 2) :] = 0


@jit
def _close_cracks(colors, z_bits, winner, keys, rows, closings, beyond, width):
    """A crack, as `torch_backend._close_cracks` finds it, takes the mean of the pixels beside it and the nearer's key."""
    h, w = winner.shape
    across, along = rows
    where, closing, means = closings
    count = 0
    across[:] = along[:] = EMPTY
    for py in range(h):
        row = keys[py + 1]
        _find_cracks(across[1 : w - 1], row[1 : w - 1], row[2:w], row[3 : w + 1], beyond, width)
        if 0 < py < h - 1:
            _find_cracks(along, keys[py, 1:], row[1:], keys[py + 2, 1:], beyond, width)
        else:
            along[:] = EMPTY
        for px in range(w):
            key = min(across[px], along[px])
            if key == EMPTY:
                continue
            where[count], closing[count] = py * w + px, key
            share = f32(0.25) if across[px] != EMPTY and along[px] != EMPTY else HALF
            for c in range(len(colors)):
                color = ZERO
                if across[px] != EMPTY:
                    color += colors[c][py, px + 1] + colors[c][py, px - 1]
                if along[px] != EMPTY:
                    color += colors[c][py + 1, px] + colors[c][py - 1, px]
                means[c, count] = color * share
            count += 1
    # All at the end: what is closed lends no color to its neighbors.
    for i in range(count):
        py, px = where[i] // w, where[i] % w
        winner[py, px], z_bits[py, px] = i32(closing[i] & 0xFFFFFFFF), i32(closing[i] >> 32)
        for c in range(len(colors)):
            colors[c][py, px] = means[c, i]


@jit
def _find_cracks(found, before, here, after, beyond, width):
    """The nearer of the keys before and after where they close a crack, else EMPTY."""
    for i in range(len(found)):
        near, far = min(before[i], after[i]), max(before[i], after[i])
        far_z = _key_depth(far)  # NaN if empty
        one_surface = far_z <= _key_depth(near) * beyond
        behind = _key_depth(here[i]) > far_z * beyond
        found[i] = near if one_surface & ((here[i] == EMPTY) | behind) else EMPTY
    for i in range(len(found)):
        if (found[i] != EMPTY) & (here[i] != EMPTY) and not _goes_on(before[i], after[i], here[i], width):
            found[i] = EMPTY


@jit
def _goes_on(a, b, between, width):
    """`torch_backend._goes_on`"""
    a, b, between = a & 0xFFFFFFFF, b & 0xFFFFFFFF, between & 0xFFFFFFFF
    left, right = min(a % width, b % width), max(a % width, b % width)
    top, bottom = min(a // width, b // width), max(a // width, b // width)
    u, v = between % width, between // width
    seen = (u >= left) & (u <= right) & (v >= top) & (v <= bottom)
    return (right - left <= STRETCH) & (bottom - top <= STRETCH) & (not seen)
