"""`recapture preview`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..engine.config import OPTIONS, override, quality_config
from ..engine.errors import spelled
from ..engine.options import by_section
from .clip import ClipArguments, format_duration, open_engine, save_anchor_sheet, writable_output
from .options import spelling, takes
from .output import Json, emit
from .progress import Display

SECTIONS = ("decode", "depth", "anchor")
"""What a preview depends on."""


@takes(*(option for option in OPTIONS.values() if option.flag and option.path.startswith(SECTIONS)))
def preview(
    arguments: ClipArguments,
    options: dict[str, Any],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the sheet and anchor.", show_default="CLIP-preview")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the anchor: what the new camera sees of the clip, and how much of it is holes. Seconds, no tuning."""
    config = override(quality_config("standard", model="tiny"), by_section(options))
    camera = arguments.parsed_camera()
    folder = Path(f"{Path(arguments.clip).stem}-preview") if out is None else out
    started = time.monotonic()
    inputs = arguments.inputs(camera, config)
    engine = open_engine("tiny", arguments.device, arguments.store)
    with writable_output(folder), Display(quiet=as_json) as display:
        result = engine(
            arguments.clip,
            camera,
            config=config,
            until="anchor",
            on_progress=display.on_progress,
            on_stage_start=display.on_stage_start,
            on_stage_end=display.on_stage_end,
            **inputs,
        )
        sheet = save_anchor_sheet(result, folder)
    seconds = time.monotonic() - started
    warnings = [spelled(warning, spelling) for warning in result.warnings]
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        emit(
            {
                "anchor_sheet": str(sheet),
                "hole_share": result.hole_share,
                "frames": len(result.source),
                "size": [result.camera.width, result.camera.height],
                "seconds": seconds,
                "notes": result.notes,
                "warnings": warnings,
            }
        )
        return
    typer.echo(f"anchor sheet  {sheet}")
    typer.echo(f"holes         {100 * result.hole_share:.1f} % of the picture")
    typer.echo(f"time          {format_duration(seconds)}")
