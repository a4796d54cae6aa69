"""What one run carries through its stages: the clip, the camera, the options, warm models, and who wants to know."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..cameras import CameraSpec
from ..catalog import ModelEntry, find_model
from ..config import RunConfig, override
from ..diffusion.conditioning import Encoder
from ..diffusion.tuner import AdamW, OptimiserOf, Share
from ..errors import InputError
from ..geometry.depth_models import DepthModel, DepthSource, find_depth_model, load_depth_model
from ..hub import weights_digest
from ..models import adapters
from ..models.attention import Attention, set_attention
from ..models.multiview import MultiviewModel, MultiviewSource, load_multiview_model, multiview_source
from ..models.video import ENCODER_PARTS, ModelShape, VideoModel
from ..planning.memory import MemoryPlan, Room, room_on
from ..store import Writer
from ..video import ClipInfo, Limits
from .executor import FrameMap, FrameWork, Part, in_process

if TYPE_CHECKING:
    from ..warm_start import Neighbour


class Models:
    """Networks by name: found at once (so that a wrong name is refused early), loaded when first used, then kept warm."""

    def __init__(self, model: str, *, device: torch.device, dtype: torch.dtype) -> None:
        self.entry: ModelEntry
        self.entry, self.folder = find_model(model)
        self.shape = ModelShape.read(self.folder)
        self.device, self.dtype = device, dtype
        self.loads = 0
        """How often the video model was loaded."""
        self.read_adapter: Callable[[Path], dict[str, Tensor]] = adapters.read
        """Gives a tuned adapter's tensors by its folder; a service may have them in memory."""
        self._video: VideoModel | None = None
        self._rank: int | None = None
        self._attention: Attention = "sdpa"
        self._depth: dict[str, tuple[DepthSource, DepthModel | None]] = {}
        self._multiview: dict[str, MultiviewModel] = {}

    @cached_property
    def encoder_digest(self) -> str:
        return weights_digest(self.folder, ENCODER_PARTS)

    @cached_property
    def unet_digest(self) -> str:
        return weights_digest(self.folder, ("unet",))

    def video(self, rank: int, attention: Attention = "sdpa", *, offload: bool = False) -> VideoModel:
        """The video model with both adapters injected at this rank, its attention computed by this operator."""
        if self._video is None or self._rank != rank:
            self._video = VideoModel(self.folder, device=self.device, dtype=self.dtype)
            adapters.inject(self._video.unet, rank)
            self._rank, self._attention = rank, "sdpa"
            self.loads += 1
        if self._attention != attention:
            set_attention(self._video.unet, attention)
            self._attention = attention
        self._video.offload = offload
        return self._video

    def room(self) -> Room:
        """What this process could take of its device."""
        modules = () if self._video is None else (self._video.unet, self._video.vae, self._video.image_encoder)
        loaded = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
        return room_on(self.device, self.dtype, loaded)

    def depth_source(self, name: str) -> DepthSource:
        if name not in self._depth:
            self._depth[name] = find_depth_model(name), None
        return self._depth[name][0]

    def depth(self, name: str) -> DepthModel:
        source = self.depth_source(name)
        model = self._depth[name][1] or load_depth_model(source, self.device)
        self._depth[name] = source, model
        return model

    def settle(self, config: RunConfig) -> RunConfig:
        """The configuration with the depth model's name in place of `auto`."""
        return override(config, {"depth": {"model": self.depth_source(config.depth.model).name}})

    def multiview(self, source: MultiviewSource) -> MultiviewModel:
        if source.digest not in self._multiview:
            self._multiview[source.digest] = load_multiview_model(source, self.device)
        return self._multiview[source.digest]


Progress = Callable[[str, int, int, Mapping[str, Any]], None]
"""Called with stage, units done, units in all, and details such as the loss. May raise to stop the run."""

StepCallback = Callable[[str, int, float, Tensor], Tensor | None]
"""Called after a sampling step with stage, step, sigma and latents; may return other latents, or raise to stop."""


