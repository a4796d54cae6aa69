"""What commands print."""

import json
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def emit(value: object) -> None:
    """Print a JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2, default=str))
