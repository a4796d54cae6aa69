"""The command line that does a run again."""

import shlex
from operator import attrgetter

from ..cameras.spec import FileSpec
from ..config import OPTIONS, quality_config
from ..models.precision import name_of
from ..stage_results import StageResults


def command_of(result: StageResults) -> tuple[str, list[str]]:
    """The command, and the options ("section.field") that it cannot say and that `config.json` holds.

    A camera that came with a source camera's file is given as the bundle's own `camera.json`, which needs no other.
    """
    request, name = result.request, result.context.models.entry.name
    usual = quality_config("standard", model=name, seed=request.config.seed)
    words = ["recapture", "run", request.clip_name]
    joined = isinstance(request.camera, FileSpec) and (
        request.camera.source is not None or request.camera.path_scale is not None
    )
    words += [
        "--camera",
        "camera.json" if joined else request.camera.text,
        "--model",
        name,
        "--seed",
        str(request.config.seed),
    ]
    unsaid = []
    # A plan is made anew where the command is typed, and the device suggests the same precision.
    settled = {"memory": None, "dtype": name_of(result.context.models.dtype)}
    for path, option in OPTIONS.items():
        value = attrgetter(path)(request.config)
        if path in ("model", "seed") or value == attrgetter(path)(usual) or settled.get(path, ...) == value:
            continue
        said = option.words(value)
        words += said or []
        unsaid += [] if said else [path]
    brought = (
        ("--depth-dir", request.depth_dir),
        ("--mask-dir", request.mask_dir),
        ("--clean-plate", request.clean_plate),
    )
    for flag, path in brought:
        words += [] if path is None else [flag, str(path)]
    words += ["--force"] if request.force else []
    return shlex.join([*words, "--out", "out"]), unsaid