@dataclass(kw_only=True)
class Run:
    """One clip, one camera."""

    clip: Path
    """The admitted copy of the user's file; it is gone when the run has ended."""
    clip_path: Path
    """The user's own file, which the sound is copied from when the result is saved."""
    clip_name: str
    info: ClipInfo
    limits: Limits
    camera: CameraSpec
    config: RunConfig
    models: Models
    depth_dir: Path | None = None
    mask_dir: Path | None = None
    clean_plate: Path | None = None
    force: bool = False
    on_progress: Progress = lambda stage, done, total, detail: None
    on_step_end: StepCallback = lambda stage, step, sigma, latents: None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was chosen for the user, a sentence each; nothing is wrong."""
    started: float = field(default_factory=time.monotonic)
    map_frames: FrameMap = in_process
    """Who does the work that goes frame by frame."""
    optimiser_of: OptimiserOf = AdamW
    """Makes the optimiser of the tuning stages, and"""
    share: Share = (0, 1)
    """what part of each of their batches is this process's."""
    memory: MemoryPlan | None = None
    """What was chosen for the configuration's limit, if it had one."""
    neighbour: "Neighbour | None" = None
    """The tuned path that the temporal adapter begins from; found when its stage is reached."""

    def progress(self, stage: str, done: int, total: int, **detail: Any) -> None:
        self.on_progress(stage, done, total, detail)

    def warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    @property
    def device(self) -> torch.device:
        return self.models.device

    @property
    def model(self) -> VideoModel:
        return self.models.video(self.config.tune.rank, self.config.attention, offload=self.config.offload)

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.model, self.config.condition, self.size, self.config.seed)

    def each_frame(self, work: FrameWork, count: int, out: Writer) -> Iterator[Part]:
        """What the work gives for frames 0 to count - 1, part by part in order."""
        return self.map_frames(self, work, count, scratch=out.path)

    def fresh_adapters(self) -> None:
        """Both adapters as injected; the seed makes a tuning run start from the same weights wherever it runs."""
        adapters.reset(self.model.unet, seed=self.config.seed)

    @cached_property
    def clip_sha256(self) -> str:
        with self.clip.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def frame_count(self) -> int:
        """Frames that will be used, by the header's word."""
        available = max(0, self.info.frame_count - self.config.decode.first_frame)
        return available if self.config.decode.max_frames is None else min(available, self.config.decode.max_frames)

    @property
    def size(self) -> tuple[int, int]:
        """Working (height, width).

        Raises:
            InputError: the asked size is no multiple of what the model needs.
        """
        height, width, multiple = self.config.condition.height, self.config.condition.width, self.models.shape.multiple
        if height is None or width is None:
            return self.models.shape.working_size(self.info.width, self.info.height)
        for name, side in (("condition.height", height), ("condition.width", width)):
            if side % multiple:
                nearest = max(1, round(side / multiple)) * multiple
                raise InputError(
                    f"{side} is no multiple of {multiple}, which this model needs; try {nearest}", param=name
                )
        return height, width

    @property
    def sample_seed(self) -> int:
        return self.config.seed if self.config.sample.seed is None else self.config.sample.seed

    @property
    def decode_chunk(self) -> int:
        return self.config.sample.decode_chunk or self.models.shape.frames

    @property
    def depth_digest(self) -> str:
        if self.depth_dir is not None:
            return folder_digest(self.depth_dir, "depth_dir")
        return self.models.depth_source(self.config.depth.model).digest

    @cached_property
    def multiview_source(self) -> MultiviewSource | None:
        """See `multiview.multiview_source`."""
        return multiview_source(self.config.anchor)

    @cached_property
    def mask_digest(self) -> str | None:
        return None if self.mask_dir is None else folder_digest(self.mask_dir, "mask_dir")

    @cached_property
    def clean_plate_picture(self) -> np.ndarray | None:
        """The user's picture of the empty scene at the clip's size, uint8 [H, W, 3].

        Raises:
            InputError: it cannot be read, or has another shape than the clip.
        """
        if self.clean_plate is None:
            return None
        image = cv2.imread(str(self.clean_plate), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"{self.clean_plate} cannot be read as a picture", param="clean_plate")
        height, width = image.shape[:2]
        if abs(width / height - self.info.width / self.info.height) > 0.01 * width / height:
            raise InputError(
                f"it is {width}x{height}, the clip is {self.info.width}x{self.info.height}: the shapes must agree, "
                "for it must be taken with the clip's own camera",
                param="clean_plate",
            )
        size = (self.info.width, self.info.height)
        return np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)[..., ::-1])

    @property
    def source_mask(self) -> Callable[[int], np.ndarray] | None:
        """Mask of frame t, bool [H, W]: white pixels of the user's PNGs, in the order of their names, may be lifted."""
        if self.mask_dir is None:
            return None
        files = sorted(self.mask_dir.glob("*.png"))
        first = self.config.decode.first_frame

        def read(t: int) -> np.ndarray:
            if first + t >= len(files):
                raise InputError(
                    f"{self.mask_dir} holds {len(files)} PNG masks, frame {first + t} has none", param="mask_dir"
                )
            image = cv2.imread(str(files[first + t]), cv2.IMREAD_GRAYSCALE)
            if image is None:
                raise InputError(f"{files[first + t].name} cannot be read as a PNG", param="mask_dir")
            return cv2.resize(image, (self.info.width, self.info.height), interpolation=cv2.INTER_NEAREST) > 127

        return read


def folder_digest(folder: Path, param: str) -> str:
    """sha256 over the names and contents of a folder's files.

    Raises:
        InputError: it is no folder, or empty.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder} is no folder with files in it", param=param)
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
