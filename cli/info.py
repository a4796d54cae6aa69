"""`recapture presets` and `doctor`: what there is to choose from, and what this machine would use."""

import platform
import shutil
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from .. import __version__
from .defaults import config_file
from .output import Json, emit


def presets(as_json: Json = False) -> None:
    """Camera moves that --camera understands."""
    from ..engine.cameras import presets as camera_presets

    known = camera_presets()
    if as_json:
        emit(
            [
                {
                    "name": preset.name,
                    "summary": preset.summary,
                    "parameters": [asdict(p) for p in preset.parameters],
                }
                for preset in known
            ]
        )
        return
    for preset in known:
        typer.echo(f"{preset.name:12}{preset.summary}")
        for p in preset.parameters:
            bounds = " or ".join([*p.words, *([f"{p.low:g} to {p.high:g} {p.unit}"] if p.unit != "word" else [])])
            typer.echo(f"{'':14}{p.name:11}{p.help}: {bounds}; default {p.default}")
    typer.echo("\nJoin moves with +, as in 'arc(20deg)+zoom(1.1)'.")


_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "av",
    "numpy",
    "opencv-python-headless",
    "pyarrow",
    "numba",
    "triton",
    "xformers",
    "ray",
    "deepspeed",
)


def doctor(
    fits: Annotated[
        bool, typer.Option("--fits", help="Print what Stable Video Diffusion takes of usual cards, as it is planned.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What is installed, which devices there are, and what a run would use."""
    if fits:
        _print_fits(as_json=as_json)
        return
    versions = {name: _version(name) for name in _PACKAGES}
    found: dict[str, object] = {
        "recapture": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": versions,
        "defaults": str(config_file()),
    }
    if versions["torch"]:
        import torch

        from ..engine.geometry.depth_models import find_depth_model
        from ..engine.hub import EMBEDDED
        from ..engine.pipeline import pick_device
        from ..engine.store import default_store

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        place = default_store()
        free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
        found |= {
            "gpus": gpus,
            "device": str(pick_device("auto")),
            "threads": torch.get_num_threads(),
            "store": str(place),
            "store_free_gib": round(free / 2**30, 1),
            "embedded_weights": {part: (EMBEDDED / part).is_dir() for part in ("tiny", "depth")},
            "depth": find_depth_model("auto").sentence,
        }
    if as_json:
        emit(found)
        return
    typer.echo(f"recapture {__version__}, Python {found['python']}, {found['platform']}")
    for name, version in versions.items():
        typer.echo(f"  {name:24}{version or '-'}")
    typer.echo(f"defaults: {found['defaults']}{'' if config_file().is_file() else ' (not there)'}")
    if "device" not in found:
        typer.echo("rendering needs: pip install 'recapture[engine]'")
        return
    gpus_text = ", ".join(found["gpus"]) if found["gpus"] else "none"  # pyright: ignore[reportArgumentType, reportCallIssue]
    typer.echo(f"GPUs: {gpus_text}; a run would use {found['device']} with {found['threads']} threads")
    typer.echo(f"store: {found['store']} ({found['store_free_gib']} GiB free)")
    typer.echo(found["depth"])
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        typer.echo("note: Python 3.11 and 3.12 are what the project is tested with")


def _print_fits(*, as_json: bool) -> None:
    """A table by model and card; counting takes a minute or two, so its lines come as they are known."""
    from .clip import silence_libraries

    silence_libraries()
    from ..engine.planning.fits import fits

    if as_json:
        emit([fit.to_json() for fit in fits()])
        return
    model = ""
    for fit in fits():
        if fit.model != model:
            model = fit.model
            typer.echo(f"{model}: computed by the planner, not measured on these cards; GiB")
            typer.echo(f"  {'card':>7}{'may take':>10}{'tune':>8}{'sample':>8}{'decode':>8}  lowered")
        peaks = "".join(f"{'-' if peak is None else f'{peak:.1f}':>8}" for peak in (fit.tune, fit.sample, fit.decode))
        typer.echo(f"  {fit.card_gb:>4} GB{fit.limit:10.1f}{peaks}  {fit.lowered}")


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
