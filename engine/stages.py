"""The whole program, in order: each stage is a pure function of its inputs, its options and its weights.

    clip -> frames -> depth -> background -> intrinsics -> camera -> anchor -> source, condition -> spatial, temporal
         -> sample -> refine -> generate -> deliver

`STAGES` lists them in the order of this file. What a stage depends on is said where it is defined: other stages by
name, the options it reads, the weights it uses; its key in the store is made of these and nothing else.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .anchor.render import to_tensor, to_uint8
from .cameras import path_warnings, through_geometry
from .delivery import texture_fill
from .diffusion.conditioning import time_ids
from .diffusion.sampler import Condition, karras_sigmas, plan_windows
from .diffusion.sampler import sample as sample_windows
from .diffusion.tuner import Tuner, tune
from .errors import CameraError
from .frame_tasks import Cover, DecodeLatents, DrawAnchor, EncodeAnchor, EncodeSource, ImagineAnchor, PredictDepth
from .geometry.background import background_plate, clean_plate, stands_still
from .geometry.depth import EmptyScene, estimate_depth, predict_frame, read_depth, structure_of
from .graph.context import Run
from .graph.executor import FrameWork, Part
from .graph.stage import STAGES, Inputs, stage
from .imaging.composite import composite, to_clip_size
from .models import adapters, attention
from .models.multiview import chosen_route
from .stage_results import load_adapters, path_of, source_bank, source_view, tensor, told_of
from .store import Writer
from .video.frames import decode_frames
from .warm_start import record_of

__all__ = ["STAGES", "windows_of"]


@stage(config=lambda run: {"clip": run.clip_sha256, **asdict(run.config.decode)}, per_clip=True)
def frames(run: Run, inputs: Inputs, out: Writer) -> None:
    """Decode the clip."""

    def on_frame(done: int) -> None:
        run.progress("frames", done, run.frame_count)

    decode_frames(run.clip, run.info, run.limits, run.config.decode, out, on_frame)


def _depth_options(run: Run) -> dict[str, Any]:
    structure = run.config.depth.structure
    if run.depth_dir is not None:
        return {"user": True, "first_frame": run.config.decode.first_frame, "structure": structure is True}
    options = {"smooth": run.config.depth.smooth, "structure": structure is not False}
    return options if structure is False else {**options, **_standing_options(run)}


def _standing_options(run: Run) -> dict[str, Any]:
    picture = run.clean_plate_picture
    digest = None if picture is None else hashlib.sha256(picture.tobytes()).hexdigest()
    return {"locked": run.config.anchor.locked, "band": run.config.anchor.band, "clean_plate": digest}


@stage(
    "frames",
    config=_depth_options,
    weights=lambda run: run.depth_digest,
    version=3,
    per_clip=True,
    by_frame=True,
)
def depth(run: Run, inputs: Inputs, out: Writer) -> None:
    """Estimate depth, steady it over time, find the structure of the scene in it."""
    images = inputs["frames"].array("frames")
    count = len(images)

    def rows(shape: tuple[int, int]) -> Any:
        return out.array("depth", shape_per_row=shape, dtype=np.float32)

    if run.depth_dir is not None:
        refine = structure_of(images) if run.config.depth.structure else None
        summary = read_depth(run.depth_dir, count, rows, first=run.config.decode.first_frame, refine=refine)
    else:
        locked = run.config.anchor.locked
        summary = estimate_depth(
            lambda work, frames: run.each_frame(work, frames, out),
            PredictDepth(frames=inputs["frames"]),
            count,
            rows,
            smooth=run.config.depth.smooth,
            structure=run.config.depth.structure is not False,
            empty_scene=EmptyScene(images, run.clean_plate_picture, locked, run.config.anchor.band),
            look=lambda picture: predict_frame(run.models.depth(run.config.depth.model), picture),
            scratch=out.path,
            on_frame=lambda done: run.progress("depth", done, count),
        )
    out.json("summary", asdict(summary))


@stage(
    "frames",
    "depth",
    config=_standing_options,
    weights=lambda run: None if run.clean_plate is None else run.models.depth_source("embedded").digest,
    per_clip=True,
)
def background(run: Run, inputs: Inputs, out: Writer) -> None:
    """Find the static background of a locked-off clip."""
    images, depths, band = inputs["frames"].array("frames"), inputs["depth"].array("depth"), run.config.anchor.band
    locked = run.config.anchor.locked
    if locked is None:
        locked = run.clean_plate is not None or stands_still(images)
    out.json("background", {"locked": locked})
    if not locked:
        return
    plate = background_plate(images, depths, band=band)
    picture = run.clean_plate_picture
    if picture is not None:
        predicted, _ = run.models.depth("embedded").predict(to_tensor(picture[None]))
        plate = clean_plate(picture, plate, predicted[0].float().cpu().numpy())
    for name, value in (("color", plate.color), ("depth", plate.depth), ("confidence", plate.confidence)):
        out.save_array(name, value[None])


@stage("frames", "depth", config=lambda run: {"fov_deg": run.config.depth.fov_deg}, per_clip=True)
def intrinsics(run: Run, inputs: Inputs, out: Writer) -> None:
    """Settle the clip's focal length: given, from the file, from the depth model, or stated."""
    width, height = run.info.width, run.info.height
    given, estimated = run.config.depth.fov_deg, inputs["depth"].json("summary")["fov_deg"]
    if given is not None:
        fov, source = given, "given"
    elif run.info.focal_px is not None:
        fov, source = float(np.degrees(2 * np.arctan(width / 2 / run.info.focal_px))), "metadata"
    elif estimated is not None:
        fov, source = estimated, "depth model"
    else:
        fov, source = 55.0, "assumed"
    focal = width / 2 / np.tan(np.radians(fov) / 2)
    K_px = [[float(focal), 0.0, width / 2], [0.0, float(focal), height / 2], [0.0, 0.0, 1.0]]
    out.json("intrinsics", {"K_px": K_px, "width": width, "height": height, "fov_deg": float(fov), "source": source})


