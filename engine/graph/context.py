"""What a stage may use: the request, warm models, who does the work, and who is told of its progress."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import RunConfig
from ..diffusion.encoding import Encoder
from ..diffusion.sampler import EULER, Sampler, plan_windows
from ..diffusion.tuner import DataShard, OptimizerFactory, Tuner
from ..errors import InputError
from ..models import adapters
from ..models.multiview import MultiviewSource, multiview_source
from ..models.video import VideoModel
from ..store import Writer
from .frame_task import FrameBatch, FrameTask
from .request import RenderRequest
from .warm_models import WarmModels

ProgressCallback = Callable[[str, int, int, Mapping[str, Any]], None]
"""Called with stage, units done, units in all, and details such as the loss. May raise to stop the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingStep:
    """A finished step of a sampling stage.

    Attributes:
        stage: `sample` or `refine`.
        window: index of the window.
        step: index in the window's schedule.
        sigma: noise level that the step started from.
    """

    stage: str
    window: int
    step: int
    sigma: float


StepCallback = Callable[[SamplingStep, Tensor], Tensor | None]
"""Called after a sampling step with the window's latents [T, C, h, w]; may return other latents, or raise to stop."""


class StageServices(Protocol):
    """The part of an executor that stages themselves call."""

    @property
    def data_shard(self) -> DataShard:
        """The part of each tuning batch that is this process's."""
        ...

    @property
    def make_optimizer(self) -> OptimizerFactory:
        """Makes the optimizer of the tuning stages."""
        ...

    def map_frames(
        self, context: "StageContext", task: FrameTask, count: int, *, scratch: Path
    ) -> Iterator[FrameBatch]:
        """Do the task for frames 0 to count - 1; batches in the order of the frames, each of one call or several.

        Args:
            scratch: folder of the stage that is being written; what is left below it is removed at the end.
        """
        ...


@dataclass(kw_only=True)
class StageContext:
    """One run as its stages see it.

    Attributes:
        executor: does work that goes frame by frame, and makes the optimizer.
        on_progress: see `ProgressCallback`.
        on_step_end: see `StepCallback`; None is nobody.
        warnings: what the running stage warns the user of.
        notes: what it found or chose that the user should know; nothing is wrong.
    """

    request: RenderRequest
    models: WarmModels
    executor: StageServices
    on_progress: ProgressCallback = lambda stage, done, total, detail: None
    on_step_end: StepCallback | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> RunConfig:
        """The request's options."""
        return self.request.config

    def progress(self, stage: str, done: int, total: int, **detail: Any) -> None:
        """Report progress; may raise to stop the run."""
        self.on_progress(stage, done, total, detail)

    def warn(self, sentence: str) -> None:
        """Tell the user something, now and whenever the stage's result is reused."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def note(self, sentence: str) -> None:
        """As `warn`, of something that is as it should be."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self.models.device

    @property
    def drawing_device(self) -> torch.device:
        """Where points are drawn: a Mac's GPU lacks the 64-bit atomics of the depth test, and its CPU draws fast."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    @property
    def model(self) -> VideoModel:
        """The video model with the options' adapters, attention and precision."""
        config = self.config
        return self.models.video(config.tune.rank, config.attention, offload=config.offload, precision=config.dtype)

    @cached_property
    def encoder(self) -> Encoder:
        """Frames to latents and image embeddings at the working size."""
        return Encoder(self.model, self.config.condition, self.size, self.config.seed)

    def tuner(self) -> Tuner:
        """The losses of the tuning stages; both adapters start as injected, equal on every machine."""
        adapters.reset(self.model.unet, seed=self.config.seed)
        return Tuner(self.model, self.config.tune, self.config.seed, self.executor.data_shard)

    def each_frame(self, task: FrameTask, count: int, out: Writer) -> Iterator[FrameBatch]:
        """Results of the task for frames 0 to count - 1, batch by batch in order."""
        return self.executor.map_frames(self, task, count, scratch=out.path)

    def windows(self, count: int) -> list[range]:
        """The windows that a clip of `count` frames is sampled in."""
        return plan_windows(count, self.models.shape.frames, self.config.sample.overlap)

    @property
    def size(self) -> tuple[int, int]:
        """Working (height, width).

        Raises:
            InputError: the given size is not a multiple of what the model needs.
        """
        options, info, multiple = self.config.condition, self.request.info, self.models.shape.multiple
        if options.height is None or options.width is None:
            return self.models.shape.working_size(info.width, info.height)
        for name, side in (("condition.height", options.height), ("condition.width", options.width)):
            if side % multiple:
                nearest = max(1, round(side / multiple)) * multiple
                raise InputError(
                    f"{side} is no multiple of {multiple}, which this model needs; try {nearest}", param=name
                )
        return options.height, options.width

    @property
    def decode_chunk(self) -> int:
        """Frames that the VAE decodes at once."""
        return self.config.sample.decode_chunk or self.models.shape.frames

    @property
    def sampler(self) -> Sampler:
        """Chooses noise levels and takes the steps between them."""
        return self.request.sampler or EULER

    @property
    def depth_digest(self) -> str:
        """sha256 of the user's depth, or of the depth model's weights."""
        return self.request.depth_digest or self.models.depth_source(self.config.depth.model).digest

    @cached_property
    def multiview_source(self) -> MultiviewSource | None:
        """See `multiview.multiview_source`."""
        return multiview_source(self.config.anchor)
