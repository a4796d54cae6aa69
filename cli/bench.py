"""`recapture bench`: how fast this machine is at the kernels and on Ray, what bulk runs and serving cost beside the work."""

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..engine.config import OPTIONS
from ..engine.options import by_section
from .clip import silence_libraries
from .options import takes
from .output import Json, emit

Quick = Annotated[bool, typer.Option("--quick", help="Fewer repetitions and rivals: seconds, not minutes.")]
Out = Annotated[
    Path | None, typer.Option(help="Append the rows to this file, one JSON document a line.", show_default=False)
]

bench = typer.Typer(help="How fast this machine runs what the method is made of.", no_args_is_help=True)

OPERATIONS = ("splat", "masked_loss", "latent_mask")
"""Modules of benchmarks/ with a function `rows(device, quick)`."""


@bench.command()
def kernels(
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Device to time on.")] = "cpu",
    quick: Quick = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Time the kernels and their rivals, interleaved in one process. On a shared machine only the ratios count."""
    import torch

    from ..engine.errors import InputError

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is available; set `device` to cpu", param="device")
    rows: list[dict[str, Any]] = []
    for name in OPERATIONS:
        typer.echo(f"timing {name}", err=True)
        rows += import_module(f"recapture.benchmarks.{name}").rows(device, quick)
    _append(rows, out)
    if as_json:
        emit(rows)
        return
    _print(rows)


CLUSTER_PARTS = ("tuning", "start", "frames")


@bench.command()
def cluster(
    part: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(CLUSTER_PARTS)}; repeat it.", show_default="all")
    ] = None,
    quick: Quick = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Time frame work on Ray's workers against this process, Ray's start, and the tuning loop against a bare one."""
    from ..engine.errors import InputError

    chosen = _chosen(part, CLUSTER_PARTS)
    try:
        module = import_module("recapture.benchmarks.cluster")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise InputError("Ray is not installed: pip install 'recapture[cluster]'") from None
    rows: list[dict[str, Any]] = []
    for name in chosen:
        typer.echo(f"timing {name}", err=True)
        rows += (found := module.rows(name, quick))
        _append(found, out)
    if as_json:
        emit(rows)
        return
    _print(rows)


BULK_PARTS = ("driver", "leases", "paths", "requests", "real", "waits")


@bench.command()
def bulk(
    part: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(BULK_PARTS)}; repeat it.", show_default="all")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows without work, for the driver.", min=1)] = 100_000,
    frames: Annotated[int, typer.Option(help="Of the clips that are filmed.", min=4)] = 8,
    model: Annotated[str, typer.Option(help="Of the clips that are filmed.")] = "tiny",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """What a bulk run costs beside the work, a clip's further paths, and real runs against the formula of docs/scale.md."""
    chosen = _chosen(part, BULK_PARTS)
    silence_libraries()
    from ..benchmarks import bulk as measure

    calls = {
        "driver": lambda: measure.rows_without_work(rows),
        "leases": measure.lease_calls,
        "paths": lambda: measure.paths_of_one_clip(frames=frames, model=model),
        "requests": lambda: measure.requests_of_a_row(frames=frames, model=model),
        "real": lambda: measure.real_runs(clips=6, paths=2, frames=frames, model=model),
        "waits": lambda: measure.waits_on_one_clip(frames=frames, model=model),
    }
    _measure([(name, calls[name]) for name in chosen], out, as_json)


