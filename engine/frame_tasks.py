"""What stages do frame by frame, as objects that another process can be given (see `graph/frame_task.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from .anchor.other_frames import OtherFrames
from .anchor.render import FRAMES_AT_ONCE, draw_anchor, to_tensor, to_uint8
from .cameras import CameraPath, Depths
from .diffusion.encoding import anchor_mask, augmented_frames, working_anchor
from .geometry.background import Plate
from .geometry.depth_estimation import predict_frame
from .graph.context import StageContext
from .graph.frame_task import FrameBatch
from .models.multiview import MultiviewSource, NovelView, synthesized_anchor
from .stage_results import load_array, load_background_plate, load_camera_path, load_depth, load_source_view, load_world
from .store import Entry


@dataclass(frozen=True, kw_only=True)
class PredictDepth:
    """Runs the depth network on single frames."""

    frames: Entry
    batch = 1  # one frame a call: no split of the clip can change a bit

    def __call__(self, context: StageContext, indices: range) -> FrameBatch:
        return predict_frame(context.models.depth(context.config.depth.model), self._images[indices.start])

    @cached_property
    def _images(self) -> np.ndarray:
        return self.frames.array("frames")


@dataclass(frozen=True, kw_only=True)
class DrawAnchor:
    """Frames lifted by their depth and drawn from the new path."""

    inputs: Mapping[str, Entry]
    batch = FRAMES_AT_ONCE

    def __call__(self, context: StageContext, indices: range) -> FrameBatch:
        images, depths, K_px, path, plate = self.scene
        return draw_anchor(
            images,
            depths,
            indices,
            np.broadcast_to(K_px, (len(images), 3, 3)),
            path,
            plate=plate,
            others=self.others if context.config.motion.background else None,
            depth_tolerance=context.config.anchor.depth_tolerance,
            valid=context.request.source_mask,
            device=context.drawing_device,
        )

    @cached_property
    def others(self) -> OtherFrames | None:
        """The clip's other frames, where the source camera moves; what is drawn of them is kept between calls."""
        images, depths, K_px, path, _ = self.scene
        world = load_world(self.inputs)
        if world is None:
            return None
        return OtherFrames(images, depths, np.broadcast_to(K_px, (len(images), 3, 3)), path, world)

    @cached_property
    def scene(self) -> tuple[np.ndarray, Depths, np.ndarray, CameraPath, Plate | None]:
        images, depths = self.inputs["frames"].array("frames"), load_depth(self.inputs)
        return (
            images,
            depths,
            load_source_view(self.inputs).K_px,
            load_camera_path(self.inputs),
            load_background_plate(self.inputs),
        )


@dataclass(frozen=True, kw_only=True)
class Cover:
    """How much of each picture an anchor covers, and nothing else of it."""

    inputs: Mapping[str, Entry]
    batch = FRAMES_AT_ONCE

    def __call__(self, context: StageContext, indices: range) -> FrameBatch:
        return {"covered": self._points(context, indices)["covered"]}

    @cached_property
    def _points(self) -> DrawAnchor:
        return DrawAnchor(inputs=self.inputs)


@dataclass(frozen=True, kw_only=True)
class SynthesizeAnchor:
    """Frames drawn by their points, what these leave open by a multiview model."""

    inputs: Mapping[str, Entry]
    source: MultiviewSource
    batch = FRAMES_AT_ONCE

    def __call__(self, context: StageContext, indices: range) -> FrameBatch:
        part = self._points(context, indices)
        images, _, K_px, path, _ = self._points.scene
        unit = self.inputs["depth"].json("summary")["median"]
        parts = []
        for k, t in enumerate(indices):
            view = NovelView(
                source=to_tensor(images[t : t + 1])[0],
                source_K_px=K_px,
                c2w=path.c2w[t],
                K_px=path.K_px[t],
                unit=unit,
                points=to_tensor(part["color"][k : k + 1])[0],
                covered=torch.from_numpy(part["validity_mask"][k].copy()),
            )
            parts.append(synthesized_anchor(context.models.multiview(self.source), view, seed=context.config.seed))
        hard = np.where(part["provenance"] > 0, np.uint8(255), np.uint8(0))  # what is synthesized has edges of its own
        return part | {name: np.stack([each[name] for each in parts]) for name in parts[0]} | {"alpha": hard}

    @cached_property
    def _points(self) -> DrawAnchor:
        return DrawAnchor(inputs=self.inputs)


@dataclass(frozen=True, kw_only=True)
class EncodeSource:
    """Augmented source frames, encoded; the range counts augmentations."""

    frames: Entry
    batch: int

    def __call__(self, context: StageContext, indices: range) -> FrameBatch:
        options = context.config.condition
        pictures, index = augmented_frames(
            self.frames.array("frames"), options.augmentations, context.size, context.config.seed, indices
        )
        latents, image_latents, image_embeds = (part.float().cpu().numpy() for part in context.encoder(pictures))
        return {
            "latents": latents,
            "image_latents": image_latents,
            "image_embeds": image_embeds,
            "frame": np.array(index),
        }


@dataclass(frozen=True, kw_only=True)
class EncodeAnchor:
    """Anchor frames, holes filled, encoded with their latent masks."""

    anchor: Entry
    batch: int

    def __call__(self, context: StageContext, indices: range) -> FrameBatch:
        part = slice(indices.start, indices.stop)
        synthesized = self.anchor.json("coverage")["route"] == "multiview"
        color, mask = self.anchor.array("color")[part], load_array(self.anchor, "validity_mask")[part]
        filled, valid = working_anchor(color, mask, context.size, filled=synthesized)
        encoded = (*context.encoder(filled), anchor_mask(valid, context.model, context.config.condition))
        names = ("latents", "image_latents", "image_embeds", "latent_mask")
        return {name: values.float().cpu().numpy() for name, values in zip(names, encoded, strict=True)}


@dataclass(frozen=True, kw_only=True)
class DecodeLatents:
    """Frames of generated latents; those of one chunk share the decoder's temporal layers."""

    latents: Entry
    batch: int

    def __call__(self, context: StageContext, indices: range) -> FrameBatch:
        part = torch.from_numpy(self.latents.array("latents")[indices.start : indices.stop].copy())
        filled = torch.cat([part, part[-1:].expand(self.batch - len(part), -1, -1, -1)])  # every call has one shape
        return {"frames": to_uint8(context.model.decode(filled)[: len(part)])}
