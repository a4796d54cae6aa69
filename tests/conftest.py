"""Real classes at tiny size: a Stable-Video-Diffusion directory with random weights."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does
# What a developer has pulled must not change what a test runs. Read when the hub's client is imported.
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="recapture-test-hub-")
os.environ["XDG_CONFIG_HOME"] = "/nonexistent"  # nor what they have written into config.toml

import pytest
import torch

from recapture.engine.models.stable_video import write_configs

from .small_models import write_small_svd

atexit.register(shutil.rmtree, os.environ["HF_HUB_CACHE"], ignore_errors=True)

# Networks this small lose more to waking threads than they gain.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of SVD's exact class layout, a few MB, written by `save_pretrained`."""
    return write_small_svd(tmp_path_factory.mktemp("models") / "small-svd")


@pytest.fixture(scope="session")
def svd_configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Video Diffusion's own directory without its weights."""
    return write_configs("svd", tmp_path_factory.mktemp("models") / "svd")
