"""How the source camera moves, from the clip's own frames and their depth.

Corners are followed from frame to frame; each frame's pose is the one that most of the points seen so far agree with
(perspective-n-point with RANSAC against points lifted by depth). Then poses, points and one scale per frame are settled
together, window by window (`bundle_adjustment.py`).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .bundle_adjustment import LEAST_SIGHTINGS, Sightings, adjust, fading

_LOOK_AT_PX = 640
_CORNERS = 500
_ROUND_TRIP_PX = 0.7
"""A corner followed into the next frame and back must return this close."""
_RANSAC_PX = 2.0
_TURN_ROUNDS = 10
WINDOW, OVERLAP = 48, 16
"""Frames that are settled together, and those of them that the windows before have settled."""
_ROTATION_ALONE = 1.15
"""A camera that only turns explains the corners nearly as well: at most this much worse."""


class LostCamera(ValueError):
    """The camera's motion cannot be found; the text says from which frame on, and why."""


@dataclass(frozen=True, slots=True)
class Odometry:
    """The source camera of every frame.

    Attributes:
        c2w: float64 [N, 4, 4], camera to the world of the first frame's camera, in units of its depth.
        log_scale: float64 [N], to be added to a frame's log depth so that all frames agree.
        turns_only: the camera stands on one spot; all positions are 0.
        error_px: median distance of points from where the poses put them, in pixels of the clip.
        inlier_share: share of the followed points that agree with the poses.
    """

    c2w: np.ndarray
    log_scale: np.ndarray
    turns_only: bool
    error_px: float
    inlier_share: float


def camera_motion(frames: np.ndarray, depth: np.ndarray, K_px: np.ndarray) -> Odometry:
    """Poses of the source camera.

    Args:
        frames: uint8 [N, H, W, 3].
        depth: float32 [N, h, w], at any size; inf is sky.
        K_px: float64 [3, 3] in pixels of (W, H).

    Raises:
        LostCamera: too little to follow, or a cut.
    """
    scale = min(1.0, _LOOK_AT_PX / max(frames.shape[1:3]))
    K_small = np.diag([scale, scale, 1.0]) @ K_px
    seen = follow(frames, depth, K_small, scale)
    focal = K_small[[0, 1], [0, 1]]
    count = len(frames)
    poses, log_scale = _chained(seen, K_small, count), np.zeros(count)
    for start in range(0, max(1, count - OVERLAP), WINDOW - OVERLAP):
        window = range(start, min(count, start + WINDOW))
        poses, log_scale = adjust(seen, focal, poses, log_scale, window, OVERLAP if start else 1)
    error, share = _agreement(seen, focal, poses, log_scale)
    turning = _turned(seen, focal, count)
    error_turning, share_turning = _agreement(seen, focal, turning, log_scale)
    turns_only = error_turning <= _ROTATION_ALONE * error and share_turning >= share / _ROTATION_ALONE
    if turns_only:
        poses, error, share = turning, error_turning, share_turning
    return Odometry(poses, log_scale, turns_only, error / scale, share)


