"""Everything that can be chosen, one dataclass per stage; a stage's key in the store is its own dataclass and no more.

Each option is defined here and nowhere else: value, flag, bounds, help (see `options.py`). The defaults are the paper's
recipe, with the spatial adapter tuned once per clip and real pixels kept; `quality_config` gives the others by name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_type_hints

from .catalog import check_depth_name
from .errors import InputError
from .options import option, table_of


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    first_frame: int = option(
        0, "Index of the first frame of the clip to use.", "--first-frame", bounds=(0, 10**7), request="clip"
    )
    max_frames: int | None = option(
        None, "Use at most this many frames.", "--frames", bounds=(2, 10**6), unset="all", request="clip"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthConfig:
    model: str = option(
        "auto",
        "auto (the best on this machine), embedded, depth (Depth Anything V2 Small), a directory or a hub name.",
        "--depth",
    )
    kind: Literal["depth", "inverse", "disparity"] | None = option(
        None,
        "What your own depth files hold: depth, inverse depth, or disparity of unknown scale and shift.",
        "--depth-kind",
        unset="by their names",
    )
    smooth: bool = option(True, "Filter over time along the optical flow: a composite is only as steady as its depth.")
    structure: bool | None = option(
        None,
        "Give depth hard borders, flat planes and upright things.",
        "--structure",
        off="--no-structure",
        unset="for estimated depth",
        request="clip",
    )
    fov_deg: float | None = option(
        None,
        "Horizontal field of view of the clip.",
        "--fov",
        bounds=(5, 160),
        unit="deg",
        unset="estimated",
        request="clip",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorConfig:
    depth_tolerance: float = option(
        0.05, "Relative depth within which two points are one surface.", bounds=(0.001, 0.5)
    )
    locked: bool | None = option(
        None,
        "The source camera stands still: other frames show what one hides.",
        "--locked",
        off="--not-locked",
        unset="detected",
        request="clip",
    )
    route: Literal["points", "multiview", "auto"] = option(
        "points",
        "What fills holes of the anchor: nothing, a multiview model, or what suits the path.",
        "--anchor",
        request="render",
    )
    multiview: str = option(
        "embedded", "Multiview model: embedded, a directory, or package.module:Class.", "--multiview"
    )
    allow_noncommercial: bool = option(
        False, "Confirm that this use complies with non-commercial model licenses.", "--allow-noncommercial"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionConfig:
    """A source camera that moves."""

    relative_to: Literal["world", "source"] | None = option(
        None,
        "The path starts at the first source pose and stays in the world, or rides on the source camera.",
        "--relative-to",
        unset="world, where the source moves",
        request="clip",
    )
    background: bool = option(
        True,
        "Fill what a moment does not show with what other frames show of surfaces that stand still.",
        "--background",
        off="--no-background",
        request="clip",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionConfig:
    """What the video model sees of the source and of the anchor."""

    height: int | None = option(
        None,
        "Working height of the model, with a width.",
        "--height",
        bounds=(32, 4096),
        unit="px",
        unset="by model and clip",
        request="render",
    )
    width: int | None = option(
        None,
        "Working width of the model, with a height.",
        "--width",
        bounds=(32, 4096),
        unit="px",
        unset="by model and clip",
        request="render",
    )
    micro_batch: int = option(4, "Frames per call of the VAE or image encoder, counted from frame 0.", bounds=(1, 64))
    noise_augmentation: float = option(0.02, "Noise added to the image prompt.", bounds=(0, 1))
    motion_bucket: int = option(127, "Amount of motion that the model is asked for.", bounds=(0, 255))
    augmentations: int = option(
        64, "Random crops and flips of source frames that the spatial adapter learns from.", bounds=(2, 1024)
    )
    mask_mode: Literal["area", "min"] = option(
        "area", "Latent mask: valid share of a cell, or valid only where all of it is.", "--mask"
    )
    mask_threshold: float = option(
        0.9, "Least valid share of a latent cell, for an area mask.", "--mask-threshold", bounds=(0.01, 1)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    rank: int = option(16, "LoRA rank.", "--rank", bounds=(1, 256), request="render")
    lr: float = option(5e-4, "Learning rate.", "--lr", bounds=(1e-7, 0.1), request="render")
    spatial_steps: int = option(
        400, "Tuning steps of the spatial adapter.", "--spatial-steps", bounds=(0, 100_000), request="render"
    )
    temporal_steps: int = option(
        400, "Tuning steps of the temporal adapter.", "--temporal-steps", bounds=(0, 100_000), request="render"
    )
    spatial_batch: int = option(1, "Frames per step of the spatial adapter.", bounds=(1, 64))
    temporal_batch: int = option(
        1, "Windows per step of the temporal adapter; several devices share them.", "--temporal-batch", bounds=(1, 64)
    )
    schedule: Literal["decoupled", "joint"] = option(
        "decoupled", "Spatial adapter once per clip, or both in each step (the paper).", "--schedule", request="render"
    )
    spatial_prompt: Literal["other", "none"] = option(
        "other", "Image prompt of the spatial pass: another source frame, or none."
    )
    normalization: Literal["window", "frame", "none"] = option(
        "window", "What the masked loss is divided by: valid cells of the window or of each frame, or nothing."
    )
    sigma_mean: float = option(0.7, "Mean of ln sigma in tuning.", bounds=(-5, 5))
    sigma_std: float = option(1.6, "Standard deviation of ln sigma in tuning.", bounds=(0.01, 5))
    weight_decay: float = option(0.0, "Weight decay of AdamW.", bounds=(0, 1))
    warm_start: bool = option(
        False,
        "Begin with the adapter of the clip's nearest tuned path.",
        "--warm-start",
        off="--no-warm-start",
        request="render",
    )
    checkpointing: Literal["none", "balanced", "full", "stock"] = option(
        "none",
        "Recompute activations: less memory, more time, the same bits.",
        "--checkpointing",
        panel="Machine",
    )
    held_out: int = option(
        4, "Draws of the held-out loss by which the adapters are measured; 0 measures nothing.", bounds=(0, 64)
    )
    checkpoint_every: int = option(
        50, "Steps between two checkpoints that a killed run resumes from.", bounds=(1, 100_000)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    seed: int | None = option(
        None,
        "Seed of the sampling alone: another take, the same adapters.",
        "--sample-seed",
        bounds=(0, 2**31 - 1),
        unset="the run's seed",
    )
    steps: int = option(25, "Denoising steps per window.", "--sample-steps", bounds=(1, 1000), request="resample")
    start: Literal["noise", "anchor"] = option(
        "noise", "Begin sampling from noise (the paper) or from the noised anchor.", "--start", request="render"
    )
    start_sigma: float = option(
        10.0,
        "Noise over the anchor where sampling starts there.",
        "--start-sigma",
        bounds=(0.01, 700),
        request="render",
    )
    guidance: tuple[float, float] = option(
        (1.0, 3.0),
        "Classifier-free guidance at a window's last frame; 1 is off.",
        "--guidance",
        bounds=(1, 20),
        request="render",
    )
    overlap: int = option(4, "Frames that consecutive windows share.", "--overlap", bounds=(1, 64), request="render")
    decode_chunk: int | None = option(
        None,
        "Frames that the VAE decodes at once.",
        "--decode-chunk",
        bounds=(1, 256),
        unset="the model's window",
        panel="Machine",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineConfig:
    """SDEdit with the spatial adapter alone."""

    sigma: float = option(
        1.0, "Noise that SDEdit starts from; 0 skips it.", "--sdedit-sigma", bounds=(0, 700), request="resample"
    )
    steps: int = option(10, "Denoising steps of SDEdit.", "--sdedit-steps", bounds=(1, 1000), request="resample")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliverConfig:
    composite: Literal["on", "off"] = option(
        "on",
        "Keep real pixels where there are any, or deliver pure model output (the paper).",
        "--composite",
        request="render",
    )
    feather_px: float = option(
        8.0,
        "How far holes are blended to meet the real pixels at their rim.",
        "--feather",
        bounds=(0, 64),
        unit="px",
        request="render",
    )
    fill: Literal["model", "texture"] = option(
        "model",
        "In the holes: the model's picture as it is, or with detail copied from the clip.",
        "--fill",
        request="render",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    model: str = option(
        "tiny", "tiny, svd, svd-xt, a directory in the diffusers layout, or a hub name.", "--model", panel="Model"
    )
    seed: int = option(0, "Seed of everything random.", "--seed", bounds=(0, 2**31 - 1), panel="Model")
    attention: Literal["sdpa", "xformers"] = option(
        "sdpa", "Attention operator: torch's own, or xformers (GPU only).", "--attention", panel="Machine"
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "auto",
        "Precision of the UNet; auto is bf16 on a GPU that has it, else fp16 there, and fp32 on a CPU.",
        "--dtype",
        panel="Machine",
    )
    offload: bool = option(
        False,
        "Keep VAE and image encoder in main memory while the UNet works.",
        "--offload",
        off="--no-offload",
        panel="Machine",
    )
    memory: float | Literal["auto"] | None = option(
        "auto",
        "Device memory to stay within, at most nine tenths of it: offload, checkpointing, decode chunk and size are "
        "lowered until the run fits.",
        "--memory",
        bounds=(1e-4, 1e5),
        unit="GiB",
        unset="nothing is lowered",
        panel="Machine",
    )
    decode: DecodeConfig = field(default_factory=DecodeConfig, metadata={"panel": "Clip"})
    depth: DepthConfig = field(default_factory=DepthConfig, metadata={"panel": "Depth and anchor"})
    anchor: AnchorConfig = field(default_factory=AnchorConfig, metadata={"panel": "Depth and anchor"})
    motion: MotionConfig = field(default_factory=MotionConfig, metadata={"panel": "Depth and anchor"})
    condition: ConditionConfig = field(default_factory=ConditionConfig, metadata={"panel": "Model"})
    tune: TuneConfig = field(default_factory=TuneConfig, metadata={"panel": "Tuning"})
    sample: SampleConfig = field(default_factory=SampleConfig, metadata={"panel": "Sampling"})
    refine: RefineConfig = field(default_factory=RefineConfig, metadata={"panel": "Sampling"})
    deliver: DeliverConfig = field(default_factory=DeliverConfig, metadata={"panel": "Delivery"})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "RunConfig":
        """Rebuild from `to_json`; unknown fields are refused by name."""
        return _build(RunConfig, value, "")


OPTIONS = table_of(RunConfig)
"""Every option by its path, in the order of definition."""

Quality = Literal["draft", "standard", "paper"]

RENAMED = {"tune.normalisation": "normalization", "anchor.band": "depth_tolerance"}
"""Options that configurations and manifests of the version before call otherwise: their old path, and the field's name."""

