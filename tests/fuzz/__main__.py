"""Feeds mutated cameras and manifests to their parsers, guided by coverage (atheris, libFuzzer).

    python -m tests.fuzz TARGET -max_total_time=60      (or other options of libFuzzer)

Whatever is not read must be refused by the project's own error, whatever is read must be finite. It begins from
`corpus/TARGET`: an input of each kind, and what once crashed a parser. A crash is written to the working directory; mend
it and keep it there.
"""

import sys
import tempfile
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(
    include=["recapture.engine.cameras", "recapture.cluster.bulk.manifest", "recapture.client.bulk"]
):
    from recapture.client import bulk
    from recapture.cluster.bulk.manifest import read_manifest
    from recapture.engine.cameras import SourceView, parse_camera
    from recapture.engine.store.remote_path import AllowedRoots, open_remote_path
from recapture.client.errors import ClientError
from recapture.engine.errors import CameraError, InputError

VIEW = SourceView(
    K_px=np.array([[384.0, 0, 192], [0, 384, 128], [0, 0, 1]]),
    width=384,
    height=256,
    times_s=np.arange(4) / 24,
    median_depth=5.0,
    subject_depth=3.0,
)
BETWEEN_FILES = b"\n--- next file ---\n"
FOLDERS = {
    "colmap": ["cameras.txt", "images.txt", "points3D.txt"],
    "colmap-bin": ["cameras.bin", "images.bin", "points3D.bin"],
}
"""What a folder holds; an input is these files one after another."""

scratch = Path(tempfile.mkdtemp(prefix="recapture-fuzz-"))


def resolve(spec: str) -> None:
    try:
        path = parse_camera(spec).resolve(VIEW)
    except CameraError:
        return
    assert np.isfinite(path.c2w).all(), spec
    assert np.isfinite(path.K_px).all(), spec


def expression(data: bytes) -> None:
    resolve(data.decode(errors="replace"))


def json_file(data: bytes) -> None:
    (scratch / "camera.json").write_bytes(data)
    resolve(str(scratch / "camera.json"))


def folder(kind: str, data: bytes) -> None:
    model = scratch / kind
    model.mkdir(exist_ok=True)
    for name, content in zip(FOLDERS[kind], data.split(BETWEEN_FILES), strict=False):
        (model / name).write_bytes(content)
    resolve(str(model))


def manifest(suffix: str, data: bytes) -> None:
    (scratch / f"manifest.{suffix}").write_bytes(data)
    place = open_remote_path(str(scratch / f"manifest.{suffix}"), param="manifest")
    try:
        read_manifest(place, AllowedRoots([str(scratch)]), open_remote_path(str(scratch / "out"), param="out"))
    except InputError:
        return


def client_manifest(suffix: str, data: bytes) -> None:
    path = scratch / f"rows.{suffix}"
    path.write_bytes(data)
    try:
        bulk.read_manifest(path)
    except ClientError:
        return


TARGETS = {
    "expression": expression,
    "json": json_file,
    "colmap": lambda data: folder("colmap", data),
    "colmap-bin": lambda data: folder("colmap-bin", data),
    "csv": lambda data: manifest("csv", data),
    "jsonl": lambda data: manifest("jsonl", data),
    "client-csv": lambda data: client_manifest("csv", data),
    "client-jsonl": lambda data: client_manifest("jsonl", data),
}

if __name__ == "__main__":
    name, options = sys.argv[1], sys.argv[2:]
    found, kept = scratch / "found", Path(__file__).parent / "corpus" / name
    found.mkdir()
    atheris.Setup([sys.argv[0], *options, str(found), str(kept)], TARGETS[name])
    atheris.Fuzz()
