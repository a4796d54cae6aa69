"""Single lossless pictures, 8 or 16 bits a channel."""

import os
from pathlib import Path

import cv2
import numpy as np

from ..errors import OutputError


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 or uint16, [H, W, 3] or [H, W], whole or not at all.

    Raises ValueError for another shape or type, OutputError if the file cannot be written.
    """
    gray_or_rgb = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype.name not in ("uint8", "uint16") or not gray_or_rgb:
        raise ValueError(f"a PNG takes uint8 or uint16, [H, W] or [H, W, 3], not {image.dtype} {image.shape}")
    written, data = cv2.imencode(".png", image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert written, "each such array has a PNG"
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as writer:
            writer.write(data.tobytes())
            writer.flush()
            os.fsync(writer.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
