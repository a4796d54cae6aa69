"""nerfstudio's `camera_path.json`: what its viewer, and its Blender and Maya add-ons, export to be rendered.

`camera_path` is a list with `camera_to_world`, 16 numbers of a 4x4 matrix row by row, c2w of an OpenGL camera (x right, y
up, z backward), and `fov`, the vertical field of view in degrees. The world is the trained scene's, scaled by its
dataparser: another one than that of `transforms.json`. Keyframes are left aside: the path is what was made of them.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from ..rigid import checked_poses
from ..track import PoseTrack, build_track, check_count
from .strict import decoded, number, objects, parse_json, read_bytes, refuse, size

_CV_FROM_GL = np.diag([1.0, -1.0, -1.0, 1.0])
_KEYS = re.compile(rb'"(camera_path|keyframes|render_height|smoothness_value)"\s*:')


def claims(path: Path, head: bytes) -> bool:
    """A JSON file with the fields of the viewer near its beginning."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and bool(_KEYS.search(head))


def read(path: Path) -> PoseTrack:
    """Read a `camera_path.json`."""
    name = str(path)
    document = parse_json(decoded(read_bytes(path), name), name)
    if not document.get("camera_path"):
        refuse(
            name, "a nerfstudio camera path without a `camera_path`: generate the path in the viewer and export again"
        )
    cameras = objects(document["camera_path"], f"{name}: camera_path")
    check_count(len(cameras), name)
    where = [f"{name}: camera_path {i}" for i in range(len(cameras))]
    c2w = np.array([_pose(one.get("camera_to_world"), at) for one, at in zip(cameras, where, strict=True)])
    lenses = [one["fov"] for one in cameras if one.get("fov") is not None]
    sized = document.get("render_width") is not None and document.get("render_height") is not None
    if document.get("camera_type", "perspective") != "perspective":
        refuse(name, f"camera_type {str(document['camera_type'])[:40]!r} is not accepted, only perspective")
    clean = checked_poses(c2w @ _CV_FROM_GL, where.__getitem__)
    if len(lenses) < len(cameras) or not sized:
        return build_track(clean, where.__getitem__)
    width = size(document["render_width"], f"{name}: render_width")
    height = size(document["render_height"], f"{name}: render_height")
    K_px = np.array([_lens(fov, width, height, at) for fov, at in zip(lenses, where, strict=True)])
    return build_track(clean, where.__getitem__, K_px=K_px, sizes=[(width, height)] * len(cameras))


def _pose(value: object, where: str) -> np.ndarray:
    if not isinstance(value, list) or len(value) != 16:
        refuse(where, "camera_to_world must be 16 numbers")
    return np.array([number(entry, f"{where}: camera_to_world") for entry in value]).reshape(4, 4)


def _lens(fov: object, width: int, height: int, where: str) -> np.ndarray:
    degrees = number(fov, f"{where}: fov")
    if not 0 < degrees < 180:
        refuse(where, f"fov must lie between 0 and 180 degrees, not {degrees:g}")
    focal = height / 2 / math.tan(math.radians(degrees) / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
