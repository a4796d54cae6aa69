"""`recapture remote`: the service's verbs from a terminal; everything is done by `recapture.client`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ..engine.config import OPTIONS, Quality
from ..engine.errors import InputError, RecaptureError
from .options import takes
from .output import Json, emit

if TYPE_CHECKING:
    from ..client import Client, Render

remote = typer.Typer(
    help="Render on a service elsewhere: RECAPTURE_URL says which, RECAPTURE_API_KEY as whom.",
    no_args_is_help=True,
)

Url = Annotated[str | None, typer.Option(help="Address of the service.", show_default="RECAPTURE_URL")]
RenderId = Annotated[str, typer.Argument(metavar="RENDER", help="Id of the render, rnd_...", show_default=False)]


@remote.command("run")
@takes(*(option for option in OPTIONS.values() if option.request), OPTIONS["seed"])
def run(
    clip: Annotated[
        str,
        typer.Argument(
            metavar="CLIP", help="The video; a URI (file://, s3://) is one that the service reads.", show_default=False
        ),
    ],
    options: dict[str, Any],
    camera: Annotated[str, typer.Option(help="A preset expression, or one of our camera files.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="Where the video goes; without it the render is only started.", show_default=False),
    ] = None,
    quality: Annotated[Quality, typer.Option(help="How much work the service spends.")] = "standard",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Upload CLIP, unless the service has it, render it there, and bring the video."""
    from ..client import Options

    if out is not None and out.is_dir():
        raise InputError(f"{out} is a folder; give the video's own name", param="out")
    with _client(url) as client:
        seed = options.pop("seed", 0)
        asked = {OPTIONS[path].request_name: OPTIONS[path].given(value) for path, value in options.items()}
        spec = _camera(camera)
        source = clip if "://" in clip else client.uploads.create(Path(clip))
        render = client.renders.create(source, spec, options=Options(quality=quality, **asked), seed=seed)
        typer.echo(f"render {render.id}", err=True)
        if out is not None:
            render = _follow(client, render, quiet=as_json)
            client.renders.download(render, out)
        _show(render, as_json)
        if out is not None and not as_json:
            typer.echo(f"video      {out}")


@remote.command("status")
def status(
    render: Annotated[
        str | None, typer.Argument(metavar="[RENDER]", help="One render; without it the newest.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="How many of the newest.", min=1, max=100)] = 20,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show one render, or the newest."""
    with _client(url) as client:
        if render is not None:
            _show(client.renders.retrieve(render), as_json)
            return
        page = client.renders.list(limit=limit)
        if as_json:
            emit(page.model_dump(mode="json"))
            return
        for found in page.data:
            typer.echo(f"{found.id}  {found.status:12}{found.progress:5.0%}  {found.camera}")


@remote.command("fetch")
def fetch(
    render: RenderId,
    out: Annotated[Path, typer.Option(help="The file's name here.", show_default=False)],
    variant: Annotated[str, typer.Option(help="video, generated, anchor, mask, side_by_side, contact, camera, ...")] = (
        "video"
    ),
    url: Url = None,
) -> None:
    """Wait for a render and bring one of its files; a download that broke off goes on where it was."""
    from ..client.schema import Variant

    if variant not in get_args(Variant):
        raise InputError(f"{variant!r} is not one of {', '.join(get_args(Variant))}", param="variant")
    with _client(url) as client:
        done = _follow(client, client.renders.retrieve(render), quiet=False)
        typer.echo(client.renders.download(done, out, variant=variant))  # pyright: ignore[reportArgumentType]


@remote.command("bulk")
def bulk(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help=".csv, .jsonl or .parquet.", show_default=False)],
    results: Annotated[Path, typer.Option(help="Table of results, .parquet or .jsonl.", show_default=False)],
    in_flight: Annotated[int, typer.Option(help="Rows under way at once.", min=1, max=64)] = 4,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Render every row of MANIFEST; run again after Ctrl-C and it goes on. Exit code 3 where some rows failed."""
    with _client(url) as client:
        rows = client.bulk.run(
            manifest,
            results,
            in_flight=in_flight,
            on_row=lambda row, done, total: typer.echo(f"{done}/{total}  {row.clip_id}  {row.status}", err=True),
            on_pause=lambda clip_id, why, pause_s: typer.echo(f"{clip_id}: {why}; again in {pause_s:.0f} s", err=True),
        )
    failed = [row for row in rows if row.status != "completed"]
    if as_json:
        emit({"rows": len(rows), "failed": len(failed), "results": str(results)})
    else:
        typer.echo(f"results    {results}  ({len(rows) - len(failed)} of {len(rows)} completed)")
        for row in failed:
            typer.echo(f"{row.clip_id}: {row.error_code}: {row.error_message}", err=True)
    if failed:
        raise typer.Exit(3)


@remote.command("cancel")
def cancel(render: RenderId, url: Url = None, as_json: Json = False) -> None:
    """Stop a render; one that has ended stays as it ended."""
    with _client(url) as client:
        _show(client.renders.cancel(render), as_json)


@contextmanager
def _client(url: str | None) -> Iterator["Client"]:
    """The client; its errors become the command's, one line each.

    Raises:
        RecaptureError: what the service or the connection refused.
    """
    from pydantic import ValidationError

    from ..client import APIError, Client, ClientError

    try:
        with Client(url) as client:
            yield client
    except APIError as error:
        kind = InputError if error.status < 500 else RecaptureError
        raise kind(f"{error.message} (request {error.request_id})", param=error.param, code=error.code) from None
    except ClientError as error:
        raise RecaptureError(error.message, code="remote_failed") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(first["msg"], param=where) from None


def _camera(text: str) -> Any:
    """A camera file's content where the text names one, else the text itself."""
    from ..client import CameraFile

    path = Path(text)
    return CameraFile.model_validate_json(path.read_bytes()) if path.suffix == ".json" and path.is_file() else text


def _follow(client: "Client", render: "Render", *, quiet: bool) -> "Render":
    from ..client import RenderFailed
    from .progress import Display

    if not render.done:
        with Display(quiet=quiet) as display:
            stage = None
            for current in client.renders.events(render):
                render = current
                if current.stage != stage:
                    stage = current.stage
                    display.on_stage_start(stage or "queued")
                display.on_progress(stage or "queued", round(100 * current.progress), 100, {})
    if render.status != "completed":
        raise RenderFailed(render)
    return render


def _show(render: "Render", as_json: bool) -> None:
    if as_json:
        emit(render.model_dump(mode="json"))
        return
    typer.echo(f"render     {render.id}")
    typer.echo(f"status     {render.status}, {render.progress:.0%}" + (f" ({render.stage})" if render.stage else ""))
    if render.error:
        typer.echo(f"error      {render.error.code}: {render.error.message}")
    for warning in render.warnings:
        typer.echo(f"warning: {warning}", err=True)
