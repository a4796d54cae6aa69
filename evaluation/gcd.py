"""The original Kubric-4D of Generative Camera Dolly (Van Hoorick et al., ECCV 2024), read as shots.

UNVERIFIED on the release itself: tested on a small generated set of the same layout. The layout is that of the
authors' code (github.com/basilevh/gcd: README, data-gen/{export_kub_mv,convert_pcl_kubric}.py and, in gcd-model/,
sgm/data/kubric_arbit.py and scripts/test.py):

    KUBRIC_DIR/scn02900/scn02900_p0_v0.json ... _v15.json   scene and camera of 16 static views
    KUBRIC_DIR/scn02900/frames_p0_v0/ ... frames_p0_v15/    rgba_00000.png, depth_00000.tiff, ... 60 of each at 24 fps
    CONTROLS                                                {"scn02900": {"sample_00": {frame_start, frame_skip,
                                                            spherical_start, spherical_end}}}

Views 0 to 3 look down from 45 degrees, 4 to 15 from 5 degrees; all from 15 m towards (0, 0, 1). The depth is meters
from the camera's center (not planar z), quaternions are w x y z of a camera that looks along -z (Blender), K is in
units of the picture's width and height with Blender's signs. `spherical_*` are azimuth and elevation in degrees and
the radius in meters around (0, 0, 1).

What follows the authors: input and truth are both drawn from the merged points of all views, at 2/3 of the views'
size; the input camera stays at the start and the target goes linearly to the end, arriving in the last frame
("gradual"). What does not, so that figures come near theirs but are not the same: points and pixels are placed exactly
(theirs are off by up to half a pixel, and by up to 0.5 % in depth); the clip's size is drawn directly (theirs is drawn
at 420x280, blurred and resized); pixels that no point reaches are filled but not scored (they score them); `visible`
is a depth test (theirs is a splat of view 4 alone).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..engine.cameras.rigid import inverse, matrix_from_quaternion, rigid
from ..engine.errors import InputError
from .dataset import Shot, ShotEntry

VIEWS = 16
FRAMES = 14
"""Of a clip in the published protocol."""
WIDTH_PX = 384
"""Of a clip in the published protocol; views are 576 wide."""
LOOK_AT = np.array([0.0, 0.0, 1.0])
"""Meters, world z up: the center of every path."""
SAME_SURFACE = 0.03
"""Relative difference in depth within which a pixel of the source shows the target's surface, as in the rendered set."""

_LENS = 4
"""The view whose K a clip gets, and at whose pose the published paths start."""
_NOTHING_M = 1000.0
"""Beyond this the renderer hit nothing, and such pixels give no points."""
_NEAREST_M = 0.1
_DEPTH_BAND_PX = 2.0
"""Points this many pixel widths before or behind a pixel's depth still color it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Control:
    """One row of a control file; `start` and `end` are azimuth (deg), elevation (deg), radius (m)."""

    frame_start: int
    frame_skip: int
    start: np.ndarray
    end: np.ndarray

    def frames(self, count: int) -> list[int]:
        return [self.frame_start + t * self.frame_skip for t in range(count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A camera of a scene: K of (width, height) pixels, c2w [T, 4, 4] of every frame on disk, OpenCV axes."""

    K_px: np.ndarray
    c2w: np.ndarray
    width: int
    height: int
    fps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """A drawing of points: uint8 [h, w, 3], z float32 [h, w] and what of both is known, bool [h, w]; the rest is
    the nearest known pixel's."""

    color: np.ndarray
    depth: np.ndarray
    known: np.ndarray


