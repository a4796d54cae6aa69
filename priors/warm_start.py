"""Starts the VAE as a linear codec instead of from noise, which saves most of a short training.

The encoder's latents begin as the mean color of each 8x8 block plus principal components of the rest, the decoder's
output as a smooth enlargement of the mean colors. Two facts make an exact linear path through the last normalize and
SiLU layers: silu(x) - silu(-x) = x, and a group that holds (c, -c) has mean zero. The group's scale is pinned by
constants in the encoder (four channels a group) and by a carrier of known variance in the decoder (two a group).
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

CELL = 8
PIN = 4.0
"""Constant that dominates the encoder's group variance, in standard deviations of a latent."""
LOG_VARIANCE = -5.0


def block_components(images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Analysis vectors [count, 3, 8, 8] and offsets [count] that give latents of unit variance.

    `images` [N, 3, H, W] in -1..1. The first three are the block's mean color.
    """
    n, _, h, w = images.shape
    cells = images.reshape(n, 3, h // CELL, CELL, w // CELL, CELL).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, CELL * CELL)
    means = cells.mean(-1, keepdim=True)
    rest = (cells - means).flatten(1)
    _, vectors = np.linalg.eigh((rest.T @ rest / len(rest)).double().numpy())
    top = torch.from_numpy(vectors[:, ::-1][:, : count - 3].T.copy()).float()
    mean_rows = torch.zeros(3, 3, CELL * CELL)
    for k in range(3):
        mean_rows[k, k] = 1 / CELL**2
    # A component is orthogonal to constants only within rounding; that is all it needs.
    rows = torch.cat([mean_rows.flatten(1), top])
    values = cells.flatten(1) @ rows.T
    std = values.std(0)
    return (rows / std[:, None]).view(count, 3, CELL, CELL), values.mean(0) / std


def set_row(conv: torch.nn.Conv2d, row: int, weights: dict[tuple[int, int, int], float], bias: float = 0.0) -> None:
    """Makes output channel `row` the given sum of {(input channel, kernel y, kernel x): weight}."""
    conv.weight[row] = 0
    for (channel, y, x), value in weights.items():
        conv.weight[row, channel, y, x] = value
    conv.bias[row] = bias


def smooth(channel: int, gain: float = 1.0) -> dict[tuple[int, int, int], float]:
    """The 3x3 kernel that turns nearest-neighbor doubling into bilinear doubling."""
    taps = (0.25, 0.5, 0.25)
    return {(channel, y, x): gain * taps[y] * taps[x] for y in range(3) for x in range(3)}


@torch.no_grad()
def start_as_linear_codec(vae: AutoencoderKLTemporalDecoder, images: Tensor) -> None:
    """Overwrites weights of `vae` in place; `images` [N, 3, H, W] in -1..1 are a sample of the training pictures."""
    count = vae.config.latent_channels
    vectors, offsets = block_components(images, count)
    start_encoder(vae, vectors, offsets)
    start_decoder(vae, vectors, offsets, images)


def start_encoder(vae: AutoencoderKLTemporalDecoder, vectors: Tensor, offsets: Tensor) -> None:
    """Space to depth three times, then the components, then the pinned groups."""
    encoder, count = vae.encoder, len(vectors)
    resnets = [r for block in encoder.down_blocks for r in block.resnets] + list(encoder.mid_block.resnets)
    for module in [r.conv2 for r in resnets] + [encoder.mid_block.attentions[0].to_out[0]]:
        module.weight.zero_()
        module.bias.zero_()
    for k in range(3):
        set_row(encoder.conv_in, k, {(k, 1, 1): 1.0})
    for level in range(2):
        conv = encoder.down_blocks[level].downsamplers[0].conv
        for k in range(3 * 4**level):
            for y in range(2):
                for x in range(2):
                    set_row(conv, 4 * k + 2 * y + x, {(k, y, x): 1.0})
    shortcut = encoder.down_blocks[2].resnets[0].conv_shortcut
    for k in range(48):
        set_row(shortcut, k, {(k, 0, 0): 1.0})
    conv = encoder.down_blocks[2].downsamplers[0].conv
    for row in range(count):
        weights = {}
        for color in range(3):
            for py in range(CELL):
                for px in range(CELL):
                    # Bit 0 of the position went first, bit 1 second; bit 2 is this layer's own kernel tap.
                    channel = (color * 4 + 2 * (py & 1) + (px & 1)) * 4 + 2 * (py >> 1 & 1) + (px >> 1 & 1)
                    weights[channel, py >> 2, px >> 2] = float(vectors[row, color, py, px])
        set_row(conv, row, weights, bias=-float(offsets[row]))
    shortcut = encoder.down_blocks[3].resnets[0].conv_shortcut
    scale = ((1 + PIN**2) / 2) ** 0.5
    encoder.conv_out.weight.zero_()
    encoder.conv_out.bias.zero_()
    vae.quant_conv.weight.zero_()
    vae.quant_conv.bias.zero_()
    vae.quant_conv.bias[count:] = LOG_VARIANCE
    for k in range(count):
        set_row(shortcut, 4 * k, {(k, 0, 0): 1.0})
        set_row(shortcut, 4 * k + 1, {(k, 0, 0): -1.0})
        set_row(shortcut, 4 * k + 2, {}, bias=PIN)
        set_row(shortcut, 4 * k + 3, {}, bias=-PIN)
        set_row(encoder.conv_out, k, {(4 * k, 1, 1): scale, (4 * k + 1, 1, 1): -scale})
        set_row(vae.quant_conv, k, {(k, 0, 0): 1.0})


def start_decoder(vae: AutoencoderKLTemporalDecoder, vectors: Tensor, offsets: Tensor, images: Tensor) -> None:
    """Carries red, green and blue in channels 0 to 2; channel 3 becomes the carrier at half resolution."""
    decoder = vae.decoder
    blocks = [decoder.mid_block, *decoder.up_blocks[:3]]
    decoder.mid_block.attentions[0].to_out[0].weight[:3] = 0
    decoder.mid_block.attentions[0].to_out[0].bias[:3] = 0
    for resnet in [r.spatial_res_block for block in blocks for r in block.resnets]:
        resnet.conv2.weight[:3] = 0
        resnet.conv2.bias[:3] = 0
        if resnet.conv_shortcut is not None:
            for k in range(3):
                set_row(resnet.conv_shortcut, k, {(k, 0, 0): 1.0})
    for k in range(3):
        # latent = mean * v - offset, with v = 64 * vectors[k, k]
        gain = 1 / (CELL**2 * float(vectors[k, k, 0, 0]))
        set_row(decoder.conv_in, k, {(k, 1, 1): gain}, bias=gain * float(offsets[k]))
        for block in decoder.up_blocks[:2]:
            set_row(block.upsamplers[0].conv, k, smooth(k))
    set_row(decoder.up_blocks[2].resnets[0].spatial_res_block.conv_shortcut, 3, {})
    decoder.up_blocks[2].resnets[0].spatial_res_block.conv2.weight[3] = 0
    decoder.up_blocks[2].resnets[0].spatial_res_block.conv2.bias[3] = 0

    seen: dict[str, Tensor] = {}
    hooks = [
        decoder.up_blocks[2].resnets[1].register_forward_hook(lambda m, i, o: seen.update(carrier=o[:, 3])),
        decoder.conv_norm_out.register_forward_hook(lambda m, i, o: seen.update(last=i[0])),
    ]
    latents = vae.encode(images).latent_dist.mode()
    vae.decode(latents, num_frames=1)
    gain = 1.4 / float(seen["carrier"].std())
    shift = -gain * float(seen["carrier"].mean())
    conv = decoder.up_blocks[2].upsamplers[0].conv
    for k in range(3):
        for pair, sign in enumerate((1.0, -1.0)):
            set_row(conv, 4 * k + 2 * pair, smooth(k) | smooth(3, sign * gain), bias=sign * shift)
            set_row(conv, 4 * k + 2 * pair + 1, smooth(k, -1.0) | smooth(3, -sign * gain), bias=-sign * shift)
    vae.decode(latents, num_frames=1)
    for hook in hooks:
        hook.remove()
    for k in range(3):
        scale = 0.5 * float(seen["last"][:, 4 * k : 4 * k + 4].square().mean().sqrt())
        signs = (1, -1, 1, -1)
        set_row(decoder.conv_out, k, {(4 * k + j, 1, 1): scale * sign for j, sign in enumerate(signs)})
