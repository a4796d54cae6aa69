"""What bulk runs cost: the formula, the rows that are committed, and that they can be measured again."""

import json
from pathlib import Path

import pytest
from pyarrow import fs

from recapture.benchmarks.scale import Costs, Losses, Storage, last, main, makespan_s, scale, storage_of
from recapture.benchmarks.storage import Counting

ROWS = Path(__file__).parents[2] / "benchmarks" / "results" / "bulk.jsonl"
COSTS = Costs(start_s=10.0, warm_s=5.0, first_s=100.0, further_s=40.0)
STORAGE = Storage(puts=(60, 40), gets=(80, 50), stage_bytes=(4e8, 2e8), output_bytes=5e6)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()]


def test_a_run_takes_its_start_and_the_largest_share_of_clips():
    assert makespan_s(clips=4, paths=1, workers=2, costs=COSTS) == 15 + 200
    assert makespan_s(clips=5, paths=1, workers=2, costs=COSTS) == 15 + 300
    assert makespan_s(clips=2, paths=3, workers=2, costs=COSTS) == 15 + 180


def test_lost_workers_cost_half_a_row_and_a_new_start():
    losses = Losses(lost_per_hour=36.0)  # one in a hundred seconds
    assert makespan_s(clips=1, paths=1, workers=1, costs=COSTS, losses=losses) == pytest.approx(15 + 100 * (1 + 0.65))


def test_numbers_of_a_run():
    run = scale(clips=100, paths=2, workers=10, costs=COSTS, storage=STORAGE, losses=Losses(failed_share=0.1))
    seconds = 15 + 10 * 140
    assert run.hours == pytest.approx(seconds / 3600)
    assert run.gpu_hours == pytest.approx(10 * seconds / 3600)
    assert (run.puts, run.gets) == (100 * 100, 100 * 130)
    assert run.rows_per_s == pytest.approx(200 / seconds)
    assert run.written_bytes_per_s == pytest.approx(100 * (6e8 + 1e7) / seconds)
    assert run.kept_bytes == pytest.approx(180 * 5e6)


def test_the_newest_row_counts():
    rows = [{"op": "a", "n": 1}, {"op": "a", "n": 2}, {"op": "b"}]
    assert last(rows, op="a")["n"] == 2
    with pytest.raises(LookupError, match="recapture bench bulk"):
        last(rows, op="c")


def test_committed_rows_meet_the_targets(rows):
    driver = last(rows, op="bulk_driver")
    assert driver["rows"] >= 100_000
    assert driver["rows_per_s"] >= 200
    assert driver["driver_peak_bytes"] <= 1 << 30
    assert driver["resume_scan_s"] <= 60
    for workers in (1, 2):
        real = last(rows, op="bulk_real", workers=workers)
        assert 0.85 <= real["predicted_over_measured"] <= 1.15
        assert real["model_loads"] == workers


def test_the_tables_can_be_made(rows, capsys):
    main(ROWS)
    printed = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in printed.splitlines()[2:5]] == ["8", "64", "1024"]
    assert storage_of(rows).puts[0] > storage_of(rows).puts[1]


def test_requests_are_counted(tmp_path):
    counting = Counting(fs.LocalFileSystem())
    store = fs.PyFileSystem(counting)
    with store.open_output_stream(f"{tmp_path}/a") as out:
        out.write(b"abc")
    with store.open_input_stream(f"{tmp_path}/a") as stream:
        assert stream.read() == b"abc"
    store.get_file_info([f"{tmp_path}/a", f"{tmp_path}/b"])
    store.get_file_info(fs.FileSelector(str(tmp_path)))
    store.delete_file(f"{tmp_path}/a")
    assert counting.requests == {"put": 1, "get": 1, "head": 2, "list": 1, "delete": 1}
    assert counting.bytes["read"] == 3


@pytest.mark.slow
def test_the_driver_is_measured():
    from recapture.benchmarks.bulk import rows_without_work

    (row,) = rows_without_work(60, workers=1)
    assert (row["op"], row["rows"], row["shards"]) == ("bulk_driver", 60, 1)
    assert json.loads(json.dumps(row)) == row
