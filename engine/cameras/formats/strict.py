"""Reading numbers from files that may be wrong or hostile: caps on size, no NaN, no duplicate keys, no surprises."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import NoReturn

import numpy as np

from ...errors import CameraError

MAX_BYTES = 64 * 2**20
# Larger than any picture, and small enough that no product of it overflows.
_MAX_PIXELS = 10**6


def refuse(where: str, problem: str) -> NoReturn:
    """Raise the error for one place in a file."""
    raise CameraError(f"{where}: {problem}", param="camera")


def check_regular(path: Path) -> None:
    """Refuse a device, pipe or socket: opening one may block or never end."""
    if path.exists() and not path.is_file():
        refuse(str(path), "not a file")


def read_bytes(path: Path) -> bytes:
    """The file's content, up to `MAX_BYTES`."""
    check_regular(path)
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        refuse(str(path), f"larger than the {MAX_BYTES >> 20} MiB a camera file may have")
    return data


def decoded(data: bytes, name: str) -> str:
    """UTF-8 text, with or without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(name, f"not UTF-8 text (byte {error.start})")


def parse_json(text: str, name: str) -> dict[str, object]:
    """A JSON object without NaN, infinities and repeated keys."""

    def constant(word: str) -> NoReturn:
        refuse(name, f"{word} is not a number that a camera can have")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            refuse(name, f"{twice[:40]!r} is given twice in one object")
        return found

    try:
        document = json.loads(text, parse_constant=constant, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        refuse(f"{name}: line {error.lineno}, column {error.colno}", f"not JSON: {error.msg}")
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        refuse(name, "not JSON that a camera file could hold")
    if not isinstance(document, dict):
        refuse(name, "expected a JSON object")
    return document


def number(value: object, where: str) -> float:
    """A finite number, from JSON."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
        if math.isfinite(result):
            return result
        refuse(where, "a number is too large")
    refuse(where, f"expected a number, not {_brief(value)}")


def size(value: object, where: str) -> int:
    """A picture's width or height, from JSON."""
    result = number(value, where)
    if result != int(result) or not 1 <= result <= _MAX_PIXELS:
        refuse(where, f"expected a whole number of pixels from 1 to {_MAX_PIXELS}, not {_brief(value)}")
    return int(result)


def matrix(value: object, rows: int, columns: int, where: str) -> np.ndarray:
    """float64 [rows, columns] from a list of lists, from JSON."""
    if not isinstance(value, list) or len(value) != rows:
        refuse(where, f"expected {rows} rows of {columns} numbers")
    for row in value:
        if not isinstance(row, list) or len(row) != columns:
            refuse(where, f"expected {rows} rows of {columns} numbers")
    return np.array([[number(entry, where) for entry in row] for row in value])


def objects(value: object, where: str) -> list[dict[str, object]]:
    """A list of JSON objects."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        refuse(where, "expected a list of objects")
    return value


def text_number(word: str, where: str) -> float:
    """A finite number from a text file; only plain ASCII decimals."""
    if re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", word):
        result = float(word)
        if math.isfinite(result):
            return result
    refuse(where, f"expected a finite number, not {word[:40]!r}")


def text_int(word: str, where: str) -> int:
    """A whole number from a text file."""
    if re.fullmatch(r"[+-]?[0-9]{1,18}", word):
        return int(word)
    refuse(where, f"expected a whole number, not {word[:40]!r}")


def _brief(value: object) -> str:
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else text[:37] + "..."
