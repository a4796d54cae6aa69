"""Previews: some moments of the clip as the new camera sees them, small, and at once when the clip's depth is known."""

import base64
import json
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...engine.anchor.render import draw_anchor
from ...engine.cameras import CameraPath, CameraSpec, path_warnings
from ...engine.cameras.path import scaled_intrinsics
from ...engine.errors import InputError
from ...engine.geometry.background import Plate
from ...engine.geometry.upsample import upsample
from ...engine.report.html.pictures import spread, tinted_holes
from ...engine.result import Result
from ...engine.stage_results import load_background_plate, load_depth, load_source_view, resolve_path
from ...engine.store import Store
from ...engine.video import VideoWriter

_CLIPS = 4
"""Clips whose frames and depth are kept open."""
_WEBP_QUALITY = 82


class OpenClip:
    """The stages of a clip that no path changes, and its moments as they were drawn last.

    Args:
        store: holds the stages; as long as this object lives `gc` leaves them alone.
    """

    def __init__(self, result: Result, store: Store) -> None:
        self.result, self._store = result, store
        self._moments: tuple[Any, np.ndarray, np.ndarray] | None = None

    def moments(self, times: list[int], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Pictures uint8 [T, height, width, 3] and depth float32 [T, height, width] at these times.

        Who drags a slider asks for the same ones each time, and depth at the pictures' size is half of a preview's work.
        """
        key = (times, height, width)
        if self._moments is None or self._moments[0] != key:
            source, depth = self.result.source, load_depth(self.result.entries)
            size = (width, height)
            pictures = np.stack([cv2.resize(source[t], size, interpolation=cv2.INTER_AREA) for t in times])
            coarse = _depth_at_most(depth[times], height, width)
            fine = upsample(coarse, pictures, depth_tolerance=self.result.config.anchor.depth_tolerance)
            self._moments = key, pictures, fine
        return self._moments[1:]


class Previewer:
    """Draws previews; the clips looked at last stay open."""

    def __init__(self) -> None:
        self._clips: OrderedDict[str, OpenClip] = OrderedDict()

    def clip(self, key: str, prepare: Callable[[], OpenClip]) -> OpenClip:
        """The clip of this key, opened by `prepare` the first time."""
        if key not in self._clips:
            self._clips[key] = prepare()
            while len(self._clips) > _CLIPS:
                self._clips.popitem(last=False)
        self._clips.move_to_end(key)
        return self._clips[key]

    def draw(self, opened: OpenClip, camera: CameraSpec, asked: dict[str, Any]) -> dict[str, Any]:
        """The JSON of a `Preview`.

        Args:
            asked: `count`, `frame`, `max_side`, `format` and `tint` of the request.

        Raises:
            CameraError: the camera cannot be in this clip's scene.
            InputError: the clip has no such frame.
        """
        started = time.monotonic()
        clip = opened.result
        view = load_source_view(clip.entries)
        whole, said = resolve_path(camera, clip.entries, clip.config.motion.relative_to)
        one = asked["frame"]
        times = spread(len(clip.source), asked["count"]) if one is None else [_frame(clip, one)]
        height, width = _fit(view.height, view.width, asked["max_side"])
        path = _at(whole, times).resized(width, height)
        K_px = np.broadcast_to(view.K_px, (len(times), 3, 3))
        pictures, depth = opened.moments(times, height, width)
        drawn = draw_anchor(
            pictures,
            depth,
            range(len(times)),
            scaled_intrinsics(K_px, width / view.width, height / view.height),
            path,
            plate=_small(load_background_plate(clip.entries), width, height),
            depth_tolerance=clip.config.anchor.depth_tolerance,
            valid=None,
            device=clip.context.drawing_device,
        )
        color, mask = drawn["color"], drawn["validity_mask"]
        holes = [1 - float(seen.mean()) for seen in mask]
        shown = [tinted_holes(c, m) if asked["tint"] else c for c, m in zip(color, mask, strict=True)]
        frames: list[dict[str, Any]] = [
            {"index": int(t), "time_s": float(view.times_s[t]), "hole_share": share}
            for t, share in zip(times, holes, strict=True)
        ]
        film = None
        if asked["format"] == "webp":
            for frame, picture in zip(frames, shown, strict=True):
                frame["webp"] = _webp(picture)
        else:
            film = _mp4(shown, max(Fraction(1), clip.request.info.rate * len(times) / len(clip.source)))
        return {
            "width": width,
            "height": height,
            "hole_share": float(np.mean(holes)),
            "frames": frames,
            "mp4": film,
            "warnings": [*said, *camera.warnings(view), *path_warnings(whole, view)],
            "seconds": time.monotonic() - started,
        }

    def scene(self, opened: OpenClip, asked: dict[str, Any]) -> dict[str, Any]:
        """The JSON of a `Scene`: the very depth that the anchor of this frame is drawn with.

        Args:
            asked: `frame` and `max_side` of the request.

        Raises:
            InputError: the clip has no such frame.
        """
        clip = opened.result
        t, view = _frame(clip, asked["frame"]), load_source_view(clip.entries)
        height, width = _fit(view.height, view.width, asked["max_side"])
        picture = cv2.resize(clip.source[t], (width, height), interpolation=cv2.INTER_AREA)
        depth = _depth_at_most(load_depth(clip.entries)[t : t + 1], height, width)
        lifted = upsample(depth, picture[None], depth_tolerance=clip.config.anchor.depth_tolerance)
        with np.errstate(over="ignore"):  # what is too far for float16 is as good as infinitely far
            halves = (lifted[0] / view.median_depth).astype("<f2")
        K_px = scaled_intrinsics(view.frame_intrinsics_px[t], width / view.width, height / view.height)
        return {
            "frame": t,
            "frames": len(clip.source),
            "time_s": float(view.times_s[t]),
            "start_s": float(view.times_s[0]),
            "end_s": float(view.times_s[-1]),
            "width": width,
            "height": height,
            "K_px": K_px.tolist(),
            "subject_depth": view.subject_depth / view.median_depth,
            "depth": base64.b64encode(halves.tobytes()).decode(),
            "webp": _webp(picture),
        }


def _frame(clip: Result, asked: int) -> int:
    if asked >= len(clip.source):
        raise InputError(f"the clip has the frames 0 to {len(clip.source) - 1}", param="frame")
    return asked


def _fit(height: int, width: int, most: int) -> tuple[int, int]:
    scale = min(1.0, most / max(height, width))
    # Even sides: the film's codec has no others.
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _at(path: CameraPath, times: list[int]) -> CameraPath:
    return replace(path, c2w=path.c2w[times], K_px=path.K_px[times], times_s=path.times_s[times])


def _depth_at_most(depth: np.ndarray, height: int, width: int) -> np.ndarray:
    """Depth no finer than the picture; nearest, so that no surface appears between two."""
    if depth.shape[1] <= height and depth.shape[2] <= width:
        return np.array(depth)
    size = (min(width, depth.shape[2]), min(height, depth.shape[1]))
    return np.stack([cv2.resize(values, size, interpolation=cv2.INTER_NEAREST_EXACT) for values in depth])


def _small(plate: Plate | None, width: int, height: int) -> Plate | None:
    if plate is None:
        return None

    def nearest(values: np.ndarray) -> np.ndarray:
        return cv2.resize(np.array(values), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)

    return Plate(color=nearest(plate.color), depth=nearest(plate.depth), confidence=nearest(plate.confidence))


def _webp(picture: np.ndarray) -> str:
    bgr = np.ascontiguousarray(picture[..., ::-1])
    done, data = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY])
    assert done
    return base64.b64encode(data.tobytes()).decode()


def _mp4(pictures: list[np.ndarray], rate: Fraction) -> str:
    height, width = pictures[0].shape[:2]
    with tempfile.TemporaryDirectory(prefix="recapture-") as folder:
        path = Path(folder) / "preview.mp4"
        with VideoWriter(
            path, width=width, height=height, rate=rate.limit_denominator(1000), crf=23, preset="veryfast"
        ) as video:
            for picture in pictures:
                video.write(picture)
        return base64.b64encode(path.read_bytes()).decode()


def clip_key(tenant: str, sha256: str, sections: dict[str, Any]) -> str:
    """What a clip is kept under: the tenant is part of it, so that nobody meets another's."""
    return json.dumps([tenant, sha256, sections], sort_keys=True)
