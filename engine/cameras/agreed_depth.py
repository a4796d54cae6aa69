"""Depth of a clip whose frames agree on one unit, that of its camera path."""

from typing import Any

import numpy as np


class AgreedDepth:
    """Depth maps float32 [N, h, w] read at the scale that all frames agree on; indexed as the array itself is."""

    def __init__(self, depth: np.ndarray, log_scale: np.ndarray) -> None:
        """log_scale: float64 [N], added to a frame's log depth."""
        self._depth, self._factor, self.shape = depth, np.exp(log_scale).astype(np.float32), depth.shape

    def __len__(self) -> int:
        return len(self._depth)

    def __getitem__(self, index: Any) -> np.ndarray:
        values = self._depth[index]
        factor = self._factor[index[0] if isinstance(index, tuple) else index]
        return values * np.reshape(factor, np.shape(factor) + (1,) * (np.ndim(values) - np.ndim(factor)))


Depths = np.ndarray | AgreedDepth
"""Depth maps float32 [N, h, w] of a clip's frames."""
