"""The project's own JSON, `camera.json`: every number as it is, and every convention said in the file.

    {"schema": "recapture.camera_path", "version": 1, "axes": "opencv",
     "reference": "source",       poses are relative to the source camera of the same moment; or "world": absolute
     "unit": "scene",             of translations: the clip's depth units; or "median_depth", or "file" (unknown)
     "width": 640, "height": 272, of the picture that K_px is in
     "frames": [{"time_s": 0.0, "c2w": 4x4, "K_px": 3x3}, ...]}

`time_s` (on the clip's clock) and `K_px` may be left out, but not in some frames only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from ..track import PoseTrack, build_track, check_count
from .strict import decoded, matrix, number, objects, parse_json, read_bytes, refuse, size

if TYPE_CHECKING:
    from ..path import CameraPath

SCHEMA = "recapture.camera_path"
VERSION = 1
_FIELDS = {"schema", "version", "axes", "reference", "unit", "width", "height", "frames"}
_FRAME_FIELDS = {"time_s", "c2w", "K_px"}


def claims(path: Path, head: bytes) -> bool:
    """A JSON file that names the schema near its beginning."""
    return SCHEMA.encode() in head and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def read(path: Path) -> PoseTrack:
    """Read a file of this format."""
    return decode(decoded(read_bytes(path), str(path)), str(path))


def write(cameras: CameraPath) -> dict[str, bytes]:
    """The file's content."""
    return {"": encode(cameras).encode()}


def encode(cameras: CameraPath) -> str:
    """The path as JSON, one line per frame; Python's shortest float text gives the same bits back."""
    header = {
        "schema": SCHEMA,
        "version": VERSION,
        "axes": "opencv",
        "reference": "source",
        "unit": "scene",
        "width": cameras.width,
        "height": cameras.height,
    }
    frames = [
        json.dumps({"time_s": float(t), "c2w": c2w.tolist(), "K_px": K.tolist()})
        for t, c2w, K in zip(cameras.times_s, cameras.c2w, cameras.K_px, strict=True)
    ]
    return json.dumps(header)[:-1] + ',\n "frames": [\n  ' + ",\n  ".join(frames) + "\n ]}\n"


def decode(text: str, name: str) -> PoseTrack:
    """Read the JSON text of this format; `name` is what errors call it.

    Raises:
        CameraError: another schema or version, an unknown field, a malformed number or pose.
    """
    document = parse_json(text, name)
    if document.get("schema") != SCHEMA:
        refuse(name, f"its schema is not {SCHEMA!r}")
    if document.get("version") != VERSION:
        refuse(name, f"version {document.get('version')!r} of the schema is not known, only {VERSION}")
    if unknown := sorted(document.keys() - _FIELDS):
        refuse(name, f"unknown field {unknown[0][:40]!r}; known: {', '.join(sorted(_FIELDS))}")
    if document.get("axes") != "opencv":
        refuse(name, "axes must be 'opencv' (x right, y down, z forward)")
    reference, unit = document.get("reference"), document.get("unit")
    if reference not in ("source", "world"):
        refuse(name, "reference must be 'source' (relative to the source camera) or 'world' (absolute)")
    if unit not in ("scene", "median_depth", "file"):
        refuse(name, "unit must be 'scene', 'median_depth' or 'file'")

    frames = objects(document.get("frames"), f"{name}: frames")
    check_count(len(frames), name)
    for i, frame in enumerate(frames):
        if unknown := sorted(frame.keys() - _FRAME_FIELDS):
            refuse(
                f"{name}: frame {i}", f"unknown field {unknown[0][:40]!r}; known: {', '.join(sorted(_FRAME_FIELDS))}"
            )
        if (frame.keys() ^ frames[0].keys()) & {"time_s", "K_px"}:
            refuse(f"{name}: frame {i}", "time_s and K_px must be in every frame or in none")

    timed, lens = "time_s" in frames[0], "K_px" in frames[0]
    sizes = None
    if lens:
        sizes = [(size(document.get("width"), f"{name}: width"), size(document.get("height"), f"{name}: height"))]
    where = [f"{name}: frame {i}" for i in range(len(frames))]
    pairs = list(zip(frames, where, strict=True))
    return build_track(
        np.array([matrix(f.get("c2w"), 4, 4, f"{w}: c2w") for f, w in pairs]),
        where.__getitem__,
        K_px=np.array([matrix(f["K_px"], 3, 3, f"{w}: K_px") for f, w in pairs]) if lens else None,
        sizes=sizes * len(frames) if sizes else None,
        times_s=np.array([number(f["time_s"], f"{w}: time_s") for f, w in pairs]) if timed else None,
        reference=cast(Literal["source", "world"], reference),
        unit=cast(Literal["scene", "median_depth", "file"], unit),
    )
