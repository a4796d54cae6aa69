"""The memory limit: what a run will hold of its device at each of its peaks, and the choice of options that fits a limit."""

import numbers
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from ..config import RunConfig
from ..errors import ResourceError
from ..graph.context import StageContext
from ..graph.device_memory import DeviceBudget
from ..models.adapters import ADAPTERS
from ..models.checkpointing import Checkpointing
from ..models.multiview import encoder_of
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
_AUTO_SHARE = 0.9
"""Of what is free: others on the machine take some too."""
_SPARE = {"cuda": 1.08, "cpu": 1.15}
"""Over what is counted while networks work: fragments of the allocator and workspaces. On a GPU this is a guess."""
_LADDER: tuple[Checkpointing, ...] = ("none", "balanced", "full")
_LEAST_SIDE = 0.5
"""A working size is not lowered below this share of each side: a model far below its training size makes nothing of use."""


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
        held: what stays on the device, by what it is.
        work: what each kind of work holds besides, with the weights that it brings along and its optimizer.
        limit: what it was chosen for; None for a plan without a limit.
    """

    choice: Choice
    held: dict[str, int]
    work: dict[str, int]
    limit: int | None = None

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
        return {**asdict(self), "peak": self.peak}

    def sentences(self) -> Iterator[str]:
        """The plan for a person."""
        (height, width), choice = self.choice.size, self.choice
        of = "" if self.limit is None else f" of {self.limit / GIB:.3g}"
        yield (
            f"{self.peak / GIB:.3g}{of} GiB: {width}x{height}, checkpointing {choice.checkpointing}, "
            f"{'VAE and image encoder offloaded' if choice.offload else 'nothing offloaded'}, "
            f"{choice.decode_chunk} frames decoded at once"
        )
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
    cell = shape.vae_scale
    picture = shape.latent_channels * (size[0] // cell) * (size[1] // cell) * 4
    spare = _SPARE[budget.device]
    guided = 1 if config.sample.guidance == (1.0, 1.0) else 2
    held = {
        "UNet": weight_bytes(shapes.unet),
        "VAE and image encoder": encoders - brought,
        "adapters": sum(adapters.values()),
        "depth network": _depth_bytes(context),
        "multiview model": _multiview_bytes(context),
        # Anchor, prompts, where the sampling starts, its noise and its result, in fp32 for all frames.
        "clip's latents": 5 * context.request.frame_count * picture,
        # The depth and anchor stages' own: eight frames of the clip in fp32.
        "frames": 8 * context.request.info.width * context.request.info.height * 3 * 4,
    }
    work = {
        "sampling": int(spare * forward_bytes(shapes, guided, frames, size)),
        "encoding": brought + int(spare * encode_bytes(shapes, config.condition.micro_batch, size)),
        "decoding": brought + int(spare * decode_bytes(shapes, choice.decode_chunk, size)),
    }
    if config.tune.spatial_steps or config.tune.temporal_steps:
        step = _tuning_bytes(shapes, config, frames, choice, devices)
        # AdamW's two moments; decoupled, one adapter at a time has them.
        moments = 2 * (sum if config.tune.schedule == "joint" else max)(adapters.values())
        work = {"tuning": moments + int(spare * step), **work}
    return MemoryPlan(choice=choice, held=held, work=work)


def asked(context: StageContext) -> Choice:
    """The run's own options."""
    config = context.config
    return Choice(
        size=context.size,
        checkpointing=config.tune.checkpointing,
        offload=config.offload,
        decode_chunk=context.decode_chunk,
    )


def fit(context: StageContext, budget: DeviceBudget, *, devices: int = 1) -> MemoryPlan:
    """The plan of the options that fit the run's limit and are nearest to what is asked: nothing is ever raised.

    The working size is kept longest. At a size the first choice that fits is taken; offloading, which costs moments,
    comes before checkpointing, which costs a part of every step, and decoding in smaller chunks, which costs steadiness
    over time, last.

    Raises:
        ResourceError: nothing fits; says what the smallest would need.
    """
    memory = context.config.memory
    limit = int(float(memory) * GIB if isinstance(memory, numbers.Real) else budget.free * _AUTO_SHARE)
    wanted, smallest = asked(context), None
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


def settled(config: RunConfig, wanted: Choice, chosen: Choice) -> RunConfig:
    """The configuration with what was chosen in place of the limit; what was not lowered stays as it was given."""
    condition, sample = config.condition, config.sample
    if chosen.size != wanted.size:
        condition = replace(condition, height=chosen.size[0], width=chosen.size[1])
    if chosen.decode_chunk != wanted.decode_chunk:
        sample = replace(sample, decode_chunk=chosen.decode_chunk)
    tune = replace(config.tune, checkpointing=chosen.checkpointing)
    return replace(config, memory=None, offload=chosen.offload, condition=condition, tune=tune, sample=sample)


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


def _tuning_bytes(shapes: Shapes, config: RunConfig, frames: int, choice: Choice, devices: int) -> int:
    """Of the larger of the two adapters' steps."""
    steps = {"spatial": config.tune.spatial_steps, "temporal": config.tune.temporal_steps}
    batches = {"spatial": config.tune.spatial_batch, "temporal": config.tune.temporal_batch}
    return max(
        step_bytes(shapes, name, -(-batches[name] // devices), frames, choice.size, choice.checkpointing).peak
        for name in ADAPTERS
        if steps[name]
    )


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
