"""The locks: one for each purpose, of the same versions, holding what pyproject.toml asks for and nothing of another purpose."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
PURPOSES = {
    "demo": ["engine", "demo"],
    "runtime": ["engine", "cluster", "serve", "client"],
    "dev": ["engine", "cluster", "serve", "client", "demo", "evaluate", "exr", "dev", "docs"],
}


def locked(purpose: str) -> set[tuple[str, str]]:
    """Names and versions."""
    text = (ROOT / "locks" / f"{purpose}.txt").read_text()
    return set(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[\w,-]+\])?==(\S+)", text, re.MULTILINE))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked(extra: str) -> set[str]:
    requirements = (Requirement(each) for each in EXTRAS[extra])
    return {normal(each.name) for each in requirements} - {"recapture", "torch"}  # torch comes by the Makefile's word


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_lock_holds_what_its_extras_ask_for(purpose):
    names = {normal(name) for name, _ in locked(purpose)}
    for extra in PURPOSES[purpose]:
        assert asked(extra) - names == set(), f"run `make lock`: {extra}"


def test_the_locks_are_of_the_same_versions():
    assert locked("demo") <= locked("dev")
    assert locked("runtime") <= locked("dev")


def test_what_runs_carries_no_tools_of_tests_or_docs():
    tools = (asked("dev") | asked("docs")) - asked("evaluate")
    for purpose in ("demo", "runtime"):
        assert {normal(name) for name, _ in locked(purpose)} & tools == set()
    assert not {"ray", "fastapi", "deepspeed"} & {normal(name) for name, _ in locked("demo")}


def test_the_dockerfile_and_the_makefile_install_the_same_torch():
    (of_make,) = re.findall(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (of_image,) = re.findall(r"^ARG TORCH=(\S+)$", (ROOT / "cluster/deploy/Dockerfile").read_text(), re.MULTILINE)
    assert of_make == of_image
