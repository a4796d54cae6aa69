"""What a run will hold of its device in each stage, and the options that let it fit: chosen for every run.

Nothing is raised above what is asked for. The size is kept longest.
"""

import json
import numbers
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import torch

from ..config import RunConfig
from ..errors import ResourceError
from ..graph.context import StageContext
from ..graph.device_memory import DeviceBudget
from ..models.adapters import ADAPTERS, AdapterName
from ..models.checkpointing import Checkpointing
from ..models.multiview import encoder_of
from ..models.precision import dtype_of, name_of
from ..models.video import weight_count
from .tensor_memory import (
    Shapes,
    Size,
    adapter_bytes,
    decode_bytes,
    encode_bytes,
    forward_bytes,
    shapes_of,
    step_bytes,
    weight_bytes,
)

GIB = 1 << 30
_SPARE = {"cuda": 1.08, "cpu": 1.15}
"""Over what is counted while networks work: fragments of the allocator and workspaces. On a GPU this is a guess."""
_LADDER: tuple[Checkpointing, ...] = ("none", "balanced", "full")
_LEAST_SIDE = 0.5
"""A working size is not lowered below this share of each side: a model far below its training size makes nothing of use."""
_SAVED = 0.25
"""Of what a stage's work holds, a plan that follows its running out of memory saves at least this."""

PLANNED = ("source", "condition", "spatial", "temporal", "sample", "refine", "generate")
"""Stages that run the video model, in their order; what is chosen here concerns no other."""

