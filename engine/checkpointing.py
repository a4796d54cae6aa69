"""Activation checkpointing: a backward pass that computes parts of the forward pass again rather than keep them.

`stock` is diffusers' own, which never covers the temporal blocks. `balanced` keeps the input of each transformer block,
spatial and temporal, and nothing inside: less is kept, and less is computed again, for the convolutions are left alone.
No bit of a gradient changes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .adapters import switched_as_now

Checkpointing = Literal["none", "balanced", "stock"]

_BLOCKS = (BasicTransformerBlock, TemporalBasicTransformerBlock)


@contextmanager
def checkpointed(unet: nn.Module, how: Checkpointing) -> Iterator[None]:
    """Within the context training passes of a diffusers UNet keep only what `how` says."""
    with ExitStack() as undo:
        if how == "stock":
            made: Any = unet
            made.enable_gradient_checkpointing(lambda block, *args: _checkpoint(block, block.__call__, *args))
            undo.callback(made.disable_gradient_checkpointing)
        for block in unet.modules() if how == "balanced" else ():
            if isinstance(block, _BLOCKS):
                block.forward = _again(block, block.forward)
                undo.callback(block.__dict__.pop, "forward")
        yield


@contextmanager
def inputs_kept(unet: nn.Module, keep: Callable[[Tensor], object]) -> Iterator[None]:
    """Within the context `keep` is told of each tensor that a checkpoint keeps in order to compute again from it."""

    def tell(values: Iterable[object]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                keep(value)

    with ExitStack() as undo:
        for module in unet.modules():
            made: Any = module
            if "forward" in module.__dict__ and isinstance(module, _BLOCKS):
                hook = module.register_forward_pre_hook(
                    lambda _, args, kwargs: tell([*args, *kwargs.values()]), with_kwargs=True
                )
                undo.callback(hook.remove)
            if getattr(made, "gradient_checkpointing", False):
                undo.callback(setattr, made, "_gradient_checkpointing_func", made._gradient_checkpointing_func)
                made._gradient_checkpointing_func = _telling(made._gradient_checkpointing_func, tell)
        yield


def _telling(function: Callable[..., Any], tell: Callable[[Iterable[object]], None]) -> Callable[..., Any]:
    def run(module: nn.Module, *args: Any) -> Any:
        tell(args)
        return function(module, *args)

    return run


def _again(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: _checkpoint(block, forward, *args, **kwargs)


def _checkpoint(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # The backward pass comes when the pass's choice of adapters has been undone: it is made again for it.
    return checkpoint(switched_as_now(block, forward), *args, use_reentrant=False, **kwargs)