@bench.command("full-size")
@takes(*(OPTIONS[path] for path in ("memory", "dtype", "offload", "tune.checkpointing", "sample.decode_chunk")))
def full_size(
    options: dict[str, Any],
    model: Annotated[
        str, typer.Option(help="svd or svd-xt with random weights, or a directory in the diffusers layout.")
    ] = "svd",
    height: Annotated[int, typer.Option(help="Working height.", min=64)] = 256,
    width: Annotated[int, typer.Option(help="Working width.", min=64)] = 384,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Device to run on.")] = "cpu",
    weights: Annotated[
        Path | None, typer.Option(help="Folder that keeps the random weights, 4.5 GB.", show_default="none is kept")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Run Stable Video Diffusion at full size, a step of everything: seconds and memory by stage beside the plan."""
    silence_libraries()
    from ..benchmarks import full_size as measure
    from ..engine.errors import InputError
    from ..engine.models.stable_video import FRAMES

    if model not in FRAMES and not Path(model).is_dir():
        raise InputError(f"{model!r} is neither svd, svd-xt nor a directory", param="model")
    rows = measure.rows(
        model=model if model in FRAMES else Path(model),
        size=(height, width),
        device=device,
        options=by_section(options),
        folder=weights,
        on_row=lambda row: _append([row], out),
    )
    if as_json:
        emit(rows)
        return
    typer.echo(f"{'stage':12}{'seconds':>10}{'peak GiB':>10}{'planned':>10}{'ratio':>8}")
    for row in rows:
        typer.echo(
            f"{row['implementation']:12}{row['seconds']:10.1f}{row['peak_gib']:10.2f}{row['planned_gib']:10.2f}"
            f"{row['planned_over_peak']:8.2f}"
        )


SERVE_PARTS = ("queue", "ingress", "ray", "memory", "preview", "resample")


@bench.command()
def serve(
    part: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(SERVE_PARTS)}; repeat it.", show_default="all")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Renders in the queue, of four tenants.", min=4)] = 1000,
    renders: Annotated[int, typer.Option(help="Tiny renders that memory is watched over.", min=2)] = 200,
    requests: Annotated[int, typer.Option(help="To Ray Serve and to uvicorn, each.", min=10)] = 500,
    seconds: Annotated[float, typer.Option(help="Of polls, idle and beside renders.", min=1)] = 20.0,
    frames: Annotated[int, typer.Option(help="Of the clips that are rendered and previewed.", min=4)] = 16,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """What the service costs beside the work: queue, ingress, Ray Serve over uvicorn, memory, previews, resampling."""
    chosen = _chosen(part, SERVE_PARTS)
    silence_libraries()
    from ..benchmarks import serve as measure

    calls = {
        "queue": lambda: measure.queued_jobs(jobs),
        "ingress": lambda: measure.ingress_beside_renders(seconds=seconds),
        "ray": lambda: measure.ray_serve_over_uvicorn(requests=requests),
        "memory": lambda: measure.memory_of_renders(renders),
        "preview": lambda: measure.warm_previews(frames=frames, count=40),
        "resample": lambda: measure.resamples(frames=frames),
    }
    _measure([(name, calls[name]) for name in chosen], out, as_json)


def _chosen(part: list[str] | None, parts: Sequence[str]) -> list[str]:
    from ..engine.errors import InputError

    chosen = part or list(parts)
    if unknown := set(chosen) - set(parts):
        raise InputError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}", param="part")
    return chosen


def _measure(calls: Sequence[tuple[str, Callable[[], list[dict[str, Any]]]]], out: Path | None, as_json: bool) -> None:
    """Make the measurements, keep their rows, print them."""
    rows: list[dict[str, Any]] = []
    for name, call in calls:
        typer.echo(f"measuring {name}", err=True)
        found = call()
        _append(found, out)  # at once: what follows may take long
        rows += found
    if as_json:
        emit(rows)
        return
    for row in rows:
        values = {name: value for name, value in row.items() if name not in ("op", "versions", "date", "device")}
        typer.echo(f"{row['op']}  " + "  ".join(f"{name} {value}" for name, value in values.items()))


def _append(rows: list[dict[str, Any]], out: Path | None) -> None:
    from ..engine.errors import OutputError

    if out is None:
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror})", param="out") from None


def _print(rows: list[dict[str, Any]]) -> None:
    """A table an operation and shape: median and spread in milliseconds, and times faster than the baseline."""
    before = None
    for row in rows:
        title = f"{row['op']}  {row['shape']}  on {row['device']}"
        if title != before:
            typer.echo(f"\n{title}" if before else title)
            typer.echo(f"  {'implementation':28}{'p50 ms':>10}{'p20':>10}{'p80':>10}  x {row['baseline']}")
            before = title
        times = "".join(f"{row[name]:10.3f}" for name in ("p50_ms", "p20_ms", "p80_ms"))
        share = f"  {row['roofline_share']:.2f} of the copy" if "roofline_share" in row else ""
        launched = f"  {row['launches']} launches" if "launches" in row else ""
        typer.echo(f"  {row['implementation']:28}{times}  {row['speedup']:.2f}{share}{launched}")
