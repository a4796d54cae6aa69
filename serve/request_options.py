"""The options of requests, written for the client from the engine's table: `make options` writes `client/options.py`.

The client imports nothing of the engine, and a person who writes a request wants its fields in an editor; so the table
becomes a file there, and a test holds the two equal.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from ..engine.config import OPTIONS, Quality
from ..engine.options import Option, Scope

TARGET = Path(__file__).parents[1] / "client" / "options.py"

_HEADER = '''"""Options that requests take. Made from `engine/config.py` by `make options`: change them there.

None leaves an option to the service, which takes what the quality and the model set.
"""

from typing import Annotated, Literal

from pydantic import Field

from .base import Asked
'''
_CLASSES: dict[Scope, str] = {
    "clip": 'class ClipOptions(Asked):\n    """What is read of the clip."""\n',
    "resample": 'class SampleOptions(Asked):\n    """What may change while the adapters stay as they are tuned."""\n',
    "render": 'class Options(ClipOptions, SampleOptions):\n    """Of a render, named as the command\'s options are."""\n',
}


def source() -> str:
    """The file's text, as `ruff format` leaves it."""
    classes = "".join("\n".join(["\n", text, *_fields(scope), ""]) for scope, text in _CLASSES.items())
    names = {path: option.request_name for path, option in OPTIONS.items() if option.request}
    table = "".join(f"    {json.dumps(path)}: {json.dumps(name)},\n" for path, name in names.items())
    about = '"""Section and field of a configuration -> name of the option in requests."""'
    return f"{_HEADER}{classes}\n\nFIELDS = {{\n{table}}}\n{about}\n"


def _fields(scope: Scope) -> Iterator[str]:
    if scope == "render":
        yield f'    quality: {_words(get_args(Quality))} = "standard"'
    for option in OPTIONS.values():
        if option.request == scope:
            yield f"    {option.request_name}: {_type(option)} | None = None"
            yield f'    """{option.help}"""'


def _type(option: Option) -> str:
    if option.choices:
        return _words(option.choices)
    if option.bounds is None:
        return option.kind.__name__
    least, most = (end if isinstance(end, int) else float(end) for end in option.bounds)
    return f"Annotated[{option.kind.__name__}, Field(ge={least}, le={most})]"


def _words(choices: tuple[str, ...]) -> str:
    return f"Literal[{', '.join(map(json.dumps, choices))}]"


if __name__ == "__main__":
    TARGET.write_text(source())
