"""`recapture bench`: the rows, and that rivals are timed in turn."""

import json
import time

import pytest
import torch

from recapture.benchmarks import cluster, latent_mask, masked_loss, timing

from ..cli.test_cli import recapture  # noqa: F401 - the fixture

FIELDS = {
    "op",
    "implementation",
    "device",
    "threads",
    "shape",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "repeats",
    "baseline",
    "speedup",
    "versions",
    "date",
}


def test_rivals_take_turns_and_are_related_to_the_baseline():
    order: list[str] = []

    def rival(name: str, seconds: float):
        def run() -> None:
            order.append(name)
            time.sleep(seconds)

        return run

    rivals = {"slow": rival("slow", 0.02), "fast": rival("fast", 0.002), timing.COPY: rival("copy", 0.001)}
    rows = timing.compare("op", "1x1", rivals, baseline="slow", device="cpu", repeats=5, warmup=1)
    assert order[:3] == ["slow", "fast", "copy"]  # warming up
    rounds = [order[i : i + 3] for i in range(3, len(order), 3)]
    assert len(rounds) == 5
    assert all(set(names) == {"slow", "fast", "copy"} for names in rounds)
    assert {names[0] for names in rounds} == {"slow", "fast", "copy"}
    slow, fast, copy = rows
    assert set(slow) == FIELDS | {"roofline_share"}
    assert slow["speedup"] == 1
    assert fast["speedup"] > 3
    assert fast["p20_ms"] <= fast["p50_ms"] <= fast["p80_ms"]
    assert copy["roofline_share"] == 1
    assert 0 < fast["roofline_share"] < 1
    assert json.loads(json.dumps(rows)) == rows


def test_a_budget_ends_the_rounds():
    rows = timing.compare(
        "op", "", {"a": lambda: time.sleep(0.01)}, baseline="a", device="cpu", repeats=1000, budget_s=0.05
    )
    assert rows[0]["repeats"] < 50


def test_threads_are_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with timing.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("module", [masked_loss, latent_mask])
def test_operations_name_their_rivals(module):
    pytest.importorskip("numba")
    rows = module.rows("cpu", True)
    assert {row["op"] for row in rows} == {module.OP}
    assert {"numba", timing.COPY} < {row["implementation"] for row in rows}
    assert all(row["p50_ms"] > 0 for row in rows)


@pytest.mark.slow
def test_the_tuning_loop_asks_no_encoder(tmp_path):
    bare, ours = cluster._tuning_rows(tmp_path, True)
    assert bare["implementation"] == bare["baseline"]
    assert ours["encoder_calls"] == 0
    assert ours["ratio"] > 0


def test_the_command(recapture, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("recapture.cli.bench.OPERATIONS", ("latent_mask",))
    out = tmp_path / "deep" / "rows.jsonl"
    said = recapture("bench", "kernels", "--quick", "--json", "--out", out)
    assert said.code == 0, said.err
    rows = json.loads(said.out)
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    table = recapture("bench", "kernels", "--quick", "--out", out)
    assert len(out.read_text().splitlines()) == 2 * len(rows)  # appended
    assert "numba" in table.out
    assert "of the copy" in table.out
    recapture("bench", "kernels", "--device", "tpu").refused("--device", "'cpu', 'cuda'")
    if not torch.cuda.is_available():
        recapture("bench", "kernels", "--device", "cuda").refused("set --device to cpu")
    (tmp_path / "file").write_text("")
    assert recapture("bench", "kernels", "--quick", "--out", tmp_path / "file" / "rows").code == 1
