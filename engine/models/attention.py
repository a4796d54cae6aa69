"""Which operator computes the UNet's attention: torch's own (`sdpa`), or xformers' memory-efficient one.

xformers is an optional extra with no CPU operator. The choice is about speed and memory, not about the method, but the
last bits differ, so results of xformers have their own keys (see `key`).
"""

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...kernels.attention import chunked
from ..errors import InputError

Attention = Literal["sdpa", "xformers"]


def require(attention: Attention, device: torch.device) -> None:
    """Raises InputError: xformers was asked for without a GPU, or is not installed."""
    if attention != "xformers":
        return
    if device.type != "cuda":
        raise InputError(f"xformers has no operator for {device.type}; it needs a GPU, or use sdpa", param="attention")
    if find_spec("xformers") is None:
        raise InputError("xformers is not installed: pip install 'recapture[xformers]', or use sdpa", param="attention")


def key(attention: Attention) -> dict[str, str]:
    """The operator's part in a stage's key; empty for the default."""
    return {} if attention == "sdpa" else {"attention": attention}


def set_attention(unet: nn.Module, attention: Attention) -> None:
    """Let every attention layer of a diffusers UNet compute with this operator; LoRA layers inside stay as they are."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    made: Any = unet
    made.set_attn_processor(AttnProcessor2_0() if attention == "sdpa" else XFormersProcessor())


def xformers_attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """xformers' operator with torch's axes, [N, H, L, D]."""
    from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

    # It wants [N, L, H, D], and takes any strides: nothing is copied.
    return memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)), **options).transpose(1, 2)


class XFormersProcessor:
    """Attention processor for the layers of Stable Video Diffusion's UNet: tokens in, tokens out, no mask, no norm.

    diffusers' own processor for xformers hands all of batch x heads to one call, which the temporal layers overrun.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,  # [N, L, C]
        encoder_hidden_states: Tensor | None = None,  # [N, S, E]
        attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        plain = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross, attention_mask)
        assert hidden_states.ndim == 3, hidden_states.shape
        assert all(part is None for part in plain), plain
        assert not attn.residual_connection
        assert attn.rescale_output_factor == 1
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            project(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project, tokens in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        mixed = chunked(xformers_attention, q, k, v, scale=attn.scale)
        tokens = mixed.transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](tokens))
