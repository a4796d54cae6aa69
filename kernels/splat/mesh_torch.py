"""Footprint `mesh` in plain torch: what the fast backend must equal.

Pixel centers are vertices; each square of four is two triangles, split where its inverse depths differ less. A triangle
is drawn if its two sides along the grid stay on one surface. With w_i the areas opposite its vertices (shared sides are
tested by the same numbers from both triangles, so that no pixel falls between), weights w_i / D_i are linear in the
source's pixels: so are color and inverse depth there, and sky (all q = 0) needs no rule of its own. The winner is
the vertex of greatest weight. Every pixel is drawn as a point too, behind the triangles of its surface: that is what is left
of what is torn on all sides.
"""

import torch
from torch import Tensor

from .api import Splat, SplatOptions
from .torch_backend import EMPTY, NEAREST, Pixels, each_frame, float32, key_index, point_keys, project_pixels, slopes

_AT_ONCE = 1 << 22
"""Pixels of triangles' boxes that are tested together: bounds the memory."""


def mesh(frames: Tensor, depth: Tensor, cameras: Tensor, options: SplatOptions) -> Splat:
    """Triangles between neighbors of one surface."""
    return each_frame(_mesh_frame, frames, depth, cameras, options)


def _mesh_frame(frame: Tensor, depth: Tensor, camera: Tensor, options: SplatOptions) -> tuple[Tensor, Tensor, Tensor]:
    h, w = options.size
    height, width = depth.shape
    pixels = project_pixels(depth, camera, options)
    keys = torch.full((h * w,), EMPTY, device=depth.device)
    _draw_points(keys, pixels, options)
    squares = _squares(height, width, depth.device)
    triangles = _triangles(pixels, squares).flatten().nonzero()[:, 0]
    for part, cell, x, y in _boxes(pixels, triangles, width, options.size):
        z, inside = _weights(pixels, part, x, y, width)[2:4]
        keys.scatter_reduce_(0, cell, torch.where(inside, point_keys(z, part), EMPTY), "amin")
    return _resolve(frame, pixels, keys, options.size)


def _draw_points(keys: Tensor, pixels: Pixels, options: SplatOptions) -> None:
    """Every pixel into the one it falls into, one band behind its surface; their ids come after the triangles'."""
    h, w = options.size
    kept = pixels.drawn & (pixels.x >= 0) & (pixels.x < w) & (pixels.y >= 0) & (pixels.y < h)
    index = kept.flatten().nonzero()[:, 0]
    x, y, z = (part.flatten()[index] for part in (pixels.x, pixels.y, pixels.z))
    key = point_keys(z * float32(1 + options.depth_tolerance), index + 2 * kept.numel())
    keys.scatter_reduce_(0, y.long() * w + x.long(), key, "amin")


def _squares(height: int, width: int, device: torch.device) -> Tensor:
    """Index of the upper left pixel of each square, [H - 1, W - 1]."""
    rows = torch.arange(height, device=device)[:-1, None] * width
    return rows + torch.arange(width, device=device)[None, :-1]


def _triangles(pixels: Pixels, squares: Tensor) -> Tensor:
    """Whether each triangle is drawn: bool [H, W, 2], by the id 2 (v W + u) + (0, 1)."""
    _, _, left, right, up, down = slopes(pixels.q)
    drawn = pixels.drawn
    across = drawn[:, :-1] & drawn[:, 1:] & (right[:, :-1] | left[:, 1:])  # [H, W - 1]
    along = drawn[:-1] & drawn[1:] & (down[:-1] | up[1:])  # [H - 1, W]
    top, bottom, start, end = across[:-1], across[1:], along[:, :-1], along[:, 1:]
    falls = _falls(pixels.q.flatten(), squares, drawn.shape[1])
    triangles = torch.zeros(*drawn.shape, 2, dtype=torch.bool, device=drawn.device)
    triangles[:-1, :-1, 0] = torch.where(falls, top & end, top & start)
    triangles[:-1, :-1, 1] = torch.where(falls, start & bottom, end & bottom)
    return triangles


def _falls(q: Tensor, square: Tensor, width: int) -> Tensor:
    """Whether a square is split from upper left to lower right rather than from upper right to lower left."""
    return (q[square] - q[square + width + 1]).abs() <= (q[square + 1] - q[square + width]).abs()


