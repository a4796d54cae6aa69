"""COLMAP's sparse model, text or binary: a folder with `cameras` and `images`.

images: w2c as a quaternion w x y z and a translation, OpenCV axes; pixel centers lie at +0.5. Image ids say nothing
about order: the images are taken in the order of their names. Lens distortion is left out: a path needs poses and focal
lengths. Points only tell the model's unit.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...user_files.numbering import natural_order
from ..rig import chosen_camera
from ..rigid import checked_poses, inverse, matrix_from_quaternion, quaternion_from_matrix, rigid
from ..track import MAX_POSES, PoseTrack, build_track, check_count
from .colmap_points import read_points, scene_depth
from .strict import decoded, read_bytes, refuse, text_int, text_number

if TYPE_CHECKING:
    from ..path import CameraPath


@dataclass(frozen=True, slots=True)
class _Model:
    """A camera model: its number of focal lengths and, after the principal point, of distortion terms."""

    name: str
    focals: int
    distortion: int

    @property
    def parameters(self) -> int:
        return self.focals + 2 + self.distortion


_MODELS = {
    0: _Model("SIMPLE_PINHOLE", 1, 0),
    1: _Model("PINHOLE", 2, 0),
    2: _Model("SIMPLE_RADIAL", 1, 1),
    3: _Model("RADIAL", 1, 2),
    4: _Model("OPENCV", 2, 4),
    6: _Model("FULL_OPENCV", 2, 8),
}
_BY_NAME = {model.name: model for model in _MODELS.values()}
_ACCEPTED = ", ".join(_BY_NAME)


@dataclass(frozen=True, slots=True)
class _Lens:
    K_px: np.ndarray  # [3, 3]
    width: int
    height: int
    distorted: bool


@dataclass(frozen=True, slots=True)
class _Image:
    name: str
    where: str
    quaternion: tuple[float, ...]  # w x y z of w2c
    translation: tuple[float, ...]
    camera: int


def _lens(model: _Model, width: int, height: int, parameters: list[float], where: str) -> _Lens:
    if not (1 <= width <= 10**6 and 1 <= height <= 10**6):
        refuse(where, f"a picture of {width}x{height} pixels")
    focals, rest = parameters[: model.focals], parameters[model.focals :]
    K = np.array([[focals[0], 0, rest[0]], [0, focals[-1], rest[1]], [0, 0, 1.0]])
    return _Lens(K, width, height, any(rest[2:]))


def _track(
    images: list[_Image], lenses: dict[int, _Lens], points: np.ndarray, path: Path, camera: str | None
) -> PoseTrack:
    check_count(len(images), str(path))
    chosen = chosen_camera([image.name for image in images], camera, str(path.parent))
    images = [images[i] for i in chosen]
    images = [images[i] for i in natural_order([image.name for image in images])]
    for image in images:
        if image.camera not in lenses:
            refuse(image.where, f"camera {image.camera} is not in the cameras file")
    quaternions = np.array([image.quaternion for image in images])
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(quaternions, axis=-1)
    off = ~(np.abs(norms - 1) < 1e-2)  # written so that NaN is off too
    if off.any():
        refuse(images[int(off.argmax())].where, f"its quaternion has the length {norms[off.argmax()]:g}, not 1")
    w2c = rigid(matrix_from_quaternion(quaternions), np.array([image.translation for image in images]))
    own = [lenses[image.camera] for image in images]
    return build_track(
        inverse(checked_poses(w2c, lambda i: images[i].where)),
        lambda i: images[i].where,
        K_px=np.array([lens.K_px for lens in own]),
        sizes=[(lens.width, lens.height) for lens in own],
        names=[image.name for image in images],
        scene_depth=scene_depth(points, w2c[0]),
        distorted=any(lens.distorted for lens in own),
    )


# Text ---------------------------------------------------------------------------------------------------------------


def claims_text(path: Path, head: bytes) -> bool:
    """A folder with images.txt, or one of its files."""
    return (path / "images.txt").is_file() or path.name in ("images.txt", "cameras.txt")


def read_text(path: Path, camera: str | None = None) -> PoseTrack:
    """Read cameras.txt and images.txt; of a rig, the images of one camera."""
    folder = path if path.is_dir() else path.parent
    lenses, points = _text_cameras(folder / "cameras.txt"), read_points(folder / "points3D.txt")
    return _track(_text_images(folder / "images.txt"), lenses, points, folder / "images.txt", camera)


def _text_cameras(path: Path) -> dict[int, _Lens]:
    lenses: dict[int, _Lens] = {}
    for row, line in enumerate(decoded(read_bytes(path), str(path)).splitlines(), 1):
        where, words = f"{path}: line {row}", line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 4:
            refuse(where, "expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS")
        model = _BY_NAME.get(words[1])
        if model is None:
            refuse(where, f"camera model {words[1][:40]!r} is not accepted, only {_ACCEPTED}")
        if len(words) != 4 + model.parameters:
            refuse(where, f"{model.name} has {model.parameters} parameters, not {len(words) - 4}")
        camera, width, height = (text_int(word, where) for word in (words[0], words[2], words[3]))
        if camera in lenses:
            refuse(where, f"camera {camera} is given twice")
        lenses[camera] = _lens(model, width, height, [text_number(word, where) for word in words[4:]], where)
    return lenses


def _text_images(path: Path) -> list[_Image]:
    images: list[_Image] = []
    seen: set[int] = set()
    points_follow = False
    for row, line in enumerate(decoded(read_bytes(path), str(path)).splitlines(), 1):
        where = f"{path}: line {row}"
        if points_follow:  # an image's second line, which may be empty
            if len(line.split()) % 3:
                refuse(where, "expected the points of the image above: threes of X Y POINT3D_ID, or an empty line")
            points_follow = False
            continue
        words = line.split(maxsplit=9)
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 10:
            refuse(where, "expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME")
        image = text_int(words[0], where)
        if image in seen:
            refuse(where, f"image {image} is given twice")
        seen.add(image)
        pose = tuple(text_number(word, where) for word in words[1:8])
        images.append(_Image(words[9].strip(), where, pose[:4], pose[4:], text_int(words[8], where)))
        points_follow = True
        if len(images) > MAX_POSES:
            refuse(where, f"more than {MAX_POSES} images")
    return images


def write_text(cameras: CameraPath) -> dict[str, bytes]:
    """cameras.txt with one PINHOLE camera per frame, images.txt without points, and an empty points3D.txt."""
    camera_rows = ["# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY"]
    image_rows = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then its points (none)"]
    for i, pose, lens in _rows(cameras):
        camera_rows.append(f"{i} PINHOLE {cameras.width} {cameras.height} {' '.join(map(repr, lens))}")
        image_rows += [f"{i} {' '.join(map(repr, pose))} {i} {_file_name(i)}", ""]
    return {
        "cameras.txt": ("\n".join(camera_rows) + "\n").encode(),
        "images.txt": ("\n".join(image_rows) + "\n").encode(),
        "points3D.txt": b"# no points\n",
    }


def _rows(cameras: CameraPath) -> list[tuple[int, list[float], list[float]]]:
    """(id from 1, quaternion and translation of w2c, fx fy cx cy) of each frame."""
    w2c = cameras.w2c
    poses = np.concatenate([quaternion_from_matrix(w2c[:, :3, :3]), w2c[:, :3, 3]], -1) + 0.0
    lenses = cameras.K_px[:, [0, 1, 0, 1], [0, 1, 2, 2]]
    return [(i + 1, poses[i].tolist(), lenses[i].tolist()) for i in range(len(poses))]


def _file_name(i: int) -> str:
    return f"frame_{i - 1:05d}.png"


# Binary: little-endian, cameras.bin and images.bin ------------------------------------------------------------------


def claims_binary(path: Path, head: bytes) -> bool:
    """A folder with images.bin, or one of its files."""
    return (path / "images.bin").is_file() or path.name in ("images.bin", "cameras.bin")


class _Cursor:
    """Takes values off a file's bytes; a file that ends early is refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = read_bytes(path)
        self.at = 0

    def take(self, layout: str) -> tuple:
        layout = "<" + layout
        end = self.at + struct.calcsize(layout)
        if end > len(self.data):
            refuse(str(self.path), f"ends early: {len(self.data)} bytes, but byte {end} was expected")
        values = struct.unpack_from(layout, self.data, self.at)
        self.at = end
        return values

    def text(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + 4096)
        if end < 0:
            refuse(str(self.path), f"no end of the name that begins at byte {self.at}")
        value = decoded(self.data[self.at : end], f"{self.path}: the name at byte {self.at}")
        self.at = end + 1
        return value

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            refuse(str(self.path), f"ends early: {len(self.data)} bytes, but byte {self.at} was expected")

    def finish(self) -> None:
        if self.at != len(self.data):
            refuse(str(self.path), f"{len(self.data) - self.at} bytes too many at its end")


