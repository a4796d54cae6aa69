"""Masks of source pixels that may be used: white and black in whatever way they were stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..errors import InputError
from .frame_files import ClipFrames, check_shape, files_in, of_files

_SUFFIXES = (".png",)
_LOOKED_AT = 8
"""Masks that are read before the run to learn how they are stored; all are read if these are black."""
_GRAY = 8
"""How far the channels of a gray may differ that was stored in color."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMask:
    """Mask of used frame t, bool [H, W]: pixels of the source that may be used.

    Attributes:
        files: of each used frame.
        alpha: the mask is in the pictures' transparency.
        size: (width, height) of the clip.
        notes: what was decided, one sentence each.
    """

    files: tuple[Path, ...]
    alpha: bool
    size: tuple[int, int]
    notes: tuple[str, ...] = ()

    def __call__(self, t: int) -> np.ndarray:
        """Raises InputError: names the file and what is wrong."""
        mask = _white(self.files[t], alpha=self.alpha)
        return cv2.resize(mask.astype(np.uint8), self.size, interpolation=cv2.INTER_NEAREST) > 0


def find_masks(path: Path, clip: ClipFrames) -> SourceMask:
    """The user's masks of the used frames.

    Args:
        path: a folder with a PNG for each frame, or one PNG for all of them.

    Raises:
        InputError: nothing there, a number or a shape that does not fit the clip, no mask with anything white, or
            pictures that are no masks.
    """
    notes: list[str] = []
    if path.is_file():
        files = [path]
    else:
        files, notes = files_in(path, _SUFFIXES, "mask_dir", "PNG masks")
    if len(files) == 1:
        chosen = files * len(clip.used)
        notes.append(f"{path} is one mask: it is used for every frame")
    else:
        chosen, more = of_files(files, clip, what="masks", where=str(path), param="mask_dir")
        notes += more
    first = _picture(chosen[0])
    stretched = check_shape("the mask", (first.height, first.width), clip, "mask_dir")
    sample = chosen[:: max(1, len(chosen) // _LOOKED_AT)]
    alpha = any(_transparent(file) for file in dict.fromkeys(sample))
    if alpha:
        notes.append(f"the masks in {path} have transparency: opaque pixels of the source are used")
    _refuse_black(path, sample, chosen, alpha=alpha)
    size = (clip.width, clip.height)
    return SourceMask(
        files=tuple(chosen), alpha=alpha, size=size, notes=tuple([*notes, *([stretched] if stretched else [])])
    )


def _refuse_black(path: Path, sample: Sequence[Path], files: Sequence[Path], *, alpha: bool) -> None:
    for file in dict.fromkeys([*sample, *files]):
        if _white(file, alpha=alpha).any():
            return
    raise InputError(
        f"the masks in {path} are black everywhere, so nothing of the clip could be used; white is what may be used",
        param="mask_dir",
    )


def _picture(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path.name} cannot be read as a PNG ({error})", param="mask_dir") from None
    return picture


def _transparent(path: Path) -> bool:
    picture = _picture(path)
    return "A" in picture.getbands() and np.asarray(picture.getchannel("A")).min() < 255


def _white(path: Path, *, alpha: bool) -> np.ndarray:
    """Where a mask is white, bool [h, w].

    A mask of two values, one of them 0, means its other value; in a mask of more, white is the upper half of the range.

    Raises:
        InputError: it is a picture, no mask.
    """
    picture = _picture(path)
    if alpha:
        if "A" not in picture.getbands():
            raise InputError(f"{path.name} has no transparency, while other masks have", param="mask_dir")
        values = np.asarray(picture.getchannel("A"))
    elif picture.mode == "P":
        values = _of_palette(picture, path)
    elif picture.mode in ("RGB", "RGBA"):
        values = _of_colors(np.asarray(picture)[..., :3], path)
    elif picture.mode in ("LA", "La"):
        values = np.asarray(picture.getchannel(0))
    else:
        values = np.asarray(picture)
    levels = np.unique(values)
    if (len(levels) <= 2 and levels[0] == 0) or list(levels) == [1]:
        return values > 0
    top = 1 if values.dtype == bool else 65535 if levels[-1] > 255 else 255
    if levels[-1] <= top // 2:
        raise InputError(
            f"{path.name} has {len(levels)} shades from {levels[0]} to {levels[-1]}: a mask is white where the source "
            "may be used, and black elsewhere",
            param="mask_dir",
        )
    return values > top // 2


def _of_palette(picture: Image.Image, path: Path) -> np.ndarray:
    """Brightness of a palette of grays; of one with colors, its index, if it tells one thing from the rest."""
    index = np.asarray(picture)
    palette = np.zeros((256, 3), np.uint8)
    given = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    palette[: len(given)] = given
    used = np.unique(index)
    colors = palette[used]
    if (colors.max(-1) == colors.min(-1)).all() and len(np.unique(colors[:, 0])) == len(used):
        return palette[index, 0]
    if len(used) > 2 or used[0] != 0:
        raise InputError(
            f"{path.name} is a map of {len(used)} labels, not a mask: make what may be used white and the rest black",
            param="mask_dir",
        )
    return index


def _of_colors(picture: np.ndarray, path: Path) -> np.ndarray:
    """Brightness of a picture that is gray but stored in color; of one with a single color, where that is."""
    if int((picture.max(-1) - picture.min(-1)).max()) <= _GRAY:
        return picture[..., 1]
    codes = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colors = np.unique(codes)
    if len(colors) > 2 or colors[0]:
        raise InputError(
            f"{path.name} is a color picture, not a mask: make what may be used white and the rest black",
            param="mask_dir",
        )
    return picture.max(-1)
