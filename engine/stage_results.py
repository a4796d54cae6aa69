"""Results of finished stages as what their readers need: arrays, cameras, tensors, adapters."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .anchor.other_frames import World
from .cameras import AgreedDepth, CameraPath, CameraSpec, Depths, SourceView, in_one_world
from .cameras.track import ClipPart
from .config import RunConfig
from .diffusion.conditioning import AnchorConditioning, SourceBank
from .geometry.background import Plate
from .geometry.source_camera import SourceCamera
from .graph.context import StageContext
from .graph.request import RenderRequest
from .graph.stage import Inputs
from .models import adapters
from .planning.memory import MemoryPlan
from .store import Entry, Writer
from .video.clip import ClipInfo

_TEXTURED = 26
"""A tenth of the copied detail: from here on a generated pixel counts as one that has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """How one stage of a run went.

    Attributes:
        about: what it does, in a few words.
        seconds: of work; for a reused stage, the time that was saved.
        reused: the store had the result already.
    """

    name: str
    about: str
    seconds: float
    reused: bool


@dataclass(kw_only=True)
class StageResults:
    """The finished stages of a run. Arrays are memory-mapped from the store.

    Attributes:
        context: what the stages were given.
        entries: the stages' results by stage name.
        records: how each stage went, in order.
        notes: what was chosen for the user, one sentence each; nothing is wrong.
        warnings: what the user should know, one sentence each.
        memory: the plan of what the run holds of its device; None before the video model's stages, and without one.
        seconds: that the run took.
    """

    context: StageContext
    entries: dict[str, Entry] = field(default_factory=dict)
    records: list[StageRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    memory: MemoryPlan | None = None
    seconds: float = 0.0

    @property
    def request(self) -> RenderRequest:
        """What was asked."""
        return self.context.request

    @property
    def config(self) -> RunConfig:
        """All options, with what was chosen for a memory limit."""
        return self.context.config

    def warn(self, sentence: str) -> None:
        """Add a warning, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def _array(self, stage: str, name: str) -> np.ndarray:
        return load_array(self._entry(stage), name)

    def _entry(self, stage: str) -> Entry:
        if stage not in self.entries:
            last = next(reversed(self.entries), "the start")
            raise AttributeError(f"the run stopped after {last}, before {stage}; call it without until=")
        return self.entries[stage]

    @property
    def source(self) -> np.ndarray:
        """The clip's frames, uint8 [N, H, W, 3]."""
        return self._array("frames", "frames")

    @property
    def depth(self) -> np.ndarray:
        """Depth of each frame at the depth network's resolution, float32 [N, h', w'], in scene units."""
        return self._array("depth", "depth")

    @property
    def frames(self) -> np.ndarray:
        """Delivered frames, uint8 [N, H, W, 3]."""
        return self._array("deliver", "frames")

    @property
    def generated(self) -> np.ndarray:
        """Pure model output at the working size, uint8 [N, h, w, 3]."""
        return self._array("generate", "frames")

    @property
    def anchor(self) -> np.ndarray:
        """The clip drawn from the new path, uint8 [N, H, W, 3]; holes are black, or a multiview model's guess."""
        return self._array("anchor", "color")

    @property
    def validity_mask(self) -> np.ndarray:
        """The anchor's validity mask, bool [N, H, W]: real footage, or synthesized by a multiview model that is certain
        of it (`provenance` tells them apart)."""
        return self._array("anchor", "validity_mask")

    @property
    def alpha(self) -> np.ndarray:
        """uint8 [N, H, W]: 255 where the anchor is covered, else how much of the pixel a near thing's soft edge covers."""
        return self._array("anchor", "alpha")

    @property
    def provenance(self) -> np.ndarray:
        """uint8 [N, H, W]: 255 where the anchor's pixel is of the same moment's frame, 1 to 254 where other frames of a
        locked-off clip show it (the confidence in it), 0 in holes."""
        return self._array("anchor", "provenance")

    @property
    def generated_mask(self) -> np.ndarray:
        """uint8 [N, H, W], 255 where the delivered pixel is generated."""
        return self._array("deliver", "generated_mask")

    @property
    def camera(self) -> CameraPath:
        """The new camera's path."""
        self._entry("camera")
        return load_camera_path(self.entries)

    @property
    def hole_share(self) -> float:
        """Share of the anchor's pixels that no source pixel covers."""
        self._entry("anchor")
        return float(np.mean(load_coverage(self.entries)["holes"]))

    @cached_property
    def generated_share(self) -> float:
        """Share of the delivered picture that comes from the model."""
        return float(np.mean([frame.mean(dtype=np.float64) / 255 for frame in self.generated_mask]))

    @property
    def texture(self) -> np.ndarray:
        """uint8 [N, H, W], how much detail copied from the clip a generated pixel has; 255 is all of it."""
        return self._array("deliver", "texture")

    @cached_property
    def textured_share(self) -> float:
        """Share of the generated pixels that have detail copied from the clip."""
        textured = float(np.mean([(frame >= _TEXTURED).mean() for frame in self.texture]))
        return min(1.0, textured / self.generated_share) if textured else 0.0

    @property
    def windows(self) -> list[range]:
        """The frames that were sampled together."""
        return self.context.windows(len(self.source))


def load_source_view(inputs: Inputs) -> SourceView:
    """The clip as cameras see it, from the entries of frames, depth and intrinsics."""
    lens, summary = inputs["intrinsics"].json("intrinsics"), inputs["depth"].json("summary")
    clip = inputs["frames"].json("clip")
    info = ClipInfo.from_json(clip["info"])
    first = round(clip["times_s"][0] * info.rate)
    return SourceView(
        K_px=np.array(lens["K_px"]),
        width=lens["width"],
        height=lens["height"],
        times_s=np.array(clip["times_s"]),
        median_depth=summary["median"],
        subject_depth=summary["subject"],
        part=ClipPart(first_frame=first, clip_frames=max(info.frame_count, first + len(clip["times_s"]))),
    )


def write_source_camera(camera: SourceCamera, out: Writer) -> None:
    """Store how the source camera moves, as `load_source_camera` reads it."""
    names = ("kind", "reason", "turns_only", "error_px", "agreeing")
    out.json("motion", {**{name: getattr(camera, name) for name in names}, "moves": camera.moves})
    out.save_array("c2w", camera.c2w)
    out.save_array("log_scale", camera.log_scale)
    if camera.moving is not None:
        out.save_array("moving", camera.moving)


def load_source_camera(inputs: Inputs) -> SourceCamera:
    """How the source camera moves."""
    entry = inputs["motion"]
    about = entry.json("motion")
    moving = entry.array("moving") if about.pop("moves") else None
    return SourceCamera(c2w=entry.array("c2w"), log_scale=entry.array("log_scale"), moving=moving, **about)


def load_world(inputs: Inputs) -> World | None:
    """What brings the frames into one space, None where the source camera stands still."""
    camera = load_source_camera(inputs)
    if camera.moving is None:
        return None
    return World(c2w=camera.c2w, moving=camera.moving)


def load_depth(inputs: Inputs) -> Depths:
    """Depth of each frame at the network's resolution, in the units of the camera path."""
    depth, log_scale = inputs["depth"].array("depth"), inputs["motion"].array("log_scale")
    return AgreedDepth(depth, log_scale) if log_scale.any() else depth


def resolve_path(
    camera: CameraSpec, inputs: Inputs, relative_to: Literal["world", "source"] | None
) -> tuple[CameraPath, list[str]]:
    """The path for the clip, relative to the source camera of each moment, and what the user should know.

    Raises:
        CameraError: it is impossible in this clip.
    """
    source = load_source_camera(inputs)
    moves = source.c2w if source.moves else None
    return in_one_world(camera, load_source_view(inputs), moves, source.reason, relative_to)


def load_camera_path(inputs: Inputs) -> CameraPath:
    """The new camera's path."""
    return CameraPath.from_json(inputs["camera"].json("camera")["path"])


def load_coverage(inputs: Inputs) -> dict[str, Any]:
    """Shares of each anchor frame's pixels: `holes`, of `other_frames`, `synthesized`; and the `route` that was taken."""
    coverage = inputs["anchor"].json("coverage")
    if "imagined" in coverage:  # as the version before called it
        coverage["synthesized"] = coverage.pop("imagined")
    return coverage


def load_background_plate(inputs: Inputs) -> Plate | None:
    """The static background, None where the source camera moves."""
    entry = inputs["background"]
    if not entry.json("background")["locked"]:
        return None
    color, depth, confidence = (entry.array(name)[0] for name in ("color", "depth", "confidence"))
    return Plate(color=color, depth=depth, confidence=confidence)


def tuned_adapters(inputs: Inputs) -> dict[adapters.AdapterName, Path]:
    """Folders of the adapters that were tuned; the joint schedule tunes the spatial one in the temporal stage."""
    stages = [inputs[name] for name in ("spatial", "temporal") if name in inputs]
    return {name: entry.path / name for entry in stages for name in adapters.ADAPTERS if (entry.path / name).is_dir()}


def load_adapters(context: StageContext, inputs: Inputs) -> None:
    """Put the tuned adapters into the model; one that was not tuned stays at zero."""
    adapters.reset(context.model.unet, seed=context.config.seed)
    for name, folder in tuned_adapters(inputs).items():
        adapters.load(context.model.unet, name, folder, read=context.models.read_adapter)


_RENAMED = {
    "validity_mask": "mask",
    "provenance": "evidence",
    "generated_mask": "matte",
    "latent_mask": "mask",
    "image_latents": "prompts",
    "image_embeds": "tokens",
    "added_time_ids": "ids",
}
"""Arrays that the version before stored under another name."""


def load_array(entry: Entry, name: str) -> np.ndarray:
    """An array of a result, memory-mapped; in a result that the version before stored it may have its old name.

    Raises:
        KeyError: the result has no such array.
        StoreError: its file is gone or damaged.
    """
    stored = name if f"{name}.arrow" in entry.files else _RENAMED.get(name, name)
    return entry.array(stored)


def load_tensor(context: StageContext, entry: Entry, name: str) -> Tensor:
    """A copy of an array on the run's device."""
    return torch.from_numpy(load_array(entry, name).copy()).to(context.device)


def load_source_bank(context: StageContext, inputs: Inputs) -> SourceBank:
    """The encoded source frames that the spatial adapter learns from."""
    entry = inputs["source"]
    names = ("latents", "image_latents", "image_embeds", "added_time_ids")
    frame = torch.tensor(entry.json("bank")["frame"])
    return SourceBank(frame=frame, **{name: load_tensor(context, entry, name) for name in names})


def load_conditioning(context: StageContext, inputs: Inputs) -> AnchorConditioning:
    """The encoded anchor."""
    entry = inputs["condition"]
    names = ("latents", "latent_mask", "image_latents", "image_embeds", "added_time_ids")
    return AnchorConditioning(**{name: load_tensor(context, entry, name) for name in names})
