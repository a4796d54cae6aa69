"""Scores one clip against the ground truth of its shot: every metric of the table, by frame and by clip."""

from collections.abc import Mapping

import numpy as np

from ..engine.cameras.rigid import inverse
from ..engine.imaging.metrics import frame_changes, seam_ratios
from .camera_error import camera_errors
from .clip_metrics import clip_metrics
from .dataset import Shot
from .edges import edge_flicker, edge_region
from .features import Features, find_lpips
from .frame_metrics import capped_psnr, frame_metrics, mean_over_frames

METRICS_VERSION = 2
"""Raised whenever a score of the same picture changes; lines of another version are scored again."""


class Scorer:
    """The metrics with their networks, loaded once.

    Raises:
        InputError: the packages that hold the networks' weights are not installed.
    """

    def __init__(self) -> None:
        self.features, self.lpips = Features(), find_lpips()

    @property
    def names(self) -> list[str]:
        """What optional metrics there are, for the key of a line."""
        return ["lpips"] if self.lpips is not None else []

    def __call__(
        self, output: np.ndarray, shot: Shot, covered: np.ndarray, seams: list[int]
    ) -> tuple[list[dict[str, float]], dict[str, float]]:
        """Metrics of each frame, and of the clip.

        Args:
            output: uint8 [T, H, W, 3] at the truth's size.
            covered: bool [T, H, W], pixels that are the source's own.
            seams: first new frame of each window but the first.

        Returns:
            A row a frame, and the clip's own metrics with the means of each frame metric over all frames (`NAME_14` for
            14 of them) and over all but the first, which equals the source in gradual paths (`NAME_13`): published
            tables mix the two.
        """
        count = len(output)
        regions = np.stack([shot.known, shot.known & shot.visible, shot.known & ~shot.visible])
        distances = self.features.feature_distance(output, shot.truth, regions)  # [3, T]
        c2w = inverse(shot.source_c2w) @ shot.target_c2w
        camera = camera_errors(shot.source, output, shot.depth, c2w, shot.K_px)
        perceptual = None if self.lpips is None else self.lpips(output, shot.truth)
        edges = edge_region(shot)
        frames = []
        for t in range(count):
            row = frame_metrics(output[t], shot.truth[t], shot.visible[t], shot.known[t], covered[t])
            other = shot.known[t] & shot.seen[t] & ~shot.visible[t]
            row["psnr_other_moments"] = capped_psnr(output[t], shot.truth[t], other) if other.any() else float("nan")
            row["psnr_edge"] = capped_psnr(output[t], shot.truth[t], edges[t])
            for name, values in zip(("all", "visible", "occluded"), distances, strict=True):
                row[f"effnetlite0_distance_{name}"] = float(values[t])
            if perceptual is not None:
                row["lpips_all"] = float(perceptual[t])
            row["camera_rotation_deg"] = float(camera.rotation_deg[t])
            row["camera_translation_share"] = float(camera.translation_share[t])
            frames.append(row)
        clip: Mapping[str, float] = clip_metrics(output, self.features, shot.truth)
        ratios = seam_ratios(frame_changes(output), seams)
        means = {f"{name}_{count}": value for name, value in mean_over_frames(frames).items()}
        means |= {f"{name}_{count - 1}": value for name, value in mean_over_frames(frames[1:]).items()}
        return frames, {
            **means,
            **clip,
            "edge_flicker": edge_flicker(output, shot.truth, edges),
            "seam_ratio": max(ratios.values(), default=float("nan")),
            "camera_computed": camera.computed,
        }
