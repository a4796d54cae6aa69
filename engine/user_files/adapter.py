"""A tuned adapter that the user brings."""

import json
from pathlib import Path

from ..errors import InputError


def adapter_rank(name: str, folder: Path) -> int:
    """Rank of an adapter in PEFT's layout.

    Raises:
        InputError: the folder holds none.
    """
    try:
        (folder / "adapter_model.safetensors").stat()
        return int(json.loads((folder / "adapter_config.json").read_text())["r"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} holds no adapter in PEFT's layout", param=f"{name}_adapter") from None
