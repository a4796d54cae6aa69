"""nerfstudio's `transforms.json`.

`transform_matrix` is c2w of an OpenGL camera (x right, y up, z backward). The world is usually the reconstruction's
moved by `applied_transform` and then `applied_scale`; both are undone, so that poses of several files of one
reconstruction meet. Intrinsics `fl_x fl_y cx cy w h` are in the head or in each frame; pixel centers lie at +0.5.
Frames have no times; like nerfstudio we order them by `file_path`. Lens distortion, which `ns-process-data` writes for
every real capture, is left out: a path needs poses and focal lengths. NeRF's own files (`transforms_train.json`) have
`camera_angle_x` and no picture size: their lens is the clip's.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...user_files.numbering import natural_order
from ..rig import chosen_camera
from ..rigid import checked_poses, inverse
from ..track import PoseTrack, build_track, check_count
from .strict import decoded, matrix, number, objects, parse_json, read_bytes, refuse, size

if TYPE_CHECKING:
    from ..path import CameraPath

_GL_FROM_CV = np.diag([1.0, -1.0, -1.0, 1.0])
_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")


def claims(path: Path, head: bytes) -> bool:
    """Every JSON file."""
    return path.suffix.lower() == ".json" or head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def read(path: Path, camera: str | None = None) -> PoseTrack:
    """Read a `transforms.json`; of a rig, the frames of one camera."""
    name = str(path)
    document = parse_json(decoded(read_bytes(path), name), name)
    if "frames" not in document:
        refuse(name, "neither this project's camera JSON (no 'schema') nor a nerfstudio transforms.json (no 'frames')")
    frames = objects(document["frames"], f"{name}: frames")
    check_count(len(frames), name)
    known = [str(frame["file_path"]) for frame in frames if isinstance(frame.get("file_path"), str)]
    # Frames that do not each have a name of their own stay in the file's order.
    named = len(set(known)) == len(frames)
    order = list(range(len(frames)))
    if named or camera is not None:
        chosen = chosen_camera(known if named else [""] * len(frames), camera, name)
        order = [chosen[i] for i in natural_order([known[i] for i in chosen])]
    where = [f"{name}: frame {i}" for i in order]
    frames = [frames[i] for i in order]

    c2w = np.array(
        [_pose(f.get("transform_matrix"), f"{w}: transform_matrix") for f, w in zip(frames, where, strict=True)]
    )
    c2w = _without_applied(checked_poses(c2w @ _GL_FROM_CV, where.__getitem__), document, name)
    merged = [{**document, **frame} for frame in frames]
    lenses = [_lens(fields, w) for fields, w in zip(merged, where, strict=True)]
    if len({repr(fields.get("camera_angle_x")) for fields in merged}) > 1 and None in lenses:
        refuse(where[lenses.index(None)], "its lens changes: `w` and `h` are needed besides camera_angle_x")
    found = [lens for lens in lenses if lens is not None]
    if found and len(found) < len(lenses):
        refuse(where[lenses.index(None)], "has no intrinsics while other frames have")
    return build_track(
        c2w,
        where.__getitem__,
        K_px=np.array([K for K, _ in found]) if found else None,
        sizes=[s for _, s in found] or None,
        names=[known[i] for i in order] if named else None,
        distorted=any(number(fields.get(key, 0.0), name) != 0 for fields in merged for key in _DISTORTION),
    )


def _pose(value: object, where: str) -> np.ndarray:
    rows = 3 if isinstance(value, list) and len(value) == 3 else 4
    pose = np.eye(4)
    pose[:rows] = matrix(value, rows, 4, where)
    return pose


def _without_applied(c2w: np.ndarray, document: dict[str, object], name: str) -> np.ndarray:
    """Undo c2w = scale * (applied_transform @ original), the scale on translations."""
    scale = number(document.get("applied_scale", 1.0), f"{name}: applied_scale")
    if not 1e-9 <= scale <= 1e9:
        refuse(name, f"applied_scale must be a positive number, not {scale:g}")
    c2w[:, :3, 3] /= scale
    if "applied_transform" not in document:
        return c2w
    where = f"{name}: applied_transform"
    applied = checked_poses(_pose(document["applied_transform"], where)[None], lambda _: where)
    return inverse(applied) @ c2w


def _lens(fields: dict[str, object], where: str) -> tuple[np.ndarray, tuple[int, int]] | None:
    """K [3, 3] and (width, height) from a frame's fields, which override the head's; None without a focal length."""
    model = fields.get("camera_model", "PINHOLE")
    if model not in _MODELS:
        refuse(where, f"camera_model {str(model)[:40]!r} is not a pinhole; accepted: {', '.join(_MODELS)}")
    if "fl_x" not in fields and "camera_angle_x" not in fields:
        return None
    if "fl_x" not in fields and fields.get("w") is None and fields.get("h") is None:
        return None  # as in NeRF's own files: an angle, and no picture that it would be of
    width, height = size(fields.get("w"), f"{where}: w"), size(fields.get("h"), f"{where}: h")
    if "fl_x" in fields:
        fx = number(fields["fl_x"], f"{where}: fl_x")
    else:
        angle = number(fields["camera_angle_x"], f"{where}: camera_angle_x")
        if not 0 < angle < math.pi:
            refuse(where, f"camera_angle_x must lie between 0 and pi, not {angle:g}")
        fx = width / 2 / math.tan(angle / 2)
    fy = number(fields.get("fl_y", fx), f"{where}: fl_y")
    cx = number(fields.get("cx", width / 2), f"{where}: cx")
    cy = number(fields.get("cy", height / 2), f"{where}: cy")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), (width, height)


def write(cameras: CameraPath) -> dict[str, bytes]:
    """The file's content: intrinsics in each frame, because they may change."""
    frames = []
    for i, (c2w, K) in enumerate(zip(cameras.c2w @ _GL_FROM_CV, cameras.K_px, strict=True)):
        lens = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
        frames.append({"file_path": f"images/frame_{i:05d}.png", **lens, "transform_matrix": (c2w + 0.0).tolist()})
    document = {"camera_model": "PINHOLE", "w": cameras.width, "h": cameras.height, "frames": frames}
    return {"": (json.dumps(document, indent=1) + "\n").encode()}
