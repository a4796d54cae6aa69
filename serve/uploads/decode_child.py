"""The process that opens what a stranger sent: little memory, little time, no GPU, no secrets, nothing it may keep.

    python -m recapture.serve.uploads.decode_child REQUEST

REQUEST is JSON: `verb` (probe, frames or sound), `path`, the limits of the process; for `frames` what of the clip is
wanted, and the store and key that take it; for `sound` the video that gets it. The answer is JSON on standard output:
`info`, or `error`.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    request = json.loads(sys.argv[1])
    for kind, most in (
        (resource.RLIMIT_DATA, request["memory_bytes"]),
        (resource.RLIMIT_CPU, request["cpu_s"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, request["write_bytes"]),
    ):
        resource.setrlimit(kind, (most, most))
    from ...engine.errors import RecaptureError

    try:
        answer: dict[str, Any] = {"info": VERBS[request["verb"]](request)}
    except RecaptureError as error:
        answer = {"error": {"code": error.code, "message": error.message, "param": error.param}}
    except MemoryError:
        answer = {"error": {"code": "clip_too_heavy", "message": "the clip takes more memory than is granted to one"}}
    print(json.dumps(answer))


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Look the clip through; its `ClipInfo`."""
    from ...engine.video.probe import probe

    return probe(Path(request["path"])).to_json()


def frames(request: dict[str, Any]) -> dict[str, Any]:
    """Decode what is wanted of it into the store, where the renderer finds it as its first stage's result."""
    from ...engine.config import DecodeConfig
    from ...engine.store import Store
    from ...engine.video import ClipInfo, Limits
    from ...engine.video.frames import decode_frames

    path, info = Path(request["path"]), ClipInfo.from_json(request["info"])
    with Store(request["store"]) as store, store.begin("frames", request["key"]) as out:
        decode_frames(path, info, Limits(), DecodeConfig(**request["decode"]), out, lambda done: None)
        out.publish({"clip": path.name, "warnings": []})
    return request["info"]


def sound(request: dict[str, Any]) -> dict[str, Any]:
    """Copy its sound into a video of ours; what could not be kept."""
    from ...engine.video import add_sound

    return {"warnings": add_sound(Path(request["video"]), Path(request["path"]), start_s=request["start_s"])}


VERBS = {"probe": probe, "frames": frames, "sound": sound}

if __name__ == "__main__":
    main()
