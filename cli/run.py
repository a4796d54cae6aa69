"""`recapture run`."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .clip import (
    AllowNoncommercial,
    Camera,
    CleanPlate,
    Clip,
    Depth,
    DepthDir,
    Device,
    FirstFrame,
    Force,
    Fov,
    Frames,
    Locked,
    MaskDir,
    MaxFrames,
    Multiview,
    PathScale,
    Route,
    SourceCamera,
    StoreOption,
    claimed,
    clock,
    given_only,
    limits,
    open_engine,
    parse_spec,
    save_anchor_sheet,
)
from .cluster_options import Crew, hired
from .output import Json, emit
from .progress import Display

if TYPE_CHECKING:
    from ..engine.pipeline import Recapture, Result, StageRecord


def run(
    clip: Clip,
    camera: Camera,
    out: Annotated[Path, typer.Option(help="Folder for the result.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(
            help="tiny, svd, svd-xt, a directory in the diffusers layout, or a hub name.", show_default="tiny"
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="config.json of an earlier run; other options override it.", show_default=False)
    ] = None,
    quality: Annotated[
        str | None, typer.Option(help="draft (nothing tuned), standard, or paper.", show_default="standard")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of everything random.", min=0, max=2**31 - 1, show_default="0")
    ] = None,
    source_camera: SourceCamera = None,
    path_scale: PathScale = None,
    first_frame: FirstFrame = None,
    frames: Frames = None,
    depth: Depth = None,
    depth_dir: DepthDir = None,
    mask_dir: MaskDir = None,
    locked: Locked = None,
    clean_plate: CleanPlate = None,
    anchor: Route = None,
    multiview: Multiview = None,
    allow_noncommercial: AllowNoncommercial = None,
    fov: Fov = None,
    height: Annotated[
        int | None, typer.Option(help="Working height of the model, with --width.", show_default=False)
    ] = None,
    width: Annotated[int | None, typer.Option(help="Working width of the model.", show_default=False)] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA rank.", show_default="16")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="by quality")] = None,
    steps: Annotated[int | None, typer.Option(help="Tuning steps of each adapter.", show_default="by quality")] = None,
    spatial_steps: Annotated[int | None, typer.Option(help="Of the spatial adapter alone.", show_default=False)] = None,
    temporal_steps: Annotated[
        int | None, typer.Option(help="Of the temporal adapter alone.", show_default=False)
    ] = None,
    warm_start: Annotated[
        bool | None,
        typer.Option(
            "--warm-start/--no-warm-start",
            help="Begin the temporal adapter as that of the clip's nearest tuned path; stop where that one got to.",
            show_default="no",
        ),
    ] = None,
    checkpointing: Annotated[
        str | None,
        typer.Option(
            help="Activations: none (keep all), balanced, full or stock: less memory, more time.", show_default="none"
        ),
    ] = None,
    temporal_batch: Annotated[
        int | None, typer.Option(help="Windows a step of the temporal adapter.", show_default="1")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="decoupled (the spatial adapter once per clip) or joint (the paper).", show_default=False),
    ] = None,
    mask: Annotated[str | None, typer.Option(help="Latent mask: area or min.", show_default=False)] = None,
    mask_threshold: Annotated[
        float | None, typer.Option(help="Valid share of a cell, for area.", show_default="0.9")
    ] = None,
    sample_seed: Annotated[
        int | None,
        typer.Option(help="Of the sampling alone: another take with the same adapters.", show_default="--seed"),
    ] = None,
    sample_steps: Annotated[
        int | None, typer.Option(help="Denoising steps a window.", show_default="by quality")
    ] = None,
    start: Annotated[str | None, typer.Option(help="noise (the paper) or anchor.", show_default="by quality")] = None,
    start_sigma: Annotated[float | None, typer.Option(help="Noise over the anchor.", show_default="by quality")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance at a window's last frame; 1 is off.", show_default="by quality")
    ] = None,
    overlap: Annotated[int | None, typer.Option(help="Frames that windows share.", show_default="4")] = None,
    decode_chunk: Annotated[int | None, typer.Option(help="Frames decoded at once.", show_default="window")] = None,
    sdedit_sigma: Annotated[
        float | None, typer.Option(help="SDEdit's noise; 0 skips it.", show_default="by quality")
    ] = None,
    sdedit_steps: Annotated[int | None, typer.Option(help="SDEdit's steps.", show_default="by quality")] = None,
    composite: Annotated[
        str | None, typer.Option(help="on: real pixels where there are any; off: pure model output.", show_default="on")
    ] = None,
    feather: Annotated[
        float | None, typer.Option(help="How far holes bend to meet their rims, pixels.", show_default="8")
    ] = None,
    passes: Annotated[
        bool, typer.Option("--passes", help="Also write lossless PNG sequences, depth and matte.")
    ] = False,
    adapters: Annotated[bool, typer.Option("--adapters", help="Also write the tuned adapters (PEFT).")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sizes, windows, memory, time and hole share; render nothing.")
    ] = False,
    force: Force = False,
    device: Device = "auto",
    attention: Annotated[
        str | None,
        typer.Option(help="Operator of the model's attention: sdpa, or xformers (optional, GPU).", show_default="sdpa"),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="GiB of the device to stay within, or auto: lowers checkpointing, decode chunk and size, and says to what.",
            show_default="no limit",
        ),
    ] = None,
    offload: Annotated[
        bool | None,
        typer.Option(
            "--offload/--no-offload",
            help="VAE and image encoder leave the GPU while the UNet works.",
            show_default="no",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Let Ray's workers do it: local (on this machine), auto, or HOST:PORT of a cluster.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of the cluster to take.", min=0, show_default="1 if any")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Warm workers; several may share a GPU.", min=1, show_default="one a GPU")
    ] = None,
    tune_devices: Annotated[
        int | None,
        typer.Option(help="Devices of the cluster that tune this clip together.", min=1, show_default="a warm worker"),
    ] = None,
    deepspeed: Annotated[
        Path | None, typer.Option(help="DeepSpeed's JSON for --tune-devices.", show_default="stage 0")
    ] = None,
    store: StoreOption = None,
    max_frames: MaxFrames = 3000,
    as_json: Json = False,
) -> None:
    """Film CLIP from a new camera and write the result to a folder."""
    from ..engine.config import override, quality_config, read_config
    from ..engine.errors import InputError
    from ..engine.stages import STAGES

    given = {
        "decode": {"first_frame": first_frame, "max_frames": frames},
        "depth": {"model": depth, "fov_deg": fov},
        "anchor": {
            "locked": locked,
            "route": anchor,
            "multiview": multiview,
            "allow_noncommercial": allow_noncommercial,
        },
        "condition": {"height": height, "width": width, "mask_mode": mask, "mask_threshold": mask_threshold},
        "tune": {
            "rank": rank,
            "lr": lr,
            "spatial_steps": steps if spatial_steps is None else spatial_steps,
            "temporal_steps": steps if temporal_steps is None else temporal_steps,
            "temporal_batch": temporal_batch,
            "checkpointing": checkpointing,
            "schedule": schedule,
            "warm_start": warm_start,
        },
        "sample": {
            "seed": sample_seed,
            "steps": sample_steps,
            "start": start,
            "start_sigma": start_sigma,
            "guidance": None if guidance is None else (1.0, guidance),
            "overlap": overlap,
            "decode_chunk": decode_chunk,
        },
        "refine": {"sigma": sdedit_sigma, "steps": sdedit_steps},
        "deliver": {"composite": composite, "feather_px": feather},
    }
    spec = parse_spec(camera, source_camera, path_scale)
    if config is not None and quality is not None:
        raise InputError("give --config or --quality, not both", param="--quality")
    read = None if config is None else read_config(config)
    engine = open_engine(model or (read.model if read else "tiny"), device, store)
    chosen = read or quality_config(quality or "standard", model=engine.models.entry.name)
    typed = {"seed": seed, "attention": attention, "offload": offload, "memory": _limit(memory)}
    chosen = replace(chosen, model=engine.models.entry.name, **{k: v for k, v in typed.items() if v is not None})
    chosen = override(chosen, given_only(given))
    inputs: dict[str, Any] = {
        "depth_dir": depth_dir,
        "mask_dir": mask_dir,
        "clean_plate": clean_plate,
        "force": force,
        "limits": limits(max_frames),
    }
    crew = Crew(address=cluster, gpus=gpus, workers=workers, tune_devices=tune_devices, deepspeed=deepspeed)
    crew.check(chosen)
    if dry_run:
        if cluster is not None and memory == "auto":
            raise InputError("--dry-run plans on this machine: give the GiB of the cluster's devices", param="--memory")
        _print_plan(engine, clip, spec, {**inputs, "config": chosen}, as_json=as_json)
        return
    with claimed(out), hired(engine, crew) as engine, Display(quiet=as_json) as display:
        planned = False

        def on_stage(record: "StageRecord | str", result: "Result") -> None:
            nonlocal planned
            if not planned and result.run.memory is not None:
                for sentence in result.run.memory.sentences():
                    display.say(f"memory  {sentence}")
            planned = True
            display.on_stage(record, result)
            if not isinstance(record, str) and record.name == "anchor":
                sheet = save_anchor_sheet(result, out)
                display.say(f"anchor sheet  {sheet}  ({100 * result.hole_share:.1f} % holes)")

        result = engine(clip, spec, config=chosen, on_progress=display.on_progress, on_stage=on_stage, **inputs)
        display.say("writing the bundle")
        video = result.save(out, passes=passes, tuned=adapters)
    for warning in result.run.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        import json

        emit(json.loads((out / "report.json").read_text()))
        return
    shared = [stage.name for stage in STAGES if stage.per_clip]
    second = "arc(-10deg)" if camera != "arc(-10deg)" else "arc(10deg)"
    typer.echo(f"video      {video}")
    typer.echo(f"report     {out / 'report.html'}")
    typer.echo(f"generated  {100 * result.generated_share:.1f} % of the pixels; the rest is your footage")
    typer.echo(f"time       {clock(result.seconds)}")
    typer.echo(f"next       {_next_command(camera, second, out)}  (reuses {', '.join(shared)})")


def _limit(memory: str | None) -> Any:
    """What `--memory` says: GiB where it is a number; `check` refuses what is neither that nor auto."""
    try:
        return None if memory is None else float(memory)
    except ValueError:
        return memory


def _print_plan(engine: "Recapture", clip: str, spec: Any, options: dict[str, Any], *, as_json: bool) -> None:
    from ..engine.planning.estimate import make_plan

    with Display(quiet=as_json) as display:
        preview = engine(
            clip, spec, until="anchor", on_progress=display.on_progress,
            on_stage=display.on_stage, **options,
        )  # fmt: skip
    plan = make_plan(preview)
    if as_json:
        emit(plan.to_json())
        return
    (width, height), (columns, rows) = plan.clip_size, plan.working_size
    windows = ", ".join(f"{first}-{last}" for first, last in plan.windows)
    typer.echo(f"delivered  {width}x{height}, {plan.frames} frames at {plan.fps:.3f} fps, nothing cropped")
    typer.echo(f"model      {columns}x{rows} (pixels {plan.pixel_aspect:.3f} wide), windows of frames {windows}")
    typer.echo(f"holes      {100 * plan.hole_share:.1f} % of the anchor")
    for sentence in preview.run.memory.sentences() if preview.run.memory else ():
        typer.echo(f"within     {sentence}")
    parts = ", ".join(f"{what} {size / 2**20:.0f}" for what, size in plan.memory.items())
    typer.echo(f"memory     about {plan.memory_bytes / 2**30:.1f} GiB (MiB: {parts})")
    parts = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in plan.stages_s.items() if seconds >= 0.5)
    typer.echo(f"time       about {clock(plan.seconds)} (seconds: {parts})")


def _next_command(camera: str, second: str, out: Path) -> str:
    """The command that was typed, with another camera and another folder."""
    words = [second if word == camera else f"{out}-2" if word == str(out) else word for word in sys.argv[1:]]
    words = [f"--camera={second}" if word == f"--camera={camera}" else word for word in words]
    words = [f"--out={out}-2" if word == f"--out={out}" else word for word in words]
    return shlex.join(["recapture", *words])
