"""Attention in pieces, for operators that launch one block per batch entry and head and so run out of grid.

Attention mixes tokens, never batch entries: any split along the batch gives the same rows. Stable Video Diffusion at
576x1024 with guidance has 2 x 9216 batch entries of 5 heads in its widest temporal layers: 92,160, above the 65,535
that one axis of a CUDA grid holds.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIMIT = 65_535
"""Batch entries times heads that one call may have."""


def chunked(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *, limit: int = LIMIT, **options: Any
) -> Tensor:
    """`attend(q, k, v, **options)` in as few calls as keep batch x heads within `limit` in each, of even sizes.

    Args:
        attend: any attention over [N, H, L, D], such as `torch.nn.functional.scaled_dot_product_attention`.
        q: [N, H, L, D]; k and v: [N, H, S, D].
        options: passed on as they are; a mask [N, ., ., .] is split along.

    Returns:
        [N, H, L, D]; equal to the one call up to the last bits of what `attend` does with another batch size.

    Raises:
        ValueError: a single batch entry has more heads than `limit`.
    """
    count, heads = q.shape[:2]
    if heads > limit:
        raise ValueError(f"{heads} heads are more than the {limit} that one call may have")
    calls = -(-count // (limit // heads))
    if calls <= 1:
        return attend(q, k, v, **options)
    size = -(-count // calls)
    pieces = []
    for start in range(0, count, size):
        part = slice(start, start + size)
        cut = {
            name: value[part] if isinstance(value, Tensor) and value.ndim == 4 and len(value) == count else value
            for name, value in options.items()
        }
        pieces.append(attend(q[part], k[part], v[part], **cut))
    return torch.cat(pieces)
