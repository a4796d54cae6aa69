"""ReCapture: film a video again from another camera path."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["CameraPath", "Client", "Recapture", "RecaptureError", "__version__"]

if TYPE_CHECKING:
    from .client import Client
    from .engine.cameras import CameraPath
    from .engine.errors import RecaptureError
    from .engine.pipeline import Recapture

_EXPORTS = {
    "CameraPath": ".engine.cameras",
    "Client": ".client",
    "Recapture": ".engine.pipeline",
    "RecaptureError": ".engine.errors",
}


def __getattr__(name: str) -> object:
    """Import the public names on first use, so that `import recapture` costs nothing."""
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
