"""The two small videos of the page's wipe."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...stage_results import StageResults
from ...video import VideoWriter
from .pictures import fitted, resized, video_address

_SECONDS = 10
_BYTES = 1_700_000
"""Of each video: with both as base64 and the pictures, a page stays below about 6 MB."""
_QUALITIES = ((1280, 23), (960, 26), (720, 28), (540, 31), (400, 34))
"""(longest side, crf), tried from the best on until the file is small enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wipe:
    """Both videos as `data:` addresses, frame for frame the same moments, at most the clip's first 10 s."""

    source: str
    result: str
    frames: int
    width: int
    height: int


def make_wipe(result: StageResults, scratch: Path) -> Wipe:
    """Encode both videos alike, as well as the page's size allows.

    Raises:
        OutputError: the scratch folder cannot be written.
    """
    info = result.request.info
    count = min(len(result.source), max(2, int(_SECONDS * info.rate)))
    paths = scratch / "wipe-source.mp4", scratch / "wipe-result.mp4"
    width = height = 0
    for longest, crf in _QUALITIES:
        if longest < _QUALITIES[0][0] and longest >= 2 * max(info.width, info.height):
            continue
        width, height = fitted(info.width, info.height, longest)
        for path, frames in zip(paths, (result.source, result.frames), strict=True):
            _encode(path, frames[:count], info.rate, width, height, crf)
        if max(path.stat().st_size for path in paths) <= _BYTES:
            break
    addresses = [video_address(path) for path in paths]
    return Wipe(source=addresses[0], result=addresses[1], frames=count, width=width, height=height)


def _encode(path: Path, frames: np.ndarray, rate, width: int, height: int, crf: int) -> None:
    with VideoWriter(path, width=width, height=height, rate=rate, crf=crf, preset="veryfast") as video:
        for frame in frames:
            video.write(resized(frame, width, height))
