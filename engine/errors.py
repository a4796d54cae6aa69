"""What can go wrong, as a tree. Every error names its code and, where there is one, the parameter to change.

RecaptureError
├── InputError          the user's clip, camera, option or directory is not usable (exit 2)
│   ├── VideoError      the clip: missing, not a video, truncated, over a cap, a kind not supported
│   ├── CameraError     the path: unknown preset, malformed file, a pose that is no pose, sees nothing
│   └── ModelError      the model: unknown, unreachable, gated, not the layout that is needed
├── OutputError         the result cannot be written: no permission, disk full (exit 1)
├── StoreError          the stage store is damaged or not writable (exit 1)
├── ResourceError       not enough memory; names the knob that helps (exit 1)
├── ClusterError        the cluster cannot be reached, is busy, or lost its workers for good (exit 1)
└── Cancelled           the caller's callback or Ctrl-C asked to stop (exit 130)
"""

import re
from collections.abc import Callable


class RecaptureError(Exception):
    """One sentence for a person, a stable code for a program.

    Args:
        message: What is wrong and what would be accepted, in one line. Other parameters are named in backquotes.
        param: The parameter at fault, as Python has it: `camera`, or `refine.sigma` for a field of the configuration.
        code: Stable machine-readable name; defaults to the class's.
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.param}: {self.message}" if self.param else self.message

    def spelled(self, spelling: Callable[[str], str]) -> tuple[str, str | None]:
        """Message and parameter with every parameter named as a face of the engine calls it."""
        return spelled(self.message, spelling), self.param and spelling(self.param)


def spelled(message: str, spelling: Callable[[str], str]) -> str:
    """A message whose parameters, in backquotes, are named as a face of the engine calls them."""
    return re.sub(r"`([a-z_]+(?:\.[a-z_]+)?)`", lambda name: spelling(name[1]), message)


class InputError(RecaptureError):
    code = "invalid_input"
    exit_code = 2


class VideoError(InputError):
    code = "invalid_video"


class CameraError(InputError):
    code = "invalid_camera"


class ModelError(InputError):
    code = "invalid_model"


class OutputError(RecaptureError):
    code = "output_failed"


class StoreError(RecaptureError):
    code = "store_failed"


class ResourceError(RecaptureError):
    code = "out_of_memory"


class ClusterError(RecaptureError):
    code = "cluster_failed"


class Cancelled(RecaptureError):
    code = "cancelled"
    exit_code = 130