QUALITIES: dict[Quality, dict[str, dict[str, Any]]] = {
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
    # A prior this small cannot tell fine noise from texture: many steps, high noise levels and SDEdit leave colored noise.
    "draft": {"sample": {"steps": 2, "start_sigma": 2.0, "guidance": (1.0, 1.0)}},
    "standard": {
        "condition": {"augmentations": 24},
        "tune": {"lr": 2e-3, "spatial_steps": 60, "temporal_steps": 40, "spatial_batch": 4, "checkpoint_every": 10},
        "sample": {"steps": 2, "start": "anchor", "start_sigma": 2.0, "guidance": (1.0, 1.0)},
        "refine": {"steps": 2, "sigma": 0.0},
    },
}
"""What the embedded model does otherwise."""


BY_QUALITY = {
    f"{section}.{name}"
    for sections in (*QUALITIES.values(), *EMBEDDED.values())
    for section, values in sections.items()
    for name in values
}
"""Paths of the options whose default depends on the quality or the model."""


def quality_config(quality: str, *, model: str, seed: int = 0) -> RunConfig:
    """The configuration of `draft`, `standard` or `paper` for a model.

    Raises:
        InputError: no such quality.
    """
    if quality not in QUALITIES:
        raise InputError(f"{quality!r} is not one of {', '.join(QUALITIES)}", param="quality")
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
        raise InputError(f"{path} is not the config.json of a run ({error})", param="config") from None
    return config


