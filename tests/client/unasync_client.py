"""Makes `client/synchronous.py` of `client/asynchronous.py`: `python -m tests.client.unasync_client`, or `make client`."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from unasync import Rule, unasync_files

CLIENT = Path(__file__).parents[2] / "client"
_FROM, _TO = "asynchronous.py", "synchronous.py"
_NAMES = {
    "AsyncClient": "Client",
    "AsyncUploads": "Uploads",
    "AsyncRenders": "Renders",
    "async_side": "sync_side",
    "aclose": "close",
    "aread": "read",
    "aiter_bytes": "iter_bytes",
}
_ABOUT = '"""Every verb of the service, waiting for the answer. Made from `asynchronous.py` by `make client`: change that one."""'


def made() -> str:
    """The text of `synchronous.py` that belongs to `asynchronous.py`."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(CLIENT / _FROM, folder)
        unasync_files([str(Path(folder) / _FROM)], [Rule(_FROM, _TO, _NAMES)])
        text = (Path(folder) / _TO).read_text()
    text = _ABOUT + text[text.index("\n") :]
    config = CLIENT.parent / "pyproject.toml"
    for step in (["check", "--fix", "--select", "I"], ["format"]):
        run = [
            sys.executable,
            "-m",
            "ruff",
            *step,
            "--quiet",
            "--config",
            config,
            "--stdin-filename",
            CLIENT / _TO,
            "-",
        ]
        text = subprocess.run(run, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    (CLIENT / _TO).write_text(made())