def _vertices(q: Tensor, triangle: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Source indices of a triangle's vertices, clockwise on the screen."""
    square = triangle // 2
    a, b, c, d = square, square + 1, square + width, square + width + 1
    falls, second = _falls(q, square, width), triangle % 2 == 1
    first_vertex = torch.where(falls | ~second, a, b)
    second_vertex = torch.where(second, d, b)
    third_vertex = torch.where(second | ~falls, c, d)
    return first_vertex, second_vertex, third_vertex


def _boxes(pixels: Pixels, triangles: Tensor, width: int, size: tuple[int, int]):
    """(triangle, target index, x, y) of the target pixels in the triangles' boxes, some at a time."""
    h, w = size
    corners = _vertices(pixels.q.flatten(), triangles, width)
    ranges = []
    for part, most in ((pixels.x, w - 1), (pixels.y, h - 1)):
        values = torch.stack([part.flatten()[corner] - 0.5 for corner in corners])
        low, high = values.amin(0).ceil(), values.amax(0).floor()
        low, high = torch.where(low > 0, low, 0.0), torch.where(high < most, high, float(most))
        # In floats first: a vertex may lie farther out than an integer holds.
        ranges.append((torch.where(low <= high, low, 0.0).long(), torch.where(low <= high, high - low + 1, 0.0).long()))
    (x0, columns), (y0, rows) = ranges
    counts = columns * rows
    ends = counts.cumsum(0)
    start = 0
    while start < len(triangles):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, before + _AT_ONCE, right=True)))
        of = torch.repeat_interleave(torch.arange(start, stop, device=ends.device), counts[start:stop])
        within = torch.arange(len(of), device=ends.device) - (ends[of] - counts[of] - before)
        x, y = x0[of] + within % columns[of], y0[of] + within // columns[of]
        yield triangles[of], y * w + x, x.float(), y.float()
        start = stop


def _weights(pixels: Pixels, triangle: Tensor, x: Tensor, y: Tensor, width: int):
    """Vertices, their weights at (x, y), z there, and whether the triangle covers it, seen from its front."""
    q = pixels.q.flatten()
    corners = _vertices(q, triangle, width)
    dx = [pixels.x.flatten()[i] - 0.5 - x for i in corners]
    dy = [pixels.y.flatten()[i] - 0.5 - y for i in corners]
    areas = [dx[i] * dy[j] - dx[j] * dy[i] for i, j in ((1, 2), (2, 0), (0, 1))]
    weights = [area * (1 / pixels.D.flatten()[i]) for area, i in zip(areas, corners, strict=True)]
    inverse = weights[0] * q[corners[0]] + weights[1] * q[corners[1]] + weights[2] * q[corners[2]]
    area = areas[0] + areas[1] + areas[2]
    z = area / inverse
    inside = (areas[0] >= 0) & (areas[1] >= 0) & (areas[2] >= 0) & (area > 0) & (z > NEAREST)
    return corners, weights, z, inside


def _resolve(frame: Tensor, pixels: Pixels, keys: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    h, w = size
    width, points = frame.shape[2], 2 * pixels.q.numel()
    colors, z_of = frame.flatten(1), pixels.z.flatten()
    color = frame.new_zeros(len(frame), h * w)
    z = torch.full((h * w,), torch.nan, device=frame.device)
    winner = torch.full((h * w,), -1, dtype=torch.int32, device=frame.device)
    ids = torch.where(keys != EMPTY, key_index(keys), -1)
    cell = (ids >= points).nonzero()[:, 0]
    index = ids[cell] - points
    color[:, cell], z[cell], winner[cell] = colors[:, index], z_of[index], index.int()
    cell = ((ids >= 0) & (ids < points)).nonzero()[:, 0]
    (a, b, c), (wa, wb, wc), z_there, _ = _weights(pixels, ids[cell], (cell % w).float(), (cell // w).float(), width)
    color[:, cell] = (wa * colors[:, a] + wb * colors[:, b] + wc * colors[:, c]) / (wa + wb + wc)
    z[cell] = z_there
    winner[cell] = torch.where((wa >= wb) & (wa >= wc), a, torch.where(wb >= wc, b, c)).int()
    return color.view(-1, h, w), z.view(h, w), winner.view(h, w)
