"""In which floating-point format the UNet computes.

bf16 has the range of fp32. fp16 has more digits and little range: the gradients of a mean over all of a window's latents
lie below its smallest normal number, so tuning in fp16 scales the loss (see `diffusion/tuner.py`).
"""

from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp16", "fp32"]

_DTYPES: dict[Literal["bf16", "fp16", "fp32"], torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def dtype_of(name: Precision, device: torch.device) -> torch.dtype:
    """The format of that name; `auto` is bf16 on a GPU that computes in it, fp16 on an older one, else fp32."""
    if name != "auto":
        return _DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def name_of(dtype: torch.dtype) -> Literal["bf16", "fp16", "fp32"]:
    """What `--dtype` calls a format."""
    return next(name for name, one in _DTYPES.items() if one == dtype)
