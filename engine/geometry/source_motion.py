"""How the source camera moves, from its own frames and their depth: each frame's pose against the one before it."""

import cv2
import numpy as np

_CORNERS, _LEAST = 600, 30
_REPROJECTION_PX = 2.0
_LOOK_AT_PX = 640


def source_poses(frames: np.ndarray, depth: np.ndarray, K_px: np.ndarray) -> np.ndarray:
    """Camera-to-world of every frame, float64 [N, 4, 4]; the world is the first frame's camera.

    Corners of a frame are lifted by its depth and followed into the frame before it; the pose that most of them agree on
    (perspective-n-point with RANSAC) is the camera's step. Steps add up, so the path drifts: good for what must hold
    from frame to frame, no survey. A frame that shows too little to follow counts as standing still.

    Args:
        frames: uint8 [N, H, W, 3].
        depth: float32 [N, h, w], at any size.
        K_px: [3, 3] in pixels of (W, H).
    """
    scale = min(1.0, _LOOK_AT_PX / max(frames.shape[1:3]))
    small = np.diag([scale, scale, 1.0]) @ K_px
    poses = [np.eye(4)]
    before = _gray(frames[0], scale)
    for t in range(1, len(frames)):
        now = _gray(frames[t], scale)
        poses.append(poses[-1] @ _step(before, now, depth[t], small))
        before = now
    return np.stack(poses)


def _gray(frame: np.ndarray, scale: float) -> np.ndarray:
    picture = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _step(before: np.ndarray, now: np.ndarray, depth: np.ndarray, K_px: np.ndarray) -> np.ndarray:
    """From this frame's camera to the one before it, float64 [4, 4]."""
    found = cv2.goodFeaturesToTrack(now, _CORNERS, 0.001, max(3, now.shape[1] / 80))
    if found is None:
        return np.eye(4)
    moved, tracked, _ = cv2.calcOpticalFlowPyrLK(now, before, found, np.empty_like(found))
    at = (found[:, 0] + 0.5) * (depth.shape[1] / now.shape[1], depth.shape[0] / now.shape[0])
    column, row = np.minimum(at.astype(int), (depth.shape[1] - 1, depth.shape[0] - 1)).T
    z = depth[row, column]
    kept = (tracked[:, 0] > 0) & np.isfinite(z) & (z > 0)
    if kept.sum() < _LEAST:
        return np.eye(4)
    pixels = np.concatenate([found[kept, 0].astype(np.float64) + 0.5, np.ones((kept.sum(), 1))], 1)
    points = pixels @ np.linalg.inv(K_px).T * z[kept, None]
    cv2.setRNGSeed(0)
    done, turn, shift, inliers = cv2.solvePnPRansac(
        points,
        moved[kept, 0].astype(np.float64) + 0.5,
        K_px,
        None,
        reprojectionError=_REPROJECTION_PX,
        flags=cv2.SOLVEPNP_ITERATIVE,
        useExtrinsicGuess=True,
        rvec=np.zeros((3, 1)),
        tvec=np.zeros((3, 1)),
    )
    if not done or inliers is None or len(inliers) < _LEAST:
        return np.eye(4)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], shift[:, 0]
    return pose
