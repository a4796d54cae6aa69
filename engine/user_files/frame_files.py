"""A folder with a file for each frame, or one file with all frames: which of them is which frame's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .numbering import counted, first_number, frame_numbers, natural_order

SHAPE_TOLERANCE, STRETCHED = 0.1, 0.02
"""How far the aspect ratio of a map may be from the clip's: networks round sizes, but do not turn or crop a picture.
From the second value on it is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFrames:
    """The frames of a clip that a run uses.

    Attributes:
        used: their indices in the clip.
        total: frames of the whole clip.
        width: of the clip, like `height`.
    """

    used: range
    total: int
    width: int
    height: int


def check_shape(what: str, size: tuple[int, int], clip: ClipFrames, param: str) -> str | None:
    """Refuse a map [h, w] of another picture's shape; a sentence where it has to be stretched.

    Raises:
        InputError: its aspect ratio is not the clip's.
    """
    height, width = size
    ratio = (width / height) / (clip.width / clip.height)
    off = max(ratio, 1 / ratio) - 1
    if off <= STRETCHED:
        return None
    sizes = f"{what} is {width}x{height}, the clip {clip.width}x{clip.height}"
    if off <= SHAPE_TOLERANCE:
        return f"{sizes}: it is stretched to the clip's shape"
    turned = abs(height / width / (clip.width / clip.height) - 1) <= SHAPE_TOLERANCE
    raise InputError(
        f"{sizes}: {'turn it by 90 degrees' if turned else 'the shapes must agree, so do not crop or pad it'}",
        param=param,
    )


def files_in(folder: Path, suffixes: Sequence[str], param: str, kinds: str) -> tuple[list[Path], list[str]]:
    """Files of one kind in the order that a person counts, and what was decided to get there.

    Args:
        suffixes: accepted, the best first: where each file is there in several kinds, the first is taken.
        kinds: what is accepted, for errors.

    Raises:
        InputError: no such folder, nothing of an accepted kind in it, or several kinds that differ in their names.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist" if not folder.exists() else f"{folder} is a file", param=param)
    found: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith("."):
            found.setdefault(path.suffix.lower(), []).append(path)
    if not found:
        deeper = [path.parent for path in sorted(folder.glob("*/*")) if path.suffix.lower() in suffixes]
        hint = f"; did you mean {deeper[0]}?" if deeper else ""
        raise InputError(f"{folder} holds no {kinds}{hint}", param=param)
    order = sorted(found, key=suffixes.index)
    files, notes = found[order[0]], []
    if len(found) > 1:
        names = {suffix: {path.stem for path in paths} for suffix, paths in found.items()}
        counts = " and ".join(f"{len(found[suffix])} {suffix}" for suffix in order)
        if any(names[suffix] != names[order[0]] for suffix in order):
            raise InputError(f"{folder} holds {counts} files; leave only one kind in it", param=param)
        notes = [f"{folder} holds {counts} files of the same names: the {order[0]} files are used"]
    return [files[i] for i in natural_order([path.name for path in files])], notes


def of_frames(
    count: int, numbers: list[int] | None, clip: ClipFrames, *, what: str, where: str, param: str
) -> tuple[Callable[[int], int], str | None]:
    """Which of `count` things, in order, belongs to the t-th used frame; a sentence where that had to be decided.

    Args:
        numbers: what their names count, where they do.
        what: plural, for errors.

    Raises:
        InputError: their number does not fit the clip, or a used frame has none.
    """
    used, total = clip.used, clip.total
    contiguous = numbers is None or numbers == list(range(numbers[0], numbers[0] + count))
    if count == total and contiguous:
        return lambda t: used[t], None
    if numbers is not None and (count != len(used) or not contiguous):
        first = first_number(numbers, total)
        if first is not None:
            index = {number - first: i for i, number in enumerate(numbers)}
            if missing := [frame for frame in used if frame not in index]:
                raise InputError(
                    f"{where} has no {what} for {counted(missing)} (names count from {first}); give one per frame",
                    param=param,
                )
            said = f"{where} has {count} {what} for the clip's {total} frames: taken by the numbers in their names"
            return lambda t: index[used[t]], f"{said}, {first} being the clip's first"
    if count == len(used):
        return lambda t: t, None
    if used.stop <= count < total and contiguous:
        return lambda t: used[t], f"{where} has {count} {what}, the clip {total} frames: taken from the clip's start"
    wanted = f"the clip has {total} frames"
    if len(used) != total:
        wanted += f", of which {len(used)} are used"
    raise InputError(f"{where} holds {count} {what}, {wanted}; give one per frame", param=param)


def of_files(files: list[Path], clip: ClipFrames, *, what: str, where: str, param: str) -> tuple[list[Path], list[str]]:
    """The file of each used frame, and sentences about what was decided.

    Raises:
        InputError: as `of_frames`.
    """
    numbers = frame_numbers([path.name for path in files])
    index, note = of_frames(len(files), numbers, clip, what=what, where=where, param=param)
    return [files[index(t)] for t in range(len(clip.used))], [] if note is None else [note]
