"""The embedded depth network: EfficientNet-Lite0 encoder, light decoder, log depth and a sky logit.

Depth is planar, in units of one free scale per image; sky has no depth, only a probability.
Every layer works on one image alone (batch norm in evaluation mode, group norm elsewhere).
Legend: B images, H and W pixels (multiples of 32).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# (kernel, stride, expansion, channels, repeats) of EfficientNet-B0; "lite" drops squeeze-excitation, swish becomes ReLU6.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
TAPS = (0, 2, 4, 10, 15)
"""Blocks whose outputs feed the decoder: strides 2, 4, 8, 16, 32."""
TAP_CHANNELS = (16, 24, 40, 112, 320)
LOG_DEPTH_LIMIT = 12.0


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: at stride 2 the extra row and column come last."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, groups=groups, bias=False)
        total = kernel - stride if stride > 1 else kernel - 1
        self.pads = (total // 2, total - total // 2) * 2

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.pads) if self.pads[1] else input)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalization with the constants of EfficientNet-Lite."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the names are those of the published weights."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv(channels_in, wide, 1), batch_norm(wide)
        self._depthwise_conv, self._bn1 = SameConv(wide, wide, kernel, stride, groups=wide), batch_norm(wide)
        self._project_conv, self._bn2 = SameConv(wide, channels_out, 1), batch_norm(channels_out)
        self.expands, self.residual = expansion > 1, stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The encoder without its classifier; `forward` returns the features of `TAPS`."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), batch_norm(32)
        blocks, channels = [], 32
        for kernel, stride, expansion, out, repeats in STAGES:
            for k in range(repeats):
                blocks.append(InvertedResidual(channels, out, kernel, stride if k == 0 else 1, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """`images` [B, 3, H, W] in 0..1 -> five maps [B, TAP_CHANNELS[i], H / 2^(i+1), W / 2^(i+1)]"""
        x = F.relu6(self._bn0(self._conv_stem((images * 255 - 127) / 128)))
        taps = []
        for k, block in enumerate(self._blocks):
            x = block(x)
            if k in TAPS:
                taps.append(x)
        return taps


class Fuse(nn.Module):
    """Doubles the resolution and mixes in the encoder's map of that resolution."""

    def __init__(self, channels_in: int, skip_channels: int, channels_out: int) -> None:
        super().__init__()
        self.reduce, self.skip = nn.Conv2d(channels_in, channels_out, 1), nn.Conv2d(skip_channels, channels_out, 1)
        self.mix = nn.Sequential(
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
            nn.GroupNorm(8, channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(self.reduce(x), scale_factor=2, mode="bilinear") + self.skip(skip)
        return x + self.mix(x)


class DepthPrediction(NamedTuple):
    log_depth: Tensor
    """[B, H, W] natural logarithm of planar depth, up to one constant an image; meaningless where it is sky."""
    sky_logit: Tensor
    """[B, H, W] positive where the pixel is more likely sky (infinitely far) than a surface."""


class DepthNet(nn.Module):
    """Monocular depth. `train_height`, `train_width` say at what size it was trained: feed about that area."""

    def __init__(
        self, widths: tuple[int, ...] = (128, 96, 64, 32), train_height: int = 192, train_width: int = 288
    ) -> None:
        super().__init__()
        self.config = {"widths": list(widths), "train_height": train_height, "train_width": train_width}
        self.train_height, self.train_width = train_height, train_width
        self.train_area = train_height * train_width
        self.encoder = EfficientNetLite0()
        self.lateral = nn.Conv2d(TAP_CHANNELS[-1], widths[0], 1)
        # What kind of place this is decides far more about depth than any local patch.
        self.context = nn.Sequential(nn.Linear(TAP_CHANNELS[-1], widths[0]), nn.ReLU(), nn.Linear(widths[0], widths[0]))
        self.fuse = nn.ModuleList(
            Fuse(wide, skip, out)
            for wide, skip, out in zip((widths[0], *widths[:-1]), TAP_CHANNELS[-2::-1], widths, strict=True)
        )
        self.head = nn.Sequential(
            nn.Conv2d(widths[-1] + 3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 2, 3, padding=1)
        )

    def forward(self, images: Tensor) -> DepthPrediction:
        """`images` [B, 3, H, W] sRGB in 0..1; H and W multiples of 32.

        Raises:
            ValueError: a side is not a multiple of 32.
        """
        if images.shape[-1] % 32 or images.shape[-2] % 32:
            raise ValueError(f"image sides must be multiples of 32, got {tuple(images.shape[-2:])}")
        taps = self.encoder(images)
        x = self.lateral(taps[-1]) + self.context(taps[-1].mean((2, 3)))[..., None, None]
        for fuse, skip in zip(self.fuse, taps[-2::-1], strict=True):
            x = fuse(x, skip)
        # The image itself at full resolution lets depth edges sit on image edges.
        x = torch.cat([F.interpolate(x, scale_factor=2, mode="bilinear"), images], 1)
        log_depth, sky_logit = self.head(x).unbind(1)
        return DepthPrediction(log_depth.clamp(-LOG_DEPTH_LIMIT, LOG_DEPTH_LIMIT), sky_logit)

    def save_pretrained(self, path: str | Path) -> None:
        """Writes `config.json` and `model.safetensors` in the module's own precision."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(
            json.dumps({"model_type": "recapture_depth", **self.config}, indent=2) + "\n"
        )
        save_file({name: t.contiguous() for name, t in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, path: str | Path) -> DepthNet:
        """Loads a directory written by `save_pretrained`, as float32 in evaluation mode."""
        folder = Path(path)
        config = json.loads((folder / "config.json").read_text())
        model = cls(tuple(config["widths"]), config["train_height"], config["train_width"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()
