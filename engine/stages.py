"""The whole program, in order: each stage is a pure function of its inputs, its options and its weights.

    clip -> frames -> depth -> background -> intrinsics -> motion -> camera -> anchor -> source, condition -> spatial, temporal
         -> sample -> refine -> generate -> deliver

`STAGES` lists them in the order of this file. What a stage depends on is stated where it is defined: other stages by
name, the options it reads (`stage_options.py`), the weights it uses. Its key in the store is made of these and nothing
else.
"""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from . import stage_options
from .anchor.render import to_tensor, to_uint8
from .anchor.writing import check_coverage, write_anchor
from .cameras import path_warnings, through_geometry
from .delivery import texture_fill
from .diffusion.conditioning import AnchorConditioning, added_time_ids
from .diffusion.sampler import sample as sample_windows
from .diffusion.tuner import Tuner, tune
from .errors import InputError
from .frame_tasks import Cover, DecodeLatents, DrawAnchor, EncodeAnchor, EncodeSource, PredictDepth, SynthesizeAnchor
from .geometry.background import background_plate, clean_plate, stands_still
from .geometry.depth_estimation import EmptyScene, estimate_depth, predict_frame, structure_of
from .geometry.depth_files import read_depth
from .geometry.depth_order import refuse_backwards, runs_backwards
from .geometry.depth_summary import ClipDepth
from .geometry.intrinsics import settle_intrinsics
from .geometry.source_camera import find_source_camera
from .graph.context import SamplingStep, StageContext
from .graph.frame_task import FrameBatch, FrameTask
from .graph.stage import STAGES, Inputs, Stage, stage
from .imaging.composite import composite, to_clip_size
from .models import adapters
from .models.adapters import AdapterName
from .models.multiview import chosen_route
from .stage_results import (
    load_adapters,
    load_array,
    load_camera_path,
    load_conditioning,
    load_depth,
    load_source_bank,
    load_source_view,
    load_tensor,
    resolve_path,
    tuned_adapters,
    write_source_camera,
)
from .store import Writer
from .store.arrays import ArrayWriter
from .user_files.depth import DepthFiles
from .video.frames import decode_frames
from .warm_start import WARM_START, adapter_compatibility, warm_start_of

__all__ = ["STAGES", "stages_until"]


