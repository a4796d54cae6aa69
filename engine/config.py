"""Everything that can be chosen, one dataclass a stage; a stage's key in the store is its own dataclass and no more.

The defaults are the paper's recipe, the spatial adapter tuned once per clip and real pixels kept; `quality_config` gives
the others by name.
"""

import json
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from .errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    first_frame: int = 0
    """Index of the clip's first frame that is used."""
    max_frames: int | None = None
    """At most this many frames; None takes the whole clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthConfig:
    model: str = "auto"
    """`auto` (the best on this machine; a run's own configuration names which), `embedded`, `depth`, a directory in the
    transformers layout, or a hub name of depth_anything, depth_pro or zoedepth."""
    smooth: bool = True
    """Filter over time along the optical flow: a composite is only as steady as its depth."""
    structure: bool | None = None
    """Hard borders, flat planes, upright things, one background for a standing camera; None: for estimated depth alone."""
    fov_deg: float | None = None
    """Horizontal field of view of the clip; None takes the file's metadata, the depth model's estimate, or 55 degrees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorConfig:
    band: float = 0.05
    """Relative depth within which two points are one surface."""
    locked: bool | None = None
    """Whether the source camera stands still, so that other frames may show what one hides; None finds out."""
    route: Literal["points", "multiview", "auto"] = "points"
    """What the new camera sees where no point falls: a hole, or what a multiview model imagines; `auto` decides by path."""
    multiview: str = "embedded"
    """The multiview model: `embedded`, a directory, or an adapter as `package.module:Class`."""
    allow_noncommercial: bool = False
    """The user says that this use is none that a model's licence forbids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionConfig:
    """What the video model sees of the source and of the anchor."""

    height: int | None = None
    """Working height in pixels; None derives the size from the model's training area and the clip's shape."""
    width: int | None = None
    micro_batch: int = 4
    """Frames a VAE or image encoder call, counted from frame 0; fixed, so that no split changes a bit."""
    noise_augmentation: float = 0.02
    motion_bucket: int = 127
    augmentations: int = 64
    """Random crops and flips of source frames that the spatial adapter learns from."""
    mask_mode: Literal["area", "min"] = "area"
    mask_threshold: float = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    rank: int = 16
    lr: float = 5e-4
    spatial_steps: int = 400
    temporal_steps: int = 400
    spatial_batch: int = 1
    """Frames a spatial step."""
    temporal_batch: int = 1
    """Windows a temporal step; several devices share them."""
    schedule: Literal["decoupled", "joint"] = "decoupled"
    """`joint` is the paper: each step tunes both. `decoupled` tunes the spatial adapter once per clip."""
    spatial_prompt: Literal["other", "none"] = "other"
    """Image prompt of the spatial pass: another source frame, or dropped (a frame as its own prompt teaches copying)."""
    normalisation: Literal["window", "frame", "none"] = "window"
    sigma_mean: float = 0.7
    """Mean of ln sigma."""
    sigma_std: float = 1.6
    weight_decay: float = 0.0
    warm_start: bool = False
    """Begin the temporal adapter as that of the nearest path the clip was tuned for, and stop where that one got to."""
    checkpointing: Literal["none", "balanced", "full", "stock"] = "none"
    """Activations kept for the backward pass: all, all but the transformer blocks' inside, no block's inside, or as
    diffusers does. Changes no bit."""
    checkpoint_every: int = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    seed: int | None = None
    """Of the noise that sampling begins from; None is the run's. Another one samples again with the same adapters."""
    steps: int = 25
    start: Literal["noise", "anchor"] = "noise"
    """`noise` is the paper; `anchor` begins from the hole-filled anchor, noised to `start_sigma`."""
    start_sigma: float = 10.0
    guidance: tuple[float, float] = (1.0, 3.0)
    """Classifier-free guidance at a window's first and last frame; 1 costs nothing."""
    overlap: int = 4
    """Frames that a window shares with the one before it."""
    decode_chunk: int | None = None
    """Frames the VAE decodes at once; None is the model's window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineConfig:
    """SDEdit with the spatial adapter alone."""

    sigma: float = 1.0
    """Noise the sample is taken back to; 0 skips the stage."""
    steps: int = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliverConfig:
    composite: Literal["on", "off"] = "on"
    """`on` keeps real pixels wherever the anchor has them; `off` delivers the pure model output, as the paper does."""
    feather_px: float = 8.0
    """How far into a hole the generated picture is bent to meet the real pixels at its rim, in pixels of the clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    model: str = "tiny"
    seed: int = 0
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """Operator of the UNet's attention: torch's own, or xformers' (an optional extra, on a GPU only)."""
    offload: bool = False
    """VAE and image encoder wait in main memory while the UNet works. Changes no bit."""
    memory: float | Literal["auto"] | None = None
    """GiB that the run may take of its device, `auto` for what is free: size, checkpointing, offload and decode chunk are
    lowered to it before work starts, and stand in the run's configuration instead of this. None lowers nothing."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    deliver: DeliverConfig = field(default_factory=DeliverConfig)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "RunConfig":
        """Rebuild from `to_json`; unknown fields are refused by name."""
        return _build(RunConfig, value, "")


QUALITIES: dict[str, dict[str, dict[str, Any]]] = {
    "draft": {
        "tune": {"spatial_steps": 0, "temporal_steps": 0},
        "sample": {"steps": 10, "start": "anchor"},
        "refine": {"sigma": 0.0},
    },
    "standard": {},
    "paper": {"tune": {"schedule": "joint"}, "deliver": {"composite": "off"}},
}
"""Values that a quality sets, by section, over the defaults above."""

EMBEDDED: dict[str, dict[str, dict[str, Any]]] = {
    # A prior this small cannot tell fine noise from texture: many steps, high noise levels and SDEdit leave coloured noise.
    "draft": {"sample": {"steps": 2, "start_sigma": 2.0, "guidance": (1.0, 1.0)}},
    "standard": {
        "condition": {"augmentations": 24},
        "tune": {"lr": 2e-3, "spatial_steps": 60, "temporal_steps": 40, "spatial_batch": 4, "checkpoint_every": 10},
        "sample": {"steps": 2, "start": "anchor", "start_sigma": 2.0, "guidance": (1.0, 1.0)},
        "refine": {"steps": 2, "sigma": 0.0},
    },
}
"""What the embedded model does otherwise."""


def quality_config(quality: str, *, model: str, seed: int = 0) -> RunConfig:
    """The configuration of `draft`, `standard` or `paper` for a model.

    Raises:
        InputError: no such quality.
    """
    if quality not in QUALITIES:
        raise InputError(f"{quality!r} is not one of {', '.join(QUALITIES)}", param="--quality")
    config = override(RunConfig(model=model, seed=seed), QUALITIES[quality])
    return override(config, EMBEDDED.get(quality, {}) if model == "tiny" else {})


def read_config(path: Path) -> RunConfig:
    """The configuration in the `config.json` of an earlier run.

    Raises:
        InputError: no such file, or not of this kind.
    """
    try:
        document = json.loads(path.read_text())
        if document["schema"] != "recapture.config" or document["version"] != 1:
            raise ValueError("another schema or version")
        config = RunConfig.from_json(document["config"])
        check(config)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not the config.json of a run ({error})", param="--config") from None
    return config


def override(config: RunConfig, sections: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """Replace fields by section and name; the result is checked."""
    changed = {}
    for section, values in sections.items():
        part = getattr(config, section)
        known = {f.name for f in fields(part)}
        unknown = set(values) - known
        if unknown:
            raise InputError(f"{section} has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
        changed[section] = replace(part, **values)
    result = replace(config, **changed)
    check(result)
    return result


# Bounds by section and field: (least, most). A number outside is refused by the option's name.
_BOUNDS: dict[str, dict[str, tuple[float, float]]] = {
    "decode": {"first_frame": (0, 10**7), "max_frames": (2, 10**6)},
    "depth": {"fov_deg": (5, 160)},
    "anchor": {"band": (0.001, 0.5)},
    "condition": {
        "height": (32, 4096),
        "width": (32, 4096),
        "micro_batch": (1, 64),
        "noise_augmentation": (0, 1),
        "motion_bucket": (0, 255),
        "augmentations": (2, 1024),
        "mask_threshold": (0.01, 1),
    },
    "tune": {
        "rank": (1, 256),
        "lr": (1e-7, 0.1),
        "spatial_steps": (0, 100_000),
        "temporal_steps": (0, 100_000),
        "spatial_batch": (1, 64),
        "temporal_batch": (1, 64),
        "sigma_mean": (-5, 5),
        "sigma_std": (0.01, 5),
        "weight_decay": (0, 1),
        "checkpoint_every": (1, 100_000),
    },
    "sample": {
        "seed": (0, 2**31 - 1),
        "steps": (1, 1000),
        "start_sigma": (0.01, 700),
        "overlap": (1, 64),
        "decode_chunk": (1, 256),
    },
    "refine": {"sigma": (0, 700), "steps": (1, 1000)},
    "deliver": {"feather_px": (0, 64)},
}


def check(config: RunConfig) -> None:
    """Refuse values out of bounds and choices that do not exist.

    Raises:
        InputError: names the option and what is accepted.
    """
    for section in ("", *_BOUNDS):
        part, bounds = (getattr(config, section), _BOUNDS[section]) if section else (config, {})
        for name, (least, most) in bounds.items():
            value = getattr(part, name)
            if value is not None and not isinstance(value, numbers.Real):
                raise InputError(f"{value!r} is no number, {least:g} to {most:g} is accepted", param=_option(name))
            if isinstance(getattr(type(part)(), name), int) and not isinstance(value, numbers.Integral):
                raise InputError(f"{value!r} is no whole number", param=_option(name))
            if value is not None and not least <= value <= most:
                raise InputError(f"{value} is out of range, {least:g} to {most:g} is accepted", param=_option(name))
        for name, kind in get_type_hints(type(part)).items():
            choices = [a for a in get_args(kind) if isinstance(a, str)]
            if choices and getattr(part, name) not in choices:
                accepted = ", ".join(choices)
                raise InputError(f"{getattr(part, name)!r} is not one of {accepted}", param=_option(name))
    if config.memory not in (None, "auto"):
        number = isinstance(config.memory, int | float) and not isinstance(config.memory, bool)
        if not number or not 0 < config.memory <= 1e5:
            raise InputError(f"{config.memory!r} is neither auto nor a number of GiB above 0", param="--memory")
    if config.anchor.route == "points" and (config.anchor.multiview != "embedded" or config.anchor.allow_noncommercial):
        raise InputError("it is for --anchor multiview or auto; the route is points", param="--multiview")
    size = config.condition.height, config.condition.width
    if (size[0] is None) != (size[1] is None):
        raise InputError("give both --height and --width, or neither", param="--height")
    if config.tune.schedule == "joint" and config.tune.spatial_steps != config.tune.temporal_steps:
        raise InputError("the joint schedule tunes both in each step: give one number of steps", param="--schedule")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _build(kind: type, value: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    unknown = set(value) - set(hints)
    if unknown:
        raise InputError(f"the configuration has no field {where}{sorted(unknown)[0]}")
    made = {}
    for name, item in value.items():
        if is_dataclass(hints[name]):
            item = _build(hints[name], item, f"{where}{name}.")
        made[name] = tuple(item) if isinstance(item, list) else item
    return kind(**made)
