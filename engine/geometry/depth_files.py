"""Depth that the user brings, as files or as arrays, made the clip's depth."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np

from ..errors import InputError
from ..store.arrays import ArrayWriter
from ..user_files.depth import DepthFiles, Range
from . import steady
from .depth_summary import ClipDepth, DepthSummary
from .disparity import log_of_disparity

_SAMPLED = 64
"""Maps that decide the scale and shift of relative disparity."""


def read_depth(
    files: DepthFiles,
    rows: Callable[[tuple[int, int]], ArrayWriter],
    *,
    refine: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> ClipDepth:
    """Depth the user brings, used as it is, no filter, no scale, unless `refine` is given (`structure_of`).

    inf is sky, NaN and what is not positive are unknown. Inverse depth is turned over, 0 being the sky; relative
    disparity gets one scale and shift for the clip (`log_of_disparity`).

    Raises:
        InputError: names the file and what is wrong.
    """
    seen, convert = Range(), _conversion(files)

    def maps() -> Iterator[np.ndarray]:
        for t in range(files.count):
            values = files.read(t)
            if files.kind is None:
                seen.add(values)
            yield convert(values)
        seen.refuse_unitless(files.where)

    return write_depth(maps(), rows, where=files.where, param="depth_dir", refine=refine)


def _conversion(files: DepthFiles) -> Callable[[np.ndarray], np.ndarray]:
    """Depth [h, w] of a map's values."""
    if files.kind == "inverse":

        def turned(values: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore"):
                return np.where(values >= 0, 1 / np.maximum(values, 0), np.nan)

        return turned
    if files.kind != "disparity":
        return lambda values: values
    chosen = np.unique(np.linspace(0, files.count - 1, min(files.count, _SAMPLED)).round().astype(int))
    sample = np.concatenate([files.read(int(t))[::4, ::4].ravel() for t in chosen])
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        raise InputError(f"{files.where} holds no finite value", param="depth_dir")
    to_log = log_of_disparity(sample)
    return lambda values: np.where(np.isnan(values), np.nan, steady.from_log(to_log(values)))


def write_depth(
    maps: Iterator[np.ndarray],
    rows: Callable[[tuple[int, int]], ArrayWriter],
    *,
    where: str,
    param: str,
    first: int = 0,
    refine: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> ClipDepth:
    """Write maps that the user brings, float32 [h, w]; what is not positive is unknown.

    Args:
        rows: opens the output array for maps of a given (h, w).
        where: names their origin in errors.
        first: number of the first map, in errors.
        refine: changes the map of each frame.

    Raises:
        InputError: a map has another shape than the first, or no positive depth.
    """
    summary = DepthSummary()
    with ExitStack() as stack:
        out: ArrayWriter | None = None
        shape: tuple[int, ...] = ()
        for t, given in enumerate(maps):
            if out is None:
                shape = given.shape
                out = stack.enter_context(rows((shape[0], shape[1])))
            depth = np.where(given > 0, given, np.nan)
            if depth.shape != shape or np.isnan(depth).all():
                problem = "no positive depth" if depth.shape == shape else f"{depth.shape}, the first is {shape}"
                raise InputError(f"{where}, map {first + t}: {problem}", param=param)
            if refine is not None:
                depth = refine(t, depth)
            summary.add(depth)
            out.append(depth[None])
    return summary.result(None)
