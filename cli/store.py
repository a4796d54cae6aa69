"""`recapture store ls|gc|verify`: the stages that finished, and the space they take."""

import time
from typing import Annotated

import typer

from .clip import StoreOption
from .output import Json, emit

store = typer.Typer(help="The stages that finished: what there is, what may go, what is damaged.", no_args_is_help=True)


def _open(uri: str | None):
    from ..engine.store import Store, default_store

    return Store(uri or default_store())


@store.command("ls")
def ls(store: StoreOption = None, as_json: Json = False) -> None:
    """List what is kept, newest first."""
    entries = sorted(_open(store).entries(), key=lambda entry: -entry.created_at)
    if as_json:
        emit(
            [
                {
                    "stage": e.stage,
                    "key": e.key,
                    "bytes": e.bytes,
                    "created_at": e.created_at,
                    "seconds": e.seconds,
                    "clip": e.meta.get("clip"),
                }
                for e in entries
            ]
        )
        return
    for e in entries:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(e.created_at))
        typer.echo(
            f"{e.stage:11}{e.key[:12]}  {size_text(e.bytes):>9}  {e.seconds:8.1f} s  {made}  {e.meta.get('clip', '')}"
        )
    typer.echo(f"{len(entries)} stages, {size_text(sum(e.bytes for e in entries))}")


@store.command("gc")
def gc(
    older_than: Annotated[
        float | None, typer.Option(help="Remove what was not used for this many days.", show_default=False)
    ] = None,
    max_gb: Annotated[
        float | None,
        typer.Option(help="Then remove the least recently used until this many GB hold the rest.", show_default=False),
    ] = None,
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Remove leftovers of crashed runs, and old or least used stages on demand. What a run uses now always stays, also
    what a bulk run on another machine still needs."""
    from ..engine.store import default_store
    from ..engine.store.references import live_keys
    from ..engine.store.remote_path import open_remote_path

    report = _open(store).gc(
        older_than_s=None if older_than is None else older_than * 86_400,
        max_bytes=None if max_gb is None else int(max_gb * 1e9),
        keep=live_keys(open_remote_path(str(store or default_store()), param="--store")),
    )
    if as_json:
        emit({"removed": [e.key for e in report.removed], "bytes": report.bytes, "leftovers": report.leftovers})
        return
    typer.echo(
        f"removed {len(report.removed)} stages, {size_text(report.bytes)}, and {len(report.leftovers)} leftovers"
    )


@store.command("verify")
def verify(store: StoreOption = None, as_json: Json = False) -> None:
    """Read every file against its sha256; exit code 1 if anything is damaged."""
    problems = _open(store).verify()
    if as_json:
        emit([{"path": p.path, "what": p.what} for p in problems])
    else:
        for problem in problems:
            typer.echo(f"{problem.path}: {problem.what}")
        typer.echo(f"{len(problems)} problems" if problems else "everything is as it was published")
    if problems:
        raise typer.Exit(1)


def size_text(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