# Bounds on what `tensor_memory` counts, in bytes. Stable Video Diffusion's step takes 1830 in half precision, its
# decoder 33; smaller networks take less.
_STEP_BOUND = 4096
"""Of a training step, per channel of the UNet's first level, latent cell, frame and batch."""
_CODEC_BOUND = 64
"""Of the VAE, per channel of its first level, pixel and frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The options that decide about memory."""

    size: Size
    checkpointing: Checkpointing
    offload: bool
    decode_chunk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a run holds, in bytes.

    Attributes:
        choice: the options.
        dtype: of the UNet.
        held: what stays on the device, by what it is.
        work: what each stage holds besides, with the weights that it brings along and its optimizer.
        limit: what it was chosen for; None for a plan without a limit.
        lowered: what was chosen below what is asked for, in words.
        bound: `work` is not counted but bounded, because even that fits.
    """

    choice: Choice
    dtype: str
    held: dict[str, int]
    work: dict[str, int]
    limit: int | None = None
    lowered: tuple[str, ...] = ()
    bound: bool = False

    @property
    def peaks(self) -> dict[str, int]:
        return {name: sum(self.held.values()) + size for name, size in self.work.items()}

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    @property
    def at_peak(self) -> dict[str, int]:
        """What is held at the highest peak; the sum is the peak."""
        name = max(self.work, key=lambda one: self.work[one])
        return {**self.held, name: self.work[name]}

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "peak": self.peak, "sentences": list(self.sentences())}

    def sentences(self) -> Iterator[str]:
        """The plan for a person: what is taken, what was lowered and why, the peak of each stage."""
        (height, width), choice = self.choice.size, self.choice
        of = "" if self.limit is None else f" of {self.limit / GIB:.3g}"
        yield (
            f"{'at most ' * self.bound}{self.peak / GIB:.3g}{of} GiB: {width}x{height}, {self.dtype}, checkpointing "
            f"{choice.checkpointing}, {'VAE and image encoder offloaded' if choice.offload else 'nothing offloaded'}, "
            f"{choice.decode_chunk} frames decoded at once"
        )
        if self.lowered:
            yield f"lowered to fit: {', '.join(self.lowered)}"
        if not self.bound:
            yield "peaks in GiB: " + ", ".join(f"{name} {size / GIB:.3g}" for name, size in self.peaks.items())


def plan(context: StageContext, budget: DeviceBudget, choice: Choice | None = None, *, devices: int = 1) -> MemoryPlan:
    """What the run will hold with its own options, or with others.

    Args:
        devices: that share each tuning step's batch.
    """
    config, shape = context.config, context.models.shape
    choice = choice or asked(context)
    shapes = shapes_of(context.models.folder, budget.dtype, config.tune.rank, cuda=budget.device == "cuda")
    frames, size = min(shape.frames, context.request.frame_count), choice.size
    encoders = weight_bytes(shapes.vae) + weight_bytes(shapes.image_encoder)
    adapters = adapter_bytes(shapes.unet)
    brought = encoders if choice.offload and budget.device == "cuda" else 0
    spare = _SPARE[budget.device]
    guided = 1 if config.sample.guidance == (1.0, 1.0) else 2
    held = {
        "UNet": weight_bytes(shapes.unet),
        "VAE and image encoder": encoders - brought,
        "adapters": sum(adapters.values()),
        **_held_besides(context, size),
    }
    encoding = brought + int(spare * encode_bytes(shapes, config.condition.micro_batch, size))
    work = {
        "source": encoding,
        "condition": encoding,
        **_tuning_bytes(shapes, config, frames, choice, devices, spare, adapters),
        "sample": int(spare * forward_bytes(shapes, guided, frames, size)),
        "refine": int(spare * forward_bytes(shapes, 1, frames, size)),
        "generate": brought + int(spare * decode_bytes(shapes, choice.decode_chunk, size)),
    }
    lowered = tuple(_lowered(asked(context), choice))
    return MemoryPlan(choice=choice, dtype=name_of(budget.dtype), held=held, work=work, lowered=lowered)


def bound(context: StageContext, budget: DeviceBudget) -> MemoryPlan:
    """No less than `plan` of the run's own options, without building the networks."""
    config, models, choice = context.config, context.models, asked(context)
    unet, vae = (json.loads((models.folder / part / "config.json").read_text()) for part in ("unet", "vae"))
    frames, (height, width) = min(models.shape.frames, context.request.frame_count), choice.size
    cells = (height // models.shape.vae_scale) * (width // models.shape.vae_scale)
    layers = unet.get("layers_per_block", 2)
    deep = max(1.0, (max(layers) if isinstance(layers, list) else layers) / 2)
    a_window = int(_STEP_BOUND * deep * unet["block_out_channels"][0] * cells * frames)
    a_frame = _CODEC_BOUND * vae["block_out_channels"][0] * height * width
    weights = {part: 4 * weight_count(models.folder / part) for part in ("unet", "vae", "image_encoder")}
    held = {"weights": sum(weights.values()), **_held_besides(context, choice.size)}
    batch = config.tune.temporal_batch + config.tune.spatial_batch
    work = {
        # LoRA of this rank on a layer of that many channels is a small part of it; its gradient and moments as well.
        "tuning": a_window * batch + weights["unet"],
        "sample": 2 * a_window,
        "source": a_frame * config.condition.micro_batch + weights["image_encoder"],
        "generate": a_frame * choice.decode_chunk,
    }
    return MemoryPlan(choice=choice, dtype=name_of(budget.dtype), held=held, work=work, bound=True)


def _held_besides(context: StageContext, size: Size) -> dict[str, int]:
    """What stays on the device besides the video model."""
    shape, info = context.models.shape, context.request.info
    picture = shape.latent_channels * (size[0] // shape.vae_scale) * (size[1] // shape.vae_scale) * 4
    return {
        "depth network": _depth_bytes(context),
        "multiview model": _multiview_bytes(context),
        # Anchor, prompts, where the sampling starts, its noise and its result, in fp32 for all frames.
        "clip's latents": 5 * context.request.frame_count * picture,
        # The depth and anchor stages' own: eight frames of the clip in fp32.
        "frames": 8 * info.width * info.height * 3 * 4,
    }


def asked(context: StageContext) -> Choice:
    """The run's own options."""
    config = context.config
    return Choice(
        size=context.size,
        checkpointing=config.tune.checkpointing,
        offload=config.offload,
        decode_chunk=context.decode_chunk,
    )


def fit(context: StageContext, budget: DeviceBudget, *, devices: int = 1, exact: bool = False) -> MemoryPlan:
    """The plan of the options that fit the device and are nearest to what is asked: nothing is ever raised.

    A tenth of the device stays free; a limit of the configuration's only narrows that. The working size is kept
    longest. At a size the first choice that fits is taken; offloading, which costs moments, comes before checkpointing,
    which costs a part of every step, and decoding in smaller chunks, which costs steadiness over time, last.

    Args:
        exact: count, even where a bound says that everything fits.

    Raises:
        ResourceError: nothing fits; says what the smallest would need.
    """
    limit, wanted = limit_of(context.config, budget), asked(context)
    if not exact and context.config.memory == "auto":
        most = bound(context, budget)
        if most.peak <= limit:
            return replace(most, limit=limit)
    smallest = None
    for size in _sizes(wanted.size, context.models.shape.multiple):
        choices = list(_choices(wanted, size, cuda=budget.device == "cuda"))
        smallest = plan(context, budget, choices[-1], devices=devices)
        if smallest.peak <= limit:
            plans = (plan(context, budget, choice, devices=devices) for choice in choices)
            return replace(next(one for one in plans if one.peak <= limit), limit=limit)
    assert smallest is not None
    height, width = smallest.choice.size
    raise ResourceError(
        f"{limit / GIB:.3g} GiB are not enough: {width}x{height} with all else lowered takes {smallest.peak / GIB:.3g}",
        param="memory",
    )


def limit_of(config: RunConfig, budget: DeviceBudget) -> int:
    """Bytes that a run's plan may reach."""
    given = int(float(config.memory) * GIB) if isinstance(config.memory, numbers.Real) else budget.usable
    return min(given, budget.usable)


def lower(context: StageContext, budget: DeviceBudget, stage: str, *, devices: int = 1) -> MemoryPlan:
    """The next plan below the run's own options in which a stage that ran out of memory holds a good part less.

    Raises:
        ResourceError: nothing that can be lowered changes what the stage holds.
    """
    wanted, now = asked(context), plan(context, budget, devices=devices)
    most = now.peaks.get(stage, 0) - _SAVED * now.work.get(stage, 0)
    for size in _sizes(wanted.size, context.models.shape.multiple) if stage in now.work else ():
        for choice in _choices(wanted, size, cuda=budget.device == "cuda"):
            made = plan(context, budget, choice, devices=devices)
            if made.peaks[stage] <= most:
                return made
    raise ResourceError(
        f"out of memory in the stage {stage}, with all lowered that can be; use fewer frames (`decode.max_frames`), a "
        "smaller `condition.height` and `condition.width`, or a larger device",
        param="memory",
    )


def in_precision(context: StageContext, budget: DeviceBudget) -> tuple[StageContext, DeviceBudget]:
    """The run and its device with the UNet's precision settled: the configuration's, or what the device suggests."""
    named = context.config.dtype
    if named == "auto":
        config = replace(context.config, dtype=name_of(budget.dtype))
        return replace(context, request=replace(context.request, config=config)), budget
    return context, replace(budget, dtype=dtype_of(named, torch.device(budget.device)))


def settle(context: StageContext, made: MemoryPlan) -> StageContext:
    """The run with what a plan chose."""
    config = settled(context.config, asked(context), made)
    return replace(context, request=replace(context.request, config=config))


def settled(config: RunConfig, wanted: Choice, made: MemoryPlan) -> RunConfig:
    """The configuration with what was chosen in place of the limit; what was not lowered stays as it was given."""
    condition, sample, chosen = config.condition, config.sample, made.choice
    if chosen.size != wanted.size:
        condition = replace(condition, height=chosen.size[0], width=chosen.size[1])
    if chosen.decode_chunk != wanted.decode_chunk:
        sample = replace(sample, decode_chunk=chosen.decode_chunk)
    tune = replace(config.tune, checkpointing=chosen.checkpointing)
    return replace(config, memory=None, offload=chosen.offload, condition=condition, tune=tune, sample=sample)


def _lowered(wanted: Choice, chosen: Choice) -> Iterator[str]:
    if chosen.size != wanted.size:
        (height, width), (rows, columns) = wanted.size, chosen.size
        yield f"size {width}x{height} to {columns}x{rows}"
    if chosen.offload and not wanted.offload:
        yield "offload on"
    if chosen.checkpointing != wanted.checkpointing:
        yield f"checkpointing {wanted.checkpointing} to {chosen.checkpointing}"
    if chosen.decode_chunk != wanted.decode_chunk:
        yield f"decode chunk {wanted.decode_chunk} to {chosen.decode_chunk}"


def _sizes(size: Size, multiple: int) -> Iterator[Size]:
    """The size and smaller ones of its shape, in the model's multiples."""
    height, width = size
    for rows in range(height, int(height * _LEAST_SIDE) - 1, -multiple):
        yield rows, max(1, round(width * rows / height / multiple)) * multiple


def _choices(wanted: Choice, size: Size, *, cuda: bool) -> Iterator[Choice]:
    """From what is wanted to what takes least, dearest last."""
    ladder = _LADDER[_LADDER.index(wanted.checkpointing) :] if wanted.checkpointing in _LADDER else _LADDER[1:]
    policies = ladder if wanted.checkpointing in _LADDER else ("stock", *ladder)
    chunks = [wanted.decode_chunk]
    while chunks[-1] > 1:
        chunks.append(-(-chunks[-1] // 2))
    for chunk, how, offload in product(chunks, policies, sorted({wanted.offload, wanted.offload or cuda})):
        yield Choice(size=size, checkpointing=how, offload=offload, decode_chunk=chunk)


def _tuning_bytes(
    shapes: Shapes,
    config: RunConfig,
    frames: int,
    choice: Choice,
    devices: int,
    spare: float,
    adapters: dict[AdapterName, int],
) -> dict[str, int]:
    """Of each stage that tunes: its step, and AdamW's two moments of the adapters that it has."""
    tune = config.tune
    steps = {"spatial": tune.spatial_steps, "temporal": tune.temporal_steps}
    batches = {"spatial": tune.spatial_batch, "temporal": tune.temporal_batch}
    taken: dict[AdapterName, int] = {
        name: int(
            spare
            * step_bytes(shapes, name, -(-batches[name] // devices), frames, choice.size, choice.checkpointing).peak
        )
        for name in ADAPTERS
        if steps[name]
    }
    if tune.schedule == "joint":
        return {"temporal": 2 * sum(adapters.values()) + max(taken.values())} if taken else {}
    return {str(name): 2 * adapters[name] + step for name, step in taken.items()}


def _depth_bytes(context: StageContext) -> int:
    """The depth network, which stays loaded."""
    if context.request.depth_dir is not None or "depth" in context.request.given:
        return 0
    return 4 * weight_count(
        context.models.depth_source(context.config.depth.model).folder
    )  # fp32, whatever the file holds


def _multiview_bytes(context: StageContext) -> int:
    """The multiview model with an encoder of its own; an adapter does not say what it takes."""
    source = context.multiview_source
    if source is None or source.folder is None:
        return 0
    encoder = encoder_of(source.folder)
    return 4 * sum(weight_count(part) for part in (source.folder / "unet", encoder / "vae", encoder / "image_encoder"))
