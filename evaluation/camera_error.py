"""How far the camera that a video shows is from the one that was asked for.

Source frame t and output frame t show one moment, so whatever moves stands still between them. SIFT features are
matched (Lowe's ratio test, both ways), the source's lifted by its true depth, and the output's camera solved by PnP
with RANSAC. Across a wide angle few features match, so the source is first drawn by the camera asked for and matched
from there: an output that follows its path is then nearly the same view. Where that finds no camera, the source itself
is matched, which tells a camera that never moved.

Frames that gather too few inliers are NaN: texture is missing, the view shares too little with the source, or the
picture is not of that scene. A tiled texture can lock onto the wrong tile; that takes a turn wider than a tile.
Legend: T frames, H x W pixels. Cameras are c2w, OpenCV axes, relative to the source camera of the same moment.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch

from ..engine.cameras.rigid import inverse, rigid, rotation_angle_deg
from ..kernels.splat import splat
from .frame_metrics import require_pictures

LEAST_INLIERS = 16
"""For a camera found through the requested view. Frames of another scene gather fewer than 6 on the rendered set of
`docs/quality.md`."""
LEAST_INLIERS_DIRECT = 50
"""For a camera found from the source itself. The wrong tile of a floor gathers up to 35 there."""
_SOLVABLE = 6
"""Points that the solver needs."""
_RATIO = 0.8
_INLIER_PX = 2.0
_EDGE_BAND = 0.05
"""Relative depth range in 3x3 pixels from which a feature sits on an edge of the scene, where its depth is a guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraErrors:
    """Errors per frame, NaN where no camera was found.

    Attributes:
        rotation_deg: float64 [T], angle between the camera found and the one asked for.
        translation: float64 [T], distance between their centers in scene units.
        translation_share: float64 [T], the same divided by the path's largest distance from the source camera, so that
            clips of any unit compare; NaN for a path that only turns.
        inliers: int64 [T], matches that agree with the camera found; 0 where none was.
    """

    rotation_deg: np.ndarray
    translation: np.ndarray
    translation_share: np.ndarray
    inliers: np.ndarray

    @property
    def computed(self) -> float:
        """Share of the frames in which a camera was found."""
        return float(np.isfinite(self.rotation_deg).mean())


def camera_errors(
    source: np.ndarray,
    output: np.ndarray,
    depth: np.ndarray,
    c2w: np.ndarray,
    K_px: np.ndarray,
    output_K_px: np.ndarray | None = None,
) -> CameraErrors:
    """Compare each output frame's camera with the one asked for.

    Args:
        source: uint8 [T, H, W, 3].
        output: uint8 [T, h, w, 3].
        depth: float [T, H, W], planar z of the source in scene units; what is not finite and positive is not used.
        c2w: float64 [T, 4, 4], the cameras asked for.
        K_px: float64 [3, 3], the source's intrinsics in pixels of (W, H), pixel centers at +0.5.
        output_K_px: float64 [3, 3] or [T, 3, 3] in pixels of (w, h); the source's if not given.

    Raises:
        ValueError: arrays that do not fit together, by name.
    """
    require_pictures("source", source, 4)
    require_pictures("output", output, 4)
    count = len(source)
    if len(output) != count:
        raise ValueError(f"output has {len(output)} frames, the source {count}")
    if depth.shape != source.shape[:3]:
        raise ValueError(f"depth is {depth.shape}, the source asks for {source.shape[:3]}")
    if c2w.shape != (count, 4, 4) or not np.isfinite(c2w).all():
        raise ValueError(f"c2w must be finite [{count}, 4, 4], not {c2w.shape}")
    for name, K in (("K_px", K_px), ("output_K_px", output_K_px)):
        if K is not None and (K.shape[-2:] != (3, 3) or not np.isfinite(K).all()):
            raise ValueError(f"{name} must be finite [3, 3], not {K.shape}")
    target_K = np.broadcast_to(K_px if output_K_px is None else output_K_px, (count, 3, 3))

    asked_pictures, asked_depth = _as_asked(source, depth, c2w, K_px, target_K, output.shape[1:3])
    found = np.full((count, 4, 4), np.nan)
    inliers = np.zeros(count, np.int64)
    for t in range(count):
        target = _features(output[t])
        views = (
            (_View(asked_pictures[t], asked_depth[t], target_K[t], c2w[t]), LEAST_INLIERS),
            (_View(source[t], depth[t], K_px, np.eye(4)), LEAST_INLIERS_DIRECT),
        )
        for view, least in views:
            pose, agreeing = _solve(*_lifted_matches(view, target), target_K[t])
            if pose is not None and agreeing >= least:
                found[t], inliers[t] = pose, agreeing
                break
    translation = np.linalg.norm(found[:, :3, 3] - c2w[:, :3, 3], axis=-1)
    rotation_deg = np.full(count, np.nan)
    seen = np.isfinite(translation)
    rotation_deg[seen] = rotation_angle_deg(found[seen, :3, :3] @ c2w[seen, :3, :3].transpose(0, 2, 1))
    farthest = np.linalg.norm(c2w[:, :3, 3], axis=-1).max()
    share = translation / farthest if farthest > 1e-9 else np.full(count, np.nan)
    return CameraErrors(rotation_deg=rotation_deg, translation=translation, translation_share=share, inliers=inliers)


