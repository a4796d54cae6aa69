"""Which implementation runs: Triton on a GPU, numba on a CPU, and everywhere the plain-torch twin that both answer to."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, Literal

import torch

Backend = Literal["auto", "triton", "numba", "torch"]
"""`auto` takes the fast one of the device if it is installed, else the twin; an explicit choice is never replaced."""
Implementation = Literal["triton", "numba", "torch"]

_FASTEST: dict[str, Literal["triton", "numba"]] = {"cuda": "triton", "cpu": "numba"}
_INSTALL = {
    "triton": "pip install triton (Linux; CUDA builds of torch bring it)",
    "numba": "pip install 'recapture[engine]', or numba alone",
}


def installed(package: Literal["triton", "numba"]) -> bool:
    """Whether the package can be imported; nothing is imported to find out."""
    return find_spec(package) is not None


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose(backend: Backend, device: torch.device) -> Implementation:
    """The implementation for tensors on `device`.

    Raises:
        ValueError: no such backend, the one asked for is not installed (says what to install), or it cannot run there.
    """
    if backend not in ("auto", "triton", "numba", "torch"):
        raise ValueError(f"no backend {backend!r}; there are auto, triton, numba, torch")
    if backend == "torch":
        return "torch"
    if backend == "auto":
        fast = _FASTEST.get(device.type)
        return fast if fast is not None and installed(fast) else "torch"
    if not installed(backend):
        raise ValueError(f"backend {backend!r} is not installed: {_INSTALL[backend]}")
    home = "cuda" if backend == "triton" and not interpreted() else "cpu"
    if device.type != home:
        raise ValueError(f"backend {backend!r} takes tensors on {home}, these are on {device.type}; use 'auto'")
    return backend


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Within the context Triton launches on this device, which need not be the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def njit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`numba.njit` without the GIL, its machine code kept on disk where a folder for it can be written.

    No parallel loops: forking and joining threads costs more than these ops on a machine that does anything else.
    """
    import numba

    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # a read-only installation without a cache folder
        return numba.njit(nogil=True, **options)(function)
