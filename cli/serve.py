"""`recapture serve` and `recapture keys`: the service on this machine, and who may use it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.errors import InputError
from .clip import DeviceIfGiven
from .options import RENDER_OPTIONS, by_path, takes
from .output import Json, emit

if TYPE_CHECKING:
    from ..serve.database import Database
    from ..serve.settings import Settings

keys = typer.Typer(help="API keys of the service: make, list, revoke.", no_args_is_help=True)

DEFAULT_DATA = Path("recapture-data")
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of the service: uploads, results, stages, records.", show_default=str(DEFAULT_DATA)),
]
DatabaseOption = Annotated[
    str | None, typer.Option(help="postgresql://... for the records.", show_default="SQLite in --data")
]


@takes(*RENDER_OPTIONS)
def serve(
    options: dict[str, Any],
    data: Data = None,
    database: DatabaseOption = None,
    device: DeviceIfGiven = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on. Anything but this machine wants TLS in front.", show_default="127.0.0.1"
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one.", min=0, max=65535, show_default="8000")] = None,
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
    key: Annotated[
        bool, typer.Option("--key/--no-key", help="If there is no API key yet, make one and print it.")
    ] = True,
) -> None:
    """Start the service on this machine: HTTP, a renderer and a previewer. Ctrl-C stops it; renders go on at the next start.

    Every setting can also be a variable RECAPTURE_SERVE_<NAME>, a line of .env, or a file of secrets: docs/serving.md.
    """
    import socket

    from ..engine.catalog import find_model
    from ..engine.geometry.depth_models import find_depth_model
    from ..engine.pipeline import pick_device
    from ..serve.keys import create_key, has_key
    from ..serve.logs import set_up_logs
    from ..serve.processes.supervisor import Supervisor

    given = by_path(options)
    settings = settings_of(
        data=data,
        model=given.pop("model", None),
        options=given or None,
        database=database,
        device=device,
        host=host,
        port=port,
        webhook_hosts=webhook_hosts,
        webhook_networks=webhook_networks,
        upload_days=upload_days,
        input_roots=_roots(allow_root) if allow_root else None,
    )
    pick_device(settings.device)
    find_model(settings.model)
    depth = find_depth_model(settings.options.get("depth.model", "auto"))
    try:
        with socket.create_server((settings.host, settings.port)) as free:
            port = free.getsockname()[1]
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise InputError(f"{where} cannot be listened on ({error.strerror})", param="port") from None
    settings = settings.model_copy(update={"port": port})
    set_up_logs()
    records = settings.open_database()
    # A service that is started again has its keys: another at each start would pile up, and lie in each log.
    secret = None if not key or has_key(records) else create_key(records, "local", label="recapture serve")
    records.close()
    supervisor = Supervisor(settings)

    def on_up() -> None:
        typer.echo(f"url    {supervisor.url}")
        if secret:
            typer.echo(f"key    {secret}  (tenant local; shown once)")
        elif key:
            typer.echo("key    those there are; `recapture keys create --tenant local` makes another")
        typer.echo(f"data   {settings.data}")
        typer.echo(depth.sentence)
        if settings.host not in ("127.0.0.1", "::1", "localhost"):
            typer.echo("note: keys travel in the clear; put TLS in front of this (docs/serving.md)", err=True)

    supervisor.run(on_up)


@keys.command("create")
def create(
    tenant: Annotated[str, typer.Option(help="Whose key it is; tenants see nothing of each other.")],
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    data: Data = None,
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
def ls(data: Data = None, database: DatabaseOption = None, as_json: Json = False) -> None:
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
    data: Data = None,
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
    data: Data = None,
    database: DatabaseOption = None,
) -> None:
    """Print the secret that a tenant's webhooks are signed with; made if there is none."""
    from ..serve.keys import check_tenant
    from ..serve.webhooks import webhook_secret

    check_tenant(tenant)
    typer.echo(webhook_secret(_records(data, database), tenant, rotate=rotate))


def _roots(words: list[str]) -> dict[str, list[str]]:
    """Folders by tenant, of words TENANT=FOLDER."""
    from ..engine.store.remote_path import AllowedRoots, absolute_uri

    roots: dict[str, list[str]] = {}
    for word in words:
        tenant, equals, uri = word.partition("=")
        if not (tenant and equals and uri):
            raise InputError(f"{word!r} is not TENANT=FOLDER", param="allow_root")
        roots.setdefault(tenant, []).append(absolute_uri(uri))
    for uris in roots.values():
        AllowedRoots(uris)  # refused here and not by a process that is started again and again
    return roots


def settings_of(**given: Any) -> "Settings":
    """The settings by what the command line gives (None is not given), and by the environment."""
    from pydantic import AfterValidator

    from ..serve.settings import Settings

    class Here(Settings):  # on one machine a folder beside the user will do
        data: Annotated[Path, AfterValidator(Path.absolute)] = (
            DEFAULT_DATA  # beside the user; a service of several machines has to name its folder
        )

    try:
        return Here.read(**{name: value for name, value in given.items() if value is not None})
    except InputError as error:
        options = {"webhook_hosts": "webhook_host", "webhook_networks": "webhook_network", "input_roots": "allow_root"}
        raise InputError(error.message, param=options.get(error.param or "", error.param)) from None


def _records(data: Path | None, database: str | None) -> "Database":
    return settings_of(data=data, database=database).open_database()
