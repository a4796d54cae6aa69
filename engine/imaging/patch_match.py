"""PatchMatch in space: for each pixel of a hole, a step through the scene to a place that some picture shows.

Barnes et al., PatchMatch (2009): good matches are found by chance and spread to neighbors. Here a match is not an offset
in pixels but a step in the world: the pixel's point X, moved by the step, is seen in a picture at pi(X + step). What is
copied keeps its perspective, one step over many pixels is one piece of texture, and the piece stays where it is in the
world when the camera moves on.

Shapes: h x w pixels of the hole's frame, K pictures of the same size to copy from. Pixel centers are at + 0.5.
"""

from typing import NamedTuple

import numpy as np

from ...kernels.backends import njit

RADIUS = 3
"""Patches are squares of 2 x 3 + 1 pixels."""
_DRAWS = 6
"""Places drawn over all pictures per pixel and round."""
_SAME_SURFACE = 0.15
"""Difference in log depth up to which a point that was moved lies on the surface that the picture shows."""
_SAME_STEP_PX = 1.5
"""Steps that differ by less than this many pixels are one piece."""


class Target(NamedTuple):
    """The frame with the hole.

    Attributes:
        guide: float32 [h, w, 3], the generated picture, blurred: the color that is looked for.
        seen: float32 [h, w, 3], what is known around the hole.
        weight: float32 [h, w], how much a pixel of `seen` counts.
        log_depth: float32 [h, w], of the surface that fills the hole.
        points: float32 [h, w, 3], the same in the world.
        wanted: bool [h, w], pixels that need a match.
    """

    guide: np.ndarray
    seen: np.ndarray
    weight: np.ndarray
    log_depth: np.ndarray
    points: np.ndarray
    wanted: np.ndarray


class Pictures(NamedTuple):
    """What can be copied.

    Attributes:
        guide, seen: float32 [K, h, w, 3], the generated picture, blurred, and the footage.
        nearest: float32 [K, h, w], least log depth in the patch around a pixel; -inf where it is not to be copied.
        log_depth: float32 [K, h, w].
        points: float32 [K, h, w, 3] in the world.
        cameras: float32 [K, 3, 4], K times w2c.
        places: int32 [P, 3], every (picture, row, column) that may be copied.
    """

    guide: np.ndarray
    seen: np.ndarray
    nearest: np.ndarray
    log_depth: np.ndarray
    points: np.ndarray
    cameras: np.ndarray
    places: np.ndarray


class Weights(NamedTuple):
    """What a match costs, in squared levels of 255 summed over RGB.

    Attributes:
        slack: a place may be nearer than the hole's surface by this much log depth; anything nearer is another thing.
        depth: per squared difference in log depth.
        context: per known pixel of the patch, of its squared difference in color.
        most: the guide's color counts no more than this: where it is far off, neighbors decide.
        jump: per neighbor that copies another piece.
    """

    slack: np.float32
    depth: np.float32
    context: np.float32
    most: np.float32
    jump: np.float32


