"""Uploads are opened in a process of their own: this is the side that starts it and believes little of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...engine.config import DecodeConfig
from ...engine.errors import StoreError, VideoError
from ...engine.store import Store
from ..settings import Settings

_KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
"""Variables passed to the process; the others may hold secrets."""

_LOOK_EVERY_S = 0.5

Check = Callable[[], None]
"""Called twice a second while a child works; what it raises ends the child."""


def probe_upload(path: Path, settings: Settings, check: Check = lambda: None) -> dict[str, Any]:
    """The clip's properties, as `ClipInfo.to_json`.

    Raises:
        VideoError: the clip cannot be used, or needs more than its limits.
    """
    return _child({"verb": "probe", "path": str(path), "write_bytes": 0}, settings, check)


def decode_into_store(
    path: Path,
    info: dict[str, Any],
    decode: DecodeConfig,
    store: Store,
    key: str,
    settings: Settings,
    check: Check = lambda: None,
) -> None:
    """Put the clip's frames into a stage store under the key of the engine's first stage, which then opens no file.

    Raises:
        VideoError: as `probe_upload`; the clip turned out other than its header said.
    """
    request = {
        "verb": "frames",
        "path": str(path),
        "info": info,
        "decode": asdict(decode),
        "key": key,
        "write_bytes": 1 << 40,
    }
    if settings.objects is not None:  # the child has no way to an object store
        with store.scratch("decoding") as folder:
            _child({**request, "store": str(folder)}, settings, check)
            with Store(folder) as decoded, store.begin("frames", key) as out:
                if (entry := decoded.get("frames", key)) is not None:
                    for name in entry.files:
                        (entry.path / name).rename(out.path / name)
                    out.publish(entry.meta)
        return
    try:
        _child({**request, "store": str(store.root)}, settings, check)
    except BaseException:
        with contextlib.suppress(StoreError):
            store.gc()  # a child that was killed leaves the frames that it had written
        raise


def add_sound(
    video: Path, source: Path, *, start_s: float, settings: Settings, check: Check = lambda: None
) -> list[str]:
    """Put a clip's sound into a video of ours, as `engine.video.add_sound`.

    Raises:
        VideoError: as `probe_upload`; the video is as it was.
    """
    # What is written is the video, the sound and an index; the child reads both files anyway.
    write_bytes = 2 * video.stat().st_size + source.stat().st_size + (1 << 20)
    request = {
        "verb": "sound",
        "path": str(source),
        "video": str(video),
        "start_s": start_s,
        "write_bytes": write_bytes,
    }
    try:
        return _child(request, settings, check)["warnings"]
    finally:
        video.with_name(video.name + ".part").unlink(missing_ok=True)  # of a child that was killed


def _child(request: dict[str, Any], settings: Settings, check: Check) -> dict[str, Any]:
    limits = {"memory_bytes": settings.child_memory_bytes, "cpu_s": settings.child_cpu_s}
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "TMPDIR": tempfile.gettempdir()}
    command = [sys.executable, "-m", "recapture.serve.uploads.decode_child", json.dumps({**request, **limits})]
    until = time.monotonic() + 4 * settings.child_cpu_s
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        said = None
        try:
            while said is None:
                try:
                    said, _ = child.communicate(timeout=_LOOK_EVERY_S)
                except subprocess.TimeoutExpired:
                    check()
                    if time.monotonic() > until:
                        raise _too_heavy("time") from None
        except BaseException:
            child.kill()
            raise
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise _too_heavy("time")
    try:
        answer = json.loads(said)
    except ValueError:
        # A crash inside a codec is the clip's doing; what it wrote to standard error is nothing for its sender.
        raise VideoError("the clip cannot be decoded", param="input", code="clip_damaged") from None
    if problem := answer.get("error"):
        raise VideoError(problem["message"], param="input", code=problem["code"])
    return answer["info"]


def _too_heavy(what: str) -> VideoError:
    return VideoError(f"the clip takes more {what} to decode than is granted to one", code="clip_too_heavy")
