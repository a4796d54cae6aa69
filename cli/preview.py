"""`recapture preview`."""

import time
from pathlib import Path
from typing import Annotated, Any

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
from .output import Json, emit
from .progress import Display


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

    spec = parse_spec(camera, source_camera, path_scale)
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
    with claimed(folder), Display(quiet=as_json) as display:
        result = engine(
            clip,
            spec,
            config=override(engine.default_config(), given_only(options)),
            until="anchor",
            depth_dir=depth_dir,
            mask_dir=mask_dir,
            clean_plate=clean_plate,
            force=force,
            limits=limits(max_frames),
            on_progress=display.on_progress,
            on_stage=display.on_stage,
        )
        sheet = save_anchor_sheet(result, folder)
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
            "notes": result.run.notes,
            "warnings": result.run.warnings,
        })  # fmt: skip
        return
    typer.echo(f"anchor sheet  {sheet}")
    typer.echo(f"holes         {100 * result.hole_share:.1f} % of the picture")
    typer.echo(f"time          {clock(seconds)}")
