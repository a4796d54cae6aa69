"""Depth that the user brings, as files or as arrays."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from ..store.arrays import ArrayWriter
from .depth_summary import ClipDepth, DepthSummary


def read_depth(
    folder: Path,
    count: int,
    rows: Callable[[tuple[int, int]], ArrayWriter],
    *,
    first: int = 0,
    refine: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> ClipDepth:
    """Depth the user brings, used as it is, no filter, no scale, unless `refine` is given (`structure_of`).

    Accepted: one `.npy` or `.npz` with [N, h, w], or a file a frame in the order of their names: `.npy` float [h, w] in
    scene units, or 16-bit `.png` in millimeters (0 is unknown). inf is sky, NaN and non-positive are unknown.

    Raises:
        InputError: names the file and what is wrong.
    """
    files = (
        sorted(path for path in folder.glob("*") if path.suffix in (".npy", ".npz", ".png")) if folder.is_dir() else []
    )
    if not files:
        raise InputError(f"{folder} holds no .npy, .npz or 16-bit .png depth", param="depth_dir")
    stack = _array(files[0]) if len(files) == 1 else None
    stack = stack if stack is not None and stack.ndim == 3 else None
    available = len(files) if stack is None else len(stack)
    if available < first + count:
        raise InputError(
            f"{folder} holds {available} depth maps, frames {first} to {first + count - 1} are needed",
            param="depth_dir",
        )

    def read(t: int) -> np.ndarray:
        depth = _array(files[t]) if stack is None else stack[t]
        return depth.astype(np.float32) / (1000 if depth.dtype.kind == "u" else 1)

    shape = read(first).shape
    if len(shape) != 2:
        raise InputError(f"{files[0].name}: a depth map is [h, w], not {list(shape)}", param="depth_dir")
    maps = (read(t) for t in range(first, first + count))
    return write_depth(maps, rows, where=str(folder), param="depth_dir", first=first, refine=refine)


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


def _array(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".png":
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            if image is None or image.dtype != np.uint16 or image.ndim != 2:
                raise ValueError("not a 16-bit gray PNG")
            return image
        loaded = np.load(path, allow_pickle=False)
        values = loaded[loaded.files[0]] if path.suffix == ".npz" else loaded
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{path.name} cannot be read as depth ({error})", param="depth_dir") from None
    if values.dtype.kind not in "fu":
        raise InputError(f"{path.name} holds {values.dtype}, depth is floating point", param="depth_dir")
    return values
