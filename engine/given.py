"""The user's own results in place of a stage's: frames, depth, an anchor, tuned adapters, keyed by their content."""

import hashlib
import importlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .anchor.writing import check_coverage
from .errors import InputError
from .geometry.depth_files import write_depth
from .graph.context import StageContext
from .graph.request import folder_digest
from .graph.stage import Compute, Inputs, Stage
from .models.adapters import AdapterName
from .stage_results import load_camera_path
from .store import Writer
from .video import ClipInfo
from .video.clip import UNSPECIFIED, ColorTags

Replacement = Callable[[Stage, Inputs], Stage]
"""Makes the stage that takes what was given, once the stages before it have their results."""

DepthFunction = Callable[[np.ndarray], np.ndarray]
"""Depth [N, h, w] in any one unit, of frames uint8 [N, H, W, 3]."""


def array_digest(*arrays: np.ndarray) -> str:
    """sha256 over kinds, shapes and values."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str} {array.shape} ".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _taking(stage: Stage, compute: Compute, config: dict[str, Any], about: str) -> Stage:
    return replace(
        stage, compute=compute, config=lambda context: config, weights=lambda context: None, about=about, optional=None
    )


def clip_info(frames: np.ndarray, fps: float) -> ClipInfo:
    """What `probe` would say of these frames.

    Raises:
        InputError: they are not uint8 [N, H, W, 3], or the rate is not positive.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise InputError(f"must be uint8 [N, H, W, 3], not {frames.dtype} {list(frames.shape)}", param="frames")
    if not 0 < fps < 1000:
        raise InputError(f"must be between 0 and 1000 frames per second, not {fps}", param="fps")
    count, height, width, _ = frames.shape
    rate = Fraction(fps).limit_denominator(1001)
    return ClipInfo(
        width=width, height=height, coded_width=width, coded_height=height, rotation_deg=0, sample_aspect=Fraction(1),
        rate=rate, time_base=1 / rate, duration_s=float(count / rate), declared_frames=count, container="array",
        codec="raw", pix_fmt="rgb24",
        color=ColorTags(primaries=UNSPECIFIED, transfer=UNSPECIFIED, matrix=UNSPECIFIED, full_range=False),
        has_audio=False, focal_px=None,
    )  # fmt: skip


def given_frames(frames: np.ndarray, digest: str) -> Replacement:
    """The clip as an array, uint8 [N, H, W, 3]."""

    def compute(context: StageContext, inputs: Inputs, out: Writer) -> None:
        options, info = context.config.decode, context.request.info
        indices = range(len(frames))[options.first_frame :][: options.max_frames]
        out.save_array("frames", np.ascontiguousarray(frames[indices.start : indices.stop]))
        out.json("clip", {"info": info.to_json(), "times_s": [float(t / info.rate) for t in indices]})

    def taking(stage: Stage, inputs: Inputs) -> Stage:
        taken = _taking(stage, compute, {}, "Take the given frames")
        return replace(taken, config=lambda context: _frames_key(context, digest))

    return taking


def _frames_key(context: StageContext, digest: str) -> dict[str, Any]:
    rate = context.request.info.rate
    return {"given": digest, "rate": f"{rate.numerator}/{rate.denominator}", **asdict(context.config.decode)}


def given_depth(depth: np.ndarray | DepthFunction | str) -> Replacement:
    """Depth as an array [N, h, w] (one map per frame that is used), a function of the frames, or a class
    `package.module:Class` whose instance is such a function and whose `version` names its weights.

    Depth is taken as it is: inf is sky, NaN and what is not positive is unknown.
    """

    def taking(stage: Stage, inputs: Inputs) -> Stage:
        frames = inputs["frames"].array("frames")
        if isinstance(depth, str):
            kind = _imported(depth)
            config = {"given": depth, "version": kind.version}

            def maps() -> np.ndarray:
                return np.asarray(kind()(frames))
        else:
            made = np.asarray(depth(frames) if callable(depth) else depth, dtype=np.float32)
            config = {"given": array_digest(made)}

            def maps() -> np.ndarray:
                return made

        def compute(context: StageContext, inputs: Inputs, out: Writer) -> None:
            found = maps()
            if found.ndim != 3 or len(found) != len(frames):
                raise InputError(
                    f"must be [{len(frames)}, h, w], one map per frame, not {list(found.shape)}", param="depth"
                )
            summary = write_depth(
                (found[t].astype(np.float32) for t in range(len(found))),
                lambda shape: out.array("depth", shape_per_row=shape, dtype=np.float32),
                where="the given depth",
                param="depth",
            )
            out.json("summary", asdict(summary))

        return _taking(stage, compute, config, "Take the given depth")

    return taking


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever stands in the user's module
        raise InputError(f"{name} cannot be imported ({type(error).__name__}: {error})", param="depth") from None
    if not callable(kind) or not isinstance(getattr(kind, "version", None), str):
        raise InputError(f"{name} is not a class with a `version`, which names its weights", param="depth")
    return kind


def given_anchor(color: np.ndarray, mask: np.ndarray) -> Replacement:
    """An anchor video of the clip's size: color uint8 [N, H, W, 3] and validity mask bool [N, H, W]."""
    color, mask = np.asarray(color), np.asarray(mask)
    if color.dtype != np.uint8 or color.ndim != 4 or mask.dtype != bool or color.shape != (*mask.shape, 3):
        raise InputError(
            "must be uint8 [N, H, W, 3] and bool [N, H, W], "
            f"not {color.dtype} {list(color.shape)} and {mask.dtype} {list(mask.shape)}",
            param="anchor",
        )

    def compute(context: StageContext, inputs: Inputs, out: Writer) -> None:
        path = load_camera_path(inputs)
        wanted = (len(path), path.height, path.width)
        if mask.shape != wanted:
            raise InputError(f"must have {wanted[0]} frames of {wanted[2]}x{wanted[1]}", param="anchor")
        provenance = np.where(mask, np.uint8(255), np.uint8(0))
        for name, values in (
            ("color", color),
            ("validity_mask", mask),
            ("alpha", provenance),
            ("provenance", provenance),
        ):
            out.save_array(name, np.ascontiguousarray(values))
        holes = [1 - float(frame.mean()) for frame in mask]
        none = [0.0] * len(mask)
        out.json("coverage", {"holes": holes, "other_frames": none, "synthesized": none, "route": "given"})
        check_coverage(holes, force=context.request.force, warn=context.warn)

    config = {"given": array_digest(color, mask)}
    return lambda stage, inputs: _taking(stage, compute, config, "Take the given anchor")


def given_adapter(name: AdapterName, folder: Path) -> Replacement:
    """A tuned adapter in PEFT's layout, as `Result.save(tuned=True)` and `--adapters` write it."""
    digest = folder_digest(folder, f"{name}_adapter")

    def compute(context: StageContext, inputs: Inputs, out: Writer) -> None:
        shutil.copytree(folder, out.path / name)
        out.json("tuning", {"steps": 0, "losses": {}, "held_out": {}, "warm_start": None})

    return lambda stage, inputs: _taking(stage, compute, {"given": digest}, f"Take the given {name} adapter")
