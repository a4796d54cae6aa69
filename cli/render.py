"""`recapture run` and `recapture preview`."""

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cluster import Crew, hired
from .output import Json, emit
from .progress import Display

if TYPE_CHECKING:
    from ..engine.pipeline import Recapture, Result, StageRecord

Clip = Annotated[str, typer.Argument(help="The video.", metavar="CLIP", show_default=False)]
Camera = Annotated[
    str,
    typer.Option(
        help="The new path: a preset expression such as 'arc(20deg)+zoom(1.1)' (see `recapture presets`) or a camera file.",
        show_default=False,
    ),
]
SourceCamera = Annotated[
    Path | None, typer.Option(help="Camera file of the source, in the same world as --camera's.", show_default=False)
]
PathScale = Annotated[
    float | None, typer.Option(help="Scene units in one unit of the camera file.", show_default=False)
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", help="Where finished stages are kept: a folder or s3://, gs://. Default: the user's cache.",
        show_default=False,
    ),
]  # fmt: skip
FirstFrame = Annotated[int | None, typer.Option(help="First frame of the clip to use.", show_default="0")]
Frames = Annotated[int | None, typer.Option(help="Use at most this many frames.", show_default=False)]
Depth = Annotated[
    str | None,
    typer.Option(
        help="Depth model: embedded, or a directory or hub name of depth_anything, depth_pro, zoedepth.",
        show_default="embedded",
    ),
]
DepthDir = Annotated[
    Path | None,
    typer.Option(help="Your own depth: one .npy/.npz [N, h, w], or .npy / 16-bit .png (mm) files.", show_default=False),
]
MaskDir = Annotated[
    Path | None, typer.Option(help="PNG masks a frame: white pixels of the source may be used.", show_default=False)
]
Locked = Annotated[
    bool | None,
    typer.Option(
        "--locked/--not-locked",
        help="The source camera stands still: fill holes with background that other frames show.",
        show_default="found out",
    ),
]
CleanPlate = Annotated[
    Path | None,
    typer.Option(help="Picture of the empty scene from the clip's own camera: fills holes.", show_default=False),
]
Route = Annotated[
    str | None,
    typer.Option(
        "--anchor",
        help="What fills the anchor where no point falls: points (nothing), multiview (a model's guess), or auto (by path).",
        show_default="points",
    ),
]
Multiview = Annotated[
    str | None,
    typer.Option(
        help="Multiview model: embedded, a directory, or an adapter as package.module:Class.", show_default="embedded"
    ),
]
AllowNoncommercial = Annotated[
    bool | None,
    typer.Option("--allow-noncommercial", help="Use models whose licence forbids commercial use: this use is none."),
]
Fov = Annotated[float | None, typer.Option(help="Horizontal field of view of the clip, degrees.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Go on where the path sees next to nothing of the clip.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
MaxFrames = Annotated[int, typer.Option(help="Refuse clips with more frames than this.")]


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
    spec = _parse_camera(camera, source_camera, path_scale)
    if config is not None and quality is not None:
        raise InputError("give --config or --quality, not both", param="--quality")
    read = None if config is None else read_config(config)
    engine = open_engine(model or (read.model if read else "tiny"), device, store)
    chosen = read or quality_config(quality or "standard", model=engine.models.entry.name)
    typed = {"seed": seed, "attention": attention, "offload": offload, "memory": _limit(memory)}
    chosen = replace(chosen, model=engine.models.entry.name, **{k: v for k, v in typed.items() if v is not None})
    chosen = override(chosen, _given(given))
    inputs: dict[str, Any] = {
        "depth_dir": depth_dir,
        "mask_dir": mask_dir,
        "clean_plate": clean_plate,
        "force": force,
        "limits": _limits(max_frames),
    }
    crew = Crew(address=cluster, gpus=gpus, workers=workers, tune_devices=tune_devices, deepspeed=deepspeed)
    crew.check(chosen)
    if dry_run:
        _print_plan(engine, clip, spec, {**inputs, "config": chosen}, as_json=as_json)
        return
    with _claimed(out), hired(engine, crew) as engine, Display(quiet=as_json) as display:
        planned = False

        def on_stage(record: "StageRecord | str", result: "Result") -> None:
            nonlocal planned
            if not planned and result.run.memory is not None:
                for sentence in result.run.memory.sentences():
                    display.say(f"memory  {sentence}")
            planned = True
            display.on_stage(record)
            if not isinstance(record, str) and record.name == "anchor":
                sheet = _anchor_sheet(result, out)
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


def preview(
    clip: Clip,
    camera: Camera,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the sheet and anchor.", show_default="CLIP-preview")
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
    force: Force = False,
    device: Device = "auto",
    store: StoreOption = None,
    max_frames: MaxFrames = 3000,
    as_json: Json = False,
) -> None:
    """Draw the anchor: what the new camera sees of the clip, and what share of it nobody filmed. Seconds, no tuning."""
    from ..engine.config import override

    spec = _parse_camera(camera, source_camera, path_scale)
    folder = Path(f"{Path(clip).stem}-preview") if out is None else out
    started = time.monotonic()
    engine = open_engine("tiny", device, store)
    options: dict[str, dict[str, Any]] = {
        "decode": {"first_frame": first_frame, "max_frames": frames},
        "depth": {"model": depth, "fov_deg": fov},
        "anchor": {
            "locked": locked,
            "route": anchor,
            "multiview": multiview,
            "allow_noncommercial": allow_noncommercial,
        },
    }
    with _claimed(folder), Display(quiet=as_json) as display:
        result = engine(
            clip,
            spec,
            config=override(engine.default_config(), _given(options)),
            until="anchor",
            depth_dir=depth_dir,
            mask_dir=mask_dir,
            clean_plate=clean_plate,
            force=force,
            limits=_limits(max_frames),
            on_progress=display.on_progress,
            on_stage=lambda record, result: display.on_stage(record),
        )
        sheet = _anchor_sheet(result, folder)
    seconds = time.monotonic() - started
    for warning in result.run.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        emit({
            "anchor_sheet": str(sheet),
            "hole_share": result.hole_share,
            "frames": len(result.source),
            "size": [result.camera.width, result.camera.height],
            "seconds": seconds,
            "warnings": result.run.warnings,
        })  # fmt: skip
        return
    typer.echo(f"anchor sheet  {sheet}")
    typer.echo(f"holes         {100 * result.hole_share:.1f} % of the picture")
    typer.echo(f"time          {clock(seconds)}")


def _given(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The options that were typed."""
    return {name: {k: v for k, v in values.items() if v is not None} for name, values in sections.items()}


def open_engine(model: str, device: str, store: str | None) -> "Recapture":
    silence_libraries()
    from ..engine.pipeline import Recapture

    return Recapture.from_pretrained(model, device=device, store=store)


def silence_libraries() -> None:
    """Loading bars and advice of the libraries are no message to our user; their errors still are."""
    import warnings

    import torch

    if not torch.cuda.is_available():  # or DeepSpeed, where it is installed, says on standard output that it found none
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _parse_camera(camera: str, source_camera: Path | None, path_scale: float | None) -> Any:
    from ..engine.cameras import parse_camera

    return parse_camera(camera, source_camera=source_camera, path_scale=path_scale)


def _limit(memory: str | None) -> Any:
    """What `--memory` says: GiB where it is a number; `check` refuses what is neither that nor auto."""
    try:
        return None if memory is None else float(memory)
    except ValueError:
        return memory


def _limits(max_frames: int) -> Any:
    from ..engine.video import Limits

    return Limits(max_frames=max_frames)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Refuse an output folder that cannot be written before any work is done; leave no empty one behind an error.

    Raises:
        OutputError: names the folder and the system's reason.
    """
    from ..engine.errors import OutputError

    existed = folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".recapture-"):
            pass
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror})", param="--out") from None
    try:
        yield
    except BaseException:
        if not existed and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _anchor_sheet(result: "Result", folder: Path) -> Path:
    from ..engine.bundle import write_anchor_sheet

    path = folder / "anchor_sheet.png"
    write_anchor_sheet(result.source, result.anchor, result.mask, result.evidence, path)
    return path


def _print_plan(engine: "Recapture", clip: str, spec: Any, options: dict[str, Any], *, as_json: bool) -> None:
    from ..engine.plan import make_plan

    with Display(quiet=as_json) as display:
        preview = engine(
            clip, spec, until="anchor", on_progress=display.on_progress,
            on_stage=lambda record, result: display.on_stage(record), **options,
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


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _next_command(camera: str, second: str, out: Path) -> str:
    """The command that was typed, with another camera and another folder."""
    words = [second if word == camera else f"{out}-2" if word == str(out) else word for word in sys.argv[1:]]
    words = [f"--camera={second}" if word == f"--camera={camera}" else word for word in words]
    words = [f"--out={out}-2" if word == f"--out={out}" else word for word in words]
    return shlex.join(["recapture", *words])
