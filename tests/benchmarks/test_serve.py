"""`recapture bench serve`: that each part measures, by the service's own processes."""

import json

import pytest

from recapture.benchmarks import serve

from ..cli.test_cli import recapture  # noqa: F401 - the fixture

pytestmark = [pytest.mark.slow]


def test_the_queue_is_measured_and_its_refusals_counted(recapture, tmp_path):  # noqa: F811
    rows = tmp_path / "rows.jsonl"
    said = recapture("bench", "serve", "--part", "queue", "--jobs", 20, "--out", rows)
    assert said.code == 0, said.err
    row = json.loads(rows.read_text())
    assert (row["op"], row["jobs"]) == ("serve_queue", 20)
    assert sum(row["refused"].values()) == 41  # ten too many of each tenant, and one who came late
    assert 0 < row["poll_p50_ms"] <= row["poll_p99_ms"]
    recapture("bench", "serve", "--part", "nothing").refused("queue", "preview")


def test_previews_and_memory_are_measured():
    (row,) = serve.warm_previews(frames=4, count=3)
    assert (row["width"], row["height"], row["pictures"]) == (384, 256, 4)
    assert row["warm_p50_ms"] < 1000 * row["first_s"]
    rows = serve.memory_of_renders(2)
    assert [row["process"] for row in rows] == ["ingress", "renderer"]
    assert rows[0]["peak_bytes"] < rows[1]["peak_bytes"]  # the ingress loads no network


def test_resampling_is_measured():
    (row,) = serve.resamples(frames=8, count=1)
    assert row["times_faster"] > 1
