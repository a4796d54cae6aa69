"""The networks of a process: found at once, loaded when first used, then kept."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..catalog import ModelEntry, find_model
from ..config import RunConfig, override
from ..geometry.depth_models import DepthModel, DepthSource, find_depth_model, load_depth_model
from ..hub import weights_digest
from ..models import adapters
from ..models.attention import Attention, set_attention
from ..models.multiview import MultiviewModel, MultiviewSource, load_multiview_model
from ..models.precision import Precision, dtype_of
from ..models.video import ENCODER_PARTS, ModelShape, VideoModel
from .device_memory import DeviceBudget, budget_of


class WarmModels:
    """Networks by name. The video model's name is looked up at once, so that a wrong name is refused early.

    Attributes:
        loads: how often the video model was loaded.
        read_adapter: gives a tuned adapter's tensors by its folder; a service may have them in memory.
    """

    def __init__(self, model: str, *, device: torch.device, dtype: torch.dtype) -> None:
        """Raises ModelError: the model is unknown, or cannot be downloaded."""
        self.entry: ModelEntry
        self.entry, self.folder = find_model(model)
        self.shape = ModelShape.read(self.folder)
        self.device, self.dtype = device, dtype
        self.loads = 0
        self.read_adapter: Callable[[Path], dict[str, Tensor]] = adapters.read
        self._video: VideoModel | None = None
        self._rank: int | None = None
        self._attention: Attention = "sdpa"
        self._depth: dict[str, tuple[DepthSource, DepthModel | None]] = {}
        self._multiview: dict[str, MultiviewModel] = {}

    @cached_property
    def encoder_digest(self) -> str:
        """sha256 of the VAE and the image encoder."""
        return weights_digest(self.folder, ENCODER_PARTS)

    @cached_property
    def unet_digest(self) -> str:
        """sha256 of the UNet."""
        return weights_digest(self.folder, ("unet",))

    def video(
        self,
        rank: int,
        attention: Attention = "sdpa",
        *,
        offload: bool = False,
        precision: Precision = "auto",
    ) -> VideoModel:
        """The video model with both adapters injected at this rank, this attention operator and precision.

        Args:
            precision: of the UNet; `auto` is what these models were opened with.
        """
        dtype = self.dtype if precision == "auto" else dtype_of(precision, self.device)
        if self._video is None or self._rank != rank or self._video.dtype != dtype:
            self._video = None  # the old one's memory is free before the new one takes its own
            self._video = VideoModel(self.folder, device=self.device, dtype=dtype)
            adapters.inject(self._video.unet, rank)
            self._rank, self._attention = rank, "sdpa"
            self.loads += 1
        if self._attention != attention:
            set_attention(self._video.unet, attention)
            self._attention = attention
        self._video.offload = offload
        return self._video

    def budget(self) -> DeviceBudget:
        """What this process may take of its device."""
        modules = () if self._video is None else (self._video.unet, self._video.vae, self._video.image_encoder)
        loaded = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
        return budget_of(self.device, self.dtype, loaded)

    def depth_source(self, name: str) -> DepthSource:
        """A depth model that is found, not necessarily loaded. Raises ModelError: there is none of that name."""
        if name not in self._depth:
            self._depth[name] = find_depth_model(name), None
        return self._depth[name][0]

    def depth(self, name: str) -> DepthModel:
        """A loaded depth model. Raises ModelError: there is none of that name, or its files are damaged."""
        source = self.depth_source(name)
        model = self._depth[name][1] or load_depth_model(source, self.device)
        self._depth[name] = source, model
        return model

    def settle(self, config: RunConfig) -> RunConfig:
        """The configuration with the depth model's name in place of `auto`."""
        return override(config, {"depth": {"model": self.depth_source(config.depth.model).name}})

    def multiview(self, source: MultiviewSource) -> MultiviewModel:
        """A loaded multiview model. Raises ModelError: its files are damaged."""
        if source.digest not in self._multiview:
            self._multiview[source.digest] = load_multiview_model(source, self.device)
        return self._multiview[source.digest]
