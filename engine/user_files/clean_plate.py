"""A picture of the empty scene, taken with the clip's own camera."""

from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from .frame_files import ClipFrames


def read_clean_plate(path: Path, clip: ClipFrames) -> np.ndarray:
    """The picture at the clip's size, uint8 [H, W, 3].

    Raises:
        InputError: it cannot be read, or its shape differs from the clip's.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if image is None:
        raise InputError(f"{path} cannot be read as a picture", param="clean_plate")
    height, width = image.shape[:2]
    if abs(width / height - clip.width / clip.height) > 0.01 * width / height:
        raise InputError(
            f"it is {width}x{height}, the clip is {clip.width}x{clip.height}: the shapes must agree, for it must be taken "
            "with the clip's own camera",
            param="clean_plate",
        )
    return np.ascontiguousarray(cv2.resize(image, (clip.width, clip.height), interpolation=cv2.INTER_AREA)[..., ::-1])
