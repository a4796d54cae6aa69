"""Push-pull hole filling: pull valid pixels up a pyramid, push their means down into the holes.

Gortler et al., The Lumigraph (1996), section 3.4. Used before the VAE (an encoded black hole poisons the latents
beside it) and to carry color differences from a hole's rim into the hole.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def push_pull(image: Tensor, mask: Tensor) -> Tensor:
    """Fill the invalid pixels of `image` smoothly from the valid ones.

    Args:
        image: float [N, C, H, W].
        mask: [N, H, W], bool or float weight 0 to 1; where it is 1 the image comes back unchanged.

    Returns:
        float [N, C, H, W]; zero where a whole image has no valid pixel.
    """
    weight = mask[:, None].to(image)
    return _fill(torch.where(weight > 0, image, 0.0), weight)


def _fill(image: Tensor, weight: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    if (height == 1 and width == 1) or bool((weight >= 1).all()):
        return image
    # Odd sizes: the window that hangs over the edge counts only what is inside (weights of the padding are zero).
    padding = (0, width % 2, 0, height % 2)
    total = F.avg_pool2d(F.pad(weight, padding), 2)
    mean = F.avg_pool2d(F.pad(image * weight, padding), 2) / total.clamp(min=1e-12)
    coarse = _fill(torch.where(total > 0, mean, 0.0), (4 * total).clamp(max=1))
    up = F.interpolate(coarse, size=(height + height % 2, width + width % 2), mode="bilinear")[..., :height, :width]
    return image * weight + up * (1 - weight)
