"""Soft edges: along depth steps a pixel is a mixture of the near thing and what is behind it, and is taken apart.

A picture's edge is as wide as its blur: there a pixel shows I = a F + (1 - a) B. Drawn at one depth it carries a rim of the
other surface's color to a new place, or tears. So within a band along each step every pixel gets both colors and the share
a of the near one. F and B are sampled on both sides, well inside each surface; of a few pairs that one is taken on whose
line the pixel's color lies best (as in robust matting, Wang and Cohen 2007), with a hard step as what is expected where
colors do not tell the surfaces apart. Both colors then take up what is left over: laid over each other they give the
pixel's color again.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ..geometry.surfaces import bordered, inverse_depth, jit, step_rims

_BAND_OF_WIDTH = 1 / 128
"""Half the width of the band, as a share of the picture's width: motion blur, and steps that lie beside their edge."""
_LEAST_BAND_PX = 3
_CLEAR = 0.1
"""A share closer to 0 or 1 than this is taken for 0 or 1."""
_OPAQUE = 0.97
_AROUND = 2
"""Pixels around, in each direction, over which colors are averaged."""
_NOISE = 0.03
"""Of colors in 0..1: this far from the line between two colors, a color is still a mixture of them."""
_TRUST = 60.0
"""Weight of the expected hard step against the colors, whose misfit is counted in squares of their noise."""
_DIRECTIONS = 8
_LEAST_INSIDE_PX = 1.4
"""A sample that lies closer to the other surface than this is one of the step's own, mixed pixels: the last resort."""
_KEPT = 2
"""Samples of each surface that are tried in pairs: so many from well inside, and as many from nearer to the step."""
_SHALLOW = 1.0
"""What it costs, in squares of the noise, to take a sample from near the step: it may itself be mixed."""
_OTHER_SURFACE = 0.25
"""Relative inverse depth from which on a sample is rather not of the surface at the step."""
_RING_PX = 2
"""Opaque pixels beside a soft edge that the near layer holds too, so that it joins the rest without a seam."""

