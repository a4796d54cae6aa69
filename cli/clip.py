"""What `recapture run` and `recapture preview` have in common: the clip and what comes with it, and how they are read."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..engine.cameras import CameraSpec
    from ..engine.config import RunConfig
    from ..engine.pipeline import Recapture
    from ..engine.result import Result

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Where finished stages are kept: a folder or s3://, gs://.",
        show_default="the user's cache",
    ),
]


def _device(name: str | None) -> str | None:
    from ..engine.config import check_device

    if name is not None:
        check_device(name)
    return name


def _devices() -> list[str]:
    return ["auto", "cpu", "cuda", "cuda:0", "cuda:1", "mps"]


_DEVICE = {
    "help": "auto, cpu, cuda, or one GPU as cuda:1; mps on a Mac.",
    "callback": _device,
    "autocompletion": _devices,
}
Device = Annotated[str, typer.Option(**_DEVICE)]
DeviceIfGiven = Annotated[str | None, typer.Option(**_DEVICE, show_default="auto")]


def _presets() -> list[str]:
    from ..engine.cameras import presets

    return [preset.name for preset in presets()]


@dataclass(kw_only=True)
class ClipArguments:
    """A clip, the camera to render it from, and what the user brings besides."""

    clip: Annotated[str, typer.Argument(help="The video.", metavar="CLIP", show_default=False)]
    camera: Annotated[
        str,
        typer.Option(
            help="The new path: a preset expression such as 'arc(20deg)+zoom(1.1)' (see `recapture presets`) or a "
            "camera file.",
            show_default=False,
            autocompletion=_presets,
        ),
    ]
    source_camera: Annotated[
        Path | None,
        typer.Option(
            help="Camera file of the source, in the same world as --camera's.",
            show_default=False,
            rich_help_panel="Inputs",
        ),
    ] = None
    path_scale: Annotated[
        float | None,
        typer.Option(help="Scene units in one unit of the camera file.", show_default=False, rich_help_panel="Inputs"),
    ] = None
    depth_dir: Annotated[
        Path | None,
        typer.Option(
            help="Your own depth: a folder of .npy, .exr or 16-bit .png (mm) files, or one .npy/.npz \\[N, h, w].",
            show_default=False,
            rich_help_panel="Inputs",
        ),
    ] = None
    mask_dir: Annotated[
        Path | None,
        typer.Option(
            help="PNG masks, a folder or one for all frames: white pixels of the source may be used.",
            show_default=False,
            rich_help_panel="Inputs",
        ),
    ] = None
    clean_plate: Annotated[
        Path | None,
        typer.Option(
            help="Picture of the empty scene from the clip's own camera: fills holes.",
            show_default=False,
            rich_help_panel="Inputs",
        ),
    ] = None
    force: Annotated[
        bool, typer.Option("--force", help="Continue where the path sees next to nothing of the clip.")
    ] = False
    max_frames: Annotated[int, typer.Option(help="Refuse clips with more frames than this.")] = 3000
    device: Device = "auto"
    store: StoreOption = None

    def parsed_camera(self) -> "CameraSpec":
        """Raises CameraError: it is malformed, whatever the clip."""
        from ..engine.cameras import parse_camera

        return parse_camera(self.camera, source_camera=self.source_camera, path_scale=self.path_scale)

    def inputs(self, camera: "CameraSpec", config: "RunConfig") -> dict[str, Any]:
        """Arguments of the engine's call besides clip, camera and configuration, looked at before torch is loaded.

        Raises:
            InputError: the clip, or a file that comes with it, cannot be used or does not fit the clip.
        """
        from ..engine.graph.request import RenderRequest
        from ..engine.video import Limits, check_clip, probe

        limits, path, used = Limits(max_frames=self.max_frames), Path(self.clip), config.decode
        check_clip(self.clip, limits)
        given = {
            "info": probe(path, limits, first_frame=used.first_frame, max_frames=used.max_frames),
            "depth_dir": self.depth_dir,
            "mask_dir": self.mask_dir,
            "clean_plate": self.clean_plate,
            "force": self.force,
            "limits": limits,
        }
        names = {"clip": path, "clip_path": path, "clip_name": path.name, "clip_sha256": ""}
        RenderRequest(**names, **given, camera=camera, config=config).check_files()
        return given


def open_engine(model: str, device: str, store: str | None) -> "Recapture":
    """The engine, warm for nothing yet.

    Raises:
        ModelError: the model cannot be found; this is known before PyTorch is loaded.
        InputError: this machine has no such device.
    """
    from ..engine.catalog import find_model

    find_model(model)
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


@contextmanager
def writable_output(folder: Path) -> Iterator[None]:
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
        raise OutputError(f"{folder} cannot be written ({error.strerror})", param="out") from None
    try:
        yield
    except BaseException:
        if not existed and not any(folder.iterdir()):
            folder.rmdir()
        raise


def save_anchor_sheet(result: "Result", folder: Path) -> Path:
    from ..engine.report.bundle import write_anchor_sheet

    path = folder / "anchor_sheet.png"
    write_anchor_sheet(result.source, result.anchor, result.validity_mask, result.provenance, path)
    return path


def format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
