"""The backends that a kernel's tests run over; `triton` runs on a GPU, or in its interpreter (TRITON_INTERPRET=1)."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from recapture.kernels.backends import installed, interpreted

NUMBA = pytest.param("numba", marks=pytest.mark.skipif(not installed("numba"), reason="numba is not installed"))
TRITON = pytest.param(
    "triton",
    marks=[
        pytest.mark.skipif(not installed("triton"), reason="triton is not installed"),
        *([] if interpreted() else [pytest.mark.gpu]),
    ],
)
FAST = [NUMBA, TRITON]
BACKENDS = ["torch", *FAST]


def device_of(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "triton" and not interpreted() else "cpu")


def run_interpreted(files: Sequence[str]) -> None:
    """The `triton` tests of these files of this folder, in Triton's interpreter.

    It is chosen when Triton is imported, so it takes a process of its own.
    """
    import os

    here = Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "triton and not interpreted",
            *(here / name for name in files),
        ],
        cwd=here.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
