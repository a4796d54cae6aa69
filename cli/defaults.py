"""Where options come from besides the command line: `RECAPTURE_*` variables, then the user's `config.toml`.

`--sample-steps` is the variable RECAPTURE_SAMPLE_STEPS for every command that has the option; an option that means
something else than its namesakes is declared with a variable of its own. In the file, a key is an option's long name: at
the top for every command whose option has that variable, or in a table named after one command:

    device = "cuda:1"

    [run]
    quality = "draft"
    sample-steps = 12
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
import typer

from ..engine.errors import InputError


def config_file() -> Path:
    """Where the user's defaults are, if there are any."""
    return platformdirs.user_config_path("recapture") / "config.toml"


def apply(command: Any) -> dict[str, Any]:
    """Give every option of a command and its subcommands its variable; the file's values as a default map.

    Raises:
        InputError: the file cannot be read, or names an option or a command that does not exist.
    """
    for one in _options(command):
        one.envvar = one.envvar or _variable(_key(one))
        one.show_envvar = False
    path = config_file()
    try:
        given = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as TOML ({error})") from None
    shared = {_variable(key): value for key, value in given.items() if not isinstance(value, dict)}
    variables = {one.envvar for one in _options(command)}
    for key, value in given.items():
        if not isinstance(value, dict) and _variable(key) not in variables:
            raise InputError(f"{path}: no command has an option {key}")
    return _default_map(command, {key: value for key, value in given.items() if isinstance(value, dict)}, shared, path)


def refused(error: typer.BadParameter) -> tuple[str, str | None]:
    """What is wrong, and the option or argument, with the variable or file that its value came from."""
    one: Any = error.param
    message = (error.message or "is missing").removeprefix("Value error, ").rstrip(".")
    if one is None or error.ctx is None:
        return error.format_message(), None
    source = error.ctx.get_parameter_source(one.name)
    name = one.opts[0] if one.param_type_name == "option" else one.metavar or one.name
    origins = {"ENVIRONMENT": f"{name} (from {one.envvar})", "DEFAULT_MAP": f"{name} (from {config_file()})"}
    return message, origins.get(source.name, name) if source else name


def _default_map(command: Any, given: dict[str, Any], shared: dict[str, Any], path: Path) -> dict[str, Any]:
    """Parameter -> value for a command, subcommand -> map for a group; `shared` is by variable."""
    group = hasattr(command, "commands")
    known = command.commands if group else {_key(one): one for one in _options(command)}
    if unknown := set(given) - set(known):
        what = "command" if group else "option"
        raise InputError(f"{path}: {command.name} has no {what} {', '.join(sorted(unknown))}")
    if group:
        return {name: _default_map(one, given.get(name, {}), shared, path) for name, one in known.items()}
    values = {one.name: shared[one.envvar] for one in known.values() if one.envvar in shared}
    return values | {known[key].name: value for key, value in given.items()}


def _options(command: Any) -> Iterator[Any]:
    """Options of a command and its subcommands but help, version and completion."""
    for one in getattr(command, "commands", {}).values():
        yield from _options(one)
    if not hasattr(command, "commands"):
        yield from (one for one in command.params if one.param_type_name == "option" and not one.is_eager)


def _key(option: Any) -> str:
    return option.opts[0].removeprefix("--")


def _variable(key: str) -> str:
    return "RECAPTURE_" + key.upper().replace("-", "_")
