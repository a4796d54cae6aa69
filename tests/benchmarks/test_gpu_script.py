"""The script for a quarter of an hour on a graphics card, rehearsed at small size on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "quarter_hour.sh"


@pytest.mark.slow
@pytest.mark.ci
def test_every_part_finishes_and_leaves_rows(tmp_path):
    done = subprocess.run(
        [str(SCRIPT), "--rehearse", str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    policies = [f"tuning, {how}" for how in ("full", "stock", "balanced", "none")]
    assert [row["implementation"] for row in rows] == [*policies, "sampling with guidance"]
    assert all(row["seconds"] > 0 and row["planned_gib"] > 0 for row in rows)