@stage(
    "frames",
    config=lambda context: stage_options.decode_options(context.request.clip_sha256, context.config.decode),
    effort=1,
    per_clip=True,
)
def decode_clip(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Decode the clip."""
    request = context.request

    def on_frame(done: int) -> None:
        context.progress("frames", done, request.frame_count)

    decode_frames(
        request.clip, request.info, request.limits, request.config.decode, out, on_frame, name=request.clip_name
    )


@stage(
    "depth",
    inputs=("frames",),
    config=stage_options.depth_options,
    weights=lambda context: context.depth_digest,
    version=5,
    effort=6,
    per_clip=True,
    by_frame=True,
)
def find_depth(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Estimate depth, steady it over time, find the structure of the scene in it."""
    images, options, request = inputs["frames"].array("frames"), context.config.depth, context.request
    locked, depth_tolerance = context.config.anchor.locked, context.config.anchor.depth_tolerance
    if request.depth_files is not None:
        summary = _own_depth(context, request.depth_files, images, out)
    else:
        summary = estimate_depth(
            lambda task, count: context.each_frame(task, count, out),
            PredictDepth(frames=inputs["frames"]),
            len(images),
            _depth_rows(out),
            smooth=options.smooth,
            structure=options.structure is not False,
            empty_scene=EmptyScene(images, request.clean_plate_picture, locked, depth_tolerance),
            look=lambda picture: predict_frame(context.models.depth(options.model), picture),
            scratch=out.path,
            on_frame=lambda done: context.progress("depth", done, len(images)),
        )
    out.json("summary", asdict(summary))


@stage(
    "background",
    inputs=("frames", "depth"),
    config=stage_options.standing_camera_options,
    weights=lambda context: context.request.clean_plate and context.models.depth_source("embedded").digest,
    effort=1,
    per_clip=True,
)
def find_background(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Find the static background of a locked-off clip."""
    images, depths, locked = (
        inputs["frames"].array("frames"),
        inputs["depth"].array("depth"),
        context.config.anchor.locked,
    )
    picture = context.request.clean_plate_picture
    if locked is None:
        locked = picture is not None or stands_still(images)
    out.json("background", {"locked": locked})
    if not locked:
        return
    plate = background_plate(images, depths, depth_tolerance=context.config.anchor.depth_tolerance)
    if picture is not None:
        predicted, _ = context.models.depth("embedded").predict(to_tensor(picture[None]))
        plate = clean_plate(picture, plate, predicted[0].float().cpu().numpy())
    for name, value in (("color", plate.color), ("depth", plate.depth), ("confidence", plate.confidence)):
        out.save_array(name, value[None])


@stage(
    "intrinsics",
    inputs=("frames", "depth"),
    config=lambda context: {"fov_deg": context.config.depth.fov_deg},
    effort=0.1,
    per_clip=True,
)
def find_intrinsics(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Settle the clip's focal length: given, from the file, from the depth model, or stated."""
    info = context.request.info
    found = settle_intrinsics(
        info.width,
        info.height,
        given_deg=context.config.depth.fov_deg,
        focal_px=info.focal_px,
        estimated_deg=inputs["depth"].json("summary")["fov_deg"],
    )
    out.json("intrinsics", found)


@stage(
    "motion",
    inputs=("frames", "depth", "background", "intrinsics"),
    config=stage_options.motion_options,
    effort=1,
    per_clip=True,
)
def find_motion(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Find how the source camera moves, and what moves by itself."""
    view, images, depths = load_source_view(inputs), inputs["frames"].array("frames"), inputs["depth"].array("depth")
    still = inputs["background"].json("background")["locked"]
    given = context.request.camera.source_poses(view)
    found = find_source_camera(images, depths, view.K_px, still=still, given=given)
    (context.warn if found.kind == "lost" else context.note)(found.sentence)
    write_source_camera(found, out)


@stage(
    "camera",
    inputs=("frames", "depth", "intrinsics", "motion"),
    config=stage_options.camera_options,
    version=2,
    effort=0.1,
)
def resolve_camera(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Sample the path at each frame's time."""
    camera, view = context.request.camera, load_source_view(inputs)
    path, said = resolve_path(camera, inputs, context.config.motion.relative_to)
    for sentence in said:
        context.note(sentence)
    through = through_geometry(path, load_depth(inputs), view.K_px)
    for sentence in [*camera.warnings(view), *path_warnings(path, view), *through]:
        context.warn(sentence)
    out.json("camera", {"path": path.to_json()})


@stage(
    "anchor",
    inputs=("frames", "depth", "background", "intrinsics", "motion", "camera"),
    config=stage_options.anchor_options,
    weights=lambda context: context.multiview_source and context.multiview_source.digest,
    version=5,
    effort=4,
    by_frame=True,
)
def draw_anchor(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Draw the clip from the new path."""
    for sentence in context.request.source_mask.notes if context.request.source_mask else ():
        context.warn(sentence)
    path, route = load_camera_path(inputs), context.config.anchor.route
    task: FrameTask = DrawAnchor(inputs=inputs)
    if route == "auto":
        route, _ = chosen_route(path, 1 - _mean_cover(context, inputs, len(path), out))
    if route == "multiview":
        assert context.multiview_source is not None
        task = SynthesizeAnchor(inputs=inputs, source=context.multiview_source)
    shares = write_anchor(
        context.each_frame(task, len(path), out),
        (path.height, path.width),
        out,
        lambda done: context.progress("anchor", done, len(path)),
    )
    # Nothing here says who chose the route: what follows is the same either way.
    out.json("coverage", {**shares, "route": route})
    check_coverage(shares["holes"], force=context.request.force, warn=context.warn)


@stage(
    "source",
    inputs=("frames",),
    config=stage_options.source_options,
    weights=lambda context: context.models.encoder_digest,
    effort=4,
    per_clip=True,
    by_frame=True,
)
def encode_source(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Encode augmented source frames, which the spatial adapter learns from; none where it is not tuned."""
    options = context.config.condition
    if context.config.tune.spatial_steps == 0:
        # Still tells clips apart: see `adapter_compatibility`.
        out.json("bank", {"frame": [], "of": inputs["frames"].digest})
        return
    task = EncodeSource(frames=inputs["frames"], batch=options.micro_batch)
    encoded = _encoded(context, "source", task, options.augmentations, out)
    frame = encoded.pop("frame")
    for name, values in encoded.items():
        out.save_array(name, values)
    out.save_array("added_time_ids", added_time_ids(float(context.request.info.rate), options))
    out.json("bank", {"frame": frame.tolist()})


@stage(
    "condition",
    inputs=("frames", "anchor"),
    config=stage_options.condition_options,
    weights=lambda context: context.models.encoder_digest,
    effort=3,
    by_frame=True,
)
def encode_anchor(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Fill the anchor's holes and encode it with its latent mask."""
    options = context.config.condition
    task = EncodeAnchor(anchor=inputs["anchor"], batch=options.micro_batch)
    encoded = _encoded(context, "condition", task, len(load_array(inputs["anchor"], "validity_mask")), out)
    for name, values in encoded.items():
        out.save_array(name, values)
    out.save_array("added_time_ids", added_time_ids(float(context.request.info.rate), options))


@stage(
    "spatial",
    inputs=("source",),
    config=stage_options.spatial_options,
    weights=lambda context: context.models.unet_digest,
    effort=30,
    per_clip=True,
)
def tune_spatial(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Tune the spatial adapter on source frames."""
    options = context.config.tune
    if options.schedule == "joint" or options.spatial_steps == 0:
        out.json("tuning", {"steps": 0, "losses": {}})
        return
    tuner, bank = context.tuner(), load_source_bank(context, inputs)
    losses = _tuned(
        context, "spatial", options.spatial_steps, {"spatial": lambda step: tuner.spatial_loss(bank, step)}, out
    )
    out.json("tuning", {"steps": options.spatial_steps, "losses": losses})


@stage(
    "temporal",
    inputs=("camera", "source", "condition", "spatial"),
    config=stage_options.temporal_options,
    weights=lambda context: context.models.unet_digest,
    version=3,
    effort=35,
    optional=WARM_START,
)
def tune_temporal(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Tune the temporal adapter on the masked anchor."""
    anchor, start, tuner = load_conditioning(context, inputs), warm_start_of(inputs), context.tuner()
    options = context.config.tune
    steps = options.temporal_steps
    measured = options.held_out > 0 and bool(
        steps or tuned_adapters(inputs)
    )  # what nothing was tuned for has nothing to compare
    before = tuner.held_out(anchor, ()) if measured else 0.0
    passes = _temporal_passes(context, tuner, anchor, inputs)
    if steps and not anchor.latent_mask.any():
        context.warn(
            "no cell of the anchor is free of holes: the temporal adapter has nothing to learn from and stays off"
        )
        steps = 0
    if steps and start is not None:
        adapters.load(context.model.unet, "temporal", start.adapter)

    def as_good() -> bool:
        return start is not None and tuner.held_out(anchor, adapters.ADAPTERS) <= start.relative_loss * before

    losses = _tuned(context, "temporal", steps, passes, out, should_stop=as_good)
    about = {"of": adapter_compatibility(context, inputs), "path": load_camera_path(inputs).to_json()}
    about |= {"held_out": _held_out(tuner, anchor, before) if measured else {}, "warm_start": start and start.to_json()}
    out.json("tuning", {"steps": len(losses["temporal"]), "losses": losses, **about})


@stage(
    "sample",
    inputs=("condition", "spatial", "temporal"),
    config=stage_options.sample_options,
    weights=lambda context: context.models.unet_digest + context.models.encoder_digest,
    effort=10,
    samples=True,
)
def sample(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Sample the new view with both adapters."""
    options, model, anchor = context.config.sample, context.model, load_conditioning(context, inputs)
    load_adapters(context, inputs)
    from_anchor = options.start == "anchor"
    highest = options.start_sigma if from_anchor else model.sigma_max
    sigmas = context.sampler.sigmas(options.steps, highest, model.sigma_min)
    base = anchor.latents if from_anchor else torch.zeros_like(anchor.latents)
    first = anchor.image_latents[0], anchor.image_embeds[0]
    with adapters.enabled(model.unet, adapters.ADAPTERS):
        _write_sample(context, "sample", out, base, anchor, sigmas, first, guidance=options.guidance)


@stage(
    "refine",
    inputs=("condition", "spatial", "temporal", "sample"),
    config=stage_options.refine_options,
    weights=lambda context: context.models.unet_digest + context.models.encoder_digest,
    effort=4,
    samples=True,
)
def refine(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Sharpen by SDEdit with the spatial adapter alone."""
    options, model, anchor = context.config.refine, context.model, load_conditioning(context, inputs)
    base = load_tensor(context, inputs["sample"], "latents")
    if options.sigma == 0:
        out.save_array("latents", base.cpu().numpy())
        return
    load_adapters(context, inputs)
    sigmas = context.sampler.sigmas(options.steps, options.sigma, min(model.sigma_min, options.sigma / 10))
    first = context.encoder.encode_image(base[0])
    with adapters.enabled(model.unet, ["spatial"]):
        _write_sample(context, "refine", out, base, anchor, sigmas, first, guidance=(1.0, 1.0))


@stage(
    "generate",
    inputs=("refine",),
    config=lambda context: {"chunk": context.decode_chunk},
    weights=lambda context: context.models.encoder_digest,
    effort=2,
    by_frame=True,
)
def decode_latents(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Decode the generated video."""
    count, (height, width) = len(inputs["refine"].array("latents")), context.size
    task, done = DecodeLatents(latents=inputs["refine"], batch=context.decode_chunk), 0
    with out.array("frames", shape_per_row=(height, width, 3), dtype=np.uint8) as rows:
        for batch in context.each_frame(task, count, out):
            rows.append(batch["frames"])
            done += len(batch["frames"])
            context.progress("generate", done, count)


@stage(
    "deliver",
    inputs=("frames", "depth", "background", "intrinsics", "motion", "camera", "anchor", "generate"),
    config=stage_options.deliver_options,
    version=4,
    effort=6,
)
def deliver(context: StageContext, inputs: Inputs, out: Writer) -> None:
    """Put real pixels where there are any, generated ones where not."""
    options, joined = context.config.deliver, context.config.deliver.composite == "on"
    generated = inputs["generate"].array("frames")
    # What a multiview model synthesized is no footage, whether the mask is certain of it or not.
    color, alpha, provenance = (load_array(inputs["anchor"], name) for name in ("color", "alpha", "provenance"))
    count, height, width = provenance.shape
    fill = texture_fill(context, inputs) if joined and options.fill == "texture" else None
    with (
        out.array("frames", shape_per_row=(height, width, 3), dtype=np.uint8) as rows,
        out.array("generated_mask", shape_per_row=(height, width), dtype=np.uint8) as generated_masks,
        out.array("texture", shape_per_row=(height, width), dtype=np.uint8) as textures,
    ):
        for t in range(count):
            made, is_real = to_tensor(generated[t : t + 1]), provenance[t : t + 1] > 0
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
            generated_masks.append(255 - alpha[t : t + 1] if joined else np.full((1, height, width), 255, np.uint8))
            context.progress("deliver", t + 1, count)


def stages_until(name: str) -> list[Stage]:
    """The stages of a run that ends with this one.

    Raises:
        InputError: there is no such stage.
    """
    names = [stage.name for stage in STAGES]
    if name not in names:
        raise InputError(f"there is no stage {name!r}; the stages are {', '.join(names)}", param="until")
    return STAGES[: names.index(name) + 1]


# What stages share.


def _own_depth(context: StageContext, files: DepthFiles, images: np.ndarray, out: Writer) -> ClipDepth:
    """Depth from the user's files, unless they contradict the pictures while nobody says what they hold."""
    for sentence in files.notes:
        context.warn(sentence)
    if files.kind is None:
        embedded = context.models.depth("embedded")
        backwards = runs_backwards(files.read, images, lambda picture: predict_frame(embedded, picture)["raw"][0])
        refuse_backwards(backwards, files.where, context.warn)
    refine = structure_of(images) if context.config.depth.structure else None
    return read_depth(files, _depth_rows(out), refine=refine)


def _depth_rows(out: Writer) -> Callable[[tuple[int, int]], ArrayWriter]:
    return lambda shape: out.array("depth", shape_per_row=shape, dtype=np.float32)


def _mean_cover(context: StageContext, inputs: Inputs, count: int, out: Writer) -> float:
    """Share of the pictures that points cover, before any is drawn."""
    covered: list[float] = []
    for batch in context.each_frame(Cover(inputs=inputs), count, out):
        covered += batch["covered"].tolist()
        context.progress("anchor", 0, count)  # nothing is drawn yet, but here a run is stopped
    return float(np.mean(covered))


def _encoded(context: StageContext, stage: str, task: FrameTask, count: int, out: Writer) -> FrameBatch:
    """All results of a task whose arrays are of latent size."""
    parts: list[FrameBatch] = []
    done = 0
    for batch in context.each_frame(task, count, out):
        parts.append({name: values.copy() for name, values in batch.items()})
        done += len(next(iter(batch.values())))
        context.progress(stage, done, count)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


Passes = dict[AdapterName, Callable[[int], Tensor]]
"""Loss of each adapter that is tuned, as a function of the step."""


def _temporal_passes(context: StageContext, tuner: Tuner, anchor: AnchorConditioning, inputs: Inputs) -> Passes:
    """The temporal adapter's loss; with the joint schedule also the spatial one's, else the tuned one is loaded."""
    passes: Passes = {"temporal": lambda step: tuner.temporal_loss(anchor, step)}
    if context.config.tune.schedule != "joint":
        load_adapters(context, inputs)
    elif context.config.tune.spatial_steps:
        bank = load_source_bank(context, inputs)
        passes = {"spatial": lambda step: tuner.spatial_loss(bank, step), **passes}
    return passes


def _tuned(
    context: StageContext,
    stage: str,
    steps: int,
    passes: Passes,
    out: Writer,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[AdapterName, list[float]]:
    """Tune, save the adapters; the loss of every step by adapter."""
    model = context.model
    losses = tune(
        model, context.config.tune, out, steps, passes,
        lambda done, loss: context.progress(stage, done, steps, loss=loss),
        should_stop=should_stop, make_optimizer=context.executor.make_optimizer,
    )  # fmt: skip
    for name in passes if steps else ():
        adapters.save(model.unet, name, out.path / name, base_model=context.models.entry.source_name)
    return losses


def _held_out(tuner: Tuner, anchor: AnchorConditioning, before: float) -> dict[str, float]:
    """Held-out loss by which adapters are on; `before` is that of none."""
    chosen: list[tuple[AdapterName, ...]] = [("spatial",), ("temporal",), ("spatial", "temporal")]
    return {"none": before} | {"+".join(names): tuner.held_out(anchor, names) for names in chosen}


def _write_sample(
    context: StageContext,
    stage: str,
    out: Writer,
    base: Tensor,
    anchor: AnchorConditioning,
    sigmas: list[float],
    first_image: tuple[Tensor, Tensor],
    *,
    guidance: tuple[float, float],
) -> None:
    """Sample all windows; scaled latents [N, C, h, w]."""
    windows, steps = context.windows(len(base)), len(sigmas) - 1

    def on_step(window: int, step: int, latents: Tensor) -> Tensor | None:
        context.progress(stage, window * steps + step + 1, len(windows) * steps)
        if context.on_step_end is None:
            return None
        return context.on_step_end(SamplingStep(stage=stage, window=window, step=step, sigma=sigmas[step]), latents)

    # Another stream than the tuning's: the same seed must not hand the sampler noise that the adapters were trained on.
    seed = context.request.sample_seed + {"sample": 1 << 32, "refine": 1 << 33}[stage]
    parts = sample_windows(
        context.model, base, anchor, windows, sigmas, encode_image=context.encoder.encode_image, first_image=first_image,
        guidance=guidance, seed=seed, sampler=context.sampler, on_step=on_step,
    )  # fmt: skip
    out.save_array("latents", torch.cat(list(parts)).cpu().numpy())