@njit
def _random(state):
    """The next number of a xorshift generator, 0 to 2^31 - 1; `state` is uint64 [1]."""
    x = state[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    state[0] = x
    return np.int64(x >> np.uint64(33))


@njit
def _landing(camera, point, step):
    """Column, row (0 is the first pixel's center) and depth of a moved point in a picture; depth 0 behind the camera."""
    a, b, c = point[0] + step[0], point[1] + step[1], point[2] + step[2]
    z = camera[2, 0] * a + camera[2, 1] * b + camera[2, 2] * c + camera[2, 3]
    if not z > 1e-9:
        return np.float32(-1), np.float32(-1), np.float32(0)
    u = (camera[0, 0] * a + camera[0, 1] * b + camera[0, 2] * c + camera[0, 3]) / z
    v = (camera[1, 0] * a + camera[1, 1] * b + camera[1, 2] * c + camera[1, 3]) / z
    return np.float32(u - 0.5), np.float32(v - 0.5), np.float32(z)


@njit
def _cost(target, pictures, weights, y, x, k, step):
    """Cost of a match without its neighbors; infinite where it is not allowed."""
    u, v, z = _landing(pictures.cameras[k], target.points[y, x], step)
    rows, columns = pictures.nearest.shape[1], pictures.nearest.shape[2]
    if not (v >= RADIUS and u >= RADIUS and v < rows - RADIUS - 1 and u < columns - RADIUS - 1):
        return np.float32(np.inf)
    row, column = int(np.floor(v + 0.5)), int(np.floor(u + 0.5))
    if not pictures.nearest[k, row, column] > target.log_depth[y, x] - weights.slack:
        return np.float32(np.inf)
    log = pictures.log_depth[k, row, column]
    if not abs(log - np.log(z)) <= _SAME_SURFACE:
        return np.float32(np.inf)
    off = log - target.log_depth[y, x]
    color = np.float32(0)
    for c in range(3):
        d = target.guide[y, x, c] - pictures.guide[k, row, column, c]
        color += d * d
    height, width = target.weight.shape
    context = np.float32(0)
    for dy in range(max(-RADIUS, -y), min(RADIUS, height - 1 - y) + 1):
        for dx in range(max(-RADIUS, -x), min(RADIUS, width - 1 - x) + 1):
            weight = target.weight[y + dy, x + dx]
            if weight > 0:
                for c in range(3):
                    d = target.seen[y + dy, x + dx, c] - pictures.seen[k, row + dy, column + dx, c]
                    context += weight * d * d
    return weights.depth * min(off * off, np.float32(1)) + min(color, weights.most) + weights.context * context


@njit
def _jumps(picture, step, near, y, x, own):
    """How many of the four neighbors copy another piece; `near` is the squared length that tells pieces apart."""
    height, width = picture.shape
    count = np.float32(0)
    for k in range(4):
        ny, nx = y + (k == 0) - (k == 1), x + (k == 2) - (k == 3)
        if 0 <= ny < height and 0 <= nx < width and picture[ny, nx] >= 0:
            other = step[ny, nx]
            if (other[0] - own[0]) ** 2 + (other[1] - own[1]) ** 2 + (other[2] - own[2]) ** 2 > near:
                count += 1
    return count


@njit
def match(target, pictures, weights, focal_px, picture, step, state, rounds):
    """Find matches for the wanted pixels, in place.

    Args:
        focal_px: of the frame's camera, float32.
        picture: int32 [h, w], index of the picture that is copied, -1 where there is none; wanted pixels may start with a
            guess.
        step: float32 [h, w, 3], in the world.
        state: uint64 [1], of the random numbers.
    """
    height, width = picture.shape
    rows, columns = pictures.nearest.shape[1], pictures.nearest.shape[2]
    pixel = np.float32(_SAME_STEP_PX) / focal_px
    cost = np.full((height, width), np.inf, np.float32)
    tried, best_step = np.empty(3, np.float32), np.empty(3, np.float32)
    for n in range(rounds):
        turn = 1 if n % 2 == 0 else -1
        for i in range(height):
            y = i if turn > 0 else height - 1 - i
            for j in range(width):
                x = j if turn > 0 else width - 1 - j
                if not target.wanted[y, x]:
                    continue
                point = target.points[y, x]
                near = np.exp(2 * target.log_depth[y, x]) * pixel * pixel
                k, own = picture[y, x], cost[y, x]
                best_step[:] = step[y, x]
                if k >= 0 and own == np.inf:  # a guess
                    own = _cost(target, pictures, weights, y, x, k, best_step)
                best = np.float32(np.inf)
                if own < np.inf:
                    best = own + weights.jump * _jumps(picture, step, near, y, x, best_step)
                else:
                    k = -1
                reach = max(rows, columns) // 4
                turns = 0
                while turns < 2 + _DRAWS or (reach >= 1 and k >= 0):
                    turns += 1
                    if turns <= 2:  # what a neighbor copies
                        ny, nx = (y - turn, x) if turns == 1 else (y, x - turn)
                        if ny < 0 or nx < 0 or ny >= height or nx >= width or picture[ny, nx] < 0:
                            continue
                        other = picture[ny, nx]
                        tried[:] = step[ny, nx]
                    else:
                        if turns <= 2 + _DRAWS:  # any place
                            place = pictures.places[_random(state) % len(pictures.places)]
                            other, row, column = place[0], place[1], place[2]
                        else:  # a place around the best one
                            u, v, _ = _landing(pictures.cameras[k], point, best_step)
                            other = k
                            row = int(np.floor(v + 0.5)) + _random(state) % (2 * reach + 1) - reach
                            column = int(np.floor(u + 0.5)) + _random(state) % (2 * reach + 1) - reach
                            reach //= 2
                            if row < 0 or column < 0 or row >= rows or column >= columns:
                                continue
                            if not pictures.nearest[other, row, column] > -np.inf:
                                continue
                        for c in range(3):
                            tried[c] = pictures.points[other, row, column, c] - point[c]
                    alone = _cost(target, pictures, weights, y, x, other, tried)
                    if alone < best:
                        whole = alone + weights.jump * _jumps(picture, step, near, y, x, tried)
                        if whole < best:
                            best, own, k = whole, alone, other
                            best_step[:] = tried
                cost[y, x], picture[y, x] = own, k
                step[y, x] = best_step


@njit
def landings(picture, step, points, cameras, out):
    """Where each pixel copies from: column and row of its picture into `out` float32 [h, w, 2], -9 where nowhere."""
    for y in range(picture.shape[0]):
        for x in range(picture.shape[1]):
            out[y, x] = -9
            if picture[y, x] >= 0:
                u, v, _ = _landing(cameras[picture[y, x]], points[y, x], step[y, x])
                out[y, x, 0], out[y, x, 1] = u, v
