"""What the last stage reads to give the holes texture: the clip, its surfaces from the new path, the model's picture."""

from collections.abc import Callable

import numpy as np

from .anchor.render import to_tensor, to_uint8
from .anchor.surfaces import draw_surfaces
from .graph.context import StageContext
from .graph.stage import Inputs
from .imaging.composite import to_clip_size
from .imaging.texture_fill import FrameView, TextureFill
from .stage_results import (
    load_array,
    load_background_plate,
    load_camera_path,
    load_depth,
    load_source_camera,
    load_source_view,
)

Fill = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of a frame's index and its picture, uint8 [h, w, 3]: the picture with texture, uint8 [1, h, w, 3], and how much of it
each pixel has, uint8 [1, h, w]."""


def texture_fill(context: StageContext, inputs: Inputs) -> Fill:
    """Texture for the holes of a run; frames are to be filled one after the other."""
    frames, depth = inputs["frames"].array("frames"), load_depth(inputs)
    color, provenance = inputs["anchor"].array("color"), load_array(inputs["anchor"], "provenance")
    alpha, generated = inputs["anchor"].array("alpha"), inputs["generate"].array("frames")
    path, K_px, plate = load_camera_path(inputs), load_source_view(inputs).K_px, load_background_plate(inputs)

    def view(t: int) -> FrameView:
        z, front = draw_surfaces(
            frames,
            depth,
            t,
            K_px,
            path,
            plate=plate,
            depth_tolerance=context.config.anchor.depth_tolerance,
            valid=context.request.source_mask,
            device=context.drawing_device,
        )
        made = to_uint8(to_clip_size(to_tensor(generated[t : t + 1]), provenance.shape[1:]))[0]
        return FrameView(color=color[t], real=provenance[t] > 0, depth=z, front=front, generated=made)

    c2w = load_source_camera(inputs).c2w @ path.c2w
    textures = TextureFill(view, c2w, path.K_px, scale=path.height / generated.shape[1], seed=context.config.seed)

    def fill(t: int, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        filled, share = textures(t, picture.astype(np.float32))
        behind = 1 - alpha[t].astype(np.float32) / 255  # the soft edge of a near thing stays before the texture
        filled, share = picture + behind[..., None] * (filled - picture), behind * share
        return filled.round().clip(0, 255).astype(np.uint8)[None], (255 * share).round().astype(np.uint8)[None]

    return fill