def follow(frames: np.ndarray, depth: np.ndarray, K_px: np.ndarray, scale: float) -> Sightings:
    """Corners followed as long as they can be.

    Args:
        frames: uint8 [N, H, W, 3], looked at shrunk by `scale`.
        depth: float32 [N, h, w].
        K_px: float64 [3, 3] of the shrunk frames.
    """
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    at, names, fresh = np.empty((0, 2), np.float32), np.empty(0, int), 0
    before: np.ndarray | None = None
    for t in range(len(frames)):
        now = _gray(frames[t], scale)
        if before is not None and len(at):
            there = _flow(before, now, at)
            back = _flow(now, before, there)
            inside = ((there >= 1) & (there < np.array(now.shape[::-1]) - 2)).all(-1)
            kept = inside & (np.linalg.norm(back - at, axis=-1) < _ROUND_TRIP_PX)
            at, names = there[kept], names[kept]
        found = _new_corners(now, at)
        at = np.concatenate([at, found])
        names = np.concatenate([names, fresh + np.arange(len(found))])
        fresh += len(found)
        pixel = at.astype(np.float64) + 0.5
        ray = np.concatenate([pixel, np.ones((len(pixel), 1))], 1) @ np.linalg.inv(K_px).T
        rows.append((names, np.full(len(names), t), ray, _log_depth_at(depth[t], pixel, now.shape)))
        before = now
    return Sightings(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _new_corners(picture: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Corners [M, 2] away from those `taken`, so many that there are `_CORNERS` in all."""
    apart = max(3, picture.shape[1] // 80)
    free = np.full(picture.shape, 255, np.uint8)
    for x, y in taken.round().astype(int).tolist():
        cv2.circle(free, (x, y), apart, 0, -1)
    found = None
    if len(taken) < _CORNERS:
        found = cv2.goodFeaturesToTrack(picture, _CORNERS - len(taken), 0.002, apart, mask=free)
    return np.empty((0, 2), np.float32) if found is None else found[:, 0]


def _gray(frame: np.ndarray, scale: float) -> np.ndarray:
    picture = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else picture


def _flow(before: np.ndarray, now: np.ndarray, at: np.ndarray) -> np.ndarray:
    moved, found, _ = cv2.calcOpticalFlowPyrLK(
        before, now, at[:, None], np.empty_like(at[:, None]), winSize=(15, 15), maxLevel=4
    )
    return np.where(found > 0, moved[:, 0], np.float32(-1e6))


def _log_depth_at(depth: np.ndarray, pixel: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Log depth at pixels of a picture of `size` (h, w); NaN for sky, and beside a step, where a corner lies at either."""
    column, row = np.minimum(
        (pixel * (depth.shape[1] / size[1], depth.shape[0] / size[0])).astype(int),
        (depth.shape[1] - 1, depth.shape[0] - 1),
    ).T
    around = np.stack(
        [
            depth[np.clip(row + dy, 0, depth.shape[0] - 1), np.clip(column + dx, 0, depth.shape[1] - 1)]
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(around.astype(np.float64))
    smooth = np.isfinite(log).all(0) & (np.ptp(np.where(np.isfinite(log), log, 0), axis=0) < 0.1)
    return np.where(smooth, log[4], np.nan)


def _chained(seen: Sightings, K_px: np.ndarray, count: int) -> np.ndarray:
    """A first guess, float64 [N, 4, 4]: every frame against the points that earlier frames have lifted."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    world = np.full((seen.point.max(initial=-1) + 1, 3), np.nan)
    ends = np.searchsorted(seen.frame, np.arange(count + 1))
    for t in range(count):
        here = slice(ends[t], ends[t + 1])
        names, ray, log_depth = seen.point[here], seen.ray[here], seen.log_depth[here]
        if t:
            known = np.isfinite(world[names]).all(-1)
            poses[t] = _resected(world[names[known]], (ray[known] @ K_px.T)[:, :2], K_px, poses[t - 1], t)
        lifted = ray * np.exp(log_depth)[:, None] @ poses[t][:3, :3].T + poses[t][:3, 3]
        new = np.isnan(world[names]).any(-1)
        world[names[new]] = lifted[new]
    return poses


def _resected(points: np.ndarray, pixel: np.ndarray, K_px: np.ndarray, guess: np.ndarray, t: int) -> np.ndarray:
    """Camera-to-world of one frame by the points (world) that it sees."""
    if len(points) < LEAST_SIGHTINGS:
        raise LostCamera(
            f"frame {t} shows only {len(points)} points that the frames before it showed: a cut, blur, or nothing to follow"
        )
    w2c = np.linalg.inv(guess)
    cv2.setRNGSeed(0)
    done, turn, shift, inliers = cv2.solvePnPRansac(
        points,
        pixel,
        K_px,
        None,
        iterationsCount=300,
        reprojectionError=_RANSAC_PX,
        flags=cv2.SOLVEPNP_ITERATIVE,
        useExtrinsicGuess=True,
        rvec=cv2.Rodrigues(w2c[:3, :3])[0],
        tvec=w2c[:3, 3:].copy(),
    )
    if not done or inliers is None or len(inliers) < LEAST_SIGHTINGS:
        raise LostCamera(f"no motion of the camera explains what frame {t} shows: a cut, or most of it moves")
    kept = np.asarray(inliers, np.intp)[:, 0]
    turn, shift = cv2.solvePnPRefineLM(points[kept], pixel[kept], K_px, None, turn, shift)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], shift[:, 0]
    return np.linalg.inv(pose)


def _neighbors(seen: Sightings) -> tuple[np.ndarray, np.ndarray]:
    """Rows of sightings and of the next sighting of the same point."""
    order = np.lexsort((seen.frame, seen.point))
    a, b = order[:-1], order[1:]
    same = seen.point[a] == seen.point[b]
    return a[same], b[same]


def _agreement(seen: Sightings, focal_px: np.ndarray, poses: np.ndarray, log_scale: np.ndarray) -> tuple[float, float]:
    """Median distance in pixels of sightings from where those before put them, and the share within `_RANSAC_PX`."""
    a, b = _neighbors(seen)
    a, b = (rows[np.isfinite(seen.log_depth[a])] for rows in (a, b))
    f, g = seen.frame[a], seen.frame[b]
    point = seen.ray[a] * np.exp(seen.log_depth[a] + log_scale[f])[:, None]
    world = np.einsum("mij,mj->mi", poses[f, :3, :3], point) + poses[f, :3, 3]
    local = np.einsum("mji,mj->mi", poses[g, :3, :3], world - poses[g, :3, 3])
    off = (local[:, :2] / np.maximum(local[:, 2:], 1e-6) - seen.ray[b, :2]) * focal_px
    distance = np.linalg.norm(off, axis=-1)
    return float(np.median(distance)), float((distance < _RANSAC_PX).mean())


def _turned(seen: Sightings, focal_px: np.ndarray, count: int) -> np.ndarray:
    """Poses of a camera that stays where it is: the turn from frame to frame that most rays agree with (Kabsch 1976)."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    a, b = _neighbors(seen)
    unit = seen.ray / np.linalg.norm(seen.ray, axis=1, keepdims=True)
    for t in range(1, count):
        here = seen.frame[b] == t
        before, now = unit[a[here]], unit[b[here]]
        weight, turn = np.ones(len(now)), np.eye(3)
        for _ in range(_TURN_ROUNDS):
            u, _, vt = np.linalg.svd((before * weight[:, None]).T @ now)
            turn = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
            weight = fading(np.square(np.linalg.norm(before - now @ turn.T, axis=1) * focal_px[0] / _RANSAC_PX))
        poses[t, :3, :3] = poses[t - 1, :3, :3] @ turn
    return poses
