"""The clip's frames, decoded into the store. No network is needed for it, and torch is not imported."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..config import DecodeConfig
from ..errors import VideoError
from ..store import Writer
from . import ClipInfo, Limits, decode


def decode_frames(
    clip: Path,
    info: ClipInfo,
    limits: Limits,
    options: DecodeConfig,
    out: Writer,
    on_frame: Callable[[int], None],
    *,
    name: str | None = None,
) -> None:
    """Write the wanted frames, uint8 [N, H, W, 3], and their times.

    Args:
        on_frame: called with the number of frames written.
        name: what errors call the clip.

    Raises:
        VideoError: over a cap, damaged, or fewer than two frames.
    """
    times = []
    with out.array("frames", shape_per_row=(info.height, info.width, 3), dtype=np.uint8) as rows:
        used = {"first_frame": options.first_frame, "max_frames": options.max_frames}
        for frame in decode(clip, info, limits, **used, name=name):
            rows.append(frame.rgb[None])
            times.append(float(frame.time_s))
            on_frame(len(times))
    if len(times) < 2:
        raise VideoError(
            f"{name or 'the clip'} gives {len(times)} frame{'s' * (len(times) != 1)} from frame {options.first_frame} on; "
            "at least 2 are needed",
            param="video",
        )
    out.json("clip", {"info": info.to_json(), "times_s": times})
