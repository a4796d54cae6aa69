"""`recapture`: film a clip again from another camera. Heavy imports happen inside the commands, never here."""

import os
import sys
from typing import Annotated

import typer

from .. import __version__
from . import bulk, info, preview
from .bench import bench
from .evaluate import evaluate
from .models import models
from .output import emit
from .remote import remote
from .run import run
from .serve import keys, serve
from .store import store

app = typer.Typer(
    name="recapture",
    help="Film a video again from another camera: the same scene, the same motion, a new path.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run)
app.command()(preview.preview)
app.command()(bulk.bulk)
app.command()(bulk.submit)
app.command()(evaluate)
app.command()(info.presets)
app.command()(info.doctor)
app.add_typer(models, name="models")
app.add_typer(bulk.jobs, name="jobs")
app.command()(serve)
app.add_typer(store, name="store")
app.add_typer(keys, name="keys")
app.add_typer(remote, name="remote")
app.add_typer(bench, name="bench")

_EXTRAS = {"serve": "serve", "keys": "serve", "remote": "client"}
"""What to install for a command; the others need the engine."""


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: every foreseeable error is one line on standard error and an exit code, never a traceback.

    Exit codes: 0 well, 1 failed, 2 usage or bad input, 3 some rows of a bulk run failed, 130 interrupted.
    """
    # Must be set before torch is imported. By default OpenMP's threads spin while they wait, which makes small
    # networks many times slower on a machine that does anything else at the same time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ..engine.errors import RecaptureError

    as_json = "--json" in sys.argv
    try:
        code = app(standalone_mode=False)
    except RecaptureError as error:
        if as_json:
            emit({"error": {"code": error.code, "message": error.message, "param": error.param}})
        typer.echo(f"recapture: {error}", err=True)
        code = error.exit_code
    except typer.TyperException as error:
        typer.echo(f"recapture: {error.format_message()} (see `recapture --help`)", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("recapture: interrupted; run the same command again and it goes on from here", err=True)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "recapture":
            raise
        extra = _EXTRAS.get(next(iter(sys.argv[1:]), ""), "engine")
        typer.echo(f"recapture: {error.name} is not installed; this needs: pip install 'recapture[{extra}]'", err=True)
        code = 1
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
