"""Options that requests take. Made from `engine/config.py` by `make options`: change them there.

None leaves an option to the service, which takes what the quality and the model set.
"""

from typing import Annotated, Literal

from pydantic import Field

from .base import Asked


class ClipOptions(Asked):
    """What is read of the clip."""

    first_frame: Annotated[int, Field(ge=0, le=10000000)] | None = None
    """Index of the first frame of the clip to use."""
    frames: Annotated[int, Field(ge=2, le=1000000)] | None = None
    """Use at most this many frames."""
    structure: bool | None = None
    """Give depth hard borders, flat planes and upright things."""
    fov_deg: Annotated[float, Field(ge=5, le=160)] | None = None
    """Horizontal field of view of the clip."""
    locked: bool | None = None
    """The source camera stands still: other frames show what one hides."""
    relative_to: Literal["world", "source"] | None = None
    """The path starts at the first source pose and stays in the world, or rides on the source camera."""
    background: bool | None = None
    """Fill what a moment does not show with what other frames show of surfaces that stand still."""


class SampleOptions(Asked):
    """What may change while the adapters stay as they are tuned."""

    sample_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Denoising steps per window."""
    sdedit_sigma: Annotated[float, Field(ge=0, le=700)] | None = None
    """Noise that SDEdit starts from; 0 skips it."""
    sdedit_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Denoising steps of SDEdit."""


class Options(ClipOptions, SampleOptions):
    """Of a render, named as the command's options are."""

    quality: Literal["draft", "standard", "paper"] = "standard"
    anchor: Literal["points", "multiview", "auto"] | None = None
    """What fills holes of the anchor: nothing, a multiview model, or what suits the path."""
    height: Annotated[int, Field(ge=32, le=4096)] | None = None
    """Working height of the model, with a width."""
    width: Annotated[int, Field(ge=32, le=4096)] | None = None
    """Working width of the model, with a height."""
    rank: Annotated[int, Field(ge=1, le=256)] | None = None
    """LoRA rank."""
    lr: Annotated[float, Field(ge=1e-07, le=0.1)] | None = None
    """Learning rate."""
    spatial_steps: Annotated[int, Field(ge=0, le=100000)] | None = None
    """Tuning steps of the spatial adapter."""
    temporal_steps: Annotated[int, Field(ge=0, le=100000)] | None = None
    """Tuning steps of the temporal adapter."""
    schedule: Literal["decoupled", "joint"] | None = None
    """Spatial adapter once per clip, or both in each step (the paper)."""
    warm_start: bool | None = None
    """Begin with the adapter of the clip's nearest tuned path."""
    start: Literal["noise", "anchor"] | None = None
    """Begin sampling from noise (the paper) or from the noised anchor."""
    start_sigma: Annotated[float, Field(ge=0.01, le=700)] | None = None
    """Noise over the anchor where sampling starts there."""
    guidance: Annotated[float, Field(ge=1, le=20)] | None = None
    """Classifier-free guidance at a window's last frame; 1 is off."""
    overlap: Annotated[int, Field(ge=1, le=64)] | None = None
    """Frames that consecutive windows share."""
    composite: Literal["on", "off"] | None = None
    """Keep real pixels where there are any, or deliver pure model output (the paper)."""
    feather_px: Annotated[float, Field(ge=0, le=64)] | None = None
    """How far holes are blended to meet the real pixels at their rim."""
    fill: Literal["model", "texture"] | None = None
    """In the holes: the model's picture as it is, or with detail copied from the clip."""


FIELDS = {
    "decode.first_frame": "first_frame",
    "decode.max_frames": "frames",
    "depth.structure": "structure",
    "depth.fov_deg": "fov_deg",
    "anchor.locked": "locked",
    "anchor.route": "anchor",
    "motion.relative_to": "relative_to",
    "motion.background": "background",
    "condition.height": "height",
    "condition.width": "width",
    "tune.rank": "rank",
    "tune.lr": "lr",
    "tune.spatial_steps": "spatial_steps",
    "tune.temporal_steps": "temporal_steps",
    "tune.schedule": "schedule",
    "tune.warm_start": "warm_start",
    "sample.steps": "sample_steps",
    "sample.start": "start",
    "sample.start_sigma": "start_sigma",
    "sample.guidance": "guidance",
    "sample.overlap": "overlap",
    "refine.sigma": "sdedit_sigma",
    "refine.steps": "sdedit_steps",
    "deliver.composite": "composite",
    "deliver.feather_px": "feather_px",
    "deliver.fill": "fill",
}
"""Section and field of a configuration -> name of the option in requests."""
