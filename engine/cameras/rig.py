"""The images of several cameras in one file: which camera's are meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from ..errors import CameraError

_LAST_NUMBER = re.compile(r"(.*?)([0-9]+)([^0-9]*)")


def cameras_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the images by camera, as a rig or several clips in one reconstruction name them; one entry is one camera.

    A camera has a folder (`cam_left/0001.jpg`) or a word or number of its own before the frame's (`cam1_0001.jpg`).
    """
    folders: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        folders.setdefault(str(PurePosixPath(name.replace("\\", "/")).parent), []).append(i)
    if len(folders) > 1:
        several = all(len(indices) > 1 for indices in folders.values())
        return folders if several else {"": list(range(len(names)))}
    groups: dict[str, list[int]] = {}
    numbers: list[str] = []
    for i, name in enumerate(names):
        found = _LAST_NUMBER.fullmatch(PurePosixPath(name.replace("\\", "/")).stem)
        groups.setdefault((found[1] + found[3]).strip(" _-.") if found else "", []).append(i)
        numbers.append(found[2] if found else "")
    words = {re.sub("[0-9]+", "", group) for group in groups}
    shared = len(set(numbers)) <= len(names) // 2  # cameras of one moment share its number
    if (
        len(groups) > 1
        and all(len(indices) > 1 for indices in groups.values())
        and (shared or len(words) == len(groups))
    ):
        return groups
    return {"": list(range(len(names)))}


def chosen_camera(names: Sequence[str], camera: str | None, where: str) -> list[int]:
    """Indices of the images of one camera.

    Args:
        camera: its name; None where there is only one.
        where: the file, for errors.

    Raises:
        CameraError: there are several and none is named, or it is not among them.
    """
    found = cameras_of(names)
    if camera is None and len(found) == 1:
        return list(range(len(names)))
    if camera in found:
        return found[camera]
    listed = ", ".join(f"{name} ({len(indices)} images)" for name, indices in sorted(found.items()))
    if len(found) == 1:
        raise CameraError(f"{where}: has the images of one camera only; leave out #{camera}", param="camera")
    problem = f"there is no camera {camera!r}" if camera is not None else f"has the images of {len(found)} cameras"
    raise CameraError(f"{where}: {problem}: {listed}; name the one that is meant, as FILE#{min(found)}", param="camera")
