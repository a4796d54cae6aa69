"""The command line that does a run again."""

import shlex
from dataclasses import asdict

from ..cameras.spec import FileSpec
from ..config import quality_config
from ..graph.context import Run

FLAGS = {
    ("decode", "first_frame"): "--first-frame",
    ("decode", "max_frames"): "--frames",
    ("depth", "model"): "--depth",
    ("depth", "fov_deg"): "--fov",
    ("anchor", "route"): "--anchor",
    ("anchor", "multiview"): "--multiview",
    ("condition", "height"): "--height",
    ("condition", "width"): "--width",
    ("condition", "mask_mode"): "--mask",
    ("condition", "mask_threshold"): "--mask-threshold",
    ("tune", "rank"): "--rank",
    ("tune", "lr"): "--lr",
    ("tune", "spatial_steps"): "--spatial-steps",
    ("tune", "temporal_steps"): "--temporal-steps",
    ("tune", "checkpointing"): "--checkpointing",
    ("tune", "schedule"): "--schedule",
    ("sample", "seed"): "--sample-seed",
    ("sample", "steps"): "--sample-steps",
    ("sample", "start"): "--start",
    ("sample", "start_sigma"): "--start-sigma",
    ("sample", "guidance"): "--guidance",
    ("sample", "overlap"): "--overlap",
    ("sample", "decode_chunk"): "--decode-chunk",
    ("refine", "sigma"): "--sdedit-sigma",
    ("refine", "steps"): "--sdedit-steps",
    ("deliver", "composite"): "--composite",
    ("deliver", "feather_px"): "--feather",
}
"""Option of `recapture run` by section and field; the other fields come by `--config config.json`."""


def command_of(run: Run) -> tuple[str, list[str]]:
    """The command, and the options ("section.field") that it cannot say and that `config.json` holds.

    A camera that came with a source camera's file is given as the bundle's own `camera.json`, which needs no other.
    """
    name = run.models.entry.name
    usual = asdict(quality_config("standard", model=name, seed=run.config.seed))
    words = ["recapture", "run", run.clip_name]
    joined = isinstance(run.camera, FileSpec) and (run.camera.source is not None or run.camera.path_scale is not None)
    words += ["--camera", "camera.json" if joined else run.camera.text, "--model", name, "--seed", str(run.config.seed)]
    unsaid = []
    for section, values in asdict(run.config).items():
        if not isinstance(values, dict):
            continue
        for field, value in values.items():
            if value == usual[section][field]:
                continue
            flag = FLAGS.get((section, field))
            if field == "guidance":  # the option gives the last frame's, the first frame's is 1
                value = value[1] if value[0] == 1 else None
            if (section, field) == ("anchor", "locked") and value is not None:
                words += ["--locked" if value else "--not-locked"]
            elif (section, field) == ("anchor", "allow_noncommercial"):
                words += ["--allow-noncommercial"]
            elif (section, field) == ("tune", "warm_start"):
                words += ["--warm-start"] if value else ["--no-warm-start"]
            elif flag is None or value is None:
                unsaid.append(f"{section}.{field}")
            else:
                words += [flag, str(value)]
    words += [] if run.config.attention == "sdpa" else ["--attention", run.config.attention]
    words += ["--offload"] if run.config.offload else []
    brought = (("--depth-dir", run.depth_dir), ("--mask-dir", run.mask_dir), ("--clean-plate", run.clean_plate))
    for flag, path in brought:
        words += [] if path is None else [flag, str(path)]
    words += ["--force"] if run.force else []
    return shlex.join([*words, "--out", "out"]), unsaid
