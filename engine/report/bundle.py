"""What a run leaves behind: a folder with the videos, the report and everything beside them, whole or not at all."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import InputError, OutputError, VideoError
from ..graph.request import file_sha256
from ..stage_results import StageResults, tuned_adapters
from ..stages import STAGES
from ..store.durable import DISK_FULL, write_synced
from ..video import Limits, VideoWriter, add_sound, write_png
from . import collect_report, render_report
from .collect import versions
from .html.pictures import contact_sheet, flat_holes, spread, tinted_holes

_COLUMNS = 5
"""Moments on a contact sheet."""


class AddSound(Protocol):
    """As `video.add_sound`: who takes the clip's file apart."""

    def __call__(self, video: Path, source: Path, *, start_s: float, limits: Limits) -> list[str]: ...


def write_bundle(
    result: StageResults, folder: Path, *, passes: bool = False, tuned: bool = False, add_sound: AddSound = add_sound
) -> Path:
    """Write a finished run into a folder, replacing what an earlier run left there.

    Everything is written beside its place and moved there at the end: an error leaves the folder as it was.

    Args:
        folder: made if need be.
        passes: also write `passes/`: lossless PNG sequences (delivered, generated, anchor, matte), and the depth of
            each frame as a NumPy file, float32 [h, w] in scene units, at the resolution of the depth network.
        tuned: also write `adapters/`: the two tuned adapters in PEFT's layout.
        add_sound: copies the clip's sound; a service has it done outside its process.

    Returns:
        Path of the delivered video.

    Raises:
        InputError: the run stopped before its last stage.
        OutputError: the folder cannot be written, or the disk is full.
    """
    missing = [stage.name for stage in STAGES if stage.name not in result.entries]
    if missing:
        raise InputError(f"only a finished run can be saved; this one stopped before {missing[0]}")
    with _staging_dir(folder) as staging:
        _write_videos(result, staging, add_sound)
        write_png(staging / "contact.png", _contact(result))
        camera = result.camera.to_json().encode()
        facts = collect_report(result)
        page = render_report(result, facts, staging)
        for leftover in staging.glob("wipe-*.mp4"):
            leftover.unlink()
        write_synced(staging / "camera.json", camera)
        write_synced(staging / "config.json", _json(_config(result, facts)))
        write_synced(staging / "report.json", _json(facts))
        write_synced(staging / "report.html", page.encode())
        if passes:
            _write_passes(result, staging / "passes")
            write_synced(staging / "passes" / "camera.json", camera)
        if tuned:
            for name, adapter in tuned_adapters(result.entries).items():
                shutil.copytree(adapter, staging / "adapters" / name)
    if not passes and (folder / "passes" / "camera.json").exists():
        shutil.rmtree(folder / "passes")  # of an earlier run: it would lie beside a video that it is not of
    return folder / "video.mp4"


def write_anchor_sheet(
    source: np.ndarray, anchor: np.ndarray, mask: np.ndarray, provenance: np.ndarray, path: Path
) -> None:
    """Write a PNG of the source at several times and below it what the new camera sees, holes hatched.

    Args:
        source: uint8 [N, H, W, 3].
        anchor: uint8 [N, h, w, 3].
        mask: bool [N, h, w], False in holes.
        provenance: uint8 [N, h, w], 0 where the anchor is no footage.

    Raises:
        OutputError: the file cannot be written.
    """
    times = spread(len(source), _COLUMNS)
    seen = [tinted_holes(anchor[t], mask[t]) for t in times]
    rows = [("source", [source[t] for t in times]), ("from the new camera", seen)]
    labels = [f"frame {t}, {100 * (1 - float((provenance[t] > 0).mean())):.1f} % not filmed" for t in times]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    write_png(path, contact_sheet(rows, labels))