def read_gcd(folder: Path, controls: Path, *, frames: int = FRAMES, width: int = WIDTH_PX) -> list[ShotEntry]:
    """One shot per row of a control file, by name. Rows without a scene in the folder are left out.

    The published figures are those of the rows `sample_00` of scenes 2900 to 2999. A path's `kind` is as in
    the rendered set of `docs/quality.md`: `moderate` up to 45 degrees of azimuth, else `large`.

    Args:
        folder: holds scn02900/ and so on.
        controls: kubric_valtest_controls_gradual.json of the authors' repository, or one of its form.
        frames: length of the clips.
        width: of the clips in pixels, at most the views' own; the height follows.

    Raises:
        InputError: either is not of the layout above, naming the file.
    """
    rows = _read_controls(controls)
    present = [name for name in sorted(rows) if (folder / name).is_dir()]
    if not present:
        raise InputError(
            f"{folder} holds none of the {len(rows)} scenes of {controls.name}: a folder with {min(rows)}/ was looked "
            f"for (the release as it unpacks, not the point clouds converted from it)",
            param="gcd",
        )
    entries = []
    for name in present:
        for sample, control in sorted(rows[name].items()):
            _require_files(folder / name, sample, control.frames(frames))
            turned = abs(control.end[0] - control.start[0])
            entries.append(
                ShotEntry(
                    scene=name,
                    path=sample,
                    kind="moderate" if turned <= 45 else "large",
                    load=partial(_read_shot, folder / name, control, frames, width),
                )
            )
    return entries


def _read_controls(path: Path) -> dict[str, dict[str, _Control]]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})", param="controls") from None
    if not isinstance(document, dict) or not document or not all(isinstance(rows, dict) for rows in document.values()):
        raise InputError(f'{path} is no control file: {{"scn02900": {{"sample_00": ...}}}} expected', param="controls")
    return {
        scene: {sample: _parse_control(row, f"{path}: {scene}/{sample}") for sample, row in rows.items()}
        for scene, rows in document.items()
    }


def _parse_control(row: Any, name: str) -> _Control:
    try:
        first, skip = int(row["frame_start"]), int(row["frame_skip"])
        start, end = (np.array(row[key], np.float64) for key in ("spherical_start", "spherical_end"))
        ends = np.stack([start, end])  # [2, 3]
        sound = ends.shape == (2, 3) and (np.abs(ends[:, 1]) < 90).all() and (ends[:, 2] > 0).all()
        if first < 0 or skip < 1 or not sound or not np.isfinite(ends).all():
            raise ValueError("a number is out of range")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} ({error!r}): frame_start, frame_skip, spherical_start and spherical_end (azimuth, elevation in "
            f"degrees, radius in meters) expected; the control files of ParallelDomain-4D are not for Kubric-4D",
            param="controls",
        ) from None
    return _Control(frame_start=first, frame_skip=skip, start=start, end=end)


def _require_files(scene: Path, sample: str, frames: list[int]) -> None:
    """The 16 views' metadata and folders, and the first and last frame of the first view.

    Raises:
        InputError: the first of them that is missing.
    """
    for view in range(VIEWS):
        for path in (_metadata(scene, view), _frames(scene, view)):
            if not path.exists():
                raise InputError(f"{path} is missing: a scene has views 0 to {VIEWS - 1}", param="gcd")
    for frame in (frames[0], frames[-1]):
        for path in _pictures(scene, 0, frame):
            if not path.exists():
                asked = f"{sample} needs frames {frames[0]} to {frames[-1]}"
                raise InputError(f"{path} is missing: {asked} of every view", param="gcd")


def _metadata(scene: Path, view: int) -> Path:
    return scene / f"{scene.name}_p0_v{view}.json"


def _frames(scene: Path, view: int) -> Path:
    return scene / f"frames_p0_v{view}"


def _pictures(scene: Path, view: int, frame: int) -> tuple[Path, Path]:
    """Color and depth of one frame."""
    folder = _frames(scene, view)
    return folder / f"rgba_{frame:05d}.png", folder / f"depth_{frame:05d}.tiff"


def _read_shot(scene: Path, control: _Control, count: int, width: int) -> Shot:
    """Draws both clips. Memory: the points of one frame, some 0.3 GB at 16 views of 576x384."""
    views = [_read_view(_metadata(scene, view), control.frames(count)[-1]) for view in range(VIEWS)]
    lens = views[_LENS]
    w = min(width, lens.width)
    h = round(lens.height * w / lens.width)
    K_px = np.diag([w / lens.width, h / lens.height, 1.0]) @ lens.K_px
    alpha = np.linspace(0.0, 1.0, count)[:, None]
    source_c2w = _look_at_center(np.repeat(control.start[None], count, 0))
    target_c2w = _look_at_center((1 - alpha) * control.start + alpha * control.end)
    sources, targets, visible = [], [], []
    for t, frame in enumerate(control.frames(count)):
        cloud = list(_merged_points(scene, views, frame))
        source, target = (_draw(cloud, K_px, c2w[t], (h, w)) for c2w in (source_c2w, target_c2w))
        if not (source.known.any() and target.known.any()):
            raise InputError(f"{scene.name}: the path looks past the scene in frame {t}", param="controls")
        sources.append(source)
        targets.append(target)
        visible.append(_visible(target, target_c2w[t], source, source_c2w[t], K_px))
    return Shot(
        source=np.stack([picture.color for picture in sources]),
        depth=np.stack([picture.depth for picture in sources]),
        truth=np.stack([picture.color for picture in targets]),
        visible=np.stack(visible),
        known=np.stack([picture.known for picture in targets]),
        seen=np.stack(visible),
        K_px=K_px,
        source_c2w=source_c2w,
        target_c2w=target_c2w,
        fps=lens.fps / control.frame_skip,
    )


