"""From what the user wrote to a camera: a preset expression or a file.

Whatever is wrong with it alone, without the clip, is refused here.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import CameraError
from .expression import parse_expression, starts_with_preset
from .formats import read_cameras, split_camera
from .path import CameraPath, SourceView, scaled_intrinsics
from .rigid import inverse
from .track import ASPECT_TOLERANCE, PoseTrack

# What a mistyped file name may end in; a preset never does.
_FILE_SUFFIXES = {".json", ".txt", ".bin", ".csv", ".chan", ".usd", ".usda", ".usdc", ".usdz"}

_SAME_SCALE = 1.5
"""Median depths of points and of the clip differ by less without any scale."""


class CameraSpec(Protocol):
    """A camera that is well formed and waits for a clip."""

    @property
    def text(self) -> str:
        """What the user wrote."""
        ...

    @property
    def in_world(self) -> bool:
        """Whether its poses can stay in the world of the first source camera; else they belong to the source camera of
        each moment."""
        ...

    def source_poses(self, view: SourceView) -> np.ndarray | None:
        """The source camera's own poses, float64 [N, 4, 4] in scene units, where the camera comes with them."""
        ...

    def resolve(self, view: SourceView) -> CameraPath:
        """The path for this clip.

        Raises:
            CameraError: it is impossible in this clip's scene.
        """
        ...

    def warnings(self, view: SourceView) -> list[str]:
        """What had to be decided to fit the camera to this clip, one sentence each."""
        ...

    def to_json(self) -> str:
        """Canonical text: equal for equal cameras, so that it can be part of a cache key."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileSpec:
    """A camera from a file, and the source camera it is relative to."""

    text: str
    track: PoseTrack
    source: PoseTrack | None
    path_scale: float | None

    @property
    def in_world(self) -> bool:
        """Poses of a world, of which the source camera's are not given."""
        return self.track.reference == "world" and self.source is None

    def source_poses(self, view: SourceView) -> np.ndarray | None:
        """Of the source camera's file."""
        if self.track.reference == "source" or self.source is None:
            return None
        c2w, _ = self.source.sample(view.times_s, view.part)
        c2w = inverse(c2w[:1]) @ c2w
        c2w[:, :3, 3] *= self._scale(view)
        return c2w

    def resolve(self, view: SourceView) -> CameraPath:
        """The file's poses relative to the source camera's of the same moments, in scene units.

        Intrinsics are taken relative too: the file's picture is to the source camera's picture as the new picture is to
        the clip's, K = K_file K_source^-1 K_clip with all sizes brought to the clip's. Where file and source camera
        have one lens the clip's own intrinsics stay, and where the source camera's file gives the clip's intrinsics the
        result is the file's. Poses that the file already gives relative to the source come with K as it is.
        """
        c2w, K_file = self.track.sample(view.times_s, view.part)
        source_c2w, K_source = self._source(view)
        if source_c2w is not None:
            c2w = inverse(source_c2w) @ c2w
        c2w[:, :3, 3] *= self._scale(view)
        K_px = view.frame_intrinsics_px
        if K_file is not None:
            K_file = scaled_intrinsics(K_file, view.width / self.track.width, view.height / self.track.height)
            if self.track.reference == "source":
                K_px = K_file
            elif K_source is not None:
                K_px = _warp(K_file, K_source) @ K_px
        return CameraPath(c2w=c2w, K_px=K_px, width=view.width, height=view.height, times_s=view.times_s)

    def _source(self, view: SourceView) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The source camera's c2w and K at the clip's size, [1 or N, ...]; None where the file needs none."""
        if self.track.reference == "source":
            return None, None
        if self.source is None:
            c2w, K_px, track = self.track.c2w[:1], self.track.K_px, self.track
            K_px = None if K_px is None else K_px[:1]
        else:
            track = self.source
            c2w, K_px = track.sample(view.times_s, view.part)
        if K_px is None:
            return c2w, None
        return c2w, scaled_intrinsics(K_px, view.width / track.width, view.height / track.height)

    def _scale(self, view: SourceView) -> float:
        if self.path_scale is not None:
            return self.path_scale
        return 1.0 if self.track.unit == "scene" else view.median_depth

    def _likely_scale(self, view: SourceView) -> float | None:
        """The scale that brings the file's points to the clip's depth, if the one in force is far from it."""
        depth = self.track.scene_depth
        if self.path_scale is not None or self.track.unit != "file" or depth is None:
            return None
        moves = np.ptp(self.track.c2w[:, :3, 3], axis=0).max() > 0 or self.source is not None
        return view.median_depth / depth if moves and not 1 / _SAME_SCALE < depth < _SAME_SCALE else None

    def warnings(self, view: SourceView) -> list[str]:
        """What had to be decided about times, scale, intrinsics and the picture's shape."""
        found = self.track.warnings("the camera file", view.times_s, view.part)
        if self.source is not None:
            if len(self.source.c2w) > 1:
                found += self.source.warnings("the source camera file", view.times_s, view.part)
            if (self.track.K_px is None) != (self.source.K_px is None):
                found.append("only one of camera file and source camera has intrinsics: the clip's are kept")
        if (scale := self._likely_scale(view)) is not None:
            found.append(
                f"the points of the camera file lie {self.track.scene_depth:.3g} units away, the clip's median depth counts "
                f"as 1: if they show the clip's scene, set `path_scale` to {scale:.3g}"
            )
        aspect = self.track.aspect
        if aspect is not None and abs(aspect - view.width / view.height) > 2 * ASPECT_TOLERANCE * aspect:
            found.append(
                f"the camera file is of {self.track.width}x{self.track.height} pictures, the clip is {view.width}x"
                f"{view.height}: its intrinsics are scaled per axis to the clip's shape"
            )
        return found

    def to_json(self) -> str:
        """Canonical: by content, not by the file's name."""
        return json.dumps(
            {
                "kind": "file",
                "track": self.track.digest(),
                "source": None if self.source is None else self.source.digest(),
                "path_scale": self.path_scale,
            },
            sort_keys=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PathSpec:
    """Poses that are there already, one for each frame of the clip."""

    path: CameraPath

    @property
    def text(self) -> str:
        """The file that a saved result keeps its path in."""
        return "camera.json"

    in_world = False

    def source_poses(self, view: SourceView) -> np.ndarray | None:
        """Not known."""
        return None

    def resolve(self, view: SourceView) -> CameraPath:
        """The poses at the clip's size and times.

        Raises:
            CameraError: the clip has another number of frames.
        """
        if len(self.path) != len(view.times_s):
            raise CameraError(
                f"the path has {len(self.path)} poses, the clip has {len(view.times_s)} frames", param="camera"
            )
        path = self.path
        if (path.width, path.height) != (view.width, view.height):
            path = path.resized(view.width, view.height)
        return replace(path, times_s=view.times_s)

    def warnings(self, view: SourceView) -> list[str]:
        """Nothing had to be decided."""
        return []

    def to_json(self) -> str:
        """Canonical: by content."""
        digest = hashlib.sha256(self.path.to_json().encode()).hexdigest()
        return json.dumps({"kind": "path", "path": digest}, sort_keys=True)


Camera = str | Path | CameraSpec | CameraPath
"""What is accepted as a camera: a preset expression, a camera file, a parsed camera, or poses."""


def camera_spec(camera: Camera) -> CameraSpec:
    """A camera of any accepted kind in the one form that a run needs.

    Raises:
        CameraError: as `parse_camera`.
    """
    if isinstance(camera, str):
        return parse_camera(camera)
    if isinstance(camera, CameraPath):
        return PathSpec(path=camera)
    if isinstance(camera, Path):
        return FileSpec(text=str(camera), track=read_cameras(camera), source=None, path_scale=None)
    return camera


def _warp(K_file: np.ndarray, K_source: np.ndarray) -> np.ndarray:
    """K_file K_source^-1 [N, 3, 3], written out so that equal lenses give the identity to the last bit."""
    warp = np.zeros(np.broadcast_shapes(K_file.shape, K_source.shape))
    warp[:, 2, 2] = 1.0
    for axis in (0, 1):
        ratio = K_file[:, axis, axis] / K_source[:, axis, axis]
        warp[:, axis, axis] = ratio
        warp[:, axis, 2] = K_file[:, axis, 2] - ratio * K_source[:, axis, 2]
    return warp


def parse_camera(spec: str, *, source_camera: str | Path | None = None, path_scale: float | None = None) -> CameraSpec:
    """Read a preset expression or a camera file.

    Text that begins with a preset's name is an expression (`./arc` names a file called arc); other text is a file if it
    exists or looks like a path, else it is refused with the list of presets.

    Args:
        spec: `arc(20deg)+zoom(1.3)`, or a path to a file or folder of a known format.
        source_camera: File of the source camera in the same world: one pose, or one for each moment. Without it the
            file's first pose is the source camera.
        path_scale: Scene units in one unit of the file; without it one unit is the clip's median depth.

    Raises:
        CameraError: whatever is wrong with it that can be known without the clip.
    """
    if starts_with_preset(spec) or not _names_file(spec):
        if source_camera is not None:
            raise CameraError("only a camera from a file has a source camera, not a preset", param="source_camera")
        if path_scale is not None:
            raise CameraError("only a camera from a file has a scale, not a preset", param="path_scale")
        return parse_expression(spec)
    if path_scale is not None and not (math.isfinite(path_scale) and 0 < path_scale <= 1e9):
        raise CameraError(f"the scale must be a positive number up to 1e9, not {path_scale}", param="path_scale")
    track = read_cameras(spec)
    source = None
    if source_camera is not None:
        if track.reference == "source":
            raise CameraError(
                f"the poses of {spec} are already relative to the source camera: leave this out",
                param="source_camera",
            )
        try:
            source = read_cameras(source_camera)
        except CameraError as error:
            raise CameraError(error.message, param="source_camera") from None
        _check_same_world(track, source)
    return FileSpec(text=spec, track=track, source=source, path_scale=path_scale)


def _check_same_world(track: PoseTrack, source: PoseTrack) -> None:
    if source.reference != "world" or source.unit != track.unit:
        raise CameraError("it must hold absolute poses in the camera file's world and unit", param="source_camera")
    a, b = track.aspect, source.aspect
    if a is not None and b is not None and abs(a - b) > 2 * ASPECT_TOLERANCE * a:
        raise CameraError(
            f"its pictures are {source.width}x{source.height}, the camera file's {track.width}x{track.height}: "
            "the shapes must agree",
            param="source_camera",
        )


def _names_file(spec: str) -> bool:
    if not spec.strip() or not spec.isprintable():
        return False
    try:
        if Path(spec).exists() or split_camera(spec)[0].exists():
            return True
    except (OSError, ValueError):  # too long for a file name, or not encodable
        return False
    return "(" not in spec and ("/" in spec or "\\" in spec or split_camera(spec)[0].suffix.lower() in _FILE_SUFFIXES)
