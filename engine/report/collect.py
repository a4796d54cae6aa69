"""Everything a report says, as JSON values: `report.json` is this, and the page shows nothing else but pictures."""

import math
import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..anchor.render import to_tensor, to_uint8
from ..cameras.rigid import rotation_angle_deg
from ..diffusion.encoding import working_anchor
from ..graph.context import StageContext
from ..imaging.composite import to_clip_size
from ..imaging.metrics import frame_changes, psnr_of_error, seam_ratios, worst_boundaries
from ..models.multiview import chosen_route
from ..models.video import weight_count
from ..stage_results import StageResults, load_coverage
from .command import command_of

SCHEMA = "recapture.report"
_PACKAGES = ("recapture", "torch", "diffusers", "transformers", "peft", "av", "numpy")
_LENS = {
    "given": "given with --fov",
    "metadata": "from the file's metadata",
    "depth model": "estimated by the depth model",
    "assumed": "assumed; give --fov if you know it",
}


def collect_report(result: StageResults) -> dict[str, Any]:
    """The account of a finished run.

    Numbers that do not exist (a PSNR over no pixels) are null; infinite ones (identical pictures) are the text "inf".
    """
    context, request, entries = result.context, result.request, result.entries
    coverage = load_coverage(entries)
    lens, depth = entries["intrinsics"].json("intrinsics"), entries["depth"].json("summary")
    spatial, temporal = entries["spatial"].json("tuning"), entries["temporal"].json("tuning")
    parameters = parameter_count(context.models.folder)
    command, unsaid = command_of(result)
    generated_share = result.generated_share
    facts = {
        "schema": SCHEMA,
        "version": 1,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "sentence": sentence(generated_share, parameters, model_name(context), textured=result.textured_share),
        "shares": {
            "footage": 1 - generated_share,
            "generated": generated_share,
            "textured": result.textured_share,
            "other_frames": float(np.mean(coverage["other_frames"])),
            "holes": result.hole_share,
            "synthesized": float(np.mean(coverage["synthesized"])),
            "holes_per_frame": coverage["holes"],
        },
        "clip": {
            **request.info.to_json(),
            "name": request.clip_name,
            "sha256": request.clip_sha256,
            "frames": len(result.source),
            "frames_in_file": request.info.frame_count,
            "first_frame": request.config.decode.first_frame,
        },
        "working_size": list(context.size[::-1]),
        "camera": {"text": request.camera.text, **_motion(result)},
        "intrinsics": {**lens, "source_says": _LENS[lens["source"]]},
        "depth": depth,
        "models": [_video_model(context, parameters), _depth_model(result), *_multiview_model(result)],
        "anchor": _route(result),
        "seed": request.config.seed,
        "versions": versions(),
        "device": device_name(context.device),
        "stages": [asdict(record) for record in result.records],
        "seconds": result.seconds,
        "tuning": {
            "steps": {"spatial": spatial["steps"], "temporal": temporal["steps"]},
            "losses": {**spatial["losses"], **temporal["losses"]},
            "held_out": temporal["held_out"],
            "warm_start": temporal["warm_start"],
        },
        "windows": [[window.start, window.stop - 1] for window in result.windows],
        "measures": measures(result),
        "notes": [*result.notes, *_planned(result)],
        "memory": None if result.memory is None else result.memory.to_json(),
        "warnings": list(result.warnings),
        "given": [*result.request.given, *(["sampler"] if result.request.sampler is not None else [])],
        "command": command,
        "command_leaves_out": unsaid,
        "config": request.config.to_json(),
    }
    return jsonable(facts)


def _planned(result: StageResults) -> list[str]:
    """What the memory plan chose, and why."""
    return [f"memory: {sentence}" for sentence in (result.memory.sentences() if result.memory else ())]


def measures(result: StageResults) -> dict[str, Any]:
    """What the run measures of its pictures; every array is read frame by frame."""
    changes = {
        "source": frame_changes(result.source),
        "delivered": frame_changes(result.frames),
        "generated": frame_changes(result.generated),
    }
    windows = result.windows
    seams = [before.stop for before in windows[:-1]]  # where each window's own frames begin

    def at_clip_size(t: int) -> np.ndarray:
        return to_uint8(to_clip_size(to_tensor(result.generated[t : t + 1]), result.provenance.shape[1:]))[0]

    joined = result.config.deliver.composite == "on"
    worst = worst_boundaries(at_clip_size, result.anchor, result.provenance) if joined else []
    return {
        "generated_psnr_visible_db": visible_psnr(result),
        "frame_change": changes,
        "flicker": {name: (255 - float(np.mean(values))) / 255 for name, values in changes.items()},
        "seams": seams,
        "seam_ratios": {
            name: {str(frame): ratio for frame, ratio in seam_ratios(changes[name], seams).items()}
            for name in ("delivered", "generated")
        },
        "worst_boundaries": [asdict(each) for each in worst],
    }


