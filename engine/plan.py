"""What a run will take, before it is paid for: sizes, windows, memory and time.

The memory of a training step is counted on the meta device, tensor by tensor, that of the decoder estimated from its
widest maps; time is measured on this machine with a small piece of the real
network and scaled by the area.
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.models import UNetSpatioTemporalConditionModel
from torch import Tensor

from . import adapters
from .bypass import temporal_bypass
from .checkpointing import checkpointed, inputs_kept
from .pipeline import Result
from .run import Run
from .stages import windows_of

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
    seconds: float
    stages_s: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(preview: Result) -> Plan:
    """The plan of the run that a preview (stages up to the anchor) belongs to."""
    run = preview.run
    height, width = run.size
    memory = memory_plan(run)
    seconds = time_plan(run, len(preview.source))
    done = {record.name: record.seconds for record in preview.records if not record.reused}
    return Plan(
        clip_size=(run.info.width, run.info.height),
        frames=len(preview.source),
        fps=float(run.info.rate),
        working_size=(width, height),
        pixel_aspect=(run.info.width / width) / (run.info.height / height),
        windows=[(window.start, window.stop - 1) for window in preview.windows],
        hole_share=preview.hole_share,
        memory_bytes=sum(memory.values()),
        memory=memory,
        seconds=sum(seconds.values()) + sum(done.values()),
        stages_s={**done, **seconds},
    )


def memory_plan(run: Run) -> dict[str, int]:
    """Bytes by purpose at the peak, which is a temporal training step or the decoding of one chunk."""
    shape, (height, width) = run.models.shape, run.size
    frames = shape.frames
    with torch.device("meta"):
        config: Any = UNetSpatioTemporalConditionModel.load_config(run.models.folder / "unet")
        unet: Any = UNetSpatioTemporalConditionModel.from_config(config)
        unet.to("meta")  # some parameters ignore the context
        adapters.inject(unet, run.config.tune.rank)
        adapters.train_only(unet, ["temporal"])
        latent = (height // shape.vae_scale, width // shape.vae_scale)
        inputs = torch.empty(1, frames, unet.config.in_channels, *latent)
        token = torch.empty(1, 1, unet.config.cross_attention_dim)
        with checkpointed(unet, run.config.tune.checkpointing):
            step = run.config.tune.temporal_batch * saved_bytes(unet, inputs, token)
    element = torch.finfo(run.models.dtype).bits // 8
    tuned = sum(p.numel() for name in adapters.ADAPTERS for p in adapters.adapter_parameters(unet, name).values())
    weights = sum(p.numel() for n, p in unet.named_parameters() if ".lora_" not in n) * element
    others = sum(
        f.stat().st_size for part in ("vae", "image_encoder") for f in (run.models.folder / part).glob("*.safetensors")
    )
    # The decoder's widest maps: at full resolution its first level's channels, a handful alive at a time, in fp32.
    vae = json.loads((run.models.folder / "vae" / "config.json").read_text())
    decode = run.decode_chunk * height * width * 4 * 5 * vae["block_out_channels"][0]
    return {
        "weights": weights + 2 * others,
        "adapters and optimiser": tuned * 4 * 4,
        "a training step or a decoded chunk": max(step * element // 4, decode),
        "frames in flight": 8 * run.info.width * run.info.height * 3 * 4,
    }


def saved_bytes(unet: torch.nn.Module, inputs: Tensor, token: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of one fp32 forward; weights are not counted, views once."""
    weights = {id(p) for p in unet.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        base = tensor._base if tensor._base is not None else tensor
        if id(base) not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    # What lies inside a checkpoint is not kept, but the checkpoint's own inputs are.
    with inputs_kept(unet, pack), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = unet(
            inputs, torch.empty(1, device=inputs.device), token, torch.empty(1, 3, device=inputs.device)
        ).sample
    del output
    return sum(kept.values())


@torch.no_grad()
def time_plan(run: Run, frames: int) -> dict[str, float]:
    """Seconds by stage, from a timed forward pass: an estimate."""
    model, options, (height, width) = run.model, run.config, run.size
    multiple = model.shape.multiple
    side = max(multiple, int(_MEASURED_PX**0.5) // multiple * multiple)
    rows, columns = min(height, side), min(width, side)
    scale = height * width / (rows * columns)
    window = min(frames, model.shape.frames)
    forward = scale * _time_forward(run, rows, columns, window)
    with temporal_bypass(model.unet):
        single = scale * _time_forward(run, rows, columns, 1)
    image = torch.zeros(1, 3, rows, columns, device=run.device)
    encode = scale * _timed(run, lambda: model.encode(image))
    latents = model.encode(image)
    decode = scale * _timed(run, lambda: model.decode(latents))
    windows = len(windows_of(run, frames))
    guided = 1 if options.sample.guidance == (1.0, 1.0) else 2
    return {
        "source": 2 * encode * options.condition.augmentations,
        "condition": 2 * encode * frames,
        "spatial": 3 * single * options.tune.spatial_batch * options.tune.spatial_steps,
        "temporal": 3 * forward * options.tune.temporal_batch * options.tune.temporal_steps,
        "sample": forward * guided * options.sample.steps * windows,
        "refine": forward * options.refine.steps * windows * (options.refine.sigma > 0),
        "generate": decode * frames,
        "deliver": 0.3 * frames * run.info.width * run.info.height / 1e6,
    }


def _time_forward(run: Run, height: int, width: int, frames: int) -> float:
    model = run.model
    cell = model.shape.vae_scale
    noisy = torch.zeros(1, frames, model.shape.latent_channels, height // cell, width // cell, device=run.device)
    token = torch.zeros(1, 1, model.unet.config.cross_attention_dim, device=run.device)
    sigma, ids = torch.ones(1, device=run.device), torch.zeros(1, 3, device=run.device)
    return _timed(run, lambda: model.predict(noisy, sigma, noisy[:, 0], token, ids))


def _timed(run: Run, work: Any) -> float:
    work()
    if run.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if run.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
