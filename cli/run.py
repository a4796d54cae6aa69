"""`recapture run`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.config import Quality, RunConfig, override, quality_config, read_config
from ..engine.errors import InputError, spelled
from ..engine.options import by_section
from ..engine.user_files.adapter import adapter_rank
from .clip import ClipArguments, format_duration, open_engine, save_anchor_sheet, writable_output
from .cluster_options import ClusterOptions, on_cluster
from .options import RENDER_OPTIONS, by_path, spelling, takes
from .output import Json, emit
from .progress import Display

if TYPE_CHECKING:
    from ..engine.pipeline import Recapture
    from ..engine.result import Result
    from ..engine.stage_results import StageRecord

EXAMPLES = """
Examples:

  recapture run clip.mp4 --camera "arc(20deg)" --out out
  recapture run clip.mp4 --camera "dolly(0.3)+zoom(1.2)" --quality draft --frames 48 --out draft
  recapture run clip.mp4 --camera path.json --depth-dir depth --device cuda:1 --out out
"""


@takes(*RENDER_OPTIONS)
def run(
    context: typer.Context,
    arguments: ClipArguments,
    options: dict[str, Any],
    cluster_options: ClusterOptions,
    out: Annotated[Path, typer.Option(help="Folder for the result.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option(help="config.json of an earlier run; other options override it.", show_default=False)
    ] = None,
    quality: Annotated[
        Quality | None,
        typer.Option(
            help="How much work to spend; draft tunes nothing, paper is the paper's recipe.", show_default="standard"
        ),
    ] = None,
    passes: Annotated[
        bool,
        typer.Option(
            "--passes", help="Also write lossless PNG sequences, depth and matte.", rich_help_panel="Delivery"
        ),
    ] = False,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Also write the tuned adapters (PEFT).", rich_help_panel="Delivery")
    ] = False,
    spatial_adapter: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a tuned adapter, as --adapters writes it: it is used as it is.",
            show_default=False,
            rich_help_panel="Tuning",
        ),
    ] = None,
    temporal_adapter: Annotated[
        Path | None,
        typer.Option(
            help="Likewise; it belongs to one path of one clip.", show_default=False, rich_help_panel="Tuning"
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print sizes, windows, memory, time and hole share; render nothing."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Render CLIP from a new camera and write the result to a folder."""
    if config is not None:  # then what variables and the user's file give is no more than a default
        names = {option.path: option.name for option in RENDER_OPTIONS}
        options = {path: value for path, value in options.items() if _typed(context, names[path])}
        quality = quality if _typed(context, "quality") else None
    chosen = _configuration(by_path(options), config, quality)
    camera = arguments.parsed_camera()
    cluster_options.check(chosen)
    if dry_run and cluster_options.address not in (None, "local") and chosen.memory == "auto":
        raise InputError("--dry-run plans on this machine: give the GiB of the cluster's devices", param="memory")
    for name, folder in (("spatial", spatial_adapter), ("temporal", temporal_adapter)):
        if folder is not None:
            adapter_rank(name, folder)
    inputs = {**arguments.inputs(camera, chosen), "config": chosen}
    engine = open_engine(chosen.model, arguments.device, arguments.store)
    if dry_run:
        _print_plan(engine, arguments.clip, camera, inputs, as_json=as_json)
        return
    with writable_output(out), on_cluster(engine, cluster_options) as engine, Display(quiet=as_json) as display:

        def on_stage_end(record: "StageRecord", result: "Result") -> None:
            if len(result.records) == 1 and result.memory is not None:
                for sentence in result.memory.sentences():
                    display.say(f"memory  {sentence}")
            display.on_stage_end(record, result)
            if record.name == "anchor":
                sheet = save_anchor_sheet(result, out)
                display.say(f"anchor sheet  {sheet}  ({100 * result.hole_share:.1f} % holes)")

        result = engine(
            arguments.clip, camera, on_progress=display.on_progress, on_stage_start=display.on_stage_start,
            on_stage_end=on_stage_end, spatial_adapter=spatial_adapter, temporal_adapter=temporal_adapter, **inputs,
        )  # fmt: skip
        display.say("writing the bundle")
        video = result.save(out, passes=passes, tuned=adapters)
    for warning in result.warnings:
        typer.echo(f"warning: {spelled(warning, spelling)}", err=True)
    if as_json:
        import json

        emit(json.loads((out / "report.json").read_text()))
        return
    from ..engine.stages import STAGES

    shared = [stage.name for stage in STAGES if stage.per_clip]
    second = "arc(-10deg)" if arguments.camera != "arc(-10deg)" else "arc(10deg)"
    typer.echo(f"video      {video}")
    typer.echo(f"report     {out / 'report.html'}")
    textured = result.textured_share
    copied = f", {100 * textured:.0f} % of them with texture copied from the clip" if textured >= 0.005 else ""
    typer.echo(f"generated  {100 * result.generated_share:.1f} % of the pixels{copied}; the rest is your footage")
    typer.echo(f"time       {format_duration(result.seconds)}")
    typer.echo(f"next       {_next_command(arguments.camera, second, out)}  (reuses {', '.join(shared)})")


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _configuration(options: dict[str, Any], file: Path | None, quality: str | None) -> RunConfig:
    """What was given, over the file of an earlier run or over a quality's values.

    Raises:
        InputError: a value that is not accepted, or a file and a quality.
    """
    if file is not None and quality is not None:
        raise InputError("give `config` or `quality`, not both", param="quality")
    model = options.get("model", "tiny")
    base = quality_config(quality or "standard", model=model) if file is None else read_config(file)
    return override(base, by_section(options))


def _print_plan(engine: "Recapture", clip: str, spec: Any, options: dict[str, Any], *, as_json: bool) -> None:
    from ..engine.planning.estimate import make_plan

    with Display(quiet=as_json) as display:
        preview = engine(
            clip, spec, until="anchor", on_progress=display.on_progress,
            on_stage_start=display.on_stage_start, on_stage_end=display.on_stage_end, **options,
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
    for sentence in plan.chosen["sentences"]:
        typer.echo(f"device     {sentence}")
    parts = ", ".join(f"{what} {size / 2**20:.0f}" for what, size in plan.memory.items())
    typer.echo(f"memory     about {plan.memory_bytes / 2**30:.1f} GiB (MiB: {parts})")
    parts = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in plan.stages_s.items() if seconds >= 0.5)
    typer.echo(f"time       about {format_duration(plan.seconds)} (seconds: {parts})")


def _next_command(camera: str, second: str, out: Path) -> str:
    """The command that was typed, with another camera and another folder."""
    words = [second if word == camera else f"{out}-2" if word == str(out) else word for word in sys.argv[1:]]
    words = [f"--camera={second}" if word == f"--camera={camera}" else word for word in words]
    words = [f"--out={out}-2" if word == f"--out={out}" else word for word in words]
    return shlex.join(["recapture", *words])