def visible_psnr(result: StageResults) -> float:
    """PSNR in dB of the generated frames against the footage in the anchor, at the working size."""
    size = result.generated.shape[1:3]
    total, count = 0.0, 0
    for t in range(len(result.generated)):
        picture, valid = working_anchor(result.anchor[t : t + 1], result.provenance[t : t + 1] > 0, size)
        error = result.generated[t].astype(np.float32) - to_uint8(picture)[0]
        error = error[valid[0].numpy()]
        total, count = total + float(np.square(error).sum(dtype=np.float64)), count + error.size
    return psnr_of_error(total / count) if count else float("nan")


def sentence(generated_share: float, parameters: int | None, name: str, *, textured: float = 0.0) -> str:
    """The sentence that every report begins with.

    Args:
        textured: share of the generated pixels that have detail copied from the clip.
    """
    if 0 < generated_share < 0.0005:
        generated, footage = "Less than 0.1", "More than 99.9"
    elif 0.9995 < generated_share < 1:
        generated, footage = "More than 99.9", "Less than 0.1"
    else:
        generated = f"{100 * generated_share:.1f}"
        footage = f"{100 - float(generated):.1f}"
    size = "" if parameters is None else f"{spoken_count(parameters)}-parameter "
    article = "an" if size.startswith(("8", "11-", "18-", "11.", "18.")) else "a"
    copied = f", {100 * textured:.0f} % of them with texture copied from your clip" if textured >= 0.005 else ""
    return (
        f"{footage} % of these pixels are your footage; {generated[0].lower() + generated[1:]} % come from "
        f"{article} {size}model ({name}){copied}."
    )


def model_name(context: StageContext) -> str:
    """The video model's name for a reader; of a directory its last part."""
    name = context.models.entry.name
    return Path(name).name if Path(name).is_dir() else name


def spoken_count(count: int) -> str:
    """5900000 as "5.9-million"."""
    for unit, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if count >= unit:
            return f"{count / unit:.3g}-{word}"
    return str(count)


def parameter_count(folder: Path) -> int | None:
    """Parameters of a model directory, None where it has no safetensors files."""
    return sum(weight_count(folder / part) for part in ("unet", "vae", "image_encoder")) or None


def versions() -> dict[str, str]:
    """Version of Python and of each package that a picture depends on; packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {platform.machine()}, {os.cpu_count()} cores ({sys.platform})"


def _video_model(context: StageContext, parameters: int | None) -> dict[str, Any]:
    entry = context.models.entry
    return {
        "role": "video",
        "name": model_name(context),
        "source": entry.source_name,
        "license": entry.license,
        "parameters": parameters,
        "digests": {"unet": context.models.unet_digest, "encoders": context.models.encoder_digest},
    }


def _depth_model(result: StageResults) -> dict[str, Any]:
    context, request = result.context, result.request
    if request.depth_dir is not None or "depth" in request.given:
        own = {"name": "your own depth", "license": "yours", "parameters": None}
        if "depth" in request.given:
            return {"role": "depth", **own, "source": "Python", "digests": {"array": result.entries["depth"].digest}}
        return {"role": "depth", **own, "source": "--depth-dir", "digests": {"files": context.depth_digest}}
    source = context.models.depth_source(context.config.depth.model)
    return {
        "role": "depth",
        "name": source.name,
        "source": source.kind,
        "license": source.license,
        "parameters": None,
        "digests": {"weights": source.digest},
    }


def _route(result: StageResults) -> dict[str, str]:
    """The anchor's route, and who chose it."""
    if "anchor" in result.request.given:
        return {"route": "given", "why": "your own anchor"}
    asked = result.config.anchor.route
    why = "asked for" if asked != "auto" else chosen_route(result.camera, result.hole_share)[1]
    return {"route": load_coverage(result.entries)["route"], "why": why}


def _multiview_model(result: StageResults) -> list[dict[str, Any]]:
    source = result.context.multiview_source
    if source is None or load_coverage(result.entries)["route"] != "multiview":
        return []
    count = None if source.folder is None else parameter_count(source.folder)
    about = {"name": source.name, "source": "--multiview", "license": source.license, "parameters": count}
    return [{"role": "multiview", **about, "digests": {"weights": source.digest}}]


def _motion(result: StageResults) -> dict[str, float]:
    """How far the path leaves the source camera, at most."""
    path = result.camera
    turn = rotation_angle_deg(path.c2w[:, :3, :3])
    away = np.linalg.norm(path.c2w[:, :3, 3], axis=1) / result.entries["depth"].json("summary")["median"]
    return {"largest_turn_deg": float(turn.max()), "largest_move_median_depths": float(away.max())}


def jsonable(value: Any) -> Any:
    """The value without numbers that JSON has no form for: NaN becomes null, an infinity the text "inf" or "-inf"."""
    if isinstance(value, dict):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
