"""From what a request says to what the engine runs."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...client.options import ClipOptions, Options, SampleOptions
from ...client.schema import CameraFile, Resample, to_json
from ...engine.cameras import parse_expression
from ...engine.cameras.formats import native
from ...engine.config import OPTIONS, RunConfig, override, quality_config
from ...engine.options import by_section
from ...engine.store.entry import canonical_json


def check_camera(camera: str | CameraFile) -> str | dict[str, Any]:
    """The camera as it is kept in a job: an expression, or a camera file's content.

    A string is parsed only as an expression: a caller must not make the service open one of its own files.

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
    """A camera's text in a list."""
    return camera if isinstance(camera, str) else f"camera file, {len(camera['frames'])} frames"


def run_config(model: str, options: Options, seed: int, defaults: Mapping[str, Any]) -> RunConfig:
    """The configuration of a render.

    Args:
        defaults: the operator's, by path.

    Raises:
        InputError: values that do not go together; carries the option's path.
    """
    base = override(quality_config(options.quality, model=model, seed=seed), by_section(defaults))
    return override(replace(base, seed=seed), sections(options))


def sections(options: ClipOptions | SampleOptions) -> dict[str, dict[str, Any]]:
    """Configuration values set by a request, by section and field."""
    given = {
        path: option.read(getattr(options, option.request_name, None))
        for path, option in OPTIONS.items()
        if option.request
    }
    return by_section({path: value for path, value in given.items() if value is not None})


def resampled(config: RunConfig, asked: Resample, *, depth: str | None) -> RunConfig:
    """The configuration of a render with another sample: all that its tuning depends on stays.

    Args:
        depth: the depth model that the render used; its own configuration may only say `auto`.

    Raises:
        InputError: values that do not go together.
    """
    kept = {"depth.model": depth, "sample.seed": asked.seed}
    given = by_section({path: value for path, value in kept.items() if value is not None})
    return override(override(config, given), sections(asked))


def digest_of(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
