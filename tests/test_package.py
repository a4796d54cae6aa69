"""The package: the wheel holds the tree, each module has one name, the public names are these."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import recapture

ROOT = Path(__file__).parent.parent
FOLDERS = ("recapture/", "benchmarks/", "cli/", "cluster/", "engine/", "kernels/", "priors/")


def test_public_names():
    assert sorted(recapture.__all__) == ["CameraPath", "Recapture", "RecaptureError", "__version__"]
    for name in recapture.__all__:
        assert getattr(recapture, name)
    with pytest.raises(AttributeError):
        _ = recapture.nothing


def test_wheel_holds_what_the_tree_holds(tmp_path):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    tree = tmp_path / "tree"  # built aside: setuptools leaves its build folder in the tree, and packs what lies in it
    for name in filter(lambda name: (ROOT / name).is_file(), listed):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
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
        and (tree / name).exists()
        and (not name.startswith(("benchmarks/", "priors/")) or name.endswith(".py"))
    }
    assert packed == wanted


def test_each_module_has_one_name(tmp_path):
    code = """
import importlib, pkgutil, sys, tomllib
for package in tomllib.load(open(sys.argv[1], "rb"))["tool"]["setuptools"]["packages"]:
    if package != "recapture.priors":  # its renderers need packages of their own
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
            importlib.import_module(module.name)
files = [m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)]
folders = ("benchmarks", "engine", "kernels", "cli", "cluster")
ours = [f for f in files if any(f"/{folder}/" in f for folder in folders) and "site-packages" not in f]
assert len(ours) > 40, len(ours)
assert len(ours) == len(set(ours)), sorted(f for f in ours if ours.count(f) > 1)
assert not {"benchmarks", "engine", "kernels", "cli", "cluster", "priors"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, ROOT / "pyproject.toml"], check=True, cwd=tmp_path)
