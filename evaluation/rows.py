"""What is compared: each row of the table is one picture of the new view, from copying the source to the delivered clip."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from ..engine.anchor.render import to_tensor, to_uint8
from ..engine.cameras.rigid import inverse
from ..engine.imaging.composite import to_clip_size
from ..engine.result import Result
from .baselines import fill_mean, fill_telea, floor_anchor
from .dataset import Shot

Overrides = Mapping[str, Mapping[str, Any]]
"""Options by section and name, as `config.override` takes them."""

_NO_TUNING = {"spatial_steps": 0, "temporal_steps": 0}
_NO_SDEDIT = {"sigma": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row of the table.

    Attributes:
        until: last stage that the pipeline runs for it; None where it needs no pipeline.
        config: what it changes of the configuration.
        picture: frames of the new view at the truth's size, uint8 [T, H, W, 3], and which of them are the source's own
            pixels, bool [T, H, W].
        depth: whether it depends on the clip's depth.
    """

    name: str
    about: str
    picture: Callable[[Shot, Result | None], tuple[np.ndarray, np.ndarray]]
    until: str | None = "deliver"
    config: Overrides = field(default_factory=dict)
    depth: bool = True


def _filmed(result: Result) -> np.ndarray:
    """bool [T, H, W]: the source's own pixels; what a multiview model synthesized is not among them, however sure it is."""
    return np.array(result.provenance) > 0


def _source(shot: Shot, result: Result | None) -> tuple[np.ndarray, np.ndarray]:
    return shot.source, np.ones(shot.source.shape[:3], bool)


def _floor(fill: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    def picture(shot: Shot, result: Result | None) -> tuple[np.ndarray, np.ndarray]:
        w2c = inverse(shot.target_c2w) @ shot.source_c2w
        drawn = [floor_anchor(shot.source[t], shot.depth[t], shot.K_px, w2c[t]) for t in range(len(w2c))]
        return np.stack([fill(*pair) for pair in drawn]), np.stack([mask for _, mask in drawn])

    return picture


def _anchor(fill: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    def picture(shot: Shot, result: Result | None) -> tuple[np.ndarray, np.ndarray]:
        assert result is not None
        pictures = zip(result.anchor, result.validity_mask, result.alpha, strict=True)
        return np.stack([_over(color, alpha, fill(color, mask)) for color, mask, alpha in pictures]), _filmed(result)

    return picture


def _over(color: np.ndarray, alpha: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """The anchor with its soft edges over a picture without holes, uint8 [H, W, 3]; alpha uint8 [H, W]."""
    share = alpha.astype(np.float32)[..., None] / 255
    return np.rint(share * color + (1 - share) * filled).astype(np.uint8)


def _generated(shot: Shot, result: Result | None) -> tuple[np.ndarray, np.ndarray]:
    assert result is not None
    size = shot.truth.shape[1:3]
    frames = [
        to_uint8(to_clip_size(to_tensor(result.generated[t : t + 1]), size)) for t in range(len(result.validity_mask))
    ]
    return np.concatenate(frames), _filmed(result)


def _delivered(shot: Shot, result: Result | None) -> tuple[np.ndarray, np.ndarray]:
    assert result is not None
    return np.array(result.frames), _filmed(result)


def _black(anchor: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return anchor


def _smooth(anchor: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Navier-Stokes inpainting of OpenCV, radius 3 px."""
    return cv2.inpaint(anchor, (~mask).astype(np.uint8), 3, cv2.INPAINT_NS)


ROWS = {
    row.name: row
    for row in (
        TableRow(name="source", about="the source clip, unchanged", picture=_source, until=None, depth=False),
        TableRow(name="floor none (black)", about="plain 2x2 splat", picture=_floor(_black), until=None, depth=False),
        TableRow(
            name="floor mean color",
            about="holes in the mean color",
            picture=_floor(fill_mean),
            until=None,
            depth=False,
        ),
        TableRow(
            name="floor OpenCV Telea", about="holes inpainted", picture=_floor(fill_telea), until=None, depth=False
        ),
        TableRow(name="anchor", about="the engine's anchor, holes black", picture=_anchor(_black), until="anchor"),
        TableRow(
            name="anchor + mean color", about="holes in the mean color", picture=_anchor(fill_mean), until="anchor"
        ),
        TableRow(name="anchor + OpenCV Telea", about="inpainted", picture=_anchor(fill_telea), until="anchor"),
        TableRow(name="anchor + OpenCV NS", about="inpainted", picture=_anchor(_smooth), until="anchor"),
        TableRow(
            name="prior",
            about="the model, nothing tuned",
            picture=_generated,
            until="generate",
            config={"tune": _NO_TUNING, "refine": _NO_SDEDIT},
        ),
        TableRow(
            name="+ temporal",
            about="temporal LoRA on the masked anchor",
            picture=_generated,
            until="generate",
            config={"tune": {"spatial_steps": 0}, "refine": _NO_SDEDIT},
        ),
        TableRow(
            name="++ spatial",
            about="and spatial LoRA on the source's frames",
            picture=_generated,
            until="generate",
            config={"refine": _NO_SDEDIT},
        ),
        TableRow(name="+++ SDEdit", about="and SDEdit: the generated video", picture=_generated, until="generate"),
        TableRow(name="delivered", about="real pixels where the anchor has them", picture=_delivered),
    )
}
"""In the order of the table."""

VARIED = ("anchor", "anchor + mean color", "+++ SDEdit", "delivered")
"""Rows that a `--vary` repeats for each value."""
