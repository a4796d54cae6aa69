"""A multiview model without weights: the frame as a flat picture at the clip's median depth. Shows what an adapter is.

PYTHONPATH=examples recapture preview clip.mp4 --camera "arc(25deg)" --anchor multiview --multiview billboard:Billboard
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from recapture.engine.models.multiview import NovelView


class Billboard:
    """What the asked camera would see if the scene were painted on a wall."""

    license = "CC0"
    noncommercial = False
    version = "1"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, view: NovelView, seed: int) -> Tensor:
        """The frame through the homography of the plane z = unit; outside it the frame's edge goes on."""
        R, t = view.c2w[:3, :3], view.c2w[:3, 3]
        plane = np.array([0, 0, 1.0])
        # A ray R K^-1 p of the asked camera meets the plane at t + s R K^-1 p: homogeneous, (unit - t_z) R + t n^T R.
        to_plane = ((view.unit - t[2]) * np.eye(3) + np.outer(t, plane)) @ R
        homography = view.source_K_px @ to_plane @ np.linalg.inv(view.K_px)
        height, width = view.covered.shape
        picture = cv2.warpPerspective(
            view.source.permute(1, 2, 0).cpu().numpy(),
            homography,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return torch.from_numpy(picture).permute(2, 0, 1).to(self.device)
