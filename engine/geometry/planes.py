"""Flat things made flat: floors and walls that are nearly planes become planes, and what meets them goes along.

A plane of space is affine in the picture's inverse depth. The planes that many pixels nearly agree on are found one
after the other (RANSAC, Fischler and Bolles 1981). They are not pasted in, which would leave a crack where two of them,
or a plane and something else, meet: only the slopes of flat pixels come from their plane, everything else keeps its own
slopes and steps, and the depth that fits all slopes best is solved for (a screened Poisson equation, by cosine
transforms).
"""

import cv2
import numpy as np

MOST = 6
FLAT = 0.08
"""A pixel is flat where its log depth is off its plane by less."""
_INLIER = 0.04
_LEAST_SHARE = 0.03
_TRIES = 200
_STRIDE = 4
_STEP = 0.06
"""A step in log depth between two neighbors that is no slope of a plane."""
_BEYOND = 0.7
"""Log depth by which a flat surface may go beyond everything that was seen."""
_HOLD = 2e-4
"""Weight of the depth itself against its slopes: holds the picture as a whole in its place."""


def flatten(log_depth: np.ndarray, usable: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Log depth in which nearly flat surfaces are flat.

    Args:
        log_depth: float32 [h, w], finite.
        usable: bool [h, w]; sky is not.
        seed: of the search.

    Returns:
        float32 [h, w]; the input itself where nothing is flat.
    """
    planes = find_planes(log_depth, usable, seed=seed)
    if not planes:
        return log_depth
    h, w = log_depth.shape
    y, x = np.mgrid[0:h, 0:w] / w
    inverse = np.stack([a * x + b * y + c for a, b, c in planes])
    surfaces = -np.log(np.maximum(inverse, 1e-6)).astype(np.float32)  # [P, h, w]
    off = np.stack([cv2.GaussianBlur(np.abs(surface - log_depth), (0, 0), w / 160) for surface in surfaces])
    nearest = off.argmin(0)
    flat = (off.min(0) < FLAT) & usable
    held = np.where(flat, np.take_along_axis(surfaces, nearest[None], 0)[0], log_depth)
    right, down = (_slopes(log_depth, surfaces, nearest, flat, axis) for axis in (1, 0))
    # A plane goes to infinity at its horizon, and a pixel there is not a million times as far as all that was seen.
    solved = np.minimum(solve_slopes(right, down, held), log_depth[usable].max() + _BEYOND)
    return np.where(usable, solved, log_depth).astype(np.float32)


def find_planes(log_depth: np.ndarray, usable: np.ndarray, *, seed: int) -> list[np.ndarray]:
    """(a, b, c) of inverse depth a x + b y + c, x and y in picture widths, the plane of most pixels first."""
    rng = np.random.default_rng(seed)
    h, w = log_depth.shape
    y, x = (axis.ravel() / w for axis in np.mgrid[0:h:_STRIDE, 0:w:_STRIDE])
    least = _LEAST_SHARE * len(x)
    some = usable[::_STRIDE, ::_STRIDE].ravel()
    points = np.stack([x, y, np.ones_like(x)], -1)[some]
    inverse = np.exp(-log_depth[::_STRIDE, ::_STRIDE].ravel().astype(np.float64))[some]
    left = np.ones(len(points), bool)
    planes: list[np.ndarray] = []
    while len(planes) < MOST and left.sum() >= least:
        plane = _best_plane(points[left], inverse[left], rng)
        if plane is None:
            break
        for _ in range(4):
            weight = np.where(left, np.clip(1 - np.square(_off(plane, points, inverse) / (1.5 * _INLIER)), 0, None), 0)
            if np.count_nonzero(weight) < 3:
                break
            # Relative least squares: each row is divided by its inverse depth.
            rows = points * (weight / inverse)[:, None]
            plane = np.linalg.lstsq(rows, weight, rcond=None)[0]
        off = _off(plane, points, inverse)
        if (left & (off < _INLIER)).sum() < least:
            break
        planes.append(plane)
        left &= off >= 1.5 * _INLIER
    return planes


def _best_plane(points: np.ndarray, inverse: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """The plane through three pixels near each other that the most pixels agree with."""
    best, support = None, 0.0
    for _ in range(_TRIES):
        first = points[rng.integers(len(points))]
        near = np.flatnonzero((np.abs(points - first) < rng.uniform(0.05, 0.5)).all(-1))
        if len(near) < 3:
            continue
        three = rng.choice(near, 3, replace=False)
        if abs(np.linalg.det(points[three])) < 1e-4:  # nearly on a line
            continue
        plane = np.linalg.solve(points[three], inverse[three])
        agree = float(np.clip(1 - _off(plane, points, inverse) / _INLIER, 0, None).sum())
        if agree > support:
            best, support = plane, agree
    return best


def _off(plane: np.ndarray, points: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Distance from a plane in log depth."""
    return np.abs(np.log(np.maximum(points @ plane, 1e-6) / inverse))


def _slopes(
    log_depth: np.ndarray, surfaces: np.ndarray, nearest: np.ndarray, flat: np.ndarray, axis: int
) -> np.ndarray:
    """Steps of log depth along an axis, between flat neighbors those of their planes (the mean of two)."""
    own = np.diff(log_depth, axis=axis)
    count = own.shape[axis]
    before, after = (np.take(values, range(k, k + count), axis) for k in (0, 1) for values in (nearest,))
    steps = np.diff(surfaces, axis=axis + 1)
    of_plane = sum(np.take_along_axis(steps, which[None], 0)[0] for which in (before, after)) / 2
    both = np.take(flat, range(count), axis) & np.take(flat, range(1, count + 1), axis)
    return np.where(both & (np.abs(own) < _STEP), of_plane, own)


def solve_slopes(right: np.ndarray, down: np.ndarray, held: np.ndarray, hold: float = _HOLD) -> np.ndarray:
    """The map whose steps are nearest to given ones: least squares of steps and, weakly, of values.

    Args:
        right: [h, w - 1] steps along rows.
        down: [h - 1, w] steps along columns.
        held: [h, w] values, of weight `hold`.

    Returns:
        float64 [h, w].
    """
    h, w = held.shape
    bottom, end = h % 2, w % 2  # the transform takes even sizes: a repeated last row or column changes nothing
    held = np.pad(held.astype(np.float64), ((0, bottom), (0, end)), mode="edge")
    right = np.pad(np.pad(right, ((0, bottom), (0, 0)), mode="edge"), ((0, 0), (0, end)))
    down = np.pad(np.pad(down, ((0, 0), (0, end)), mode="edge"), ((0, bottom), (0, 0)))
    divergence = np.zeros_like(held)
    divergence[:, :-1] += right
    divergence[:, 1:] -= right
    divergence[:-1] += down
    divergence[1:] -= down
    rows, columns = (2 - 2 * np.cos(np.pi * np.arange(n) / n) for n in held.shape)
    solved = cv2.idct(cv2.dct(hold * held - divergence) / (rows[:, None] + columns[None] + hold))
    return solved[:h, :w]
