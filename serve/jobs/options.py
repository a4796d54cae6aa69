"""From what a request says to what the engine runs."""

import hashlib
from typing import Any

from ...client.schema import CameraFile, ClipOptions, Options, Resample, to_json
from ...engine.cameras import parse_expression
from ...engine.cameras.formats import native
from ...engine.config import RunConfig, override, quality_config
from ...engine.store.entry import canonical_json


def check_camera(camera: str | CameraFile) -> str | dict[str, Any]:
    """The camera as it is kept in a job: an expression, or a camera file's content.

    A string is parsed as an expression and as nothing else: a path of ours given by a stranger must not be opened.

    Raises:
        CameraError: unknown preset, malformed expression, a pose that is no pose.
    """
    if isinstance(camera, str):
        parse_expression(camera)
        return camera
    kept = to_json(camera)
    native.decode(canonical_json(kept).decode(), "camera")
    return kept


def camera_text(camera: str | dict[str, Any]) -> str:
    """What a list shows of a camera."""
    return camera if isinstance(camera, str) else f"camera file, {len(camera['frames'])} frames"


def run_config(model: str, options: Options, seed: int) -> RunConfig:
    """The configuration of a render.

    Raises:
        InputError: values that do not go together; names the option.
    """
    chosen: dict[str, dict[str, Any]] = {
        "anchor": {"route": options.anchor},
        "condition": {"height": options.height, "width": options.width},
        "tune": {
            "rank": options.rank,
            "lr": options.lr,
            "spatial_steps": options.spatial_steps,
            "temporal_steps": options.temporal_steps,
            "schedule": options.schedule,
            "warm_start": options.warm_start,
        },
        "sample": {
            "steps": options.sample_steps,
            "start": options.start,
            "start_sigma": options.start_sigma,
            "guidance": None if options.guidance is None else (1.0, options.guidance),
            "overlap": options.overlap,
        },
        "refine": {"sigma": options.sdedit_sigma, "steps": options.sdedit_steps},
        "deliver": {"composite": options.composite, "feather_px": options.feather_px},
    }
    base = override(quality_config(options.quality, model=model, seed=seed), _given(chosen))
    return override(base, clip_sections(options))


def clip_sections(options: ClipOptions) -> dict[str, dict[str, Any]]:
    """The part of the configuration that is about the clip."""
    return _given(
        {
            "decode": {"first_frame": options.first_frame, "max_frames": options.frames},
            "depth": {"fov_deg": options.fov_deg},
            "anchor": {"locked": options.locked},
        }
    )


def resampled(config: RunConfig, asked: Resample, *, depth: str | None) -> RunConfig:
    """The configuration of a render with another sample: all that its tuning depends on stays.

    Args:
        depth: the depth model that the render used; its own configuration may only say `auto`.

    Raises:
        InputError: values that do not go together.
    """
    changes = {
        "depth": {"model": depth},
        "sample": {"seed": asked.seed, "steps": asked.sample_steps},
        "refine": {"sigma": asked.sdedit_sigma, "steps": asked.sdedit_steps},
    }
    return override(config, _given(changes))


def digest_of(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _given(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {k: v for k, v in values.items() if v is not None} for name, values in sections.items()}
