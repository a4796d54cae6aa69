"""How a stored picture is to be shown: its turn, its size in square pixels, its focal length."""

import math
import struct
from fractions import Fraction

from av.video.frame import VideoFrame

from ..errors import VideoError

_SANE_ASPECT = 8
_FOCAL_35MM = "com.apple.quicktime.camera.focal_length.35mm_equivalent"
_DIAGONAL_35MM = math.hypot(36, 24)


def orientation(frame: VideoFrame, name: str) -> tuple[int, bool]:
    """(clockwise degrees, flipped left to right afterwards) of the display matrix."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return 0, False
    # Row-major 3x3; a source pixel (x, y) is shown at (a x + c y, b x + d y) and an offset, y pointing down.
    a, b, _, c, d = struct.unpack("<5i", bytes(side_data)[:20])
    signs = (_sign(a), _sign(b), _sign(c), _sign(d))
    turns = {
        (1, 0, 0, 1): (0, False),
        (0, 1, -1, 0): (90, False),
        (-1, 0, 0, -1): (180, False),
        (0, -1, 1, 0): (270, False),
        (-1, 0, 0, 1): (0, True),
        (0, 1, 1, 0): (90, True),
        (1, 0, 0, -1): (180, True),
        (0, -1, -1, 0): (270, True),
    }
    if signs not in turns:
        raise VideoError(f"{name} is tagged with a rotation that is not a multiple of 90 degrees; rotate it first")
    return turns[signs]


def display_size(width: int, height: int, aspect: Fraction, rotation_deg: int, name: str) -> tuple[int, int]:
    """Square-pixel size: the short side of a pixel is stretched, so that no sample is thrown away."""
    if not Fraction(1, _SANE_ASPECT) <= aspect <= _SANE_ASPECT:
        raise VideoError(f"{name} claims pixels of shape {aspect.numerator}:{aspect.denominator}, which cannot be")
    if aspect > 1:
        width = round(width * aspect)
    else:
        height = round(height / aspect)
    return (height, width) if rotation_deg in (90, 270) else (width, height)


def focal_px(metadata: dict[str, str], width: int, height: int) -> float | None:
    """From the 35 mm equivalent that phones write; equivalence is of the picture's diagonal."""
    try:
        focal_mm = float(metadata.get(_FOCAL_35MM, ""))
    except ValueError:
        return None
    return focal_mm / _DIAGONAL_35MM * math.hypot(width, height) if 1 < focal_mm < 2000 else None


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
