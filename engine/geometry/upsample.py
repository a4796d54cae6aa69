"""Depth at the clip's resolution: steps of the coarse map are moved onto the picture's edges, and stay steps.

Away from steps inverse depth is interpolated, which keeps planes planes. Near a step a pixel belongs to one of two
surfaces: the one whose colors, in the coarse pixels around it, are like its own (joint bilateral upsampling, Kopf et al.
2007, with a vote between surfaces instead of a mean over them). Votes are smoothed along the picture, so that the border
has no specks, and the depth comes from the chosen surface alone, so that nothing lies between the two.
"""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch

from .surfaces import bordered, inverse_depth, is_joined, jit

_REACH = 2
"""Coarse pixels, in each direction, that a step may lie away from the picture's edge."""
_COLOR_SCALE = 0.08
"""Distance of colors in 0..1 at which a likeness falls to a quarter."""

f32 = np.float32


def upsample(depth: np.ndarray, frames: np.ndarray, *, depth_tolerance: float) -> np.ndarray:
    """Bring depth to the size of the frames.

    Args:
        depth: float32 [T, h, w], z; inf is sky, NaN and non-positive are unknown.
        frames: uint8 [T, H, W, 3].
        depth_tolerance: relative depth within which neighbors are one surface.

    Returns:
        float32 [T, H, W], NaN where nothing is known; the input itself at equal size.
    """
    if depth.shape == frames.shape[:3]:
        return depth
    with ThreadPoolExecutor(max(1, min(len(depth), torch.get_num_threads()))) as pool:
        return np.stack(
            list(
                pool.map(
                    lambda pair: _upsample_frame(pair[0], pair[1], f32(depth_tolerance)),
                    zip(depth, frames, strict=True),
                )
            )
        )


def _upsample_frame(depth: np.ndarray, frame: np.ndarray, depth_tolerance: np.float32) -> np.ndarray:
    h, w = depth.shape
    height, width = frame.shape[:2]
    q = inverse_depth(depth)
    mode = cv2.INTER_AREA if height > h else cv2.INTER_LINEAR
    coarse = cv2.resize(frame, (w, h), interpolation=mode).astype(f32) / f32(255)
    size = 2 * _REACH + 1
    near_step = cv2.dilate(_beside_steps(bordered(q), depth_tolerance), np.ones((size, size), np.uint8))
    out = np.empty((height, width), f32)
    near, far, score = (np.full((height, width), -1, f32) for _ in range(3))
    picture = frame.astype(f32) / f32(255)
    _vote(out, near, far, score, q, _slopes(bordered(q), depth_tolerance), coarse, near_step, picture, depth_tolerance)
    chosen = np.empty((height, width), np.uint8)
    _choose(chosen, near, score, picture, max(1, round(height / h)))
    _settle(out, near, far, chosen)
    with np.errstate(divide="ignore"):
        return np.where(out >= 0, 1 / np.maximum(out, 0), f32(np.nan)).astype(f32)


@jit
def _beside_steps(q, depth_tolerance):
    """1 for pixels that are not of one surface with a neighbor to the right, left, above or below; q has a border."""
    height, width = q.shape[0] - 2, q.shape[1] - 2
    out = np.zeros((height, width), np.uint8)
    for v in range(height):
        for u in range(width):
            if u + 1 < width and not is_joined(q, v, u, 0, 1, depth_tolerance):
                out[v, u] = out[v, u + 1] = 1
            if v + 1 < height and not is_joined(q, v, u, 1, 0, depth_tolerance):
                out[v, u] = out[v + 1, u] = 1
    return out


@jit
def _slopes(q, depth_tolerance):
    """Change of inverse depth a pixel down and a pixel to the right, on each pixel's own surface; q has a border."""
    height, width = q.shape[0] - 2, q.shape[1] - 2
    out = np.zeros((height, width, 2), f32)
    for v in range(height):
        for u in range(width):
            for axis in range(2):
                dv, du = (1, 0) if axis == 0 else (0, 1)
                here, total, sides = q[v + 1, u + 1], f32(0), 0
                for sign in (-1, 1):
                    other = q[v + 1 + sign * dv, u + 1 + sign * du]
                    if other >= 0 and here >= 0 and is_joined(q, v, u, sign * dv, sign * du, depth_tolerance):
                        total += sign * (other - here)
                        sides += 1
                out[v, u, axis] = total / max(sides, 1)
    return out


