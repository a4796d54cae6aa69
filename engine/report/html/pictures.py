"""Pictures of a run: holes tinted, contact sheets, crops, and everything as data addresses for a page of one file."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

ACCENT = (232, 102, 42)
"""Color of generated pixels, in pictures and in curves."""
NEUTRAL = (124, 124, 124)
_PAPER, _INK = (250, 249, 247), (70, 68, 64)


def flat_holes(anchor: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The anchor, uint8 [H, W, 3], with a neutral gray where `mask` [H, W] is False."""
    return np.where(mask[..., None], anchor, np.array(NEUTRAL, np.uint8))


def tinted_holes(anchor: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The anchor, uint8 [H, W, 3], with hatching in the accent color where `mask` [H, W] is False.

    Hatched, not flat: no footage looks like it.
    """
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    period = max(6, mask.shape[0] // 28)
    stripe = ((x + y) % period < period / 2)[..., None]
    hatch = np.where(stripe, np.array(ACCENT, np.uint8), (np.array(ACCENT) * 0.82 + 10).astype(np.uint8))
    return np.where(mask[..., None], anchor, hatch)


def shared_tint(frame: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """A delivered frame, uint8 [H, W, 3], tinted by how much of each pixel is generated, matte uint8 [H, W]."""
    alpha = matte.astype(np.float32)[..., None] / 255 * 0.6
    return (frame * (1 - alpha) + np.array(ACCENT, np.float32) * alpha).round().astype(np.uint8)


def marked(picture: np.ndarray, x: int, y: int, size: int) -> np.ndarray:
    """The picture, uint8 [H, W, 3], with a thin white frame of this size around (x, y)."""
    half = size // 2
    framed = np.ascontiguousarray(picture).copy()
    return cv2.rectangle(framed, (x - half, y - half), (x + half, y + half), (255, 255, 255), 1)


def spread(count: int, columns: int) -> list[int]:
    """Up to `columns` different frame indices over `count` frames, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(columns, count))})


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], columns: Sequence[str], *, cell_width: int = 320
) -> np.ndarray:
    """Labeled rows of pictures, uint8 [H, W, 3].

    Args:
        rows: label and one picture a column, uint8 [h, w, 3] of any size; the first row's shape is everyone's.
        columns: a label for each column.
    """
    height, width = rows[0][1][0].shape[:2]
    cell_height = max(1, round(cell_width * height / width))
    gap, line = 10, 22
    sheet = Image.new(
        "RGB",
        (gap + len(columns) * (cell_width + gap), line + gap + len(rows) * (cell_height + line + gap)),
        _PAPER,
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for c, label in enumerate(columns):
        draw.text((gap + c * (cell_width + gap), 10), label, fill=_INK, font=font)
    for r, (label, pictures) in enumerate(rows):
        top = line + gap + r * (cell_height + line + gap)
        draw.text((gap, top), label, fill=_INK, font=font)
        for c, picture in enumerate(pictures):
            cell = Image.fromarray(resized(picture, cell_width, cell_height))
            sheet.paste(cell, (gap + c * (cell_width + gap), top + line))
    return np.asarray(sheet)


def resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """A uint8 picture at another size: averaged when smaller, cubic when larger."""
    if picture.shape[:2] == (height, width):
        return picture
    smaller = height * width < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def fitted(width: int, height: int, longest: int) -> tuple[int, int]:
    """An even (width, height) of the same shape whose longer side is at most `longest`."""
    scale = min(1.0, longest / max(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def crop_at(picture: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """The part of a picture of this size around (x, y), moved inside; smaller only where the picture is."""
    left = int(np.clip(x - width // 2, 0, max(0, picture.shape[1] - width)))
    top = int(np.clip(y - height // 2, 0, max(0, picture.shape[0] - height)))
    return picture[top : top + height, left : left + width]


def jpeg_address(picture: np.ndarray, *, longest: int = 640, quality: int = 86) -> str:
    """A picture as a `data:` address, scaled down to at most `longest` pixels."""
    width, height = fitted(picture.shape[1], picture.shape[0], longest)
    stream = io.BytesIO()
    Image.fromarray(resized(picture, width, height)).save(stream, "JPEG", quality=quality, subsampling=0, optimize=True)
    return _address("image/jpeg", stream.getvalue())


def png_address(picture: np.ndarray) -> str:
    """A picture as a `data:` address, every pixel as it is."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, "PNG", optimize=True)
    return _address("image/png", stream.getvalue())


def video_address(path: Path) -> str:
    """An MP4 file as a `data:` address."""
    return _address("video/mp4", path.read_bytes())


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
