"""What `recapture run` and `recapture preview` have in common: the clip's options, and how they are read."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..engine.pipeline import Recapture, Result

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
        help="Depth model: auto (the best on this machine), embedded, depth (Depth Anything V2 Small), or a directory or "
        "hub name of depth_anything, depth_pro, zoedepth.",
        show_default="auto",
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


def given_only(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
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


def parse_spec(camera: str, source_camera: Path | None, path_scale: float | None) -> Any:
    from ..engine.cameras import parse_camera

    return parse_camera(camera, source_camera=source_camera, path_scale=path_scale)


def limits(max_frames: int) -> Any:
    from ..engine.video import Limits

    return Limits(max_frames=max_frames)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
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


def save_anchor_sheet(result: "Result", folder: Path) -> Path:
    from ..engine.report.bundle import write_anchor_sheet

    path = folder / "anchor_sheet.png"
    write_anchor_sheet(result.source, result.anchor, result.mask, result.evidence, path)
    return path


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
