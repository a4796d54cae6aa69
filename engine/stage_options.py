"""What each stage's key says of the options: everything that its result depends on, and nothing else.

Two options have another name in keys than in the configuration, since stores outlive names: `band` is `depth_tolerance`,
`normalisation` is `normalization`.
"""

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

from .config import DecodeConfig
from .graph.context import StageContext
from .models import attention


def decode_options(clip_sha256: str, decode: DecodeConfig) -> dict[str, Any]:
    """Of `frames`, which can be known before there is a run."""
    return {"clip": clip_sha256, **asdict(decode)}


def depth_options(context: StageContext) -> dict[str, Any]:
    """Of `depth`."""
    structure = context.config.depth.structure
    if context.request.depth_dir is not None:
        kind, first = context.config.depth.kind, context.config.decode.first_frame
        return {"user": True, "first_frame": first, "structure": structure is True, "kind": kind, "matched": 2}
    options = {"smooth": context.config.depth.smooth, "structure": structure is not False}
    return options if structure is False else {**options, **standing_camera_options(context)}


def standing_camera_options(context: StageContext) -> dict[str, Any]:
    """Of `background`: what decides about a clip whose camera stands still."""
    picture = context.request.clean_plate_picture
    digest = None if picture is None else hashlib.sha256(picture.tobytes()).hexdigest()
    return {
        "locked": context.config.anchor.locked,
        "band": context.config.anchor.depth_tolerance,
        "clean_plate": digest,
    }


def motion_options(context: StageContext) -> dict[str, Any]:
    """Of `motion`: the source camera's own poses, where the camera comes with them."""
    camera = json.loads(context.request.camera.to_json())
    source = camera.get("source")
    return {"source": source, **({} if source is None else {"path_scale": camera["path_scale"]})}


def camera_options(context: StageContext) -> dict[str, Any]:
    """Of `camera`."""
    camera = json.loads(context.request.camera.to_json())
    return {"camera": camera, "relative_to": context.config.motion.relative_to}


def anchor_options(context: StageContext) -> dict[str, Any]:
    """Of `anchor`."""
    options, request = context.config.anchor, context.request
    shared = {"band": options.depth_tolerance, "mask": _mask(request.mask_digest), "force": request.force}
    if not context.config.motion.background:
        shared["background"] = False
    return shared if options.route == "points" else {**shared, "route": options.route, "seed": request.config.seed}


def _mask(digest: str | None) -> str | None:
    """The user's masks, and the rule by which they are read."""
    return digest and f"2 {digest}"


def condition_options(context: StageContext) -> dict[str, Any]:
    """Of `condition`."""
    return {**asdict(context.config.condition), "size": list(context.size), "seed": context.config.seed}


def source_options(context: StageContext) -> dict[str, Any]:
    """Of `source`."""
    return {"bank": "empty"} if context.config.tune.spatial_steps == 0 else condition_options(context)


def spatial_options(context: StageContext) -> dict[str, Any]:
    """Of `spatial`; the joint schedule tunes the spatial adapter in the temporal stage."""
    if context.config.tune.schedule == "joint":
        return {"schedule": "joint"}
    return _tune_options(context, "spatial_steps", "spatial_batch", "spatial_prompt")


def temporal_options(context: StageContext) -> dict[str, Any]:
    """Of `temporal`."""
    names = ["temporal_steps"]
    if context.config.tune.schedule == "joint":
        names += ["spatial_batch", "spatial_prompt"]
    # The defaults are not named: their keys are as they were before these were options.
    batch = {} if context.config.tune.temporal_batch == 1 else {"temporal_batch": context.config.tune.temporal_batch}
    measured = {} if context.config.tune.held_out == 4 else {"held_out": context.config.tune.held_out}
    normalization = {"normalisation": context.config.tune.normalization}
    return {**_tune_options(context, *names), **normalization, **batch, **measured}


def _tune_options(context: StageContext, *names: str) -> dict[str, Any]:
    shared = ("rank", "lr", "schedule", "sigma_mean", "sigma_std", "weight_decay")
    options = asdict(context.config.tune)
    chosen = {name: options[name] for name in (*shared, *names)}
    return {**chosen, "seed": context.config.seed, **_computed_in(context)}


def _computed_in(context: StageContext) -> dict[str, str]:
    """Attention operator and precision of the UNet, where they are not those of a CPU."""
    dtype = {} if context.config.dtype in ("auto", "fp32") else {"dtype": context.config.dtype}
    return {**attention.key(context.config.attention), **dtype}


def sample_options(context: StageContext) -> dict[str, Any]:
    """Of `sample`, which decodes nothing but single frames."""
    return {**asdict(replace(context.config.sample, decode_chunk=None)), **_sampling_options(context)}


def refine_options(context: StageContext) -> dict[str, Any]:
    """Of `refine`."""
    options = {**asdict(context.config.refine), "overlap": context.config.sample.overlap}
    return {**options, **_sampling_options(context)}


def _sampling_options(context: StageContext) -> dict[str, Any]:
    sampler = context.request.sampler
    own = (
        {}
        if sampler is None
        else {"sampler": f"{type(sampler).__module__}:{type(sampler).__qualname__} {sampler.version}"}
    )
    return {
        "seed": context.request.sample_seed,
        "frames": context.models.shape.frames,
        **_computed_in(context),
        **own,
    }


def deliver_options(context: StageContext) -> dict[str, Any]:
    options = asdict(context.config.deliver)
    if context.config.deliver.composite == "off":
        return {**options, "fill": "model"}  # nothing is filled
    if context.config.deliver.fill == "model":
        return options
    shared = {
        "band": context.config.anchor.depth_tolerance,
        "mask": _mask(context.request.mask_digest),
        "seed": context.config.seed,
    }
    return {**options, **shared}
