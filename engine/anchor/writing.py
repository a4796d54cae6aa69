"""An anchor's arrays, written batch by batch, and how much of each picture they cover."""

from collections.abc import Callable, Iterator

import numpy as np

from ..errors import CameraError
from ..store import Writer

_LEAST_COVER = 0.02
"""A path that sees less of the clip than this in each frame is refused: nothing could be learned from its anchor."""


def write_anchor(
    batches: Iterator[dict[str, np.ndarray]], size: tuple[int, int], out: Writer, on_frame: Callable[[int], None]
) -> dict[str, list[float]]:
    """Write color (uint8 [N, h, w, 3]), validity_mask (bool [N, h, w]), alpha and evidence (uint8 [N, h, w]).

    Args:
        batches: of `draw_anchor`, in the order of the frames.
        size: (h, w) of the anchor.
        on_frame: called with the number of frames written.

    Returns:
        Shares of each frame's pixels: `holes`, of `other_frames`, and `synthesized` by a multiview model.
    """
    height, width = size
    shares: dict[str, list[float]] = {"holes": [], "other_frames": [], "synthesized": []}
    with (
        out.array("color", shape_per_row=(height, width, 3), dtype=np.uint8) as color,
        out.array("validity_mask", shape_per_row=(height, width), dtype=bool) as mask,
        out.array("alpha", shape_per_row=(height, width), dtype=np.uint8) as alpha,
        out.array("provenance", shape_per_row=(height, width), dtype=np.uint8) as provenance,
    ):
        for batch in batches:
            for rows, name in ((color, "color"), (mask, "validity_mask"), (alpha, "alpha"), (provenance, "provenance")):
                rows.append(batch[name])
            shares["holes"] += [1 - share for share in batch["covered"].tolist()]
            shares["other_frames"] += batch["from_other_frames"].tolist()
            shares["synthesized"] += (batch["validity_mask"] & (batch["provenance"] == 0)).mean((1, 2)).tolist()
            on_frame(len(shares["holes"]))
    return shares


def sees_almost_nothing(holes: list[float], *, force: bool) -> bool:
    """Whether the path misses the clip, by the share of holes in each frame.

    Raises:
        CameraError: it does, and `force` does not ask to continue.
    """
    most = 1 - min(holes)
    if most >= _LEAST_COVER:
        return False
    if not force:
        raise CameraError(
            f"the path sees nothing of the clip (at most {100 * most:.1f} % of any frame); turn or move the camera less, "
            "or use `force`",
            param="camera",
            code="camera_sees_nothing",
        )
    return True
