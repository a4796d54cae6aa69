"""Depth maps as tools write them: a stack in one file, or a file a frame."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

import cv2
import numpy as np

from ..errors import InputError
from .frame_files import ClipFrames, check_shape, files_in, of_files, of_frames

DepthKind = Literal["depth", "inverse", "disparity"]

_SUFFIXES = (".npy", ".npz", ".exr", ".png")
_KINDS = ".npy, .npz, .exr or 16-bit .png depth"
_DEPTH_KEYS = ("depth", "depths", "depth_map", "depth_maps", "depthmaps", "pred_depth", "metric_depth", "z", "dep")
_DISPARITY_KEYS = ("disparity", "disparities", "disp", "disps")
_INVERSE_KEYS = ("inverse_depth", "inv_depth", "idepth")
_TOPS = (1.0, 255.0, 65535.0)
"""Values that a map was stretched to if it also begins at exactly 0: then it is in no unit."""
_CHECKED_EARLY = 1 << 26
"""A stack of at most this many values is looked through before the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stack:
    """An array [N, h, w] in a file, of which nothing was read yet but its shape."""

    path: Path
    key: str | None
    shape: tuple[int, ...]

    def load(self) -> np.ndarray:
        """The maps [N, h, w]; of a `.npy` they stay on disk."""
        loaded = np.load(self.path, mmap_mode="r" if self.key is None else None, allow_pickle=False)
        return (loaded if self.key is None else loaded[self.key]).reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class DepthFiles:
    """The user's maps of the used frames, found and matched to them; read one by one.

    Attributes:
        where: names them in errors.
        kind: what the values are; None if neither the user nor the files say.
        notes: what was decided, one sentence each.
    """

    where: str
    count: int
    kind: DepthKind | None
    notes: tuple[str, ...]
    _files: tuple[Path, ...] = ()
    _stack: _Stack | None = None
    _index: tuple[int, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_maps"}  # another process reads its own

    @cached_property
    def _maps(self) -> np.ndarray:
        assert self._stack is not None
        try:
            return self._stack.load()
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            _unreadable(self._stack.path, error)

    def read(self, t: int) -> np.ndarray:
        """The map of used frame t as it is, float32 [h, w]; PNG files in meters.

        Raises:
            InputError: names the file and what is wrong.
        """
        if self._stack is None:
            return _map_of(self._files[t], self.kind)
        return np.asarray(self._maps[self._index[t]], dtype=np.float32)

    @property
    def small(self) -> bool:
        """Whether looking through all maps costs next to nothing."""
        return self._stack is not None and int(np.prod(self._stack.shape)) <= _CHECKED_EARLY


def find_depth(path: Path, clip: ClipFrames, kind: DepthKind | None) -> DepthFiles:
    """The user's maps of the used frames.

    Args:
        path: a folder, or the one file with all maps.
        kind: what the user says the values are.

    Raises:
        InputError: nothing there, several kinds of files, a number or a shape that does not fit the clip, or values
            that are in no unit while nobody says what they are.
    """
    notes: list[str] = []
    if path.is_file():
        files = [path]
        if path.suffix.lower() not in (".npy", ".npz", ".zip"):
            raise InputError(
                f"{path} is a file; give a folder with a map for each frame, or one .npy, .npz or .zip",
                param="depth_dir",
            )
    else:
        files, notes = files_in(path, (*_SUFFIXES, ".zip"), "depth_dir", _KINDS)
    where = str(path)
    if len(files) == 1 and files[0].suffix.lower() == ".zip":
        raise InputError(
            f"{files[0].name} is a zip; unpack it (`unzip {files[0].name} -d depth`) and give the folder",
            param="depth_dir",
        )
    stack, of_key = _stack(files[0]) if files[0].suffix.lower() in (".npy", ".npz") else (None, None)
    count, common = len(clip.used), {"where": where, "count": len(clip.used), "kind": kind or of_key}
    if stack is not None and len(stack.shape) == 3 and (len(files) == 1 or stack.shape[0] > 1):
        if len(files) > 1:
            raise InputError(
                f"{path} holds {len(files)} files of several maps each; give the one that is of this clip",
                param="depth_dir",
            )
        index, note = of_frames(stack.shape[0], None, clip, what="depth maps", where=where, param="depth_dir")
        notes += [] if note is None else [note]
        found = DepthFiles(**common, notes=(), _stack=stack, _index=tuple(index(t) for t in range(count)))
    else:
        chosen, more = of_files(files, clip, what="depth maps", where=where, param="depth_dir")
        notes += more
        found = DepthFiles(**common, notes=(), _files=tuple(chosen))
    shape = found.read(0).shape if stack is None else stack.shape[-2:]
    if stretched := check_shape("the depth", (shape[0], shape[1]), clip, "depth_dir"):
        notes.append(stretched)
    if found.kind is None and found.small:
        values = Range()
        for t in range(found.count):
            values.add(found.read(t))
        values.refuse_unitless(where)
    return replace(found, notes=tuple(notes))


class Range:
    """Least and greatest value of maps."""

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf

    def add(self, values: np.ndarray) -> None:
        """Take in a map; what is not finite does not count."""
        finite = values[np.isfinite(values)]
        if finite.size:
            self._low, self._high = min(self._low, float(finite.min())), max(self._high, float(finite.max()))

    def refuse_unitless(self, where: str) -> None:
        """Refuse maps that run from exactly 0 to exactly 1, 255 or 65535.

        Raises:
            InputError: says what to tell.
        """
        tops = [top for top in _TOPS if abs(self._high - top) < 1e-6 * top]
        if tops and abs(self._low) < 1e-6 * tops[0]:
            raise InputError(
                f"the values in {where} run from 0 to {tops[0]:g}, so they were stretched and are in no unit; say what they "
                "are: set `depth.kind` to disparity if near things have the large values (DepthCrafter, Video Depth "
                "Anything), to depth if far things have",
                param="depth_dir",
            )


def _unreadable(path: Path, error: Exception | str) -> NoReturn:
    raise InputError(f"{path.name} cannot be read as depth ({error})", param="depth_dir") from None


def _stack(path: Path) -> tuple[_Stack, DepthKind | None]:
    """The array of a `.npy` or `.npz`, and what its name in an `.npz` says of it."""
    try:
        if path.suffix.lower() == ".npy":
            arrays: dict[str | None, np.ndarray[Any, Any]] = {None: np.load(path, mmap_mode="r", allow_pickle=False)}
            shapes = {key: (array.shape, array.dtype) for key, array in arrays.items()}
        else:
            shapes = dict(_headers(path))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _unreadable(path, error)
    key, kind = _chosen(path, shapes)
    shape, dtype = shapes[key]
    if dtype.kind not in "fu":
        raise InputError(f"{path.name} holds {dtype}, depth is floating point", param="depth_dir")
    squeezed = shape
    if len(squeezed) == 4:
        squeezed = squeezed[:1] + squeezed[2:] if squeezed[1] == 1 else squeezed[:3] if squeezed[3] == 1 else squeezed
    if len(squeezed) not in (2, 3) or 0 in squeezed:
        raise InputError(f"{path.name}: depth is [N, h, w] or [h, w], not {list(shape)}", param="depth_dir")
    return _Stack(path=path, key=key, shape=squeezed), kind


def _headers(path: Path) -> "list[tuple[str | None, tuple[tuple[int, ...], np.dtype[Any]]]]":
    """Names, shapes and types of an `.npz`'s arrays, without reading them."""
    found: list[tuple[str | None, tuple[tuple[int, ...], np.dtype[Any]]]] = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
            found.append((name.removesuffix(".npy"), (shape, dtype)))
    if not found:
        raise ValueError("no array in it")
    return found


def _chosen(path: Path, shapes: dict[str | None, Any]) -> tuple[str | None, DepthKind | None]:
    """Which array is the depth, and what it is by its name."""
    lower = {(key or "").lower(): key for key in shapes}
    kinds: tuple[tuple[tuple[str, ...], DepthKind | None], ...] = (
        (_DEPTH_KEYS, None), (_INVERSE_KEYS, "inverse"), (_DISPARITY_KEYS, "disparity"),
    )  # fmt: skip
    for names, kind in kinds:
        for name in names:
            if name in lower:
                return lower[name], kind
    if len(shapes) == 1:
        return next(iter(shapes)), None
    if {"data", "inds"} <= set(lower):
        raise InputError(
            f"{path.name} holds poses or intrinsics of ViPE, not depth: unpack the zip in its depth folder, and give the "
            "folder with the .exr files",
            param="depth_dir",
        )
    listed = ", ".join(f"{key} {list(shape)}" for key, (shape, _) in shapes.items())
    raise InputError(
        f"{path.name} holds several arrays ({listed}); the depth must be called depth or depths", param="depth_dir"
    )


def _map_of(path: Path, kind: DepthKind | None) -> np.ndarray:
    """One map, float32 [h, w]."""
    read: Callable[[Path], np.ndarray] = {".png": lambda one: _png(one, kind), ".exr": _exr}.get(
        path.suffix.lower(), _array
    )
    found = read(path)
    if found.ndim == 3 and 1 in (found.shape[0], found.shape[2]):
        found = found[0] if found.shape[0] == 1 else found[..., 0]
    if found.ndim != 2:
        raise InputError(f"{path.name}: a depth map is [h, w], not {list(found.shape)}", param="depth_dir")
    return found.astype(np.float32)


def _array(path: Path) -> np.ndarray:
    stack, _ = _stack(path)
    try:
        return np.array(stack.load())
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        _unreadable(path, error)


def _png(path: Path, kind: DepthKind | None) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        _unreadable(path, "not a PNG")
    if image.ndim == 2 and image.dtype == np.uint16:
        return image.astype(np.float32) if kind in ("disparity", "inverse") else image.astype(np.float32) / 1000
    if image.ndim == 2 and kind == "disparity":
        return image.astype(np.float32)
    what = "a color picture" if image.ndim == 3 else "an 8-bit picture"
    raise InputError(
        f"{path.name} is {what}, which is for viewing: depth is a 16-bit gray PNG in millimeters, .npy or .npz; an 8-bit "
        "gray PNG whose near things are white is accepted with `depth.kind` disparity",
        param="depth_dir",
    )


def _exr(path: Path) -> np.ndarray:
    try:
        import OpenEXR
    except ModuleNotFoundError:
        raise InputError(
            f"{path.name} needs OpenEXR to be read: pip install 'recapture[exr]'", param="depth_dir"
        ) from None
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name.rpartition(".")[2]: channel.pixels for name, channel in file.channels().items()}
    except Exception as error:  # whatever the library says of a damaged file
        _unreadable(path, error)
    for name in ("Z", "depth", "Y", "R"):
        if name in channels:
            return np.asarray(channels[name])
    raise InputError(f"{path.name} has the channels {', '.join(channels)}; depth is in Z, Y or R", param="depth_dir")