@stage("frames", "depth", "intrinsics", config=lambda run: {"camera": json.loads(run.camera.to_json())})
def camera(run: Run, inputs: Inputs, out: Writer) -> None:
    """Sample the path at each frame's time."""
    view = source_view(inputs)
    path = run.camera.resolve(view)
    through = through_geometry(path, inputs["depth"].array("depth"), view.K_px)
    for sentence in [*run.camera.warnings(view), *path_warnings(path, view), *through]:
        run.warn(sentence)
    out.json("camera", {"path": path.to_json()})


def _anchor_options(run: Run) -> dict[str, Any]:
    options = run.config.anchor
    shared = {"band": options.band, "mask": run.mask_digest, "force": run.force}
    return shared if options.route == "points" else {**shared, "route": options.route, "seed": run.config.seed}


@stage(
    "frames",
    "depth",
    "background",
    "intrinsics",
    "camera",
    config=_anchor_options,
    weights=lambda run: run.multiview_source and run.multiview_source.digest,
    version=4,
    by_frame=True,
)
def anchor(run: Run, inputs: Inputs, out: Writer) -> None:
    """Draw the clip from the new path."""
    count, path = len(inputs["frames"].array("frames")), path_of(inputs)
    work: FrameWork = DrawAnchor(inputs=inputs)
    route = run.config.anchor.route
    if route == "auto":
        seen: list[float] = []
        for part in run.each_frame(Cover(inputs=inputs), count, out):
            seen += part["covered"].tolist()
            run.progress("anchor", 0, count)  # nothing is drawn yet, but here a run is stopped
        route, _ = chosen_route(path, 1 - float(np.mean(seen)))
    if route == "multiview":
        assert run.multiview_source is not None
        work = ImagineAnchor(inputs=inputs, source=run.multiview_source)
    covered: list[float] = []
    borrowed: list[float] = []
    imagined: list[float] = []
    with (
        out.array("color", shape_per_row=(path.height, path.width, 3), dtype=np.uint8) as color,
        out.array("mask", shape_per_row=(path.height, path.width), dtype=bool) as mask,
        out.array("alpha", shape_per_row=(path.height, path.width), dtype=np.uint8) as alpha,
        out.array("evidence", shape_per_row=(path.height, path.width), dtype=np.uint8) as evidence,
    ):
        for part in run.each_frame(work, count, out):
            for rows, name in ((color, "color"), (mask, "mask"), (alpha, "alpha"), (evidence, "evidence")):
                rows.append(part[name])
            covered += part["covered"].tolist()
            borrowed += part["borrowed"].tolist()
            imagined += (part["mask"] & (part["evidence"] == 0)).mean((1, 2)).tolist()
            run.progress("anchor", len(covered), count)
    # Nothing here says who chose the route: what follows is the same either way.
    shares = {"holes": [1 - share for share in covered], "other_frames": borrowed, "imagined": imagined}
    out.json("coverage", {**shares, "route": route})
    if max(covered) < 0.02:
        # Refused before it is published: nothing downstream could be learned from it.
        if not run.force:
            raise CameraError(
                "the path sees nothing of the clip (at most "
                f"{100 * max(covered):.1f} % of any frame); turn or move the camera less, or use `force`",
                param="camera",
                code="camera_sees_nothing",
            )
        run.warn("the path sees almost nothing of the clip")


