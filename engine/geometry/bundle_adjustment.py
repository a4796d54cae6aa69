"""Bundle adjustment with measured depth: poses, points and one scale per frame that agree best with what is seen.

Unknown are a turn, a shift and a log scale per frame, and a log depth per point where it is first seen. A sighting says
where a point is in the picture and, weakly, how far it is; the uncertainty of depth is estimated on the way. Damped
Gauss-Newton steps (Triggs et al. 2000) on residuals with Geman and McClure's weights, under which points on moving
things lose their say.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve
from scipy.spatial.transform import Rotation

LEAST_SIGHTINGS = 24
_SIGMA_PX = 0.5
_SIGMA_DEPTH = 0.15
_LEAST_SIGMA_DEPTH = 0.005
"""In log depth, of the depth's errors beside its frame's scale: where it begins, and how good depth can be."""
_ROUNDS = 12
_FADES_PX, _FADES_DEPTH = 3.0, 2.0
"""Residuals, in sigmas, at which a sighting has lost three quarters of its weight."""
_LARGEST_STEP = 0.5
_PER_FRAME = 7


@dataclass(slots=True)
class Sightings:
    """Points followed through frames: one row per sighting, in order of frames.

    Attributes:
        point: int [M], which point.
        frame: int [M].
        ray: float64 [M, 3], the pixel's direction in camera axes, z = 1.
        log_depth: float64 [M], measured; NaN if unknown.
    """

    point: np.ndarray
    frame: np.ndarray
    ray: np.ndarray
    log_depth: np.ndarray


@dataclass(slots=True)
class _Problem:
    """Pairs of sightings: where a point is seen again, and where it was first seen in the window; `own` are the latter."""

    again: Sightings
    first_ray: np.ndarray
    first_frame: np.ndarray
    number: np.ndarray
    own: Sightings
    column: np.ndarray


def adjust(
    sightings: Sightings, focal_px: np.ndarray, poses: np.ndarray, log_scale: np.ndarray, window: range, fixed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Settle the frames in `window`, of which the first `fixed` keep their poses and scales.

    Args:
        focal_px: float64 [2].
        poses: float64 [N, 4, 4], camera to world.
        log_scale: float64 [N].

    Returns:
        New poses and scales of all frames; the old ones where too little is seen.
    """
    problem = _of_window(sightings, window, fixed)
    if problem is None:
        return poses, log_scale
    poses, log_scale = poses.copy(), log_scale.copy()
    free = np.arange(window.start + fixed, window.stop)
    shared = _PER_FRAME * len(free)
    depth = problem.own.log_depth + log_scale[problem.own.frame]
    depth = np.where(np.isfinite(depth), depth, np.nanmedian(depth))
    damping, sigma = 1e-3, _SIGMA_DEPTH
    for _ in range(_ROUNDS):
        jacobian, residual, sigma = _linearized(problem, focal_px, poses, log_scale, depth, sigma, shared)
        normal = (jacobian.T @ jacobian).tocsc()
        damped = normal + sparse.diags(damping * normal.diagonal() + 1e-9, format="csc")
        step = np.asarray(spsolve(damped, -(jacobian.T @ residual)))
        of_frames = step[:shared].reshape(-1, _PER_FRAME)
        poses[free, :3, :3] = Rotation.from_rotvec(of_frames[:, :3]).as_matrix() @ poses[free, :3, :3]
        poses[free, :3, 3] += of_frames[:, 3:6]
        log_scale[free] += of_frames[:, 6]
        depth = depth + np.clip(step[shared:], -_LARGEST_STEP, _LARGEST_STEP)
        damping /= 3
        if np.abs(step[:shared]).max(initial=0) < 1e-6:
            break
    return poses, log_scale


def fading(square: np.ndarray) -> np.ndarray:
    """Geman and McClure's weight of a squared residual, in units of where it fades to a quarter."""
    return 1 / np.square(1 + square)


def _of_window(sightings: Sightings, window: range, fixed: int) -> _Problem | None:
    inside = np.flatnonzero((sightings.frame >= window.start) & (sightings.frame < window.stop))
    _names, first, number = np.unique(sightings.point[inside], return_index=True, return_inverse=True)
    own = inside[first]
    again = (np.bincount(number)[number] >= 3) & (inside != own[number])
    if again.sum() < LEAST_SIGHTINGS or not np.isfinite(sightings.log_depth[own]).any():
        return None
    column = np.full(window.stop, -1)
    free = np.arange(window.start + fixed, window.stop)
    column[free] = _PER_FRAME * np.arange(len(free))
    earlier = own[number[again]]
    return _Problem(
        again=_rows(sightings, inside[again]),
        first_ray=sightings.ray[earlier],
        first_frame=sightings.frame[earlier],
        number=number[again],
        own=_rows(sightings, own),
        column=column,
    )


