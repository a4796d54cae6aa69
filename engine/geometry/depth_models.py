"""Depth networks behind one call: the embedded one, and directories in the transformers layout."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..catalog import DEPTH_MODELS, UNSTATED, best_depth, check_depth_name
from ..errors import ModelError
from ..hub import EMBEDDED, fetch, license_of, weights_digest
from ..layout import DEPTH, KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthSource:
    """A depth model that was found, not yet loaded."""

    name: str
    """Names it again, wherever its files are: `embedded`, the directory as given, or the hub repository."""
    folder: Path
    kind: str
    """`embedded` or one of KINDS."""
    license: str
    digest: str

    @property
    def sentence(self) -> str:
        """What a person reads where `auto` chose this model."""
        if self.kind == "embedded":
            return "Depth: embedded model (small). Better: recapture models pull depth"
        return f"Depth: {self.name} ({self.license})"


class DepthModel(Protocol):
    relative: bool
    """True: `predict` gives disparity up to scale and shift; False: depth up to at most a scale."""
    parameters: int

    def predict(self, frames: Tensor) -> tuple[Tensor, float | None]:
        """Depth (or relative disparity) [B, h, w] at the network's resolution and the horizontal field of view in
        degrees if the network estimates it, for frames [B, 3, H, W] in 0..1. Frames do not influence each other."""
        ...


def find_depth_model(name: str) -> DepthSource:
    """Where a depth model lies and what it is; `auto` is the best on this machine. Only a hub name is downloaded.

    Raises:
        ModelError: no name of `DEPTH_MODELS`, nor a directory or hub repository of a kind that is understood.
    """
    entry = best_depth() if name == "auto" else DEPTH_MODELS.get(name)
    if entry is not None and entry.name == "embedded":
        digest = weights_digest(EMBEDDED, ("depth",))
        return DepthSource(
            name=entry.name, folder=Path(entry.source), kind="embedded", license=entry.license, digest=digest
        )
    check_depth_name(name)
    name = name if entry is None else entry.source
    folder = Path(name)
    if not folder.is_dir():
        folder = fetch(name, DEPTH, param="depth.model")
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError):
        raise ModelError(
            f"{folder} has no readable config.json of a transformers depth model", param="depth.model"
        ) from None
    if kind not in KINDS:
        raise ModelError(f"{folder} holds a {kind!r} model; {', '.join(KINDS)} are understood", param="depth.model")
    digest = weights_digest(folder, tuple(p.name for p in sorted(folder.iterdir()) if p.is_file()))
    license = entry.license if entry is not None else license_of(folder) or UNSTATED
    return DepthSource(name=name, folder=folder, kind=kind, license=license, digest=digest)


def load_depth_model(source: DepthSource, device: torch.device) -> DepthModel:
    """Load what `find_depth_model` found. Raises ModelError where the files are damaged."""
    try:
        if source.kind == "embedded":
            return EmbeddedDepth(source.folder, device)
        return TransformersDepth(source.folder, source.kind, device)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ModelError(f"the depth model {source.name} cannot be loaded: {reason}", param="depth.model") from None


def network_size(width: int, height: int, *, area: float, multiple: int) -> tuple[int, int]:
    """(height, width) near an area, of the frame's aspect, in whole multiples."""
    scale = math.sqrt(area / (width * height))
    rows, columns = (max(1, round(side * scale / multiple)) * multiple for side in (height, width))
    return rows, columns


_MOST_AREA = 4.0


class EmbeddedDepth:
    """The depth network in the package: log depth without a free shift."""

    relative = False

    def __init__(self, folder: Path, device: torch.device) -> None:
        from .depth_network import DepthNet

        self.network = DepthNet.from_pretrained(folder).eval().to(device)
        self.parameters = sum(p.numel() for p in self.network.parameters())
        self.device = device

    def predict(self, frames: Tensor) -> tuple[Tensor, float | None]:
        log_depth, sky_logit = self.averaged(frames)
        return torch.where(sky_logit > 0, torch.inf, log_depth.exp()), None

    @torch.no_grad()
    def averaged(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The mean log depth and sky logit [B, h, w] over several sizes of frames [B, 3, H, W] in 0..1: the largest comes
        closest to the clip's, at most `_MOST_AREA` times the training area; small ones see what kind of place it is,
        large ones where one thing ends."""
        height, width = frames.shape[2:]
        area = self.network.train_area
        most = max(1.0, min(_MOST_AREA, height * width / area))
        sizes = [network_size(width, height, area=area * times, multiple=32) for times in (1.0, most**0.5, most)]
        logs, skies = [], []
        for size in dict.fromkeys(sizes):
            images = F.interpolate(frames.to(self.device), size=size, mode="bilinear", antialias=True)
            log_depth, sky = (
                F.interpolate(values[:, None], size=sizes[-1], mode="bilinear")[:, 0] for values in self.network(images)
            )
            middle = log_depth.flatten(1).median(1).values[:, None, None]
            logs.append((log_depth - middle, middle))
            skies.append(sky)
        mean = torch.stack([relative for relative, _ in logs]).mean(0) + logs[0][1]
        return mean, torch.stack(skies).mean(0)


class TransformersDepth:
    """depth_anything (relative or metric), zoedepth, depth_pro from a directory.

    The images are prepared here from `preprocessor_config.json`: the stock processors of some need torchvision.
    """

    def __init__(self, folder: Path, kind: str, device: torch.device) -> None:
        from transformers import AutoModelForDepthEstimation

        self.network = AutoModelForDepthEstimation.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.network.eval().to(device)
        self.parameters = sum(p.numel() for p in self.network.parameters())
        config = json.loads((folder / "preprocessor_config.json").read_text())
        self.kind, self.device = kind, device
        self.relative = kind == "depth_anything" and self.network.config.depth_estimation_type == "relative"
        self._size = config["size"]
        self._multiple = int(config.get("ensure_multiple_of") or 1)
        self._mean, self._std = (
            torch.tensor(config.get(key) or [0.5] * 3, device=device).view(3, 1, 1)
            for key in ("image_mean", "image_std")
        )

    @torch.no_grad()
    def predict(self, frames: Tensor) -> tuple[Tensor, float | None]:
        rows, columns = self._size["height"], self._size["width"]
        if self.kind != "depth_pro":  # depth_pro takes its square whatever the aspect
            rows, columns = network_size(frames.shape[3], frames.shape[2], area=rows * columns, multiple=self._multiple)
        images = F.interpolate(frames.to(self.device), size=(rows, columns), mode="bicubic", antialias=True).clamp(0, 1)
        outputs = self.network(pixel_values=(images - self._mean) / self._std)
        predicted = outputs.predicted_depth.float()
        if self.kind != "depth_pro":
            return predicted.clamp(min=0), None
        # Canonical inverse depth; meters need the focal length in units of the picture's width.
        fov = None if outputs.field_of_view is None else outputs.field_of_view.clamp(5, 160)
        focal = 0.5 / torch.tan(0.5 * torch.deg2rad(fov)) if fov is not None else predicted.new_ones(len(predicted))
        depth = 1 / (predicted / focal.view(-1, 1, 1)).clamp(1e-4, 1e4)
        return depth, float(fov.float().median()) if fov is not None else None
