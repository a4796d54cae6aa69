"""The parsers of cameras and manifests under mutated files: `tests/fuzz`, a few thousand of each kind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris")
CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("target", sorted(folder.name for folder in CORPUS.iterdir()))
def test_mutated_files_are_read_or_refused(target: str, tmp_path: Path) -> None:
    # A child's peak memory begins as its parent's: libFuzzer would take that for its own.
    command = [sys.executable, "-m", "tests.fuzz", target]
    options = [
        "-runs=3000",
        "-seed=1",
        "-max_len=6000",
        "-verbosity=0",
        "-rss_limit_mb=0",
        f"-artifact_prefix={tmp_path}/",
    ]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=CORPUS.parents[2],
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-1000:]} {done.stderr[-3000:]}"
