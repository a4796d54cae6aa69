"""Properties of a clip, and limits on clips. Plain values: nothing here opens a file.

Legend: rates, time bases and aspects are exact `Fraction`s; sizes are (width, height) in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

UNSPECIFIED = 2
"""FFmpeg's value for "not stated", the same for primaries, transfer and matrix."""

_HD_HEIGHT = 720


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Caps on an untrusted clip. They hold for what the file declares and again for what comes out of the decoder."""

    max_bytes: int = 2 << 30
    max_pixels: int = 4096 * 2304
    """Per frame, before and after resampling to square pixels."""
    max_frames: int = 3000
    max_duration_s: float = 600.0
    max_streams: int = 16
    max_total_pixels: int = 8_000_000_000
    """Over all decoded frames; three times this many bytes of RGB pass through."""


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ColorTags:
    """The color tags of a stream, numbered as in ITU-T H.273 (FFmpeg's `AVColor*`); 2 is unspecified."""

    primaries: int
    transfer: int
    matrix: int
    full_range: bool

    def resolved_matrix(self, height: int) -> int:
        """The matrix to convert with: the tag, or what players assume of an untagged picture of this height."""
        if self.matrix in (0, UNSPECIFIED, 3):  # 0 is "already RGB", 3 is reserved: neither is a matrix
            return 1 if height >= _HD_HEIGHT else 6
        return self.matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipInfo:
    """A clip that passed `probe`."""

    width: int
    """Display width: square pixels, after rotation. This is what `decode` yields."""
    height: int
    coded_width: int
    coded_height: int
    rotation_deg: int
    """Clockwise turn that brings the stored picture upright: 0, 90, 180 or 270."""
    mirrored: bool = False
    """Whether the upright picture is then flipped left to right."""
    sample_aspect: Fraction
    """Width of a stored pixel over its height."""
    rate: Fraction
    """Frames per second; constant, or `probe` had refused the clip."""
    time_base: Fraction
    duration_s: float
    """Frames counted in the file over the rate (not the header's word)."""
    declared_frames: int | None
    """The header's word, where it gives one."""
    container: str
    codec: str
    pix_fmt: str
    color: ColorTags
    has_audio: bool
    focal_px: float | None
    """Focal length in display pixels, only where the file states one."""

    @property
    def frame_count(self) -> int:
        """Frames counted in the file."""
        return round(self.duration_s * self.rate)

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; fractions become strings such as "30000/1001"."""
        out: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, ColorTags):
                value = {tag.name: getattr(value, tag.name) for tag in fields(value)}
            out[field.name] = f"{value.numerator}/{value.denominator}" if isinstance(value, Fraction) else value
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ClipInfo":
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        values = dict(data)
        for name in ("sample_aspect", "rate", "time_base"):
            values[name] = Fraction(values[name])
        values["color"] = ColorTags(**values["color"])
        return cls(**values)