def override(config: RunConfig, sections: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """Replace fields by section and name, those of the run itself under ""; the result is checked.

    Raises:
        InputError: no such option, or a value that is not accepted.
    """
    changed = {}
    for where, values in sections.items():
        part = getattr(config, where) if where else config
        values = _renamed(values, f"{where}.")
        known = {f.name for f in fields(part)}
        unknown = set(values) - known
        if unknown:
            raise InputError(f"{where} has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
        changed |= {where: replace(part, **values)} if where else values
    result = replace(config, **changed)
    check(result)
    return result


def check(config: RunConfig) -> None:
    """Refuse values that an option does not accept, and those that do not go together.

    Raises:
        InputError: carries the option's path and says what is accepted.
    """
    for path, one in OPTIONS.items():
        one.check(attrgetter(path)(config))
    check_depth_name(config.depth.model)
    anchor, condition, tune = config.anchor, config.condition, config.tune
    if anchor.route == "points" and (anchor.multiview != "embedded" or anchor.allow_noncommercial):
        raise InputError("is used only where `anchor.route` is multiview or auto, not points", param="anchor.multiview")
    if (condition.height is None) != (condition.width is None):
        raise InputError("give both `condition.height` and `condition.width`, or neither", param="condition.height")
    if tune.schedule == "joint" and tune.spatial_steps != tune.temporal_steps:
        raise InputError(
            "the joint schedule tunes both adapters in each step: give `tune.spatial_steps` and `tune.temporal_steps` "
            "the same number",
            param="tune.schedule",
        )
    if tune.warm_start and not tune.held_out:
        raise InputError(
            "a warm start stops by the held-out loss: give `tune.held_out` 1 or more", param="tune.held_out"
        )


def check_device(name: str) -> None:
    """Refuse what no machine has.

    Raises:
        InputError: the name is none of a device.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,2})?", name):
        raise InputError(f"{name!r} is not one of auto, cpu, cuda, cuda:0, cuda:1, ..., mps", param="device")


def _build(kind: type, value: Mapping[str, Any], where: str) -> Any:
    hints, value = get_type_hints(kind), _renamed(value, where)
    unknown = set(value) - set(hints)
    if unknown:
        raise InputError(f"the configuration has no field {where}{sorted(unknown)[0]}")
    made = {}
    for name, item in value.items():
        if is_dataclass(hints[name]):
            item = _build(hints[name], item, f"{where}{name}.")
        made[name] = tuple(item) if isinstance(item, list) else item
    return kind(**made)


def _renamed(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {RENAMED.get(f"{where}{name}", name): value for name, value in values.items()}