@contextmanager
def _staging_dir(folder: Path) -> Iterator[Path]:
    """A hidden folder inside `folder` whose content moves into it when the block ends well, and is gone otherwise."""
    existed = folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".recapture-", dir=folder))
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}", param="out") from error
    try:
        yield staging
        for path in sorted(staging.iterdir()):
            target = folder / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
    except OutputError as error:
        # The hidden folder is nothing that the user knows.
        raise OutputError(
            error.message.replace(str(staging), str(folder)), param=error.param, code=error.code
        ) from None
    except OSError as error:
        code = "disk_full" if error.errno in DISK_FULL else None
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}", param="out", code=code) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def _write_videos(result: StageResults, folder: Path, add_sound: AddSound) -> None:
    """All videos; what cannot be kept of the clip becomes a warning of the run."""
    info = result.request.info
    height, width = result.frames.shape[1:3]

    def write(name: str, frames: Iterable[np.ndarray], size: tuple[int, int]) -> None:
        color = info.color if size[1] == height else None
        with VideoWriter(folder / name, width=size[0], height=size[1], rate=info.rate, color=color) as video:
            for frame in frames:
                video.write(frame)

    write("video.mp4", result.frames, (width, height))
    if info.has_audio:
        _write_sound(result, folder / "video.mp4", add_sound)
    generated = result.generated
    write("generated.mp4", generated, (generated.shape[2], generated.shape[1]))
    pairs = zip(result.anchor, result.validity_mask, strict=True)
    write("anchor.mp4", (flat_holes(color, mask) for color, mask in pairs), (width, height))
    write(
        "mask.mp4",
        (np.repeat(np.uint8(255) * (seen > 0)[..., None], 3, axis=2) for seen in result.provenance),
        (width, height),
    )
    both = (np.hstack(pair) for pair in zip(result.source, result.frames, strict=True))
    write("side_by_side.mp4", both, (2 * width, height))


def _write_sound(result: StageResults, video: Path, add_sound: AddSound) -> None:
    request = result.request
    if lost := _clip_is_lost(result):
        result.warn(lost)
        return
    start_s = float(request.config.decode.first_frame / request.info.rate)
    try:
        for sentence in add_sound(video, request.clip_path, start_s=start_s, limits=request.limits):
            result.warn(sentence)
    except VideoError as error:
        result.warn(f"the sound is left out: {error.message}")


def _clip_is_lost(result: StageResults) -> str:
    """Why the user's file cannot give its sound any more; empty if it can."""
    request = result.request
    try:
        same = file_sha256(request.clip_path) == request.clip_sha256
    except OSError:
        return f"the sound is left out: {request.clip_name} cannot be read any more"
    return "" if same else f"the sound is left out: {request.clip_name} was changed during the run"


def _contact(result: StageResults) -> np.ndarray:
    times = spread(len(result.source), _COLUMNS)
    generated = 100 * result.generated_mask.reshape(len(result.generated_mask), -1).mean(1, dtype=np.float64) / 255
    return contact_sheet(
        [
            ("source", [result.source[t] for t in times]),
            (
                "from the new camera, hatched where nothing is known",
                [tinted_holes(result.anchor[t], result.validity_mask[t]) for t in times],
            ),
            ("generated", [result.generated[t] for t in times]),
            ("delivered", [result.frames[t] for t in times]),
        ],
        [f"frame {t}, {generated[t]:.1f} % generated" for t in times],
    )


def _config(result: StageResults, facts: dict[str, Any]) -> dict[str, Any]:
    """What it takes to do the run again; `config` is `RunConfig.to_json()`."""
    request = result.request
    return {
        "schema": "recapture.config",
        "version": 1,
        "command": facts["command"],
        "clip": {"name": request.clip_name, "sha256": request.clip_sha256},
        "camera": {"text": request.camera.text, "spec": json.loads(request.camera.to_json())},
        "inputs": {
            "depth_dir": None
            if request.depth_dir is None
            else {"path": str(request.depth_dir), "sha256": request.depth_digest},
            "mask_dir": None
            if request.mask_dir is None
            else {"path": str(request.mask_dir), "sha256": request.mask_digest},
            "clean_plate": None if request.clean_plate is None else str(request.clean_plate),
            "force": request.force,
        },
        "config": request.config.to_json(),
        "models": facts["models"],
        "versions": versions(),
    }


def _write_passes(result: StageResults, folder: Path) -> None:
    depth = result.depth
    sequences: dict[str, np.ndarray] = {
        "delivered": result.frames,
        "generated": result.generated,
        "anchor": result.anchor,
        "matte": result.generated_mask,
        "texture": result.texture,
    }
    for name, frames in sequences.items():
        (folder / name).mkdir(parents=True)
        for t, frame in enumerate(frames):
            write_png(folder / name / f"{t:06d}.png", frame)
    (folder / "depth").mkdir()
    for t, values in enumerate(depth):
        stream = io.BytesIO()
        np.save(stream, values)
        write_synced(folder / "depth" / f"{t:06d}.npy", stream.getvalue())


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode()
