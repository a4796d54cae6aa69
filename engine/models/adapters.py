"""The two LoRA adapters of ReCapture on a Stable-Video-Diffusion UNet.

`spatial` sits in the spatial attention (attn1 whole, attn2 where its one token can matter), `temporal` in the
temporal transformer blocks, feed-forward included. No layer carries both, so switching one never touches the other.
SVD's UNet has no PEFT mixin in diffusers: the adapters are injected by peft itself.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import InputError

if TYPE_CHECKING:  # peft takes seconds to import, and a preview tunes nothing
    from peft.tuners.lora import LoraLayer

AdapterName = Literal["spatial", "temporal"]
ADAPTERS: tuple[AdapterName, ...] = ("spatial", "temporal")

_ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_v", "attn2.to_out.0")
_FEED_FORWARD = ("ff_in.net.0.proj", "ff_in.net.2", "ff.net.0.proj", "ff.net.2")
_PLACES: Mapping[AdapterName, tuple[str, tuple[str, ...]]] = {
    "spatial": ("transformer_blocks", _ATTENTION),
    "temporal": ("temporal_transformer_blocks", _ATTENTION + _FEED_FORWARD),
}


def target_names(unet: nn.Module, adapter: AdapterName) -> list[str]:
    """Full names of the linear layers that `adapter` tunes, in module order.

    Whole path components are matched: `transformer_blocks` is a substring of `temporal_transformer_blocks`.
    attn2 attends to one token, so its `to_q` and `to_k` cannot change anything and are left out.
    """
    block, layers = _PLACES[adapter]
    names = []
    for name, module in unet.named_modules():
        parts = name.split(".")
        if isinstance(module, nn.Linear) and block in parts:
            inside = ".".join(parts[parts.index(block) + 2 :])  # behind "<block>.<index>."
            if inside in layers:
                names.append(name)
    return names


def inject(unet: nn.Module, rank: int, *, alpha: int | None = None, seed: int = 0) -> None:
    """Add both adapters to `unet` in place, freshly initialized (A random by `seed`, B zero), base weights frozen.

    Args:
        rank: LoRA rank; 16 in the paper.
        alpha: LoRA scale times rank; defaults to `rank` (a scale of 1).
    """
    from peft import LoraConfig, inject_adapter_in_model

    unet.requires_grad_(False)
    for adapter in ADAPTERS:
        config = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=target_names(unet, adapter))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two adapters are the point
            inject_adapter_in_model(config, unet, adapter_name=adapter)
    for layer in _tuner_layers(unet):
        layer.set_adapter([name for name in ADAPTERS if name in layer.lora_A])
    reset(unet, seed=seed)
    enable(unet, ADAPTERS)
    train_only(unet, ())


def reset(unet: nn.Module, adapters: Iterable[AdapterName] = ADAPTERS, *, seed: int = 0) -> None:
    """Initialize adapters anew in place: the same seed gives the same weights on every device."""
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters:
        for name, parameter in adapter_parameters(unet, adapter).items():
            value = torch.zeros(parameter.shape, device="cpu")
            if ".lora_A." in name:
                bound = 1 / math.sqrt(parameter.shape[1])  # kaiming_uniform with a = sqrt(5), as peft initializes
                value.uniform_(-bound, bound, generator=generator)
            parameter.data = value.to(parameter.device)  # adapters stay in fp32 whatever the base's dtype


def adapter_parameters(unet: nn.Module, adapter: AdapterName) -> dict[str, nn.Parameter]:
    """Parameters of one adapter by full name, in module order."""
    return {
        name: p for name, p in unet.named_parameters() if f".lora_A.{adapter}." in name or f".lora_B.{adapter}." in name
    }


def train_only(unet: nn.Module, adapters: Iterable[AdapterName]) -> None:
    """Let gradients reach exactly these adapters; an adapter may be enabled and frozen."""
    chosen = set(adapters)
    for adapter in ADAPTERS:
        for parameter in adapter_parameters(unet, adapter).values():
            parameter.requires_grad_(adapter in chosen)


def enable(unet: nn.Module, adapters: Iterable[AdapterName]) -> None:
    """Switch on exactly these adapters; the others are skipped in the forward pass."""
    _switch(_tuner_layers(unet), adapters)


@contextmanager
def enabled(unet: nn.Module, adapters: Iterable[AdapterName]) -> Iterator[None]:
    """Within the context exactly these adapters are on."""
    layers = _tuner_layers(unet)  # once: to look through a UNet's modules takes 2 % of a small model's step
    before = [layer._disable_adapters for layer in layers]
    _switch(layers, adapters)
    try:
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


def _switch(layers: "list[LoraLayer]", adapters: Iterable[AdapterName]) -> None:
    chosen = set(adapters)
    for layer in layers:
        # peft's `enable_adapters` would also rewrite requires_grad, which is ours to keep.
        layer._disable_adapters = not any(name in chosen for name in layer.lora_A)


def switched_as_now(module: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` with the adapters of `module` on or off as they are at this moment, whenever it is called."""
    layers = _tuner_layers(module)
    now = [layer._disable_adapters for layer in layers]

    def run(*args: Any, **kwargs: Any) -> Any:
        before = [layer._disable_adapters for layer in layers]
        for layer, disabled in zip(layers, now, strict=True):
            layer._disable_adapters = disabled
        try:
            return call(*args, **kwargs)
        finally:
            for layer, disabled in zip(layers, before, strict=True):
                layer._disable_adapters = disabled

    return run


