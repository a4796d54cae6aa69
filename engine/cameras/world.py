"""A path in the world of the first source camera, brought to the source camera of each moment."""

from dataclasses import replace
from typing import Literal

import numpy as np

from ..errors import CameraError
from .path import CameraPath, SourceView
from .rigid import inverse
from .spec import CameraSpec

RelativeTo = Literal["world", "source"]


def in_one_world(
    camera: CameraSpec, view: SourceView, source_c2w: np.ndarray | None, lost: str, relative_to: RelativeTo | None
) -> tuple[CameraPath, list[str]]:
    """A camera's path for a clip whose source camera may move.

    Args:
        source_c2w: float64 [N, 4, 4], the source camera in the first frame's; None where it stands still.
        lost: why its motion cannot be found, else empty.
        relative_to: what the user asks for; None is the world where the source moves and the camera allows it.

    Returns:
        The path, relative to the source camera of each moment, and what the user should know, a sentence each.

    Raises:
        CameraError: the world is asked for and cannot be had.
    """
    if relative_to == "world" and lost:
        raise CameraError(
            f"the source camera's motion cannot be found: {lost}. Give its poses with `source_camera`, or use "
            "`relative_to` source",
            param="relative_to",
        )
    if relative_to == "world" and not camera.in_world:
        raise CameraError(
            "the camera's poses are relative to the source camera of each moment: leave this out", param="relative_to"
        )
    if relative_to == "source" or not camera.in_world:
        return camera.resolve(view), []
    if lost:
        return camera.resolve(view), ["the path rides on the source camera, whose motion is not known"]
    if source_c2w is None:
        return camera.resolve(view), []
    path, said = camera.resolve(replace(view, source_c2w=source_c2w)), []
    if relative_to is None:
        said.append(
            "the path starts at the first source pose and stays in the world; `relative_to` source makes it ride on the "
            "source camera"
        )
    return replace(path, c2w=inverse(source_c2w) @ path.c2w), said
