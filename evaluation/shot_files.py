"""A shot as a user would bring it: a lossless clip, a camera file, a folder with depth."""

import json
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np

from ..engine.cameras import CameraPath
from ..engine.cameras.rigid import inverse, rotation_angle_deg
from .dataset import Shot


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthFit:
    """How estimated depth was brought to the true scale.

    Attributes:
        scale: true depth is about `scale` times the estimate.
        abs_rel: mean relative error that is left, over everything finite.
    """

    scale: float
    abs_rel: float


def write_clip(frames: np.ndarray, fps: float, path: Path) -> None:
    """Frames uint8 [T, H, W, 3] as lossless FFV1 in RGB: what is decoded is what was given."""
    aside = path.with_name(f"part-{path.name}")
    with av.open(str(aside), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    os.replace(aside, path)


def write_camera(shot: Shot, path: Path, *, of: Literal["source", "target"] = "target") -> None:
    """A camera's poses in the world of the first source camera, in the project's own format."""
    count, height, width = shot.depth.shape
    camera = CameraPath(
        c2w=inverse(shot.source_c2w[:1]) @ (shot.source_c2w if of == "source" else shot.target_c2w),
        K_px=np.broadcast_to(shot.K_px, (count, 3, 3)),
        width=width,
        height=height,
        times_s=np.arange(count) / shot.fps,
    )
    path.write_text(json.dumps({**json.loads(camera.to_json()), "reference": "world"}))


def source_errors(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """How far poses [N, 4, 4] of the source camera are from the true ones, at most, after one scale.

    Returns:
        `source_rotation_deg`, and `source_position_share` of the true path's length, NaN where it has none.
    """
    found, true = (inverse(poses[:1]) @ poses for poses in (found, true))
    a, b = found[:, :3, 3], true[:, :3, 3]
    scale = (a * b).sum() / np.square(a).sum() if a.any() else 1.0
    length = np.linalg.norm(np.diff(b, axis=0), axis=1).sum()
    off = float(np.linalg.norm(scale * a - b, axis=1).max())
    return {
        "source_rotation_deg": float(rotation_angle_deg((inverse(found) @ true)[:, :3, :3]).max()),
        "source_position_share": off / length if length > 0 else float("nan"),
    }


def fit_scale(estimated: np.ndarray, true: np.ndarray) -> DepthFit:
    """The one factor a clip that brings estimated depth to the true one.

    Least squares of the relative error, argmin over s of sum (s e / d - 1)^2, over the pixels that are finite and
    positive in both; both [T, H, W].
    """
    both = np.isfinite(estimated) & np.isfinite(true) & (estimated > 0) & (true > 0)
    ratio = estimated[both].astype(np.float64) / true[both]
    scale = float(ratio.sum() / np.square(ratio).sum()) if ratio.size else 1.0
    return DepthFit(scale=scale, abs_rel=float(np.abs(scale * ratio - 1).mean()) if ratio.size else float("nan"))


def write_depth(depth: np.ndarray, folder: Path) -> Path:
    """A folder that `--depth-dir` takes, holding depth [T, h, w]."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f"part-{folder.name}.npy"
    np.save(aside, depth.astype(np.float32))
    os.replace(aside, folder / "depth.npy")
    return folder


def field_of_view_deg(shot: Shot) -> float:
    """Horizontal field of view of the shot's lens."""
    return float(np.degrees(2 * np.arctan(shot.depth.shape[2] / 2 / shot.K_px[0, 0])))
