"""One frame against its ground truth, after Generative Camera Dolly (Van Hoorick et al. 2024).

PSNR and SSIM over all pixels, over those the source frame of the same moment shows, and over those it does not.
H x W pixels; a value over no pixels is NaN, which means over frames leave out.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from ..engine.imaging.metrics import psnr

PSNR_CAP_DB = 100.0
"""What identical pictures count as: infinity would swallow the mean over frames, and is no JSON. An error of one level
in three samples of a 384x256 frame is 98 dB, so nothing that differs visibly is touched."""

SSIM_WINDOW_PX = 7
"""Side of SSIM's uniform window, scikit-image's default, with its sample covariance, K1 = 0.01 and K2 = 0.03."""


def frame_metrics(
    output: np.ndarray,
    truth: np.ndarray,
    visible: np.ndarray,
    known: np.ndarray,
    covered: np.ndarray | None = None,
) -> dict[str, float]:
    """`psnr_` (dB, at most `PSNR_CAP_DB`) and `ssim_` of `all`, `visible` and `occluded` pixels.

    SSIM is averaged over the mask less the 3 pixels along its edge and the picture's, as GCD's published code does: a
    window that reaches into the other region would score that one too. With all pixels known `ssim_all` is
    scikit-image's own mean.

    Args:
        output, truth: uint8 [H, W, 3].
        visible: bool [H, W], True where the source frame shows the pixel's surface.
        known: bool [H, W], True where the truth is known; nothing else is scored.
        covered: bool [H, W], True where the anchor drew the pixel; adds `psnr_visible_covered`.

    Raises:
        ValueError: an argument of another type or size, by name.
    """
    require_pictures("output", output, 3)
    require_pictures("truth", truth, 3)
    if output.shape != truth.shape:
        raise ValueError(f"output is {output.shape}, truth is {truth.shape}")
    if min(truth.shape[:2]) < SSIM_WINDOW_PX:
        raise ValueError(f"frames of {truth.shape[:2]} pixels are smaller than SSIM's window of {SSIM_WINDOW_PX}")
    require_mask("visible", visible, truth.shape[:2])
    require_mask("known", known, truth.shape[:2])
    similarity = structural_similarity(
        truth, output, win_size=SSIM_WINDOW_PX, channel_axis=-1, data_range=255, full=True
    )[1].mean(-1)  # [H, W]
    metrics = {}
    for name, mask in (("all", known), ("visible", known & visible), ("occluded", known & ~visible)):
        metrics[f"psnr_{name}"] = capped_psnr(output, truth, mask)
        inner = shrunk(mask, SSIM_WINDOW_PX // 2)
        metrics[f"ssim_{name}"] = float(similarity[inner].mean()) if inner.any() else float("nan")
    if covered is not None:
        require_mask("covered", covered, truth.shape[:2])
        metrics["psnr_visible_covered"] = capped_psnr(output, truth, known & visible & covered)
    return metrics


def mean_over_frames(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each metric's mean over the frames that have it, NaN where none has.

    Raises:
        ValueError: no frames, or frames of different metrics.
    """
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError("the mean needs one frame or more, all of the same metrics")
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {
        name: float(column[~np.isnan(column)].mean()) if not np.isnan(column).all() else float("nan")
        for name, column in values.items()
    }


def shrunk(mask: np.ndarray, pixels: int) -> np.ndarray:
    """`mask` [H, W] less what is within `pixels` steps (up, down, left, right) of its edge or the picture's."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    padded = np.pad(mask.astype(np.uint8), pixels)
    return cv2.erode(padded, cross, iterations=pixels)[pixels:-pixels, pixels:-pixels] > 0


def require_pictures(name: str, pictures: np.ndarray, dimensions: int) -> None:
    """Refuse what is not uint8 RGB of `dimensions` axes: [H, W, 3] or [T, H, W, 3].

    Raises:
        ValueError: naming `name`.
    """
    wanted = "uint8 " + ("[H, W, 3]" if dimensions == 3 else "[T, H, W, 3]")
    if pictures.dtype != np.uint8:
        broken = pictures.dtype.kind == "f" and not np.isfinite(pictures).all()
        raise ValueError(f"{name} must be {wanted}, not {pictures.dtype}{' with NaN or infinity' if broken else ''}")
    if pictures.ndim != dimensions or pictures.shape[-1] != 3 or 0 in pictures.shape:
        raise ValueError(f"{name} must be {wanted}, not {pictures.shape}")


def require_mask(name: str, mask: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse what is not bool of `shape`.

    Raises:
        ValueError: naming `name`.
    """
    if mask.dtype != np.bool_ or mask.shape != shape:
        raise ValueError(f"{name} must be bool {shape}, not {mask.dtype} {mask.shape}")


def capped_psnr(output: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB over mask [H, W], at most `PSNR_CAP_DB`; NaN where the mask is empty."""
    return float(np.minimum(psnr(output, truth, mask), PSNR_CAP_DB))
