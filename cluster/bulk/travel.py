"""What travels with a job: a local manifest, and the clips and camera files that it names relative to itself."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...engine.errors import InputError
from ...engine.store.remote_path import open_remote_path
from .manifest import ManifestError, ManifestProblem, is_camera_file, raw_rows

MAX_BYTES = 64 << 20
"""What travels altogether; Ray refuses more than 100 MB."""


def pack(manifest: Path, folder: Path) -> tuple[str, bool]:
    """Copy a manifest and what its rows name relative to it into a folder; its name there, and whether files came along.

    Absolute paths and URIs are the cluster's own.

    Raises:
        ManifestError: a row names a file that is not there or not below the manifest's folder, or a relative output.
        InputError: no such manifest, or too much to send.
    """
    if not manifest.is_file():
        raise InputError(f"{manifest} does not exist", param="manifest")
    home = Path(os.path.realpath(manifest.parent))
    files, problems = {}, []
    for where, column, name in _relative(manifest):
        path = Path(os.path.realpath(home / name))
        if column == "output_uri":
            problems.append(
                ManifestProblem(where, column, f"{name} would be lost with the job's folder; give s3:// or gs://")
            )
        elif not path.is_relative_to(home):
            problems.append(
                ManifestProblem(where, column, f"{name} is not below the manifest's folder, so it cannot travel along")
            )
        elif not path.is_file():
            problems.append(ManifestProblem(where, column, f"{name} is not a file beside the manifest"))
        else:
            files[path] = path.relative_to(home)
    if problems:
        raise ManifestError(problems)
    size = sum(path.stat().st_size for path in (manifest, *files))
    if size > MAX_BYTES:
        raise InputError(
            f"{manifest} and the {len(files)} files that it names beside it have {size} bytes; up to {MAX_BYTES} travel with a "
            "job, so put them where the cluster reads them (s3://, gs://)",
            param="manifest",
        )
    folder.mkdir()
    for path, name in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    name = f"manifest{manifest.suffix.lower()}"
    while (folder / name).exists():  # a row's own file is called that
        name = f"_{name}"
    shutil.copyfile(manifest, folder / name)
    return name, bool(files)


def _relative(manifest: Path) -> Iterator[tuple[str, str, str]]:
    """Line, column and text of every relative path in a manifest."""
    for where, record in raw_rows(open_remote_path(str(manifest), param="manifest")):
        for column in ("input_uri", "output_uri", "camera"):
            value = record.get(column)
            if not isinstance(value, str) or not value or "://" in value or os.path.isabs(value):
                continue
            if column != "camera" or is_camera_file(value):
                yield where, column, value