def _read_view(path: Path, last_frame: int) -> _View:
    try:
        document = json.loads(path.read_text())
        width, height = (int(value) for value in document["scene"]["resolution"])
        fps, camera = float(document["scene"]["frame_rate"]), document["camera"]
        unit = np.abs(np.array(camera["K"], np.float64).reshape(3, 3))  # without Blender's signs
        R = matrix_from_quaternion(np.array(camera["quaternions"], np.float64).reshape(-1, 4))
        c2w = rigid(R * [1, -1, -1], np.array(camera["positions"], np.float64).reshape(len(R), 3))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} ({error!r}): scene.resolution, scene.frame_rate, camera.K, camera.quaternions and "
            f"camera.positions expected, as Kubric writes them",
            param="gcd",
        ) from None
    if len(c2w) <= last_frame:
        raise InputError(f"{path} has {len(c2w)} camera poses, frame {last_frame} is asked for", param="gcd")
    return _View(K_px=np.diag([width, height, 1.0]) @ unit, c2w=c2w, width=width, height=height, fps=fps)


def _look_at_center(spherical: np.ndarray) -> np.ndarray:
    """c2w [T, 4, 4] (OpenCV axes) of level cameras at azimuth, elevation (deg) and radius (m), [T, 3]."""
    azimuth, elevation = np.radians(spherical[:, 0]), np.radians(spherical[:, 1])
    outward = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1
    )
    right = np.stack([-np.sin(azimuth), np.cos(azimuth), np.zeros_like(azimuth)], -1)
    down = np.cross(-outward, right)
    return rigid(np.stack([right, down, -outward], -1), LOOK_AT + spherical[:, 2:] * outward)