def save(unet: nn.Module, adapter: AdapterName, folder: Path, *, base_model: str) -> None:
    """Write one adapter in PEFT's own layout: `adapter_config.json`, `adapter_model.safetensors`.

    Raises:
        ValueError: the adapter was never trained (every B matrix is zero), so there is nothing to save.
    """
    from peft import LoraConfig

    state = {
        f"base_model.model.{name.replace(f'.{adapter}.', '.')}": parameter.detach().cpu().contiguous()
        for name, parameter in adapter_parameters(unet, adapter).items()
    }
    if not any(value.any() for name, value in state.items() if ".lora_B." in name):
        raise ValueError(f"the {adapter} adapter is untrained, there is nothing to save")
    layer = next(layer for layer in _tuner_layers(unet) if adapter in layer.lora_A)
    config = LoraConfig(
        r=layer.r[adapter],
        lora_alpha=layer.lora_alpha[adapter],
        target_modules=[
            name.rsplit(".lora_A.", 1)[0] for name in adapter_parameters(unet, adapter) if ".lora_A." in name
        ],
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    # peft's `save_pretrained` writes sets in any order, and its state dict is of a model that peft itself wrapped.
    fields = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    (folder / "adapter_config.json").write_text(json.dumps(fields, indent=2, sort_keys=True, default=str) + "\n")
    save_file(state, folder / "adapter_model.safetensors")


def read(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter that `save` (or PEFT) wrote."""
    return load_file(folder / "adapter_model.safetensors")


def load(
    unet: nn.Module, adapter: AdapterName, folder: Path, *, read: Callable[[Path], dict[str, Tensor]] = read
) -> None:
    """Put one adapter that `save` (or PEFT) wrote into the injected layers.

    Args:
        read: gives the tensors of a folder; it may have them in memory.

    Raises:
        InputError: the file's layers or rank are not those of this model.
    """
    state = read(folder)
    wanted = adapter_parameters(unet, adapter)
    names = {f"base_model.model.{name.replace(f'.{adapter}.', '.')}": name for name in wanted}
    if set(state) != set(names):
        raise InputError(f"the {adapter} adapter in {folder} was made for another model", code="adapter_mismatch")
    for stored, name in names.items():
        if state[stored].shape != wanted[name].shape:
            raise InputError(
                f"the {adapter} adapter in {folder} has rank {min(state[stored].shape)}, "
                f"this run uses {min(wanted[name].shape)}",
                param="tune.rank",
                code="adapter_mismatch",
            )
        wanted[name].data.copy_(state[stored])


def _tuner_layers(unet: nn.Module) -> "list[LoraLayer]":
    from peft.tuners.lora import LoraLayer

    return [module for module in unet.modules() if isinstance(module, LoraLayer)]
