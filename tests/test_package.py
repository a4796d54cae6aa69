"""The package: the wheel holds the tree, each module has one name, the public names are these."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import recapture
from recapture.engine import errors as recapture_errors

ROOT = Path(__file__).parent.parent
FOLDERS = (
    "recapture/",
    "benchmarks/",
    "cli/",
    "client/",
    "cluster/",
    "engine/",
    "evaluation/",
    "kernels/",
    "priors/",
    "serve/",
)


def test_public_names():
    errors = {name for name in dir(recapture_errors) if name.endswith("Error") or name == "Cancelled"}
    others = {
        "Camera",
        "CameraPath",
        "CameraSpec",
        "Client",
        "EulerSampler",
        "Recapture",
        "Result",
        "RunConfig",
        "Sampler",
    }
    assert set(recapture.__all__) == errors | others | {"override", "parse_camera", "__version__"}
    for name in recapture.__all__:
        assert getattr(recapture, name)
    with pytest.raises(AttributeError):
        _ = recapture.nothing


def test_the_version_is_in_one_place():
    assert version("recapture") == recapture.__version__
    assert recapture.__version__ not in (ROOT / "pyproject.toml").read_text()


def test_wheel_holds_what_the_tree_holds(tmp_path):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    tree = tmp_path / "tree"  # built aside: setuptools leaves its build folder in the tree, and packs what lies in it
    for name in filter(lambda name: os.path.lexists(ROOT / name), listed):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name, follow_symlinks=False)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, tree],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    # The weights and what the code reads at run time; recipes' result tables and notes stay in the repository.
    wanted = {
        name if name.startswith("recapture/") else f"recapture/{name}"
        for name in listed
        if name.startswith(FOLDERS)
        and (tree / name).is_file()
        and (not name.startswith(("benchmarks/", "priors/")) or name.endswith(".py"))
    }
    assert packed == wanted


def test_each_folder_is_linked():
    links = {path.name: os.readlink(path) for path in (ROOT / "recapture").iterdir() if path.is_symlink()}
    assert links == {name[:-1]: f"../{name[:-1]}" for name in FOLDERS[1:]}


def test_each_module_has_one_name(tmp_path):
    code = """
import importlib, os, pkgutil, sys, recapture
folders = sys.argv[1:]
for module in pkgutil.walk_packages(recapture.__path__, "recapture."):
    if not module.name.startswith("recapture.priors"):  # its renderers need packages of their own
        importlib.import_module(module.name)
files = [os.path.realpath(m.__file__) for m in sys.modules.values() if getattr(m, "__file__", None)]
ours = [f for f in files if any(f"/{folder}/" in f for folder in folders) and "site-packages" not in f]
assert len(ours) > 200, len(ours)
assert len(ours) == len(set(ours)), sorted(f for f in ours if ours.count(f) > 1)
assert not set(folders) & set(sys.modules)
"""
    folders = [name[:-1] for name in FOLDERS[1:]]
    subprocess.run([sys.executable, "-c", code, *folders], check=True, cwd=tmp_path)