def _rows(sightings: Sightings, rows: np.ndarray) -> Sightings:
    return Sightings(sightings.point[rows], sightings.frame[rows], sightings.ray[rows], sightings.log_depth[rows])


def _linearized(
    problem: _Problem,
    focal_px: np.ndarray,
    poses: np.ndarray,
    log_scale: np.ndarray,
    depth: np.ndarray,
    sigma_depth: float,
    shared: int,
) -> tuple[sparse.csr_matrix, np.ndarray, float]:
    """Weighted residuals, their derivatives by all unknowns, and how uncertain depth is found to be.

    Three residuals per sighting (right, down, log depth), one per point (its log depth where it is first seen).
    """
    again, own, number = problem.again, problem.own, problem.number
    f, a = again.frame, problem.first_frame
    turned = np.einsum("mij,mj->mi", poses[a, :3, :3], problem.first_ray * np.exp(depth[number])[:, None])
    away = turned + poses[a, :3, 3] - poses[f, :3, 3]
    back = poses[f, :3, :3].transpose(0, 2, 1)
    local = np.einsum("mij,mj->mi", back, away)
    z = np.maximum(local[:, 2], 1e-6)
    off = (local[:, :2] / z[:, None] - again.ray[:, :2]) * focal_px / _SIGMA_PX
    measured, known = np.isfinite(again.log_depth), np.isfinite(own.log_depth)
    off_depth = np.where(measured, np.log(z) - again.log_depth - log_scale[f], 0)
    off_own = np.where(known, depth - own.log_depth - log_scale[own.frame], 0)
    if measured.any():
        sigma_depth = max(_LEAST_SIGMA_DEPTH, 1.48 * float(np.median(np.abs(off_depth[measured]))))
    off_depth, off_own = off_depth / sigma_depth, off_own / sigma_depth
    weight = np.sqrt(fading(np.square(off / _FADES_PX).sum(-1))) * (local[:, 2] > 1e-6)
    weight_depth = weight * np.sqrt(fading(np.square(off_depth / _FADES_DEPTH))) * measured
    weight_own = np.sqrt(fading(np.square(off_own / _FADES_DEPTH))) * known
    # A turn w of a frame is R <- exp(w) R, so that d(R^T v) = R^T (v x w).
    project = np.zeros((len(z), 3, 3))
    for axis in (0, 1):
        project[:, axis, axis] = focal_px[axis] / z / _SIGMA_PX
        project[:, axis, 2] = -focal_px[axis] * local[:, axis] / z**2 / _SIGMA_PX
    project[:, 2, 2] = 1 / z / sigma_depth
    project *= np.stack([weight, weight, weight_depth], -1)[..., None]
    by_frame = project @ np.concatenate([back @ _cross(away), -back], 2)
    by_first = project @ np.concatenate([-back @ _cross(turned), back], 2)
    by_depth = np.einsum("mij,mj->mi", project, np.einsum("mij,mj->mi", back, turned))
    count = 3 * len(z)
    line, last = np.arange(count).reshape(-1, 3), count + np.arange(len(own.point))
    places = shared + np.arange(len(own.point))
    entries = [_entry(line, shared + number[:, None], by_depth), _entry(last, places, weight_own / sigma_depth)]
    for column, block in ((problem.column[f], by_frame), (problem.column[a], by_first)):
        free = column >= 0
        entries.append(_entry(line[free, :, None], column[free, None, None] + np.arange(6), block[free]))
    for column, rows, value in (
        (problem.column[f], line[:, 2], weight_depth),
        (problem.column[own.frame], last, weight_own),
    ):
        free = column >= 0
        entries.append(_entry(rows[free], column[free] + 6, -value[free] / sigma_depth))
    rows, columns, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    shape = (count + len(own.point), shared + len(own.point))
    jacobian = sparse.csr_matrix((values, (rows, columns)), shape=shape)
    residual = np.concatenate([off * weight[:, None], (off_depth * weight_depth)[:, None]], 1)
    return jacobian, np.concatenate([residual.ravel(), off_own * weight_own]), sigma_depth


def _entry(line: np.ndarray, column: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat (rows, columns, values), broadcast to one shape."""
    line, column, value = np.broadcast_arrays(line, column, value)
    return line.ravel(), column.ravel(), value.ravel()


def _cross(v: np.ndarray) -> np.ndarray:
    """[M, 3, 3] with `_cross(v) @ w` the cross product of v and w."""
    out = np.zeros((len(v), 3, 3))
    out[:, 0, 1], out[:, 0, 2], out[:, 1, 2] = -v[:, 2], v[:, 1], -v[:, 0]
    return out - out.transpose(0, 2, 1)