def read_binary(path: Path, camera: str | None = None) -> PoseTrack:
    """Read cameras.bin and images.bin; of a rig, the images of one camera."""
    folder = path if path.is_dir() else path.parent
    lenses, points = _binary_cameras(folder / "cameras.bin"), read_points(folder / "points3D.bin")
    return _track(_binary_images(folder / "images.bin"), lenses, points, folder / "images.bin", camera)


def _binary_cameras(path: Path) -> dict[int, _Lens]:
    cursor = _Cursor(path)
    (count,) = cursor.take("Q")
    check_count(count, str(path))
    lenses: dict[int, _Lens] = {}
    for _ in range(count):
        camera, kind, width, height = cursor.take("iiQQ")
        where = f"{path}: camera {camera}"
        model = _MODELS.get(kind)
        if model is None:
            refuse(where, f"camera model number {kind} is not accepted, only {_ACCEPTED}")
        parameters = list(cursor.take(f"{model.parameters}d"))
        if not np.isfinite(parameters).all():
            refuse(where, "an intrinsic is not finite")
        if camera in lenses:
            refuse(where, "is given twice")
        lenses[camera] = _lens(model, width, height, parameters, where)
    cursor.finish()
    return lenses


def _binary_images(path: Path) -> list[_Image]:
    cursor = _Cursor(path)
    (count,) = cursor.take("Q")
    check_count(count, str(path))
    images: list[_Image] = []
    seen: set[int] = set()
    for _ in range(count):
        image, *pose, camera = cursor.take("i7di")
        where = f"{path}: image {image}"
        if image in seen:
            refuse(where, "is given twice")
        seen.add(image)
        name = cursor.text()
        (points,) = cursor.take("Q")
        cursor.skip(24 * points)  # x, y and the 3D point's id, eight bytes each
        images.append(_Image(name, where, tuple(pose[:4]), tuple(pose[4:]), camera))
    cursor.finish()
    return images


def write_binary(cameras: CameraPath) -> dict[str, bytes]:
    """The same model as `write_text`, binary."""
    rows = _rows(cameras)
    count = struct.pack("<Q", len(rows))
    camera_data = [struct.pack("<iiQQ4d", i, 1, cameras.width, cameras.height, *lens) for i, _, lens in rows]
    image_data = [
        struct.pack("<i7di", i, *pose, i) + _file_name(i).encode() + b"\0" + struct.pack("<Q", 0) for i, pose, _ in rows
    ]
    return {
        "cameras.bin": count + b"".join(camera_data),
        "images.bin": count + b"".join(image_data),
        "points3D.bin": struct.pack("<Q", 0),
    }
