"""Activation checkpointing: a backward pass that computes parts of the forward pass again rather than keep them.

`stock` is diffusers' own, which never covers the temporal blocks. `balanced` keeps the input of each transformer block,
spatial and temporal, and nothing inside: less is kept, and less is computed again, for the convolutions are left alone.
`full` keeps nothing inside residual blocks either. No bit of a gradient changes.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import nn
from torch.utils.checkpoint import checkpoint

from .adapters import switched_as_now

Checkpointing = Literal["none", "balanced", "full", "stock"]

_TRANSFORMERS = (BasicTransformerBlock, TemporalBasicTransformerBlock)
_BLOCKS: dict[Checkpointing, tuple[type[nn.Module], ...]] = {
    "balanced": _TRANSFORMERS,
    "full": (*_TRANSFORMERS, ResnetBlock2D, TemporalResnetBlock),
}


@contextmanager
def checkpointed(unet: nn.Module, how: Checkpointing) -> Iterator[None]:
    """Within the context training passes of a diffusers UNet keep only what `how` says."""
    with ExitStack() as undo:
        if how == "stock":
            made: Any = unet
            made.enable_gradient_checkpointing(lambda block, *args: _checkpoint(block, block.__call__, *args))
            undo.callback(made.disable_gradient_checkpointing)
        for block in unet.modules():
            if isinstance(block, _BLOCKS.get(how, ())):
                block.forward = _again(block, block.forward)
                undo.callback(block.__dict__.pop, "forward")
        yield


def _again(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: _checkpoint(block, forward, *args, **kwargs)


def _checkpoint(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # The backward pass comes when the pass's choice of adapters has been undone: it is made again for it.
    return checkpoint(switched_as_now(block, forward), *args, use_reentrant=False, **kwargs)
