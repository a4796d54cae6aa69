"""Which neighboring pixels of a depth map are one surface: shared by what works along depth steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ...kernels.backends import njit

jit: Callable[[Callable[..., Any]], Callable[..., Any]] = partial(njit, error_model="numpy")

_STRAIGHT = np.float32(0.02)
"""Three in a line are a plane where the middle departs from the others' mean by less than this share."""


def inverse_depth(depth: np.ndarray) -> np.ndarray:
    """float32 [h, w]: 1 / z, 0 for sky, -1 for what is unknown (NaN, not positive)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        q = 1 / depth.astype(np.float32)
    return np.where((depth > 0) & np.isfinite(q), q, np.float32(-1)).astype(np.float32)


def bordered(q: np.ndarray) -> np.ndarray:
    """`inverse_depth` [h, w] within a border of one unknown pixel."""
    return np.pad(q, 1, constant_values=-1)


@jit
def is_joined(q, v, u, dv, du, depth_tolerance):
    """Whether pixel (v, u) and the next one by (dv, du) are one surface: close in depth, or in line with a neighbor.

    q is `bordered`; positions are those without the border. Two unknown pixels are joined.
    """
    a, b = q[v + 1, u + 1], q[v + 1 + dv, u + 1 + du]
    if a < 0 or b < 0:
        return a < 0 and b < 0
    if abs(a - b) <= depth_tolerance * min(a, b):
        return True
    before, after = q[v + 1 - dv, u + 1 - du], np.float32(-1)
    if v + 1 + 2 * dv < q.shape[0] and u + 1 + 2 * du < q.shape[1]:
        after = q[v + 1 + 2 * dv, u + 1 + 2 * du]
    if before >= 0 and abs(before + b - 2 * a) <= _STRAIGHT * a:
        return True
    return after >= 0 and abs(a + after - 2 * b) <= _STRAIGHT * b


@jit
def step_rims(q, depth_tolerance):
    """uint8 [h, w] twice: 1 for pixels with a farther neighbor across a step, and 1 for those with a nearer one.

    q is `bordered`; sides are left, right, above and below.
    """
    height, width = q.shape[0] - 2, q.shape[1] - 2
    near, far = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    for v in range(height):
        for u in range(width):
            here = q[v + 1, u + 1]
            for axis in range(2):
                dv, du = (1, 0) if axis == 0 else (0, 1)
                other = q[v + 1 + dv, u + 1 + du]
                if here < 0 or other < 0 or is_joined(q, v, u, dv, du, depth_tolerance):
                    continue
                if here > other:
                    near[v, u] = far[v + dv, u + du] = 1
                else:
                    far[v, u] = near[v + dv, u + du] = 1
    return near, far
