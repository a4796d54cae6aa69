"""Single lossless pictures, 8 or 16 bits a channel."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from ..errors import OutputError

_PIXEL_FORMATS = {("uint8", 3): "rgb24", ("uint8", 2): "gray", ("uint16", 3): "rgb48be", ("uint16", 2): "gray16be"}


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 or uint16, [H, W, 3] or [H, W], whole or not at all.

    Raises ValueError for another shape or type, OutputError if the file cannot be written.
    """
    pixel_format = _PIXEL_FORMATS.get((image.dtype.name, image.ndim))
    if pixel_format is None or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"a PNG takes uint8 or uint16, [H, W] or [H, W, 3], not {image.dtype} {image.shape}")
    data = _encoded(image, pixel_format)
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as writer:
            writer.write(data)
            writer.flush()
            os.fsync(writer.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _encoded(image: np.ndarray, pixel_format: str) -> bytes:
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt = pixel_format
    encoder.time_base = Fraction(1, 25)  # the codec asks for one, the format has none
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), pixel_format)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