def _condition_options(run: Run) -> dict[str, Any]:
    return {**asdict(run.config.condition), "size": list(run.size), "seed": run.config.seed}


def _source_options(run: Run) -> dict[str, Any]:
    return {"bank": "empty"} if run.config.tune.spatial_steps == 0 else _condition_options(run)


@stage("frames", config=_source_options, weights=lambda run: run.models.encoder_digest, per_clip=True, by_frame=True)
def source(run: Run, inputs: Inputs, out: Writer) -> None:
    """Encode augmented source frames, which the spatial adapter learns from; none where it is not tuned."""
    options = run.config.condition
    if run.config.tune.spatial_steps == 0:
        out.json("bank", {"frame": [], "of": inputs["frames"].digest})  # still tells clips apart: see `record_of`
        return
    work = EncodeSource(frames=inputs["frames"], batch=options.micro_batch)
    encoded = _gathered(run, work, options.augmentations, out, "source")
    for name in ("latents", "prompts", "tokens"):
        out.save_array(name, encoded[name])
    out.save_array("ids", time_ids(float(run.info.rate), options))
    out.json("bank", {"frame": encoded["frame"].tolist()})


@stage("frames", "anchor", config=_condition_options, weights=lambda run: run.models.encoder_digest, by_frame=True)
def condition(run: Run, inputs: Inputs, out: Writer) -> None:
    """Fill the anchor's holes and encode it with its latent mask."""
    options = run.config.condition
    work = EncodeAnchor(anchor=inputs["anchor"], batch=options.micro_batch)
    for name, values in _gathered(run, work, len(inputs["anchor"].array("mask")), out, "condition").items():
        out.save_array(name, values)
    out.save_array("ids", time_ids(float(run.info.rate), options))


def _gathered(run: Run, work: FrameWork, count: int, out: Writer, name: str) -> Part:
    """All parts of latent size as one."""
    parts: list[Part] = []
    done = 0
    for part in run.each_frame(work, count, out):
        parts.append({key: values.copy() for key, values in part.items()})
        done += len(next(iter(part.values())))
        run.progress(name, done, count)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _tune_options(run: Run, *names: str) -> dict[str, Any]:
    shared = ("rank", "lr", "schedule", "sigma_mean", "sigma_std", "weight_decay")
    options = asdict(run.config.tune)
    chosen = {name: options[name] for name in (*shared, *names)}
    return {**chosen, "seed": run.config.seed, **attention.key(run.config.attention)}


def _spatial_options(run: Run) -> dict[str, Any]:
    if run.config.tune.schedule == "joint":
        return {"schedule": "joint"}  # tuned together with the temporal adapter, in the stage below
    return _tune_options(run, "spatial_steps", "spatial_batch", "spatial_prompt")


@stage("source", config=_spatial_options, weights=lambda run: run.models.unet_digest, per_clip=True)
def spatial(run: Run, inputs: Inputs, out: Writer) -> None:
    """Tune the spatial adapter on source frames."""
    options = run.config.tune
    if options.schedule == "joint" or options.spatial_steps == 0:
        out.json("tuning", {"steps": 0, "losses": {}})
        return
    tuner = Tuner(run.model, options, run.config.seed, run.share)
    run.fresh_adapters()
    bank = source_bank(run, inputs)
    losses = tune(
        run.model, options, out, options.spatial_steps, {"spatial": lambda step: tuner.spatial_loss(bank, step)},
        lambda done, loss: run.progress("spatial", done, options.spatial_steps, loss=loss),
        optimiser_of=run.optimiser_of,
    )  # fmt: skip
    adapters.save(run.model.unet, "spatial", out.path / "spatial", base_model=run.models.entry.source_name)
    out.json("tuning", {"steps": options.spatial_steps, "losses": losses})


