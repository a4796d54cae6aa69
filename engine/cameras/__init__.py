"""Camera paths: the preset language, camera files of several formats, and one internal form.

Start at `parse_camera`; it gives a `CameraSpec`, whose `resolve` gives the `CameraPath` for a clip.
"""

from .agreed_depth import AgreedDepth, Depths
from .checks import path_warnings, through_geometry
from .expression import parse_expression
from .formats import FORMATS, read_cameras, write_cameras
from .path import CameraPath, SourceView
from .presets import Parameter, Preset, presets
from .spec import Camera, CameraSpec, camera_spec, parse_camera
from .world import in_one_world

__all__ = [
    "FORMATS",
    "AgreedDepth",
    "Camera",
    "CameraPath",
    "CameraSpec",
    "Depths",
    "Parameter",
    "Preset",
    "SourceView",
    "camera_spec",
    "in_one_world",
    "parse_camera",
    "parse_expression",
    "path_warnings",
    "presets",
    "read_cameras",
    "through_geometry",
    "write_cameras",
]
