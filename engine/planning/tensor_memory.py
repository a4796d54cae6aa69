"""Memory of the networks while they work, counted tensor by tensor without computing anything.

The networks are built from their configs with weights that have a shape and no values, and run through a training step,
a sampling step, an encoding and a decoding. Every storage is counted from the operation that makes it to the moment that
nothing refers to it any more, as the eager allocator would. Attention is the fused operator's, which never holds the
table of scores. Not counted: workspaces of the libraries, fragments of the allocator, and the CUDA context.
"""

import weakref
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models import adapters
from ..models.checkpointing import Checkpointing, checkpointed
from ..models.temporal_bypass import temporal_bypass

Size = tuple[int, int]
"""Working (height, width) in pixels."""


class Held(TorchDispatchMode):
    """Within the context: bytes of the storages that operations have made and something still refers to.

    Attributes:
        now: at this moment.
        peak: at most.
    """

    def __init__(self, *known: nn.Module) -> None:
        """Weights of the `known` modules, and views of them, are not counted."""
        super().__init__()
        self.now = self.peak = 0
        self._known = known
        self._alive: dict[int, weakref.ref[Any] | None] = {}

    def __enter__(self) -> Self:
        for module in self._known:
            for weight in (*module.parameters(), *module.buffers()):
                self._alive[id(weight.untyped_storage())] = None  # the module keeps it, and so its id, alive
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._hold(value.untyped_storage())
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def freed(_: object) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


class Step(NamedTuple):
    """Bytes of a training step.

    Attributes:
        kept: what autograd keeps for the backward pass.
        peak: with passing results and gradients.
    """

    kept: int
    peak: int


class Shapes:
    """The networks of a model directory without their values. Use `shapes_of`."""

    def __init__(self, folder: Path, dtype: torch.dtype, rank: int, *, cuda: bool) -> None:
        """`cuda`: autocast as there, where the norms compute in fp32 whatever the model's dtype."""
        from diffusers.models import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        self.dtype = dtype
        with torch.device("meta"):
            config: Any = UNetSpatioTemporalConditionModel.load_config(folder / "unet")
            unet: Any = UNetSpatioTemporalConditionModel.from_config(config)
            nn.Module.to(unet, "meta", dtype)  # some parameters ignore the context
            adapters.inject(unet, rank)
            config = AutoencoderKLTemporalDecoder.load_config(folder / "vae")
            vae: Any = AutoencoderKLTemporalDecoder.from_config(config)
            encoder: Any = CLIPVisionModelWithProjection(CLIPVisionConfig.from_pretrained(folder / "image_encoder"))
            for module in unet.modules() if cuda else ():
                if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                    nn.Module.to(module, torch.float32)
                    module.register_forward_pre_hook(_in_fp32)
        self.mode = FakeTensorMode()
        self.unet, self.vae, self.image_encoder = (
            self._shaped(module.to("meta").eval()) for module in (unet, vae.requires_grad_(False), encoder)
        )

    def _shaped(self, module: Any) -> Any:
        """Meta tensors take no part in autocast and get attention that holds all scores: these pretend to be the CPU's."""
        with torch.no_grad():
            for part in module.modules():
                for name, weight in part._parameters.items():
                    if weight is not None:
                        shaped = FakeTensor(self.mode, weight.detach(), torch.device("cpu"))
                        part._parameters[name] = nn.Parameter(shaped, requires_grad=weight.requires_grad)
                for name, weight in part._buffers.items():
                    if weight is not None:
                        part._buffers[name] = FakeTensor(self.mode, weight.detach(), torch.device("cpu"))
        return module

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision as `tune` sets it up."""
        half = self.dtype != torch.float32
        return torch.autocast("cpu", dtype=self.dtype) if half else nullcontext()

    def inputs(self, batch: int, frames: int, size: Size) -> tuple[Tensor, ...]:
        """Arguments of the UNet's call."""
        config, cell = self.unet.config, 2 ** (len(self.vae.config.block_out_channels) - 1)
        noisy = torch.empty(batch, frames, config.in_channels, size[0] // cell, size[1] // cell, dtype=self.dtype)
        image_embeds = torch.empty(batch, 1, config.cross_attention_dim, dtype=self.dtype)
        return noisy, torch.empty(batch), image_embeds, torch.empty(batch, 3, dtype=self.dtype)


def _in_fp32(norm: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return (args[0].float(),) if torch.is_autocast_enabled("cpu") else None


@lru_cache(maxsize=2)
def shapes_of(folder: Path, dtype: torch.dtype, rank: int, *, cuda: bool) -> Shapes:
    """The networks of a model directory on the meta device; the last two are cached."""
    return Shapes(folder, dtype, rank, cuda=cuda)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the network itself, without adapters."""
    return sum(p.numel() * p.element_size() for name, p in module.named_parameters() if ".lora_" not in name)


def adapter_bytes(unet: nn.Module) -> dict[adapters.AdapterName, int]:
    """Bytes of the parameters of each adapter."""
    return {
        name: sum(p.numel() * p.element_size() for p in adapters.adapter_parameters(unet, name).values())
        for name in adapters.ADAPTERS
    }


@lru_cache(maxsize=256)
def step_bytes(
    shapes: Shapes, tuned: adapters.AdapterName, batch: int, frames: int, size: Size, how: Checkpointing
) -> Step:
    """Bytes of a training step, in addition to weights and optimizer."""
    unet = shapes.unet
    adapters.train_only(unet, [tuned])
    spatial = tuned == "spatial"
    with shapes.mode, Held(unet) as held, checkpointed(unet, how):
        with shapes.autocast(), temporal_bypass(unet) if spatial else nullcontext():
            with adapters.enabled(unet, ["spatial"] if spatial else adapters.ADAPTERS):
                predicted = unet(*shapes.inputs(batch, 1 if spatial else frames, size)).sample.float()
            loss = predicted.square().mean()
        del predicted
        kept = held.now
        loss.backward()
        unet.zero_grad(set_to_none=True)
    adapters.train_only(unet, ())
    return Step(kept=kept, peak=held.peak)


@lru_cache(maxsize=256)
def forward_bytes(shapes: Shapes, batch: int, frames: int, size: Size) -> int:
    """Peak of one call of the UNet without gradients."""
    with shapes.mode, torch.no_grad(), Held(shapes.unet) as held:
        shapes.unet(*shapes.inputs(batch, frames, size)).sample.float()
    return held.peak


@lru_cache(maxsize=256)
def encode_bytes(shapes: Shapes, batch: int, size: Size) -> int:
    """Peak of encoding a micro-batch: the VAE's, or the image encoder's."""
    side = shapes.image_encoder.config.image_size
    with shapes.mode, torch.no_grad(), Held(shapes.vae, shapes.image_encoder) as held:
        frames = torch.empty(batch, 3, *size)
        shapes.vae.encode(frames * 2 - 1).latent_dist.mode()
        shapes.image_encoder(torch.empty(batch, 3, side, side))
    return held.peak


@lru_cache(maxsize=256)
def decode_bytes(shapes: Shapes, chunk: int, size: Size) -> int:
    """Peak of decoding a chunk."""
    config = shapes.vae.config
    cell = 2 ** (len(config.block_out_channels) - 1)
    with shapes.mode, torch.no_grad(), Held(shapes.vae) as held:
        latents = torch.empty(chunk, config.latent_channels, size[0] // cell, size[1] // cell)
        frames = shapes.vae.decode(latents / 1.0, num_frames=chunk).sample
        (frames / 2 + 0.5).clamp(0, 1)
    return held.peak