class _View(NamedTuple):
    """A picture [h, w, 3] whose pixels have depth [h, w]; c2w takes its camera's points to the source's."""

    picture: np.ndarray
    depth: np.ndarray
    K_px: np.ndarray
    c2w: np.ndarray


def _as_asked(
    source: np.ndarray,
    depth: np.ndarray,
    c2w: np.ndarray,
    K_px: np.ndarray,
    target_K: np.ndarray,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """The source drawn by the cameras asked for: uint8 [T, h, w, 3] and depth float32 [T, h, w], NaN in the holes."""
    count = len(source)
    drawn = splat(
        torch.from_numpy(np.ascontiguousarray(source)).permute(0, 3, 1, 2),
        torch.from_numpy(depth.astype(np.float32)),
        torch.from_numpy(K_px.copy()).expand(count, 3, 3),
        torch.from_numpy(inverse(c2w)),
        torch.from_numpy(target_K.copy()),
        size,
    )
    return drawn.color.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy(), drawn.depth.numpy()


def _features(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SIFT's positions [N, 2], with the center of the first pixel at 0, and descriptors [N, 128] of a picture [H, W, 3]."""
    # Renders and generated frames are smooth: a lower threshold than OpenCV's finds more features in them.
    sift = cv2.SIFT.create(contrastThreshold=0.01, enable_precise_upscale=True)
    keys, words = sift.detectAndCompute(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), None)
    return np.array([key.pt for key in keys]).reshape(-1, 2), words if keys else np.zeros((0, 128), np.float32)


def _lifted_matches(view: _View, target: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] in the source camera's frame and the output's pixels [N, 2] that show them, float64."""
    (positions, words), (target_positions, target_words) = _features(view.picture), target
    if min(len(words), len(target_words)) < 2:
        return np.zeros((0, 3)), np.zeros((0, 2))
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    back = [best.trainIdx for (best,) in matcher.knnMatch(target_words, words, k=1)]
    kept = [
        best
        for best, second in matcher.knnMatch(words, target_words, k=2)
        if best.distance < _RATIO * second.distance and back[best.trainIdx] == best.queryIdx
    ]
    xy = positions[[match.queryIdx for match in kept]]
    to_px = target_positions[[match.trainIdx for match in kept]] + 0.5
    column, row = np.rint(xy).astype(int).T
    usable = _smooth_depth(view.depth)[row, column]
    xy, to_px = xy[usable], to_px[usable]
    z = _bilinear(np.where(np.isfinite(view.depth), view.depth, 0), xy)
    rays = np.concatenate([xy + 0.5, np.ones((len(xy), 1))], -1) @ np.linalg.inv(view.K_px).T
    return (rays * z[:, None]) @ view.c2w[:3, :3].T + view.c2w[:3, 3], to_px


def _smooth_depth(depth: np.ndarray) -> np.ndarray:
    """bool [H, W]: True where the 3x3 pixels around are of one surface at finite depth."""
    z = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    near, far = cv2.erode(z, np.ones((3, 3))), cv2.dilate(z, np.ones((3, 3)))
    return (near > 0) & (far <= near * (1 + _EDGE_BAND))


def _bilinear(values: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """`values` [H, W] at positions [N, 2], with the center of the first pixel at 0."""
    if not len(xy):
        return np.zeros(0)
    x, y = xy.astype(np.float32).T[:, None]  # [1, N] each: OpenCV 5 misreads maps of one axis
    return cv2.remap(values.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]


def _solve(points: np.ndarray, pixels: np.ndarray, K_px: np.ndarray) -> tuple[np.ndarray | None, int]:
    """c2w [4, 4] of the camera that sees `points` [N, 3] at `pixels` [N, 2], and how many of them agree."""
    if len(points) < _SOLVABLE:
        return None, 0
    solved, turn, shift, agreeing = cv2.solvePnPRansac(
        points,
        pixels,
        K_px,
        None,
        iterationsCount=1000,
        reprojectionError=_INLIER_PX,
        confidence=0.9999,
        flags=cv2.SOLVEPNP_SQPNP,
    )
    chosen: np.ndarray = np.asarray(agreeing)[:, 0] if solved and agreeing is not None else np.zeros(0, np.int64)
    if len(chosen) < _SOLVABLE:
        return None, 0
    turn, shift = cv2.solvePnPRefineLM(points[chosen], pixels[chosen], K_px, None, turn, shift)
    w2c = rigid(cv2.Rodrigues(turn)[0][None], shift.reshape(1, 3))
    # A mirrored camera behind the scene projects the same pixels.
    if (points[chosen] @ w2c[0, 2, :3] + w2c[0, 2, 3] <= 0).any():
        return None, 0
    return inverse(w2c)[0], len(chosen)