@jit
def _vote(out, near, far, score, q, slopes, coarse, near_step, picture, depth_tolerance):
    """Inverse depth away from steps; near one both candidates, and by how much the picture prefers the nearer."""
    h, w = q.shape
    height, width = out.shape
    side = 2 * _REACH + 1
    values, there, weights, colors, ordered = np.empty((5, side * side), f32)
    for y in range(height):
        cy = f32((y + 0.5) * h / height - 0.5)
        row = min(max(int(np.floor(cy + 0.5)), 0), h - 1)
        for x in range(width):
            cx = f32((x + 0.5) * w / width - 0.5)
            column = min(max(int(np.floor(cx + 0.5)), 0), w - 1)
            if near_step[row, column] == 0:
                out[y, x] = _bilinear(q, cy, cx)
                continue
            count = 0
            for r in range(max(row - _REACH, 0), min(row + _REACH + 1, h)):
                for c in range(max(column - _REACH, 0), min(column + _REACH + 1, w)):
                    if q[r, c] >= 0:
                        away = (r - cy) * (r - cy) + (c - cx) * (c - cx)
                        difference = f32(0)
                        for k in range(3):
                            d = picture[y, x, k] - coarse[r, c, k]
                            difference += d * d
                        values[count] = q[r, c]
                        there[count] = max(q[r, c] + (cy - r) * slopes[r, c, 0] + (cx - c) * slopes[r, c, 1], f32(0))
                        weights[count] = 1 / ((1 + away / 2) * (1 + away / 2))
                        colors[count] = _likeness(difference)
                        count += 1
            if count == 0:
                out[y, x] = -1
                continue
            split = _widest_gap(ordered, values, count, depth_tolerance)
            if split < 0:  # one surface after all
                out[y, x] = _surface_mean(values, there, weights, count, f32(-1), f32(np.inf), depth_tolerance)
                continue
            vote_near, vote_far = f32(1e-12), f32(1e-12)
            for k in range(count):
                if values[k] > split:
                    vote_near += weights[k] * colors[k]
                else:
                    vote_far += weights[k] * colors[k]
            near[y, x] = _surface_mean(values, there, weights, count, split, f32(np.inf), depth_tolerance)
            far[y, x] = _surface_mean(values, there, weights, count, f32(-1), split, depth_tolerance)
            score[y, x] = np.log(vote_near / vote_far)


@jit
def _likeness(difference):
    """Of two colors, from their squared distance; its long tail bounds what one odd pixel can do to a vote."""
    share = 1 + difference / f32(_COLOR_SCALE * _COLOR_SCALE)
    return 1 / (share * share)


@jit
def _bilinear(q, cy, cx):
    """Interpolated among the four around; what is unknown has no weight."""
    h, w = q.shape
    cy, cx = min(max(cy, f32(0)), f32(h - 1)), min(max(cx, f32(0)), f32(w - 1))
    r, c = int(cy), int(cx)
    ay, ax = cy - f32(r), cx - f32(c)
    total, weight = f32(0), f32(0)
    for i in range(2):
        for j in range(2):
            value = q[min(r + i, h - 1), min(c + j, w - 1)]
            share = (ay if i else 1 - ay) * (ax if j else 1 - ax)
            if value >= 0:
                total += share * value
                weight += share
    return total / weight if weight > 0 else f32(-1)


@jit
def _widest_gap(ordered, values, count, depth_tolerance):
    """The middle of the widest relative gap between sorted values, -1 where none is wider than `depth_tolerance`."""
    for k in range(count):
        value, i = values[k], k
        while i > 0 and ordered[i - 1] > value:
            ordered[i] = ordered[i - 1]
            i -= 1
        ordered[i] = value
    widest, split = depth_tolerance, f32(-1)
    for k in range(1, count):
        gap = (ordered[k] - ordered[k - 1]) / ordered[k] if ordered[k] > 0 else f32(0)
        if gap > widest:
            widest, split = gap, (ordered[k] + ordered[k - 1]) / 2
    return split


@jit
def _surface_mean(values, there, weights, count, above, upto, depth_tolerance):
    """Mean of `there`, over the values in (above, upto] that are of one surface with the closest of them."""
    best, at = f32(-1), f32(0)
    for k in range(count):
        if values[k] > above and values[k] <= upto and weights[k] > best:
            best, at = weights[k], values[k]
    total, weight = f32(0), f32(0)
    for k in range(count):
        if values[k] > above and values[k] <= upto and abs(values[k] - at) <= depth_tolerance * max(values[k], at):
            total += weights[k] * there[k]
            weight += weights[k]
    return total / weight


@jit
def _choose(chosen, near, score, picture, reach):
    """1 for the nearer candidate: the votes of the pixels around, weighted by how alike they look."""
    height, width = score.shape
    for y in range(height):
        for x in range(width):
            if near[y, x] < 0:
                continue
            total = f32(0)
            for v in range(max(y - reach, 0), min(y + reach + 1, height)):
                for u in range(max(x - reach, 0), min(x + reach + 1, width)):
                    if near[v, u] >= 0:
                        difference = f32(0)
                        for k in range(3):
                            d = picture[y, x, k] - picture[v, u, k]
                            difference += d * d
                        total += score[v, u] * _likeness(difference)
            chosen[y, x] = total > 0


@jit
def _settle(out, near, far, chosen):
    """The chosen candidates; a pixel that at most one of its eight neighbors agrees with goes over to them."""
    height, width = out.shape
    for y in range(height):
        for x in range(width):
            if near[y, x] < 0:
                continue
            like, other = 0, 0
            for v in range(max(y - 1, 0), min(y + 2, height)):
                for u in range(max(x - 1, 0), min(x + 2, width)):
                    if near[v, u] >= 0 and (v != y or u != x):
                        like += chosen[v, u] == chosen[y, x]
                        other += 1
            lone = other >= 5 and like <= 1
            out[y, x] = near[y, x] if (chosen[y, x] == 1) != lone else far[y, x]
