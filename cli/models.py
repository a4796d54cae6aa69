"""`recapture models`: what there is, what is on this machine, and how to get the rest."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ..engine.config import OPTIONS
from ..engine.errors import InputError, ModelError
from .output import Json, emit
from .store import size_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..engine.catalog import Holding
    from ..engine.hub import Offer

models = typer.Typer(help="Video, depth and multiview models: list them, download them.", no_args_is_help=True)
_PATHS = {"video": "model", "depth": "depth.model", "multiview": "anchor.multiview"}
_FLAGS = {kind: OPTIONS[path].flag for kind, path in _PATHS.items()}


@models.command("list")
def ls(as_json: Json = False) -> None:
    """Models that can be named, which of them are on this machine, their size, license and place."""
    from ..engine.catalog import holdings
    from ..engine.hub import size_on_disk

    rows = [(held, 0 if held.folder is None else size_on_disk(held.folder)) for held in holdings()]
    if as_json:
        emit(
            [
                {
                    "name": held.entry.name,
                    "kind": held.kind,
                    "source": held.entry.source,
                    "license": held.entry.license,
                    "about": held.entry.about,
                    "here": held.folder is not None,
                    "unfinished": held.unfinished,
                    "bytes": size,
                    "path": held.folder and str(held.folder),
                }
                for held, size in rows
            ]
        )
        return
    for kind, option in _FLAGS.items():
        typer.echo(f"{kind.capitalize()} models ({option})")
        for held, size in rows:
            if held.kind == kind:
                typer.echo(f"  {held.entry.name:10}{held.entry.about}. {held.entry.license}")
                typer.echo(f"{'':12}{_place(held, size)}")
    typer.echo("--model and --depth also take a directory or a hub repository; recapture models pull fetches either.")


def _place(held: "Holding", size: int) -> str:
    if held.folder is not None:
        return f"{size_text(size)}  {held.folder}"
    return f"{'unfinished' if held.unfinished else 'not here'}: recapture models pull {held.entry.name}"


@models.command("pull")
def pull(
    name: Annotated[str, typer.Argument(help="depth, svd, svd-xt, or a hub repository: owner/name.", metavar="NAME")],
) -> None:
    """Download a model once; after that it works without a network. Interrupted, the same command goes on."""
    from ..engine import hub
    from ..engine.catalog import named
    from ..engine.layout import DEPTH, VIDEO

    entry = named(name)
    repository = name if entry is None else entry.source
    if entry is None and not hub.is_hub_name(name):
        raise InputError(f"no model {name!r} to pull; give depth, svd, svd-xt or a hub repository, owner/name")
    try:
        offer = hub.look(repository)
    except ModelError as error:
        here = next((at for layout in (VIDEO, DEPTH) if (at := hub.snapshot(repository, layout))), None)
        if error.code != "model_unreachable" or here is None:
            raise
        typer.echo(f"warning: {error.message}", err=True)
        typer.echo(f"here       {here}")
        return
    license_name = offer.license or "not stated" if entry is None else entry.license
    typer.echo(f"model      {repository}, {len(offer.sizes)} files, {size_text(sum(offer.sizes.values()))}")
    typer.echo(f"license    {license_name}  {offer.license_page}")
    if entry is not None and entry.terms:
        typer.echo(f"terms      {entry.terms}")
    with _progress(offer) as on_bytes:
        folder = hub.download(offer, on_bytes=on_bytes)
    typer.echo(f"here       {folder}")
    typer.echo(f"use        {_use(name, offer)}")


def _use(name: str, offer: "Offer") -> str:
    if name == "depth":
        return "nothing to do: --depth auto, the default, now takes it"
    return f"{_FLAGS[offer.layout.kind]} {name}"


@contextmanager
def _progress(offer: "Offer") -> "Iterator[Callable[[str, int], None]]":
    """One bar over all bytes on a terminal, a line per file elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    seen: set[str] = set()
    with Progress(
        TextColumn("{task.description:26.26}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task("", total=offer.bytes_to_fetch)

        def on_bytes(name: str, count: int) -> None:
            if name not in seen and bar.disable:
                typer.echo(f"fetching   {name}, {size_text(offer.sizes[name])}", err=True)
            seen.add(name)
            bar.update(task, description=name.rpartition("/")[2], advance=count)

        yield on_bytes
