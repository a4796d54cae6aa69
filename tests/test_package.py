"""The package: the wheel holds the tree, each module has one name, the public names are these."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import recapture
from recapture.engine import errors as recapture_errors

from .engine.test_pipeline import write_clip

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


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """What is tracked, aside: setuptools leaves its build folder in the tree, and packs what lies in it."""
    folder = tmp_path_factory.mktemp("tree")
    for name in filter(lambda name: os.path.lexists(ROOT / name), listed()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    return built(tree, tmp_path_factory.mktemp("wheel"))


def listed() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()


def built(source: Path, folder: Path) -> Path:
    """The wheel of a tree or of a source distribution."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([*command, folder, source], check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def packed(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_wheel_holds_what_the_tree_holds(wheel, tree):
    # The weights and what the code reads at run time; recipes' result tables and notes stay in the repository.
    wanted = {
        name if name.startswith("recapture/") else f"recapture/{name}"
        for name in listed()
        if name.startswith(FOLDERS)
        and (tree / name).is_file()
        and (not name.startswith(("benchmarks/", "priors/")) or name.endswith(".py"))
    }
    assert packed(wheel) == wanted
    about = {name.rpartition("/")[2] for name in zipfile.ZipFile(wheel).namelist() if "/licenses/" in name}
    assert about == {"LICENSE", "NOTICE"}


@pytest.mark.slow
@pytest.mark.ci
def test_the_source_distribution_and_the_images_context_make_the_same_wheel(wheel, tree, tmp_path):
    code = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=tree, check=True, capture_output=True)
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        assert not [name for name in archive.getnames() if "/tests/" in name]
    (tmp_path / "sdist").mkdir()
    assert packed(built(source, tmp_path / "sdist")) == packed(wheel)

    context = tmp_path / "context"
    ignored = (tree / "cluster/deploy/Dockerfile.dockerignore").read_text().split()
    shutil.copytree(tree, context, symlinks=True, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    for pattern in ignored:
        for path in context.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for words in re.findall(r"^COPY (?!--from)(.*)$", (tree / "cluster/deploy/Dockerfile").read_text(), re.MULTILINE):
        *sources, _ = words.split()
        assert all((context / name).exists() for name in sources)
    (tmp_path / "image").mkdir()
    assert packed(built(context, tmp_path / "image")) == packed(wheel)


@pytest.mark.slow
@pytest.mark.ci
def test_the_wheel_runs_where_nothing_else_of_ours_is(wheel, tmp_path):
    fresh = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        fresh / "bin/python",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    (site,) = fresh.glob("lib/*/site-packages")
    # Its dependencies are those of this environment; the editable installation of ours in there is not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RECAPTURE"))}

    def run(*words: object) -> str:
        command = [str(fresh / "bin/recapture"), *map(str, words)]
        told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr
        return told.stdout

    assert recapture.__version__ in run("--version")
    where = [fresh / "bin/python", "-c", "import recapture; print(recapture.__file__)"]
    assert subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout.startswith(
        str(site)
    )
    assert "numba" in run("doctor")
    clip = write_clip(tmp_path / "walk.mp4")
    run("preview", clip, "--camera", "truck(0.1)", "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert list((tmp_path / "out").glob("*"))


def test_the_client_and_the_commands_import_nothing_that_only_posix_has(tmp_path):
    code = """
import builtins, sys
import torch, transformers, diffusers, peft  # on Linux they take what Linux has; what we take counts

POSIX = {"fcntl", "grp", "pwd", "resource", "termios"}
usual = builtins.__import__

def guarded(name, globals=None, *others):
    if name in POSIX and str((globals or {}).get("__name__")).startswith("recapture"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return usual(name, globals, *others)

builtins.__import__ = guarded
import recapture.client
from typer.testing import CliRunner
from recapture.cli.main import app
for words in (["remote", "--help"], ["remote", "run", "--help"], ["preview", "--help"], ["run", "--help"], ["presets"]):
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, (words, told.output, told.exception)
import recapture.engine.pipeline
from recapture.engine.store import Store
with Store(sys.argv[1]) as store, store.begin("frames", "0" * 64) as out:
    out.json("x", {})
    out.publish()
try:
    import recapture.serve.uploads.decode_child  # sets limits, as only POSIX can: so the guard is not blind
except ModuleNotFoundError as error:
    assert error.name == "resource"
else:
    raise AssertionError("the guard lets everything through")
"""
    told = subprocess.run([sys.executable, "-c", code, tmp_path / "store"], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def test_each_folder_is_linked():
    links = {path.name: os.readlink(path) for path in (ROOT / "recapture").iterdir() if path.is_symlink()}
    assert links == {name[:-1]: f"../{name[:-1]}" for name in FOLDERS[1:]}


def test_each_module_has_one_name(tmp_path):
    code = """
import importlib, os, pkgutil, sys, recapture
folders = sys.argv[1:]
for module in pkgutil.walk_packages(recapture.__path__, "recapture."):
    # The renderers of priors need packages of their own, and the environment of migrations is Alembic's to run.
    if not module.name.startswith("recapture.priors") and module.name != "recapture.serve.migrations.env":
        importlib.import_module(module.name)
files = [os.path.realpath(m.__file__) for m in sys.modules.values() if getattr(m, "__file__", None)]
ours = [f for f in files if any(f"/{folder}/" in f for folder in folders) and "site-packages" not in f]
assert len(ours) > 200, len(ours)
assert len(ours) == len(set(ours)), sorted(f for f in ours if ours.count(f) > 1)
assert not set(folders) & set(sys.modules)
"""
    folders = [name[:-1] for name in FOLDERS[1:]]
    subprocess.run([sys.executable, "-c", code, *folders], check=True, cwd=tmp_path)