def _merged_points(scene: Path, views: list[_View], frame: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """World positions float32 [N, 3] and colors uint8 [N, 3] of each view's pixels."""
    for index, view in enumerate(views):
        color_path, depth_path = _pictures(scene, index, frame)
        color = cv2.imread(str(color_path), cv2.IMREAD_COLOR)
        distance = cv2.imread(str(depth_path), cv2.IMREAD_UNCHANGED)
        size = (view.height, view.width)
        if color is None or color.shape[:2] != size:
            raise InputError(f"{color_path} is not a picture of {size[1]}x{size[0]} pixels", param="gcd")
        if distance is None or distance.shape != size or distance.dtype.kind != "f":
            raise InputError(f"{depth_path} is not a {size[1]}x{size[0]} TIFF of floats", param="gcd")
        v, u = np.mgrid[: view.height, : view.width] + 0.5
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(view.K_px).T  # [H, W, 3]
        hit = (distance > 0) & (distance < _NOTHING_M)  # False for NaN too
        rays *= (distance / np.linalg.norm(rays, axis=-1))[..., None]
        points = rays[hit] @ view.c2w[frame, :3, :3].T + view.c2w[frame, :3, 3]
        yield points.astype(np.float32), color[hit][:, ::-1]


def _draw(
    cloud: list[tuple[np.ndarray, np.ndarray]], K_px: np.ndarray, c2w: np.ndarray, size: tuple[int, int]
) -> _Picture:
    """The points as a camera sees them.

    Around a pixel's center lie four squares of one pixel's width. A surface covers the center when it has points in all
    four, so the pixel's depth is the farthest of the squares' nearest ones: an edge that ends short of the center does
    not claim it, and where a square is empty nothing is known. The color is the mean, by bilinear weight, of the
    points within `_DEPTH_BAND_PX` of that depth. Deliberately not the engine's own splat: this is the ruler.
    """
    h, w = size
    w2c = inverse(c2w[None])[0]
    projected = [(*_project(points, K_px, w2c, size), colors) for points, colors in cloud]
    nearest = np.full((4, h * w), np.inf)
    for x, y, z, _, _ in projected:
        for square, (inside, cell, _) in zip(nearest, _taps(x, y, size), strict=True):
            np.minimum.at(square, cell, z[inside])
    depth = nearest.max(0)
    depth_tolerance = np.where(np.isfinite(depth), depth * _DEPTH_BAND_PX / K_px[0, 0], -1.0)
    depth = np.where(np.isfinite(depth), depth, 0.0)
    total = np.zeros((5, h * w))  # red, green, blue, z, weight
    for x, y, z, kept, colors in projected:
        values = np.array([*colors[kept].T, z, np.ones_like(z)])
        for inside, cell, weight in _taps(x, y, size):
            weight = np.where(np.abs(z[inside] - depth[cell]) <= depth_tolerance[cell], weight, 0.0)
            for accumulated, value in zip(total, values[:, inside], strict=True):
                accumulated += np.bincount(cell, weight * value, h * w)
    total = total.reshape(5, h, w)
    known = total[4] > 0
    mean = total[:4] / np.where(known, total[4], 1.0)
    source = _nearest_known(known)
    color = np.rint(mean[:3]).astype(np.uint8).transpose(1, 2, 0)
    return _Picture(color=color[source], depth=mean[3].astype(np.float32)[source], known=known)


def _taps(x: np.ndarray, y: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each of the four pixels around every point: which of the points [N] have it in the picture, its index
    row * w + column, and the bilinear weight."""
    left, top = np.floor(x - 0.5), np.floor(y - 0.5)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = left + dx, top + dy
        inside = np.flatnonzero((column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0]))
        column, row = column[inside], row[inside]
        weight = (1 - np.abs(x[inside] - 0.5 - column)) * (1 - np.abs(y[inside] - 0.5 - row))
        yield inside, (row * size[1] + column).astype(np.int64), weight


def _project(
    points: np.ndarray, K_px: np.ndarray, w2c: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y (pixels) and z of the points that touch the picture [M], and their indices among the N."""
    seen = points @ w2c[:3, :3].T + w2c[:3, 3]
    kept = np.flatnonzero(seen[:, 2] > _NEAREST_M)
    x, y, z = (seen[kept] @ K_px.T).T
    x, y = x / z, y / z
    touching = (x > -0.5) & (x < size[1] + 0.5) & (y > -0.5) & (y < size[0] + 0.5)
    return x[touching], y[touching], z[touching], kept[touching]


def _nearest_known(known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each pixel's nearest known one, its own if it is known; all zero where none is."""
    if not known.any():
        return np.zeros(known.shape, np.int64), np.zeros(known.shape, np.int64)
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    labels = labels.astype(np.intp)
    pixel = np.zeros(labels.max() + 1, np.int64)
    pixel[labels[known]] = np.flatnonzero(known)
    row, column = np.divmod(pixel[labels], known.shape[1])
    return row, column


def _visible(
    target: _Picture, target_c2w: np.ndarray, source: _Picture, source_c2w: np.ndarray, K_px: np.ndarray
) -> np.ndarray:
    """Known target pixels whose surface is that of a source pixel within 3x3 of where it lands; bool [h, w]."""
    h, w = target.known.shape
    v, u = np.mgrid[:h, :w] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K_px).T
    move = inverse(source_c2w[None])[0] @ target_c2w
    x, y, z = np.moveaxis((rays * target.depth[..., None] @ move[:3, :3].T + move[:3, 3]) @ K_px.T, -1, 0)
    ahead = np.where(z > _NEAREST_M, z, np.inf)
    column, row = np.floor(x / ahead).astype(np.int64), np.floor(y / ahead).astype(np.int64)
    inside = (z > _NEAREST_M) & (column >= 0) & (column < w) & (row >= 0) & (row < h)
    same = np.zeros((h, w), bool)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            depth = source.depth[np.clip(row + dy, 0, h - 1), np.clip(column + dx, 0, w - 1)]
            same |= np.abs(depth - z) < SAME_SURFACE * z
    return target.known & inside & same
