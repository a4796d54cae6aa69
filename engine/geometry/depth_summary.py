"""What is known of a clip's depth besides the maps themselves."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipDepth:
    """What is known of a clip's depth besides the maps themselves.

    Attributes:
        median: median depth of everything finite, scene units.
        subject: median depth at the middle of the picture over the clip: what the camera looks at by default.
        fov_deg: horizontal field of view that the network estimated, or None.
    """

    median: float
    subject: float
    fov_deg: float | None


class DepthSummary:
    """Medians over a clip from a sample of each map."""

    def __init__(self) -> None:
        self._all: list[np.ndarray] = []
        self._middle: list[float] = []

    def add(self, depth: np.ndarray) -> None:
        """Take in the map of the next frame, [h, w]."""
        h, w = depth.shape
        self._all.append(_finite(depth[:: max(1, h // 32), :: max(1, w // 32)]))
        middle = _finite(depth[h * 3 // 8 : h * 5 // 8 + 1, w * 3 // 8 : w * 5 // 8 + 1])
        if middle.size:
            self._middle.append(float(np.median(middle)))

    def result(self, fov_deg: float | None) -> ClipDepth:
        """The medians over all maps so far."""
        everything = np.concatenate(self._all)
        median = float(np.median(everything)) if everything.size else 1.0  # nothing but sky: any unit will do
        subject = float(np.median(self._middle)) if self._middle else median
        return ClipDepth(median=median, subject=subject, fov_deg=fov_deg)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values) & (values > 0)]