def _temporal_options(run: Run) -> dict[str, Any]:
    names = ["temporal_steps", "normalisation"]
    if run.config.tune.schedule == "joint":
        names += ["spatial_batch", "spatial_prompt"]
    # A run that stops early asks every so many steps whether it may.
    warm = (
        {} if run.neighbour is None else {"from": run.neighbour.digest, "asked_every": run.config.tune.checkpoint_every}
    )
    # One window a step goes without saying: so it was before there was a choice.
    batch = {} if run.config.tune.temporal_batch == 1 else {"temporal_batch": run.config.tune.temporal_batch}
    return {**_tune_options(run, *names), **batch, **warm}


@stage(
    "camera",
    "source",
    "condition",
    "spatial",
    version=2,
    config=_temporal_options,
    weights=lambda run: run.models.unet_digest,
)
def temporal(run: Run, inputs: Inputs, out: Writer) -> None:
    """Tune the temporal adapter on the masked anchor."""
    options = run.config.tune
    told = told_of(run, inputs)
    tuner = Tuner(run.model, options, run.config.seed, run.share)
    run.fresh_adapters()
    before = tuner.held_out(told, ())
    passes: dict[adapters.AdapterName, Callable[[int], Tensor]] = {
        "temporal": lambda step: tuner.temporal_loss(told, step)
    }
    if options.schedule == "joint" and options.spatial_steps:
        bank = source_bank(run, inputs)
        passes = {"spatial": lambda step: tuner.spatial_loss(bank, step), **passes}
    elif options.schedule != "joint":
        load_adapters(run, inputs)
    steps, neighbour = options.temporal_steps, run.neighbour
    if steps and not told.mask.any():
        run.warn("no cell of the anchor is free of holes: the temporal adapter has nothing to learn from and stays off")
        steps = 0
    if steps and neighbour is not None:
        adapters.load(run.model.unet, "temporal", neighbour.adapter)
    losses = tune(
        run.model, options, out, steps, passes, lambda done, loss: run.progress("temporal", done, steps, loss=loss),
        enough=lambda: neighbour is not None and tuner.held_out(told, adapters.ADAPTERS) <= neighbour.reached * before,
        optimiser_of=run.optimiser_of,
    )  # fmt: skip
    if steps:
        for name in passes:
            adapters.save(run.model.unet, name, out.path / name, base_model=run.models.entry.source_name)
    chosen: list[tuple[adapters.AdapterName, ...]] = [("spatial",), ("temporal",), ("spatial", "temporal")]
    held_out = {"none": before} | {"+".join(names): tuner.held_out(told, names) for names in chosen}
    out.json(
        "tuning",
        {
            "steps": len(losses["temporal"]), "losses": losses, "held_out": held_out, "of": record_of(run, inputs),
            "path": path_of(inputs).to_json(), "warm_start": neighbour and neighbour.to_json(),
        },
    )  # fmt: skip


def windows_of(run: Run, count: int) -> list[range]:
    return plan_windows(count, run.models.shape.frames, run.config.sample.overlap)


@stage(
    "condition",
    "spatial",
    "temporal",
    config=lambda run: {
        **asdict(replace(run.config.sample, decode_chunk=None)),  # sampling decodes nothing but single frames
        "seed": run.sample_seed,
        "frames": run.models.shape.frames,
        **attention.key(run.config.attention),
    },
    weights=lambda run: run.models.unet_digest + run.models.encoder_digest,
)
def sample(run: Run, inputs: Inputs, out: Writer) -> None:
    """Sample the new view with both adapters."""
    options = run.config.sample
    told = told_of(run, inputs)
    load_adapters(run, inputs)
    from_anchor = options.start == "anchor"
    sigmas = karras_sigmas(
        options.steps, options.start_sigma if from_anchor else run.model.sigma_max, run.model.sigma_min
    )
    base = told.latents if from_anchor else torch.zeros_like(told.latents)
    first = told.prompts[0], told.tokens[0]
    with adapters.enabled(run.model.unet, adapters.ADAPTERS):
        _sample(run, "sample", out, base, told, sigmas, first, guidance=options.guidance)


