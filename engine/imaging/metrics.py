"""Metrics of a run that need no ground truth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np


def psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """PSNR in dB of uint8 pictures [..., H, W, 3], over the pixels of `mask` [..., H, W] if given.

    Identical pictures give infinity, an empty mask NaN.
    """
    error = np.square(a.astype(np.float32) - b.astype(np.float32))
    if mask is not None:
        error = error[mask]
    if not error.size:
        return float("nan")
    return psnr_of_error(float(error.mean(dtype=np.float64)))


def psnr_of_error(mean_square: float) -> float:
    """PSNR in dB of a mean squared error in levels of 255."""
    return float("inf") if mean_square == 0 else 10 * float(np.log10(255**2 / mean_square))


def frame_changes(frames: np.ndarray) -> list[float]:
    """Mean absolute change in levels of 255 between each frame and the one before it, N - 1 values.

    VBench's temporal flickering is (255 - their mean) / 255.
    """
    changes = (
        np.abs(frames[t].astype(np.int16) - frames[t - 1].astype(np.int16)).mean() for t in range(1, len(frames))
    )
    return [float(value) for value in changes]


def seam_ratios(changes: list[float], seams: list[int]) -> dict[int, float]:
    """How much more the picture changes at each window's first new frame than around it (1 = no seam).

    Args:
        changes: of `frame_changes`; changes[t - 1] is the step into frame t.
        seams: index of the first new frame of every window but the first.
    """
    ratios = {}
    for frame in seams:
        around = [changes[t - 1] for t in range(max(1, frame - 4), min(len(changes), frame + 4) + 1) if t not in seams]
        usual = float(np.median(around)) if around else 0.0
        ratios[frame] = changes[frame - 1] / max(usual, 1e-3)
    return ratios


def smoothed(values: Sequence[float], span: float = 12.0) -> list[float]:
    """Exponential mean of a noisy curve over about `span` values; the start is not pulled towards zero."""
    keep = 1 - 1 / max(span, 1.0)
    total = weight = 0.0
    out = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """A place where generated pixels meet real ones.

    Attributes:
        frame: index of the frame.
        x, y: middle of the patch, pixels of the delivered frame.
        size: side of the patch in pixels.
        step: difference in tone between the generated and the real picture there, mean over RGB, levels of 255.
    """

    frame: int
    x: int
    y: int
    size: int
    step: float


_RIM_PX = 3
"""Real pixels this near to a hole tell how well the generated picture meets them."""


def worst_boundaries(
    generated: Callable[[int], np.ndarray], anchor: np.ndarray, provenance: np.ndarray, *, count: int = 3
) -> list[Boundary]:
    """The places with the largest step in tone between generated and real pixels, worst first, no two at one spot.

    Both pictures exist at the real pixels along a hole's rim, so an edge of the scene that runs along it, as most holes
    have one, counts only if the generated picture misses it. Their signed difference is averaged over the rim inside a
    patch (a tenth of the picture's height), so that texture cancels out and a tone that is off does not.

    Args:
        generated: a frame's generated picture at the anchor's size, uint8 [H, W, 3].
        anchor: uint8 [N, H, W, 3].
        provenance: [N, H, W], above 0 where the anchor is real; what a model synthesized is not.
    """
    height = provenance.shape[1]
    patch = max(5, height // 10 | 1)
    found: list[Boundary] = []
    for frame in range(len(provenance)):
        real = provenance[frame] > 0
        if real.all() or not real.any():
            continue
        holes = (~real).astype(np.uint8)
        rim = real & (cv2.dilate(holes, np.ones((2 * _RIM_PX + 1,) * 2, np.uint8)) > 0)
        difference = generated(frame).astype(np.float32) - anchor[frame]
        weight = rim.astype(np.float32)
        share = cv2.blur(weight, (patch, patch), borderType=cv2.BORDER_CONSTANT)
        mean = cv2.blur(difference * weight[..., None], (patch, patch), borderType=cv2.BORDER_CONSTANT)
        # A patch with fewer rim pixels than it is wide holds a speck, not a boundary.
        step = np.where(share * patch >= 1, np.abs(mean).mean(-1) / np.maximum(share, 1e-6), 0.0)
        for _ in range(count):
            y, x = divmod(int(step.argmax()), step.shape[1])
            if step[y, x] <= 0:
                break
            found.append(Boundary(frame=frame, x=x, y=y, size=patch, step=float(step[y, x])))
            step[max(0, y - 2 * patch) : y + 2 * patch + 1, max(0, x - 2 * patch) : x + 2 * patch + 1] = 0
    chosen: list[Boundary] = []
    for each in sorted(found, key=lambda b: -b.step):
        if len(chosen) < count and all(max(abs(each.x - b.x), abs(each.y - b.y)) > 2 * patch for b in chosen):
            chosen.append(each)
    return chosen
