"""What a run measures of itself, without ground truth."""

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
    mean = float(error.mean(dtype=np.float64))
    return float("inf") if mean == 0 else 10 * float(np.log10(255**2 / mean))


def frame_changes(frames: np.ndarray) -> list[float]:
    """Mean absolute change in levels of 255 between each frame and the one before it, N - 1 values.

    VBench's temporal flickering is (255 - their mean) / 255.
    """
    changes = (np.abs(frames[t].astype(np.int16) - frames[t - 1].astype(np.int16)).mean() for t in range(1, len(frames)))
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
