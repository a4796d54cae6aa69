"""Footprint `mesh` on the CPU: `mesh_torch.py`, bit for bit, one thread a frame."""

import numpy as np
from torch import Tensor

from .api import Splat, SplatOptions
from .numba_backend import (
    EMPTY,
    HALF,
    NEAREST,
    ZERO,
    DrawingScratch,
    each_frame,
    f32,
    i32,
    i64,
    jit,
    project_frame,
    slope,
)


def mesh(frames: Tensor, depth: Tensor, cameras: Tensor, options: SplatOptions) -> Splat:
    """`mesh_torch.mesh`, bit for bit."""
    return each_frame(
        _draw,
        frames,
        depth,
        cameras,
        options.size,
        f32(options.flying_pixel_threshold),
        f32(1 + options.depth_tolerance),
    )


def _draw(color, z_bits, winner, frame, depth, camera, scratch: DrawingScratch, flying, beyond):
    places, q, keys = scratch.places, scratch.q, scratch.keys
    across, along = scratch.counts
    project_frame(q, places, depth, camera, flying)
    _joins(across, along, places[2], q)
    keys.fill(EMPTY)
    _draw_points(keys, places, beyond)
    _draw_triangles(keys, places, q, across, along)
    _resolve(color, z_bits.view(f32), winner, keys, places, q, frame)


@jit
def _joins(across, along, z, q):
    """Whether each pixel is of one surface with the next to the right, and with the next below; both must be drawn."""
    height, width = z.shape
    across[:, width - 1] = along[height - 1] = 0
    for v in range(height):
        row, out, here = q[v + 1], across[v], z[v]
        for u in range(width - 1):
            joins = slope(row[u + 1], row[u], row[u + 2])[2] | slope(row[u + 2], row[u + 1], row[u + 3])[1]
            out[u] = joins & (here[u] > NEAREST) & (here[u + 1] > NEAREST)
    for v in range(height - 1):
        above, row, below, last, out, here, there = q[v], q[v + 1], q[v + 2], q[v + 3], along[v], z[v], z[v + 1]
        for u in range(width):
            joins = slope(row[u + 1], above[u + 1], below[u + 1])[2] | slope(below[u + 1], row[u + 1], last[u + 1])[1]
            out[u] = joins & (here[u] > NEAREST) & (there[u] > NEAREST)


@jit
def _draw_points(keys, places, beyond):
    h, w = keys.shape
    _, height, width = places.shape
    for v in range(height):
        for u in range(width):
            x, y, z = places[0, v, u], places[1, v, u], places[2, v, u]
            if (z > NEAREST) & (x >= ZERO) & (x < f32(w)) & (y >= ZERO) & (y < f32(h)):
                key = _key(z * beyond, 2 * height * width + v * width + u)
                keys[i32(y), i32(x)] = min(keys[i32(y), i32(x)], key)


@jit
def _key(z, index):
    return i64(f32(z).view(i32)) << 32 | i64(index)


@jit
def _draw_triangles(keys, places, q, across, along):
    h, w = keys.shape
    height, width = across.shape
    xs, ys, rows, D = places[0].reshape(-1), places[1].reshape(-1), q.reshape(-1), places[3].reshape(-1)
    for v in range(height - 1):
        for u in range(width - 1):
            falls = _falls(q, v, u)
            for second in range(2):
                side = across[v + second, u]
                upright = along[v, u] if falls == (second == 1) else along[v, u + 1]
                if side == 0 or upright == 0:
                    continue
                a, b, c = _vertices(v * width + u, width, second, falls)
                qa, qb, qc = _vertices((v + 1) * (width + 2) + u + 1, width + 2, second, falls)
                qa, qb, qc = rows[qa], rows[qb], rows[qc]
                x0, x1 = _range(xs[a], xs[b], xs[c], w)
                y0, y1 = _range(ys[a], ys[b], ys[c], h)
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        wa, wb, wc = _areas(xs, ys, a, b, c, x, y)
                        area = wa + wb + wc
                        if (wa >= ZERO) & (wb >= ZERO) & (wc >= ZERO) & (area > ZERO):
                            z = area / (wa * D[a] * qa + wb * D[b] * qb + wc * D[c] * qc)
                            if z > NEAREST:
                                keys[y, x] = min(keys[y, x], _key(z, 2 * (v * width + u) + second))


@jit
def _falls(q, v, u):
    """Whether a square is split from upper left to lower right."""
    return abs(q[v + 1, u + 1] - q[v + 2, u + 2]) <= abs(q[v + 1, u + 2] - q[v + 2, u + 1])


@jit
def _vertices(square, stride, second, falls):
    """Indices of a triangle's vertices, clockwise on the screen, in an array with rows of `stride`."""
    if second:
        return square if falls else square + 1, square + stride + 1, square + stride
    return square, square + 1, square + stride + 1 if falls else square + stride


@jit
def _range(a, b, c, size):
    """First and past-the-last target pixel between the least and the greatest of three places; empty if none."""
    low, high = np.ceil(min(a, b, c) - HALF), np.floor(max(a, b, c) - HALF)
    low = low if low > ZERO else ZERO
    high = high if high < f32(size - 1) else f32(size - 1)
    return (i64(low), i64(high) + 1) if low <= high else (i64(0), i64(0))


@jit
def _areas(xs, ys, a, b, c, x, y):
    """Twice the areas opposite the vertices, seen from (x, y): none is negative inside, from the front."""
    px, py = f32(i32(x)), f32(i32(y))
    ax, ay = xs[a] - HALF - px, ys[a] - HALF - py
    bx, by = xs[b] - HALF - px, ys[b] - HALF - py
    cx, cy = xs[c] - HALF - px, ys[c] - HALF - py
    return bx * cy - cx * by, cx * ay - ax * cy, ax * by - bx * ay


@jit
def _resolve(color, z_out, winner, keys, places, q, frame):
    h, w = keys.shape
    _, height, width = places.shape
    points = 2 * height * width
    colors, depths = frame.reshape(len(frame), -1), places[2].reshape(-1)
    xs, ys, rows, D = places[0].reshape(-1), places[1].reshape(-1), q.reshape(-1), places[3].reshape(-1)
    for y in range(h):
        for x in range(w):
            index = keys[y, x] & 0xFFFFFFFF
            if keys[y, x] == EMPTY:
                winner[y, x], z_out[y, x] = -1, f32(np.nan)
                for i in range(len(color)):
                    color[i, y, x] = ZERO
            elif index >= points:
                winner[y, x], z_out[y, x] = index - points, depths[index - points]
                for i in range(len(color)):
                    color[i, y, x] = colors[i, index - points]
            else:
                v, u, second = index // 2 // width, index // 2 % width, index % 2
                falls = _falls(q, v, u)
                a, b, c = _vertices(v * width + u, width, second, falls)
                qa, qb, qc = _vertices((v + 1) * (width + 2) + u + 1, width + 2, second, falls)
                wa, wb, wc = _areas(xs, ys, a, b, c, x, y)
                area = wa + wb + wc
                wa, wb, wc = wa * D[a], wb * D[b], wc * D[c]
                z_out[y, x] = area / (wa * rows[qa] + wb * rows[qb] + wc * rows[qc])
                for i in range(len(color)):
                    color[i, y, x] = (wa * colors[i, a] + wb * colors[i, b] + wc * colors[i, c]) / (wa + wb + wc)
                winner[y, x] = a if wa >= wb and wa >= wc else b if wb >= wc else c
