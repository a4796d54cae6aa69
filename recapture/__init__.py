"""ReCapture: film a video again from another camera path."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Camera",
    "CameraError",
    "CameraPath",
    "CameraSpec",
    "Cancelled",
    "Client",
    "ClusterError",
    "EulerSampler",
    "InputError",
    "ModelError",
    "OutputError",
    "Recapture",
    "RecaptureError",
    "ResourceError",
    "Result",
    "RunConfig",
    "Sampler",
    "StoreError",
    "VideoError",
    "__version__",
    "override",
    "parse_camera",
]

if TYPE_CHECKING:
    from .client import Client
    from .engine.cameras import Camera, CameraPath, CameraSpec, parse_camera
    from .engine.config import RunConfig, override
    from .engine.diffusion.sampler import EulerSampler, Sampler
    from .engine.errors import (
        CameraError,
        Cancelled,
        ClusterError,
        InputError,
        ModelError,
        OutputError,
        RecaptureError,
        ResourceError,
        StoreError,
        VideoError,
    )
    from .engine.pipeline import Recapture
    from .engine.result import Result

_EXPORTS = {
    "Camera": ".engine.cameras",
    "CameraError": ".engine.errors",
    "CameraPath": ".engine.cameras",
    "CameraSpec": ".engine.cameras",
    "Cancelled": ".engine.errors",
    "Client": ".client",
    "ClusterError": ".engine.errors",
    "EulerSampler": ".engine.diffusion.sampler",
    "InputError": ".engine.errors",
    "ModelError": ".engine.errors",
    "OutputError": ".engine.errors",
    "Recapture": ".engine.pipeline",
    "RecaptureError": ".engine.errors",
    "ResourceError": ".engine.errors",
    "Result": ".engine.result",
    "RunConfig": ".engine.config",
    "Sampler": ".engine.diffusion.sampler",
    "StoreError": ".engine.errors",
    "VideoError": ".engine.errors",
    "override": ".engine.config",
    "parse_camera": ".engine.cameras",
}


def __getattr__(name: str) -> object:
    """Import the public names on first use, so that `import recapture` costs nothing."""
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