f32 = np.float32
_TURNS = np.stack([f([2 * np.pi * k / _DIRECTIONS for k in range(_DIRECTIONS)]) for f in (np.sin, np.cos)], 1).astype(
    f32
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """A frame as two layers. Away from depth steps the far one is the frame, and the near one has nothing.

    Attributes:
        color, depth: float32 [H, W, 3] in 0..1 and [H, W], the frame, with what is behind the near things' soft edges.
        mixed: float32 [H, W], how much of such a pixel the near thing was: its color is as uncertain.
        near_color, near_depth: float32 [H, W, 3] and [H, W], the soft edges and a little beyond; depth is NaN elsewhere.
        alpha: float32 [H, W], how much of a pixel the near layer covers.
    """

    color: np.ndarray
    depth: np.ndarray
    mixed: np.ndarray
    near_color: np.ndarray
    near_depth: np.ndarray
    alpha: np.ndarray


def split_layers(frame: np.ndarray, depth: np.ndarray, *, depth_tolerance: float) -> Layers:
    """Take a frame apart along its depth steps.

    Args:
        frame: uint8 [H, W, 3].
        depth: float32 [H, W], z at the frame's resolution, its steps about where the picture's edges are; inf is sky,
            NaN and non-positive are unknown.
        depth_tolerance: relative depth within which neighbors are one surface.
    """
    q, image = inverse_depth(depth), frame.astype(f32) / f32(255)
    layers = Layers(
        color=image.copy(),
        depth=depth.copy(),
        mixed=np.zeros_like(q),
        near_color=image.copy(),
        near_depth=np.full_like(q, np.nan),
        alpha=np.zeros_like(q),
    )
    padded = bordered(q)
    near_rim, far_rim = step_rims(padded, f32(depth_tolerance))
    if not near_rim.any():
        return layers
    reach = max(_LEAST_BAND_PX, round(frame.shape[1] * _BAND_OF_WIDTH))
    (to_near, near_at), (to_far, far_at) = _nearest(near_rim), _nearest(far_rim)
    pixels = np.flatnonzero((np.minimum(to_near, to_far) <= reach) & (q >= 0)).astype(np.int32)
    near_q, far_q, is_near = _sides(pixels, padded, to_near, near_at, to_far, far_at)
    share, fore, back = _unmix(pixels, near_q, far_q, is_near, image, q, to_near, to_far, f32(reach))
    soft = np.full(q.shape, -1, f32)
    soft.reshape(-1)[pixels] = share
    order = np.full(q.shape, -1, np.int32)
    order.reshape(-1)[pixels] = np.arange(len(pixels))
    share, fore, back = _refine(pixels, soft, fore, back, near_q, far_q, is_near, image, order)
    soft.reshape(-1)[pixels] = share
    soft = _connect(pixels, soft, is_near)
    _compose(
        pixels,
        soft,
        near_q,
        far_q,
        f32(depth_tolerance),
        fore,
        back,
        image,
        layers.color,
        layers.depth,
        layers.mixed,
        layers.near_color,
        layers.near_depth,
        layers.alpha,
    )
    # Clear points beside the near layer, before what is farther: where it has nothing, no crack of it may be closed.
    near = np.where(np.isnan(layers.near_depth), f32(np.inf), layers.near_depth)
    beside = cv2.erode(near, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    clear = np.isnan(layers.near_depth) & (layers.depth > beside)
    layers.near_depth[clear] = beside[clear]
    return layers


def _nearest(rim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every pixel the distance to the nearest pixel of a rim, float32 [H, W], and that one's index, int32 [H, W]."""
    distance, labels = cv2.distanceTransformWithLabels(1 - rim, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    labels = labels.astype(np.intp)
    pixel = np.zeros(labels.max() + 1, np.int32)
    on = rim > 0
    pixel[labels[on]] = np.flatnonzero(on)
    return distance, pixel[labels]


@jit
def _sides(pixels, q, to_near, near_at, to_far, far_at):
    """Inverse depths of both surfaces at the step nearest to each pixel, and whether the pixel is of the near one."""
    width = q.shape[1] - 2
    near_q, far_q = np.empty(len(pixels), f32), np.empty(len(pixels), f32)
    is_near = np.empty(len(pixels), np.uint8)
    for i in range(len(pixels)):
        v, u = pixels[i] // width, pixels[i] % width
        here = q[v + 1, u + 1]
        from_near = to_near[v, u] <= to_far[v, u]
        at = near_at[v, u] if from_near else far_at[v, u]
        y, x = at // width + 1, at % width + 1
        rim, across = q[y, x], q[y, x]
        for other in (q[y - 1, x], q[y + 1, x], q[y, x - 1], q[y, x + 1]):
            if other >= 0 and ((from_near and other < across) or (not from_near and other > across)):
                across = other
        near_q[i], far_q[i] = (rim, across) if from_near else (across, rim)
        is_near[i] = here > (near_q[i] + far_q[i]) / 2
        if is_near[i]:
            near_q[i] = here
        else:
            far_q[i] = here
    return near_q, far_q, is_near


@jit
def _unmix(pixels, near_q, far_q, is_near, image, q, to_near, to_far, reach):
    """Share of the near color, and both colors, of each pixel."""
    height, width = q.shape
    share, fore, back = np.empty(len(pixels), f32), np.empty((len(pixels), 3), f32), np.empty((len(pixels), 3), f32)
    found, scores = np.empty((2, 2 * _KEPT), np.int32), np.empty((2, 2 * _KEPT), f32)
    for i in range(len(pixels)):
        v, u = pixels[i] // width, pixels[i] % width
        middle = (near_q[i] + far_q[i]) / 2
        scores[:] = -np.inf
        for turn in range(_DIRECTIONS):
            for ring in range(1, 4):
                radius = f32(0.5) * reach * f32(ring)
                y, x = v + int(np.rint(radius * _TURNS[turn, 0])), u + int(np.rint(radius * _TURNS[turn, 1]))
                if y < 0 or y >= height or x < 0 or x >= width or q[y, x] < 0:
                    continue
                side = 0 if q[y, x] > middle else 1
                own, inside = (near_q[i], to_far[y, x]) if side == 0 else (far_q[i], to_near[y, x])
                score = -radius
                if inside < f32(_LEAST_INSIDE_PX):
                    score -= 4 * reach
                if abs(q[y, x] - own) > f32(_OTHER_SURFACE) * max(own, q[y, x]):
                    score -= 2 * reach
                first = 0 if inside >= f32(0.75) * reach else _KEPT
                k = first + _KEPT
                while k > first and score > scores[side, k - 1]:
                    k -= 1
                if k < first + _KEPT:
                    for j in range(first + _KEPT - 1, k, -1):
                        found[side, j], scores[side, j] = found[side, j - 1], scores[side, j - 1]
                    found[side, k], scores[side, k] = y * width + x, score
        expected = f32(is_near[i])
        if (is_near[i] and to_far[v, u] <= 1) or (not is_near[i] and to_near[v, u] <= 1):
            expected = f32(0.75) if is_near[i] else f32(0.25)
        _best_pair(i, share, fore, back, image, pixels[i], found, scores, expected)
    return share, fore, back


@jit
def _best_pair(i, share, fore, back, image, pixel, found, scores, expected):
    """Write the share and the colors of the pair that explains a pixel best; a hard step where a side has no sample."""
    width = image.shape[1]
    color = image[pixel // width, pixel % width]
    share[i] = expected
    fore[i], back[i] = color, color
    lowest = f32(np.inf)
    for a in range(2 * _KEPT):
        if scores[0, a] == -np.inf:
            continue
        near = image[found[0, a] // width, found[0, a] % width]
        for b in range(2 * _KEPT):
            if scores[1, b] == -np.inf:
                continue
            far = image[found[1, b] // width, found[1, b] % width]
            alpha, misfit = _share(color, near, far, expected)
            cost = misfit / f32(_NOISE * _NOISE) + f32(_TRUST) * (alpha - expected) * (alpha - expected)
            cost += f32(_SHALLOW) * ((a >= _KEPT) + (b >= _KEPT))
            if cost < lowest:
                lowest, share[i] = cost, alpha
                fore[i], back[i] = near, far


@jit
def _share(color, near, far, expected):
    """The share of `near` in a color, drawn to what is expected the more, the worse the pair explains the color; and how
    far, squared, the color lies from the line between the two."""
    length, along, misfit = f32(0), f32(0), f32(0)
    for c in range(3):
        length += (near[c] - far[c]) * (near[c] - far[c])
        along += (near[c] - far[c]) * (color[c] - far[c])
    alpha = min(max(along / max(length, f32(1e-6)), f32(0)), f32(1))
    for c in range(3):
        off = color[c] - alpha * near[c] - (1 - alpha) * far[c]
        misfit += off * off
    variance = (f32(_NOISE * _NOISE) + misfit) * f32(_TRUST)
    return min(max((along + variance * expected) / (length + variance), f32(0)), f32(1)), misfit


@jit
def _refine(pixels, soft, fore, back, near_q, far_q, is_near, image, order):
    """Steadier colors, the means around each pixel along its step, and the share that follows from them."""
    height, width = soft.shape
    share, near, far = np.empty(len(pixels), f32), np.empty_like(fore), np.empty_like(back)
    for i in range(len(pixels)):
        y, x = pixels[i] // width, pixels[i] % width
        color = image[y, x]
        near[i], far[i] = 0, 0
        count, expected, weight = f32(0), f32(0), f32(0)
        for v in range(max(y - _AROUND, 0), min(y + _AROUND + 1, height)):
            for u in range(max(x - _AROUND, 0), min(x + _AROUND + 1, width)):
                j = order[v, u]
                if j < 0 or abs(near_q[j] - near_q[i]) > f32(_OTHER_SURFACE) * near_q[i]:
                    continue
                if abs(far_q[j] - far_q[i]) > f32(_OTHER_SURFACE) * near_q[i]:
                    continue
                count += 1
                difference = f32(0)
                for c in range(3):
                    near[i, c] += fore[j, c]
                    far[i, c] += back[j, c]
                    d = color[c] - image[v, u, c]
                    difference += d * d
                like = 1 / (1 + difference / f32(_NOISE * _NOISE))
                expected += like * soft[v, u]
                weight += like
        for c in range(3):
            near[i, c] /= count
            far[i, c] /= count
        alpha, _ = _share(color, near[i], far[i], expected / weight)
        share[i] = min(max((alpha - f32(_CLEAR)) / (1 - 2 * f32(_CLEAR)), f32(0)), f32(1))
    return share, near, far


@jit
def _connect(pixels, soft, is_near):
    """No islands: what is beyond the step is the near thing's as far as its color goes on, and the other way round."""
    height, width = soft.shape
    for near in range(2):
        reached = np.zeros((height, width), f32)
        for i in range(len(pixels)):
            if is_near[i] == near:
                value = soft[pixels[i] // width, pixels[i] % width]
                reached[pixels[i] // width, pixels[i] % width] = value if near else 1 - value
        for turn in range(4):
            for k in range(len(pixels)):
                i = k if turn % 2 == 0 else len(pixels) - 1 - k
                if is_near[i] == near:
                    continue
                y, x = pixels[i] // width, pixels[i] % width
                most = f32(0)
                for v in range(max(y - 1, 0), min(y + 2, height)):
                    for u in range(max(x - 1, 0), min(x + 2, width)):
                        most = max(most, reached[v, u])
                own = soft[y, x] if near else 1 - soft[y, x]
                reached[y, x] = min(own, most)
        for i in range(len(pixels)):
            if is_near[i] != near:
                y, x = pixels[i] // width, pixels[i] % width
                soft[y, x] = reached[y, x] if near else 1 - reached[y, x]
    return soft


@jit
def _compose(
    pixels, soft, near_q, far_q, depth_tolerance, fore, back, image, color, depth, mixed, near_color, near_depth, alpha
):
    height, width = soft.shape
    apart = (1 + depth_tolerance) * f32(1.001)
    for i in range(len(pixels)):
        y, x = pixels[i] // width, pixels[i] % width
        if near_q[i] <= apart * far_q[i]:  # one surface to whoever draws them: nothing would lie before the other
            soft[y, x] = f32(soft[y, x] >= f32(0.5))
        a = soft[y, x]
        if a >= f32(_OPAQUE):
            depth[y, x] = 1 / near_q[i]
        elif a <= 1 - f32(_OPAQUE):
            depth[y, x] = 1 / far_q[i]
        else:
            depth[y, x], near_depth[y, x] = 1 / far_q[i], 1 / near_q[i]
            mixed[y, x] = alpha[y, x] = a
            both = a * a + (1 - a) * (1 - a)
            for c in range(3):
                left = (image[y, x, c] - a * fore[i, c] - (1 - a) * back[i, c]) / both
                near = min(max(fore[i, c] + a * left, f32(0)), f32(1))
                far = min(max((image[y, x, c] - a * near) / (1 - a), f32(0)), f32(1))
                near_color[y, x, c] = min(max((image[y, x, c] - (1 - a) * far) / a, f32(0)), f32(1))
                color[y, x, c] = far
    # The near layer goes on a little on both sides: drawn, it then ends where it is opaque or clear, and has no gaps.
    for i in range(len(pixels)):
        y, x = pixels[i] // width, pixels[i] % width
        if mixed[y, x] > 0:
            continue
        opaque = soft[y, x] >= f32(_OPAQUE)
        ring = _RING_PX if opaque else 1
        for v in range(max(y - ring, 0), min(y + ring + 1, height)):
            for u in range(max(x - ring, 0), min(x + ring + 1, width)):
                if mixed[v, u] > 0:
                    near_depth[y, x], alpha[y, x] = 1 / near_q[i], f32(opaque)
