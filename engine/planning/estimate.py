"""What a run will take, before it is paid for: sizes, windows, memory and time.

Memory is counted tensor by tensor without computing (`memory`); time is measured on this machine with a small piece of
the real network and scaled by the area.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..graph.context import StageContext
from ..models.temporal_bypass import temporal_bypass
from ..stage_results import StageResults
from . import memory

_MEASURED_PX = 192 * 192
"""A forward pass of at most this many pixels a frame is timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The plan of a run; sizes are (width, height) in pixels, memory in bytes."""

    clip_size: tuple[int, int]
    frames: int
    fps: float
    working_size: tuple[int, int]
    pixel_aspect: float
    """Width of a working pixel over its height: the stretch that fits the model's grid, undone at delivery."""
    windows: list[tuple[int, int]]
    """First and last frame of each window."""
    hole_share: float
    memory_bytes: int
    memory: dict[str, int]
    chosen: dict[str, Any]
    """The options that fit the device, what was lowered for that, and every stage's peak."""
    seconds: float
    stages_s: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(preview: StageResults) -> Plan:
    """The plan of the run that a preview (stages up to the anchor) belongs to."""
    context, budget = memory.in_precision(preview.context, preview.context.models.budget())
    held = memory.fit(context, budget, exact=True)
    context, info = memory.settle(context, held), context.request.info
    height, width = context.size
    seconds = time_plan(context, len(preview.source))
    done = {record.name: record.seconds for record in preview.records if not record.reused}
    return Plan(
        clip_size=(info.width, info.height),
        frames=len(preview.source),
        fps=float(info.rate),
        working_size=(width, height),
        pixel_aspect=(info.width / width) / (info.height / height),
        windows=[(window.start, window.stop - 1) for window in context.windows(len(preview.source))],
        hole_share=preview.hole_share,
        memory_bytes=held.peak,
        memory=held.at_peak,
        chosen=held.to_json(),
        seconds=sum(seconds.values()) + sum(done.values()),
        stages_s={**done, **seconds},
    )


@torch.no_grad()
def time_plan(context: StageContext, frames: int) -> dict[str, float]:
    """Seconds by stage, from a timed forward pass: an estimate."""
    model, options, (height, width) = context.model, context.config, context.size
    multiple = model.shape.multiple
    side = max(multiple, int(_MEASURED_PX**0.5) // multiple * multiple)
    rows, columns = min(height, side), min(width, side)
    scale = height * width / (rows * columns)
    window = min(frames, model.shape.frames)
    forward = scale * _time_forward(context, rows, columns, window)
    with temporal_bypass(model.unet):
        single = scale * _time_forward(context, rows, columns, 1)
    image = torch.zeros(1, 3, rows, columns, device=context.device)
    encode = scale * _timed(context, lambda: model.encode(image))
    latents = model.encode(image)
    decode = scale * _timed(context, lambda: model.decode(latents))
    windows = len(context.windows(frames))
    guided = 1 if options.sample.guidance == (1.0, 1.0) else 2
    return {
        "source": 2 * encode * options.condition.augmentations * (options.tune.spatial_steps > 0),
        "condition": 2 * encode * frames,
        "spatial": 3 * single * options.tune.spatial_batch * options.tune.spatial_steps,
        "temporal": 3 * forward * options.tune.temporal_batch * options.tune.temporal_steps,
        "sample": forward * guided * options.sample.steps * windows,
        "refine": forward * options.refine.steps * windows * (options.refine.sigma > 0),
        "generate": decode * frames,
        "deliver": 0.3 * frames * context.request.info.width * context.request.info.height / 1e6,
    }


def _time_forward(context: StageContext, height: int, width: int, frames: int) -> float:
    model = context.model
    cell = model.shape.vae_scale
    noisy = torch.zeros(1, frames, model.shape.latent_channels, height // cell, width // cell, device=context.device)
    image_embeds = torch.zeros(1, 1, model.unet.config.cross_attention_dim, device=context.device)
    sigma, added_time_ids = torch.ones(1, device=context.device), torch.zeros(1, 3, device=context.device)
    return _timed(context, lambda: model.predict(noisy, sigma, noisy[:, 0], image_embeds, added_time_ids))


def _timed(context: StageContext, work: Any) -> float:
    work()
    if context.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if context.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
