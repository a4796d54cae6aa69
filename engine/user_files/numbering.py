"""What the names of files say: in which order they come, and which frame each belongs to."""

import re
from collections.abc import Iterable, Sequence

_DIGITS = re.compile(r"([0-9]{1,18})")


def natural_order(names: Sequence[str]) -> list[int]:
    """Indices that sort names as a person would: frame_2 before frame_10."""

    def key(i: int) -> tuple[list[tuple[int, int, str]], str]:
        parts = _DIGITS.split(names[i])
        return [(1, int(p), "") if n % 2 else (0, 0, p) for n, p in enumerate(parts)], names[i]

    return sorted(range(len(names)), key=key)


def frame_numbers(names: Sequence[str]) -> list[int] | None:
    """The number that counts in each name, such as 12 of `left_00012.png`; None where names do not count.

    Names count if they are equal but for one number, and no two have the same.
    """
    parts = [_DIGITS.split(re.sub(r"\.[A-Za-z][A-Za-z0-9]*$", "", name)) for name in names]
    if len({len(each) for each in parts}) != 1:
        return None
    columns = [set(column) for column in zip(*parts, strict=True)]
    varying = [n for n, values in enumerate(columns) if len(values) > 1]
    if len(names) == 1:
        varying = [n for n in range(1, len(columns), 2)][-1:]
    if len(varying) != 1 or varying[0] % 2 == 0:
        return None
    numbers = [int(each[varying[0]]) for each in parts]
    return numbers if len(set(numbers)) == len(numbers) else None


def first_number(numbers: Sequence[int], total: int) -> int | None:
    """The number that names of a clip of `total` frames give its first frame; None where they do not fit the clip.

    Names count from 0 or 1, or from anywhere if they span the whole clip. Where 0 and 1 both fit, it is 1, as FFmpeg
    and COLMAP's tools count.
    """
    low, high = min(numbers), max(numbers)
    if high - low + 1 == total:
        return low
    if low == 0:
        return 0 if high < total else None
    return 1 if high <= total else None


def counted(frames: Iterable[int]) -> str:
    """Frame numbers for a sentence: `frame 4`, `frames 0-3, 7`; a long list is cut."""
    runs: list[list[int]] = []
    for frame in frames:
        if runs and frame == runs[-1][-1] + 1:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    words = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    one = len(runs) == 1 and len(runs[0]) == 1
    return f"frame{'' if one else 's'} {', '.join(words[:8])}{' and more' if len(words) > 8 else ''}"