@stage(
    "condition",
    "spatial",
    "temporal",
    "sample",
    config=lambda run: {
        **asdict(run.config.refine),
        "seed": run.sample_seed,
        "overlap": run.config.sample.overlap,
        "frames": run.models.shape.frames,
        **attention.key(run.config.attention),
    },
    weights=lambda run: run.models.unet_digest + run.models.encoder_digest,
)
def refine(run: Run, inputs: Inputs, out: Writer) -> None:
    """Sharpen by SDEdit with the spatial adapter alone."""
    options = run.config.refine
    told = told_of(run, inputs)
    base = tensor(run, inputs["sample"], "latents")
    if options.sigma == 0:
        out.save_array("latents", base.cpu().numpy())
        return
    load_adapters(run, inputs)
    sigmas = karras_sigmas(options.steps, options.sigma, min(run.model.sigma_min, options.sigma / 10))
    with adapters.enabled(run.model.unet, ["spatial"]):
        _sample(run, "refine", out, base, told, sigmas, run.encoder.prompt_of(base[0]), guidance=(1.0, 1.0))


def _sample(
    run: Run,
    name: str,
    out: Writer,
    base: Tensor,
    told: Condition,
    sigmas: list[float],
    first_prompt: tuple[Tensor, Tensor],
    *,
    guidance: tuple[float, float],
) -> None:
    windows = windows_of(run, len(base))
    steps = len(sigmas) - 1

    def on_step(window: int, step: int, latents: Tensor) -> Tensor | None:
        run.progress(name, window * steps + step + 1, len(windows) * steps)
        return run.on_step_end(name, window * steps + step, sigmas[step], latents)

    # Another stream than the tuning's: the same seed must not hand the sampler noise that the adapters were trained on.
    seed = run.sample_seed + {"sample": 1 << 32, "refine": 1 << 33}[name]
    parts = sample_windows(
        run.model, base, told, windows, sigmas, prompt_of=run.encoder.prompt_of, first_prompt=first_prompt,
        guidance=guidance, seed=seed, on_step=on_step,
    )  # fmt: skip
    out.save_array("latents", torch.cat(list(parts)).cpu().numpy())


@stage(
    "refine",
    config=lambda run: {"chunk": run.decode_chunk},
    weights=lambda run: run.models.encoder_digest,
    by_frame=True,
)
def generate(run: Run, inputs: Inputs, out: Writer) -> None:
    """Decode the generated video."""
    count, (height, width) = len(inputs["refine"].array("latents")), run.size
    work, done = DecodeLatents(latents=inputs["refine"], batch=run.decode_chunk), 0
    with out.array("frames", shape_per_row=(height, width, 3), dtype=np.uint8) as rows:
        for part in run.each_frame(work, count, out):
            rows.append(part["frames"])
            done += len(part["frames"])
            run.progress("generate", done, count)


def _deliver_options(run: Run) -> dict[str, Any]:
    options = asdict(run.config.deliver)
    if run.config.deliver.composite == "off":
        return {**options, "fill": "model"}  # nothing is filled
    if run.config.deliver.fill == "model":
        return options
    return {**options, "band": run.config.anchor.band, "mask": run.mask_digest, "seed": run.config.seed}


@stage(
    "frames", "depth", "background", "intrinsics", "camera", "anchor", "generate", version=4, config=_deliver_options
)  # fmt: skip
def deliver(run: Run, inputs: Inputs, out: Writer) -> None:
    """Put real pixels where there are any, generated ones where not."""
    options, joined = run.config.deliver, run.config.deliver.composite == "on"
    generated = inputs["generate"].array("frames")
    # What a multiview model imagined is no footage, whether the mask believes it or not.
    color, alpha, evidence = (inputs["anchor"].array(name) for name in ("color", "alpha", "evidence"))
    count, height, width = evidence.shape
    fill = texture_fill(run, inputs) if joined and options.fill == "texture" else None
    with (
        out.array("frames", shape_per_row=(height, width, 3), dtype=np.uint8) as rows,
        out.array("matte", shape_per_row=(height, width), dtype=np.uint8) as mattes,
        out.array("texture", shape_per_row=(height, width), dtype=np.uint8) as textures,
    ):
        for t in range(count):
            made, is_real = to_tensor(generated[t : t + 1]), evidence[t : t + 1] > 0
            if joined:
                real = to_tensor(color[t : t + 1])
                picture = composite(made, real, is_real, alpha[t : t + 1], feather_px=options.feather_px)
            else:
                picture = to_clip_size(made, (height, width))
            delivered, texture = to_uint8(picture), np.zeros((1, height, width), np.uint8)
            if fill is not None:
                delivered, texture = fill(t, delivered[0])
            rows.append(delivered)
            textures.append(texture)
            mattes.append(255 - alpha[t : t + 1] if joined else np.full((1, height, width), 255, np.uint8))
            run.progress("deliver", t + 1, count)
