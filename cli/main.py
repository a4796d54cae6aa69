"""`recapture`: film a clip again from another camera. Heavy imports happen inside the commands, never here."""

import os
import sys
from typing import Annotated

import typer

from .. import __version__
from ..engine.errors import RecaptureError
from . import bulk, defaults, info
from .bench import bench
from .database import database
from .evaluate import evaluate
from .models import models
from .options import spelling
from .output import emit
from .preview import preview
from .remote import remote
from .run import EXAMPLES, run
from .serve import keys, serve
from .store import store

app = typer.Typer(
    name="recapture",
    help="Render a video again from another camera: the same scene, the same motion, a new path.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_ONE, _MANY, _SERVICE, _MACHINE = "One clip", "Many clips", "Service", "This machine"
app.command(rich_help_panel=_ONE, epilog=EXAMPLES)(run)
app.command(rich_help_panel=_ONE)(preview)
app.command(rich_help_panel=_ONE)(info.presets)
app.add_typer(models, name="models", rich_help_panel=_ONE)
app.command(rich_help_panel=_MANY)(bulk.bulk)
app.command(rich_help_panel=_MANY)(bulk.submit)
app.add_typer(bulk.jobs, name="jobs", rich_help_panel=_MANY)
app.command(rich_help_panel=_SERVICE)(serve)
app.add_typer(keys, name="keys", rich_help_panel=_SERVICE)
app.add_typer(database, name="database", rich_help_panel=_SERVICE)
app.add_typer(remote, name="remote", rich_help_panel=_SERVICE)
app.command(rich_help_panel=_MACHINE)(info.doctor)
app.add_typer(store, name="store", rich_help_panel=_MACHINE)
app.command(rich_help_panel=_MACHINE)(evaluate)
app.add_typer(bench, name="bench", rich_help_panel=_MACHINE)

_EXTRAS = {"serve": "serve", "keys": "serve", "database": "serve", "remote": "client"}
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
    command, refusal = typer.main.get_command(app), None
    try:
        code = command(prog_name="recapture", standalone_mode=False, default_map=defaults.apply(command))
    except RecaptureError as error:
        code, refusal = error.exit_code, (error.code, *error.spelled(spelling))
    except typer.BadParameter as error:
        code, refusal = error.exit_code, ("invalid_input", *defaults.refused(error))
    except typer.TyperException as error:
        code, refusal = error.exit_code, ("usage", f"{error.format_message().rstrip('.')} (see recapture -h)", None)
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
    if refusal is not None:
        kind, message, param = refusal
        if "--json" in sys.argv:
            emit({"error": {"code": kind, "message": message, "param": param}})
        typer.echo(f"recapture: {param}: {message}" if param else f"recapture: {message}", err=True)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
