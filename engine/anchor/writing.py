"""An anchor's arrays, written batch by batch, and how much of each picture they cover."""

from collections.abc import Callable, Iterator

import numpy as np

from ..errors import CameraError
from ..store import Writer
from ..user_files.numbering import counted

_LEAST_COVER = 0.02
"""A frame that shows less of the clip than this shows nothing of it."""
_LITTLE_COVER = 0.1
"""A frame that shows less of the clip than this is nearly all made up, and that is said."""
_BLIND_SHARE = 0.25
"""A path that sees nothing in this share of its frames is refused: nothing there could be learned from its anchor."""


def write_anchor(
    batches: Iterator[dict[str, np.ndarray]], size: tuple[int, int], out: Writer, on_frame: Callable[[int], None]
) -> dict[str, list[float]]:
    """Write color (uint8 [N, h, w, 3]), validity_mask (bool [N, h, w]), alpha and provenance (uint8 [N, h, w]).

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


def check_coverage(holes: list[float], *, force: bool, warn: Callable[[str], None]) -> None:
    """Refuse a path that misses the clip for a good part of its length, and say at which frames it does.

    Args:
        holes: share of holes in each frame.
        force: continue all the same.

    Raises:
        CameraError: it does, and `force` does not ask to continue.
    """
    blind = [t for t, share in enumerate(holes) if 1 - share < _LEAST_COVER]
    if little := [t for t, share in enumerate(holes) if _LEAST_COVER <= 1 - share < _LITTLE_COVER]:
        warn(f"the path sees less than {100 * _LITTLE_COVER:.0f} % of the clip at {counted(little)} of {len(holes)}")
    if not blind:
        return
    most = 100 * (1 - min(holes[t] for t in blind))
    where = "in all frames" if len(blind) == len(holes) else f"at {counted(blind)} of {len(holes)}"
    said = f"the path sees nothing of the clip {where} (at most {most:.1f} % of the picture)"
    if len(blind) >= _BLIND_SHARE * len(holes) and not force:
        raise CameraError(
            f"{said}; turn or move the camera less, or use `force`", param="camera", code="camera_sees_nothing"
        )
    warn(said)
