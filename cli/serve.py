"""`recapture serve` and `recapture keys`: the service on this machine, and who may use it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.config import OPTIONS
from ..engine.errors import InputError
from .clip import Device
from .options import takes
from .output import Json, emit

if TYPE_CHECKING:
    from ..serve.settings import Settings

keys = typer.Typer(help="API keys of the service: make, list, revoke.", no_args_is_help=True)

Data = Annotated[Path, typer.Option(help="Folder of the service: uploads, results, stages, records.")]
DatabaseOption = Annotated[
    str | None, typer.Option(help="postgresql://... for the records.", show_default="SQLite in --data")
]
DEFAULT_DATA = Path("recapture-data")


@takes(OPTIONS["model"])
def serve(
    options: dict[str, Any],
    data: Data = DEFAULT_DATA,
    database: DatabaseOption = None,
    device: Device = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on. Anything but this machine wants TLS in front.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    webhook_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--webhook-host", help="Names that webhooks may go to (*.example.com); repeat it.", show_default="any"
        ),
    ] = None,
    webhook_networks: Annotated[
        list[str] | None,
        typer.Option("--webhook-network", help="Private networks that they may reach; repeat it.", show_default="none"),
    ] = None,
    allow_root: Annotated[
        list[str] | None,
        typer.Option(
            help="TENANT=FOLDER (or s3://...): clips below it may be named by URI; repeat it.", show_default="none"
        ),
    ] = None,
    upload_days: Annotated[
        float | None,
        typer.Option(help="Days after its last use that an upload is removed.", show_default="never", min=0.001),
    ] = None,
    key: Annotated[bool, typer.Option("--key/--no-key", help="Make a fresh API key and print it.")] = True,
) -> None:
    """Start the service on this machine: HTTP, a renderer and a previewer. Ctrl-C stops it; renders go on at the next start."""
    import socket

    from ..engine.catalog import find_model
    from ..engine.geometry.depth_models import find_depth_model
    from ..engine.pipeline import pick_device
    from ..serve.keys import create_key
    from ..serve.logs import set_up_logs
    from ..serve.processes.supervisor import Supervisor

    model = options.get("model", "tiny")
    pick_device(device)
    find_model(model)
    depth = find_depth_model("auto")
    try:
        with socket.create_server((host, port)) as free:
            port = free.getsockname()[1]
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be listened on ({error.strerror})", param="port") from None
    settings = _settings(
        {
            "data": data.absolute(),
            "database": database,
            "model": model,
            "device": device,
            "host": host,
            "port": port,
            "webhook_hosts": webhook_hosts or [],
            "webhook_networks": webhook_networks or [],
            "upload_days": upload_days,
            "input_roots": _roots(allow_root or []),
        }
    )
    set_up_logs()
    records = settings.open_database()
    secret = create_key(records, "local", label="recapture serve") if key else None
    records.close()
    supervisor = Supervisor(settings)

    def on_up() -> None:
        typer.echo(f"url    {supervisor.url}")
        if secret:
            typer.echo(f"key    {secret}  (tenant local; shown once)")
        typer.echo(f"data   {settings.data}")
        typer.echo(depth.sentence)
        if host not in ("127.0.0.1", "::1", "localhost"):
            typer.echo("note: keys travel in the clear; put TLS in front of this (docs/serving.md)", err=True)

    supervisor.run(on_up)


@keys.command("create")
def create(
    tenant: Annotated[str, typer.Option(help="Whose key it is; tenants see nothing of each other.")],
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    data: Data = DEFAULT_DATA,
    database: DatabaseOption = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it. It is stored as a hash: nobody can print it again."""
    from ..serve.keys import create_key

    key = create_key(_records(data, database), tenant, label=label)
    if as_json:
        emit({"key": key, "tenant": tenant, "label": label})
        return
    typer.echo(key)


@keys.command("list")
def ls(data: Data = DEFAULT_DATA, database: DatabaseOption = None, as_json: Json = False) -> None:
    """List the keys by id; the keys themselves are not known."""
    from dataclasses import asdict

    from ..serve.keys import list_keys

    known = list_keys(_records(data, database))
    if as_json:
        emit([asdict(info) for info in known])
        return
    for info in known:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.created_at))
        state = "revoked" if info.revoked_at else "good"
        typer.echo(f"{info.id}  {info.tenant:20}{state:9}{made}  {info.label}")


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, as `keys list` shows it.", metavar="ID")],
    data: Data = DEFAULT_DATA,
    database: DatabaseOption = None,
) -> None:
    """End a key; it is refused from the next request on."""
    from ..serve.keys import revoke_key

    if not revoke_key(_records(data, database), key_id):
        raise InputError(f"there is no good key {key_id!r}", param="key_id")
    typer.echo(f"revoked {key_id}")


@keys.command("webhook-secret")
def webhook_secret(
    tenant: Annotated[str, typer.Option(help="Whose webhooks it signs.")],
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make another; the one before signs as well for a day.")
    ] = False,
    data: Data = DEFAULT_DATA,
    database: DatabaseOption = None,
) -> None:
    """Print the secret that a tenant's webhooks are signed with; made if there is none."""
    from ..serve.keys import check_tenant
    from ..serve.webhooks import webhook_secret

    check_tenant(tenant)
    typer.echo(webhook_secret(_records(data, database), tenant, rotate=rotate))


def _roots(words: list[str]) -> dict[str, list[str]]:
    """Folders by tenant, of words TENANT=FOLDER."""
    from ..engine.store.remote_path import Roots, absolute_uri

    roots: dict[str, list[str]] = {}
    for word in words:
        tenant, equals, uri = word.partition("=")
        if not (tenant and equals and uri):
            raise InputError(f"{word!r} is not TENANT=FOLDER", param="allow_root")
        roots.setdefault(tenant, []).append(absolute_uri(uri))
    for uris in roots.values():
        Roots(uris)  # refused here and not by a process that is started again and again
    return roots


def _settings(values: dict[str, Any]) -> "Settings":
    from pydantic import ValidationError

    from ..serve.settings import Settings

    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(str(first["msg"]), param=str(first["loc"][0]).removesuffix("s")) from None


def _records(data: Path, database: str | None):
    from ..serve.settings import Settings

    return Settings(data=data, database=database).open_database()
