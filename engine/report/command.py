"""The command line that does a run again."""

import shlex
from operator import attrgetter

from ..cameras.spec import FileSpec
from ..config import OPTIONS, quality_config
from ..graph.context import Run


def command_of(run: Run) -> tuple[str, list[str]]:
    """The command, and the options ("section.field") that it cannot say and that `config.json` holds.

    A camera that came with a source camera's file is given as the bundle's own `camera.json`, which needs no other.
    """
    name = run.models.entry.name
    usual = quality_config("standard", model=name, seed=run.config.seed)
    words = ["recapture", "run", run.clip_name]
    joined = isinstance(run.camera, FileSpec) and (run.camera.source is not None or run.camera.path_scale is not None)
    words += ["--camera", "camera.json" if joined else run.camera.text, "--model", name, "--seed", str(run.config.seed)]
    unsaid = []
    for path, option in OPTIONS.items():
        value = attrgetter(path)(run.config)
        if path in ("model", "seed") or value == attrgetter(path)(usual):
            continue
        said = option.words(value)
        words += said or []
        unsaid += [] if said else [path]
    brought = (("--depth-dir", run.depth_dir), ("--mask-dir", run.mask_dir), ("--clean-plate", run.clean_plate))
    for flag, path in brought:
        words += [] if path is None else [flag, str(path)]
    words += ["--force"] if run.force else []
    return shlex.join([*words, "--out", "out"]), unsaid
