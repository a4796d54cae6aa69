"""Bulk without Ray: manifests and their refusals, results as rows, resuming, budgets, what is kept."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import parquet

from recapture.cluster.bulk.driver import Policy
from recapture.cluster.bulk.engine_row_renderer import RowDefaults, config_of, pipeline_of
from recapture.cluster.bulk.manifest import COLUMNS, ManifestError, read_manifest, row_id
from recapture.cluster.bulk.ownership import Ownership
from recapture.cluster.bulk.render import BrokenDevice
from recapture.cluster.bulk.results import SCHEMA, Results, Scan
from recapture.cluster.bulk.resume import Resume, UpgradeError, scan_output
from recapture.engine.errors import Cancelled, InputError, OutputError
from recapture.engine.pipeline import Recapture
from recapture.engine.store import Store
from recapture.engine.store.references import References
from recapture.engine.store.remote_path import AllowedRoots, open_remote_path

from ...cli.test_cli import recapture  # noqa: F401 - the fixture
from ...engine.test_pipeline import write_clip
from .rows import Bulk, HerePool, files_below, make_bulk


def read(folder: Path, name: str, text: str | bytes, **more: int):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    roots = AllowedRoots([str(folder)])
    return read_manifest(
        open_remote_path(str(folder / name), param="manifest"),
        roots,
        open_remote_path(str(folder / "out"), param="out"),
        **more,
    )


def refused(folder: Path, name: str, text: str | bytes) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read(folder, name, text)
    return [str(problem) for problem in caught.value.problems]


# Manifests


def test_the_schema_is_this():
    assert COLUMNS.names == [
        "clip_id",
        "input_uri",
        "start_s",
        "end_s",
        "camera",
        "output_uri",
        "seed",
        "options",
        "priority",
    ]
    assert [str(field.type) for field in COLUMNS] == [
        "string",
        "string",
        "double",
        "double",
        "string",
        "string",
        "int64",
        "string",
        "int32",
    ]
    assert COLUMNS.metadata[b"recapture.version"] == b"1"
    assert SCHEMA.names[:12] == [
        "row_id",
        "clip_id",
        "input_uri",
        "camera",
        "seed",
        "output_uri",
        "status",
        "error_code",
        "error_message",
        "attempts",
        "gpu_seconds",
        "sha256",
    ]


def test_one_manifest_in_three_formats(tmp_path):
    csv = (
        "clip_id,input_uri,camera,seed,options,start_s\n"
        'a,x.mp4,arc(5deg),7,"{""tune"": {""rank"": 4}}",0.5\n'
        "b,x.mp4,truck(0.1),,,\n"
    )
    jsonl = (
        '{"clip_id": "a", "input_uri": "x.mp4", "camera": "arc(5deg)", "seed": 7, '
        '"options": {"tune": {"rank": 4}}, "start_s": 0.5}\n'
        '\n{"clip_id": "b", "input_uri": "x.mp4", "camera": "truck(0.1)"}\n'
    )
    by_csv, by_jsonl = read(tmp_path, "m.csv", csv), read(tmp_path, "m.jsonl", jsonl)
    parquet.write_table(by_csv.table, tmp_path / "m.parquet")
    by_parquet = read(tmp_path, "m.parquet", (tmp_path / "m.parquet").read_bytes())
    assert by_csv.table.equals(by_jsonl.table)
    assert by_csv.digest == by_jsonl.digest
    assert by_csv.table.equals(by_parquet.table)
    first = by_csv.row(0)
    assert (first.seed, first.options, first.start_s, first.priority) == (7, '{"tune":{"rank":4}}', 0.5, 0)
    assert first.input_uri == str(tmp_path / "x.mp4")
    assert first.output_uri == str(tmp_path / "out" / "clips" / first.row_id)


def test_a_rows_name_is_what_it_asks_for():
    row = {"clip_id": "a", "input_uri": "/x", "camera": "arc(5deg)", "seed": 0, "priority": 0}
    assert row_id(row) == row_id({**dict(reversed(row.items())), "priority": 9})
    assert len({row_id(row), row_id({**row, "seed": 1}), row_id({**row, "camera": "arc(6deg)"})}) == 3


def test_every_bad_row_is_named_with_line_and_column(tmp_path):
    csv = (
        "clip_id,input_uri,camera,seed,end_s,start_s,options,priority\n"
        "a,x.mp4,arc(5deg),one,,,,\n"
        '"b\nb",x.mp4,swirl(5deg),,,,,\n'
        ",x.mp4,arc(5deg),-1,,nan,,\n"
        'c,../x.mp4,arc(5deg),,1,2,"{""tune"": {""rank"": 0}}",1.5\n'
        "d,x.mp4,arc(5deg),,1,2,,\n"
        'e,s3://other/x.mp4,arc(5deg),,,,"{""tone"": {}}",\n'
    )
    problems = refused(tmp_path, "m.csv", csv)
    assert [problem.split(":")[0] for problem in problems] == [
        "line 2, seed",
        "line 4, clip_id",
        "line 4, camera",
        "line 5, clip_id",
        "line 5, start_s",
        "line 5, seed",
        "line 6, input_uri",
        "line 6, options",
        "line 6, priority",
        "line 7, end_s",
        "line 8, input_uri",
        "line 8, options",
    ]
    assert "below no allowed root" in problems[6]
    assert "--rank" in problems[7] or "1 to 256" in problems[7]
    assert "dolly_zoom" in problems[2]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.csv", "clip_id,input_uri,camera\na,x.mp4\n", "line 2, row: it has not 3 fields"),
        ("m.csv", "clip_id,input_uri,camera,color\na,x.mp4,static,red\n", "line 2, color: unknown column"),
        ("m.csv", "clip_id,camera\na,static\n", "line 2, input_uri: it is missing"),
        ("m.jsonl", '{"clip_id": "a"\n', "line 1, row: it is not a JSON object"),
        ("m.jsonl", "[1]\n", "line 1, row: it is not a JSON object"),
        ("m.jsonl", '{"clip_id": 5, "input_uri": "x", "camera": "static"}\n', "line 1, clip_id: 5 is not text"),
        (
            "m.csv",
            "clip_id,input_uri,camera\na,x.mp4,static\na,x.mp4,static\n",
            "line 3, output_uri: line 2 writes to the same place",
        ),
        (
            "m.jsonl",
            '{"clip_id": "a", "input_uri": "x.mp4", "camera": "static", "options": {"anchor": '
            '{"route": "multiview", "multiview": "os:system", "allow_noncommercial": true}}}\n',
            "line 1, options: a row may name the embedded multiview model",
        ),
        (
            "m.jsonl",
            '{"clip_id": "a", "input_uri": "x.mp4", "camera": "static", "options": {"depth": {"model": "/srv/other"}}}\n',
            "line 1, options: a row may name the embedded depth model or a hub repository",
        ),
        ("m.csv", f"clip_id,input_uri,camera\n{'a' * 300},x,static\n", "line 2, clip_id: it has 300 characters"),
    ],
)
def test_malformed_rows(tmp_path, name, text, said):
    assert refused(tmp_path, name, text)[0].startswith(said)


def test_a_parquet_row_is_named_by_number_and_another_version_is_refused(tmp_path):
    table = pa.table({"clip_id": ["a", "b"], "input_uri": ["x", "x"], "camera": ["static", "swirl()"]})
    parquet.write_table(table, tmp_path / "m.parquet")
    assert refused(tmp_path, "m.parquet", (tmp_path / "m.parquet").read_bytes())[0].startswith("row 2, camera: ")
    later = COLUMNS.with_metadata({**COLUMNS.metadata, b"recapture.version": b"2"})
    parquet.write_table(later.empty_table(), tmp_path / "m.parquet")
    with pytest.raises(InputError, match="version 2; this release reads version 1"):
        read(tmp_path, "m.parquet", (tmp_path / "m.parquet").read_bytes())


@pytest.mark.parametrize("text", [b"clip_id,input_uri,camera\n\xff\xfe,x,static\n", b"", b"clip_id,input_uri,camera\n"])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    with pytest.raises(InputError):
        read(tmp_path, "m.csv", text)


def test_a_million_bad_rows_are_counted_not_printed(tmp_path):
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, "m.csv", "clip_id,input_uri,camera\n" + "a,x,swirl()\n" * 50)
    assert str(caught.value).endswith("and 30 more")
    assert len(caught.value.problems) == 50


# Roots


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "../secret",
        "clips/../../secret",
        "file:///etc/passwd",
        "s3://bucket-2/x",
        "s3://bucket/inner/../../x",
        "s3://bucket/%2e%2e/x",
        "s3://key:secret@bucket/x",
        "s3://bucket/x?endpoint_override=evil",
        "http://bucket/x",
        "s3://bucket:9000/x",
        "s3://bucketeer/x",
        "gs://bucket/x",
        "s3://bucket//x",
        "s3://bucket/a\nb",
        "link/x",
    ],
)
def test_nothing_outside_the_roots_is_found(tmp_path, uri):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("/etc")
    bucket = open_remote_path("s3://bucket?region=eu-north-1", param="allow_root")
    roots = AllowedRoots.of([open_remote_path(str(tmp_path / "in"), param="allow_root"), bucket])
    with pytest.raises(InputError):
        roots.find(uri, param="input_uri", base=str(tmp_path / "in"))
    assert roots.find("s3://bucket/a%20b/x.mp4", param="input_uri").path == "bucket/a b/x.mp4"
    assert roots.find("a/x.mp4", param="input_uri", base=str(tmp_path / "in")).path == str(tmp_path / "in/a/x.mp4")


def test_what_cannot_be_read_is_refused_by_the_name_that_it_was_given(tmp_path):
    (tmp_path / "long").write_bytes(b"12345")
    for name, code, said in (
        ("none", "input_missing", "does not exist"),
        ("long/x", "input_unreadable", "cannot be read: Not a directory"),
        ("long", "invalid_input", "more than 4 bytes"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            open_remote_path(str(tmp_path / name), param="").download(tmp_path / "copy", 4, param="camera")
        assert (caught.value.code, caught.value.param) == (code, "camera")


def test_credentials_of_a_root_stay_out_of_messages():
    root = open_remote_path("s3://key:secret@bucket?region=eu-north-1", param="allow_root")
    with pytest.raises(InputError) as caught:
        AllowedRoots.of([root]).find("s3://other/x", param="input_uri")
    assert "secret" not in str(caught.value)


# Runs


def test_every_row_has_its_result_errors_too(tmp_path):
    bulk = make_bulk(tmp_path, broken=(1,))
    progress = bulk.run()
    assert progress.exit_code == 3
    assert progress.rows == {"completed": 4, "failed": 2}
    rows = bulk.results()
    assert [row["status"] for row in rows] == ["completed", "completed", "failed", "failed", "completed", "completed"]
    assert {row["error_code"] for row in rows if row["status"] == "failed"} == {"invalid_video"}
    assert all(row["attempts"] == 1 and row["gpu_seconds"] >= 0 for row in rows)
    assert len({row["row_id"] for row in rows}) == 6
    assert progress.stages_reused == {"shared": 2}  # the second path of each good clip
    state = json.loads((tmp_path / "out" / "progress.json").read_text())
    assert (state["state"], state["rows"]) == ("finished", {"completed": 4, "failed": 2})
    files = files_below(bulk.out)
    assert {name.rpartition("/")[2] for name in files if name.startswith("clips/")} == {"video.mp4", "result.json"}
    assert sum(name.startswith("results/") for name in files) == 2


def test_a_second_run_does_nothing_and_new_rows_only(tmp_path):
    bulk = make_bulk(tmp_path)
    bulk.run()
    before = bulk.results()
    assert bulk.run().exit_code == 0
    assert bulk.pool.rendered == []
    bulk.rows.append({**bulk.rows[0], "seed": 5})
    bulk.rows.reverse()
    assert bulk.run().rows == {"completed": 7}
    assert len(bulk.pool.rendered) == 1
    after = bulk.results()
    assert [row for row in after if row["seed"] != 5] == before


def test_ctrl_c_writes_down_what_is_finished(tmp_path):
    bulk = make_bulk(tmp_path)
    count = 0

    def stop(outcome, attempts):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(Cancelled) as caught:
        bulk.run(on_outcome=stop)
    assert caught.value.exit_code == 130
    assert len(bulk.results()) == 4
    assert bulk.run().rows == {"completed": 6}
    assert len(bulk.pool.rendered) == 2


def test_rows_that_were_filmed_but_not_written_down_are_not_filmed_again(tmp_path):
    bulk = make_bulk(tmp_path)

    def die(outcome, attempts):
        raise SystemError("as if killed")

    pool = HerePool(bulk.renderer)
    pool_end = pool.close
    pool.close = lambda: (_ for _ in ()).throw(SystemError("killed"))  # nothing is written down after this
    with pytest.raises(SystemError):
        bulk.run(pool, on_outcome=die)
    pool_end()
    results = tmp_path / "out" / "results"
    for shard in results.glob("*"):
        shard.unlink()  # as if the kill had come before the shard
    made: list[str] = []
    bulk.run(HerePool(lambda: counting(bulk, made)), resume=Resume(takeover=True))
    assert len(made) == 5
    assert bulk.results()[0]["sha256"] is not None


def counting(bulk: Bulk, made: list[str]):
    renderer = bulk.renderer()
    row_engine = renderer._row_engine

    class Counting:
        pipeline, loads = row_engine.pipeline, row_engine.loads

        def __call__(self, row, *rest):
            made.append(row.row_id)
            return row_engine(row, *rest)

    renderer._row_engine = Counting()
    return renderer


def test_lost_workers_cost_attempts_and_then_the_row(tmp_path):
    bulk = make_bulk(tmp_path, clips=1, paths=1)
    pool = HerePool(bulk.renderer)
    pool.kill_next = 2
    assert bulk.run(pool).rows == {"completed": 1}
    assert bulk.results()[0]["attempts"] == 3
    (tmp_path / "b").mkdir()
    other = make_bulk(tmp_path / "b", clips=1, paths=1)
    pool = HerePool(other.renderer)
    pool.kill_next = 3
    assert other.run(pool).exit_code == 3
    (row,) = other.results()
    assert (row["status"], row["error_code"], row["attempts"]) == ("failed", "worker_lost", 3)


def test_failed_rows_are_done_again_when_asked(tmp_path):
    bulk = make_bulk(tmp_path, broken=(1,))
    bulk.run()
    assert bulk.run().exit_code == 3
    assert bulk.pool.rendered == []
    (tmp_path / "clip-1.mp4").write_bytes(b"mended")
    assert bulk.run(resume=Resume(retry_failed=True)).exit_code == 0
    assert len(bulk.pool.rendered) == 2
    rows = bulk.results()
    assert [row["status"] for row in rows] == ["completed"] * 6
    assert len({row["row_id"] for row in rows}) == 6


def test_another_pipeline_is_refused_with_the_rows_that_it_would_redo(tmp_path):
    bulk = make_bulk(tmp_path, broken=(2,))
    bulk.run()

    def renderer():
        made = bulk.renderer()
        made.pipeline = "sketch-2"
        return made

    with pytest.raises(UpgradeError, match="4 finished rows would be done again") as caught:
        bulk.run(HerePool(renderer), pipeline="sketch-2")
    assert "clip-0, clip-1" in str(caught.value)
    assert len(caught.value.rows) == 4
    assert bulk.run(HerePool(renderer), pipeline="sketch-2", resume=Resume(upgrade=True)).rows == {
        "completed": 4,
        "failed": 2,
    }
    assert {row["pipeline"] for row in bulk.results()} == {"sketch-2"}


def test_a_worker_of_another_version_ends_the_run(tmp_path):
    bulk = make_bulk(tmp_path)
    with pytest.raises(Exception, match="another version"):
        bulk.run(pipeline="sketch-2")


def test_the_budget_stops_admission_and_more_budget_goes_on(tmp_path):
    bulk = make_bulk(tmp_path, clips=2, paths=3)
    progress = bulk.run(policy=Policy(workers=1, max_gpu_hours=0.0))
    assert progress.exit_code == 3
    assert progress.rows == {"not_admitted": 6}
    assert {row["error_code"] for row in bulk.results()} == {"budget"}
    assert bulk.run(policy=Policy(workers=1, max_gpu_hours=10.0)).rows == {"completed": 6}
    assert {row["status"] for row in bulk.results()} == {"completed"}


def test_stages_are_given_back_or_kept(tmp_path):
    for name, evict_stages in (("back", True), ("kept", False)):
        (tmp_path / name).mkdir()
        bulk = make_bulk(tmp_path / name)
        progress = bulk.run(policy=Policy(workers=2, evict_stages=evict_stages))
        left = {path for path in files_below(bulk.out / "stages") if path.startswith(("shared/", "path/"))}
        assert bool(left) != evict_stages
        assert progress.stage_bytes > 0
        assert not any(path.startswith((".runs/", ".live/", ".scratch/")) for path in files_below(bulk.out / "stages"))


def test_shards_that_broke_off_or_came_late_do_not_count(tmp_path):
    bulk = make_bulk(tmp_path)
    bulk.run()
    results, folder = Results(bulk.out), tmp_path / "out" / "results"
    good, before = sorted(folder.glob("*.parquet")), bulk.essence()
    owner = Ownership.claim(bulk.out, results.last_numbers, takeover=True).owner
    assert owner.sealed == {1: len(good)}
    late = folder / "part-000001-000099.parquet"  # the first driver did not notice yet that it was taken over
    late.write_bytes(good[0].read_bytes())
    broken = folder / "part-000002-000001.parquet"
    broken.write_bytes(good[0].read_bytes()[:-40])
    scan = results.scan(owner.sealed, owner.fence)
    assert sorted(scan.stray) == [late.name, broken.name]
    assert (len(scan.status), results.table(scan).num_rows) == (6, 6)
    good[0].unlink()
    assert bulk.run(resume=Resume(takeover=True)).exit_code == 0
    assert bulk.essence() == before
    assert not late.exists()


def test_a_rewritten_shard_and_its_forerunner_count_once(tmp_path):
    bulk = make_bulk(tmp_path, broken=(0,))
    bulk.run(policy=Policy(workers=1, shard_rows=100))
    folder = tmp_path / "out" / "results"
    (shard,) = folder.glob("*.parquet")
    forerunner = shard.read_bytes()
    results = Results(bulk.out)
    scan = results.scan({}, 1)
    results.drop(scan, 1, 2, lambda table: pc.equal(table["status"], "failed"))
    shard.write_bytes(forerunner)  # as if killed before it was deleted
    again = results.scan({}, 1)
    assert again.stray == [shard.name]
    assert set(again.status.values()) == {"completed"}
    results.tidy(again)
    assert [path.name for path in folder.glob("*")] == again.shards


def test_a_broken_device_costs_its_worker_and_the_row_goes_on(tmp_path):
    bulk = make_bulk(tmp_path, clips=1, paths=1)
    broken: list[bool] = []

    def renderer():
        made = bulk.renderer()
        row_engine = made._row_engine

        class BreaksOnce:
            pipeline, loads = row_engine.pipeline, row_engine.loads

            def __call__(self, *row):
                if not broken:
                    broken.append(True)
                    raise BrokenDevice("CUDA error: an illegal memory access was encountered")
                return row_engine(*row)

        made._row_engine = BreaksOnce()
        return made

    pool = HerePool(renderer)
    started = []
    start = pool.start
    pool.start = lambda worker: (started.append(worker), start(worker))
    assert bulk.run(pool, policy=Policy(workers=1)).rows == {"completed": 1}
    assert started == ["worker-1", "worker-2"]
    assert bulk.results()[0]["attempts"] == 2


def test_gc_spares_what_a_run_elsewhere_needs(tmp_path, recapture):  # noqa: F811
    store = Store(tmp_path / "stages")
    with store.begin("depth", "ab" * 32) as writer:
        writer.json("summary", {})
        writer.publish()
    store.close()
    claim = References(open_remote_path(str(tmp_path / "stages"), param="store"), "elsewhere")
    claim.renew(["ab" * 32])
    words = ["store", "gc", "--max-gb", 0, "--store", tmp_path / "stages", "--json"]
    assert json.loads(recapture(*words).out)["removed"] == []
    claim.drop()
    assert json.loads(recapture(*words).out)["removed"] == ["ab" * 32]


def test_the_part_of_a_clip_is_frames(tmp_path, small_svd):
    clip = write_clip(tmp_path / "walk.mp4")  # 6 frames at 12 a second
    engine = Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path / "store")
    (tmp_path / "m.csv").write_text(
        "clip_id,input_uri,camera,start_s,end_s,seed,options\n"
        'a,walk.mp4,static,0.1,0.4,3,"{""sample"": {""guidance"": [1.0, 2.0]}}"\n'
        "a,walk.mp4,static,,,,\n"
    )
    manifest = read(tmp_path, "m.csv", (tmp_path / "m.csv").read_text())
    part = config_of(engine, manifest.row(0), clip, RowDefaults(options={"tune.warm_start": True}))
    assert (part.decode.first_frame, part.decode.max_frames, part.seed) == (1, 4, 3)
    assert part.sample.guidance == (1.0, 2.0)
    assert part.tune.warm_start
    whole = config_of(engine, manifest.row(1), clip, RowDefaults())
    assert (whole.decode.first_frame, whole.decode.max_frames) == (0, None)


def test_a_row_says_options_by_section_or_by_name_over_the_runs(tmp_path, small_svd):
    rows = [
        {"quality": "draft", "memory": 12, "guidance": 2.0, "fov_deg": 50, "dtype": "bf16", "tune": {"rank": 4}},
        {"rank": 2},
    ]
    lines = [json.dumps({"clip_id": "a", "input_uri": "a.mp4", "camera": "static", "options": row}) for row in rows]
    manifest = read(tmp_path, "m.jsonl", "\n".join(lines), seed=5)
    engine = Recapture.from_pretrained(small_svd, device="cpu", store=tmp_path / "store")
    defaults = RowDefaults(quality="paper", options={"tune.rank": 8, "memory": 20, "attention": "sdpa"})
    first, second = (config_of(engine, manifest.row(index), tmp_path, defaults) for index in (0, 1))
    assert (first.tune.temporal_steps, first.memory, first.dtype, first.tune.rank) == (0, 12, "bf16", 4)
    assert (first.sample.guidance, first.depth.fov_deg) == ((1.0, 2.0), 50)
    assert (second.tune.schedule, second.memory, second.tune.rank, second.seed) == ("joint", 20, 2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "svd"}, "a row's options cannot name its model"),
        ({"seed": 1}, "a row's options cannot name its seed"),
        ({"ranks": 8}, "unknown option ranks"),
        ({"quality": "best"}, "'best' is not one of draft, standard, paper"),
        ({"quality": ["draft"]}, "is not one of draft, standard, paper"),
        ({"memory": "lots"}, "'lots' is not auto or a number"),
        ([1], "it is no object"),
    ],
)
def test_wrong_options_of_a_row_are_refused(tmp_path, options, message):
    row = {"clip_id": "a", "input_uri": "a.mp4", "camera": "static", "options": json.dumps(options)}
    with pytest.raises(ManifestError, match=re.escape(message)):
        read(tmp_path, "m.jsonl", json.dumps(row))


def test_what_changes_no_pixel_is_not_in_a_pipelines_digest(small_svd):
    usual = pipeline_of(str(small_svd), RowDefaults())
    for options in ({"memory": 12}, {"offload": True}, {"tune.checkpointing": "full"}):
        assert pipeline_of(str(small_svd), RowDefaults(options=options)) == usual
    assert pipeline_of(str(small_svd), RowDefaults(options={"tune.rank": 4})) != usual
    assert pipeline_of(str(small_svd), RowDefaults(quality="draft")) != usual


def test_an_empty_output_has_an_empty_table(tmp_path):
    results = Results(open_remote_path(str(tmp_path), param="out"))
    assert results.table(Scan()).schema.names == SCHEMA.names
    assert results.last_numbers() == {}


def test_an_output_that_cannot_be_written_is_an_error_of_the_run(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises((OutputError, OSError)):
        make_bulk(tmp_path).run()


def test_place_writes_whole(tmp_path):
    place = open_remote_path(str(tmp_path / "deep" / "file"), param="out")
    place.write(b"one")
    place.write(b"two")
    assert place.read() == b"two"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def test_usage_is_refused_before_anything_starts(recapture, tmp_path):  # noqa: F811
    (tmp_path / "m.csv").write_text("clip_id,input_uri,camera\na,x.mp4,swirl(1)\n")
    recapture("bulk", tmp_path / "m.csv", "--out", tmp_path / "out").refused("line 2, camera", "swirl")
    recapture("bulk", tmp_path / "no.csv", "--out", tmp_path / "out").refused("does not exist")
    (tmp_path / "m.csv").write_text("clip_id,input_uri,camera\na,x.mp4,static\n")
    words = ["bulk", tmp_path / "m.csv", "--out", tmp_path / "out"]
    recapture(*words, "--keep", "some").refused("--keep", "'results', 'adapters', 'all'")
    recapture(*words, "--concurrency", 0).refused("--concurrency")
    recapture(*words, "--cluster", "127.0.0.1").refused("--cluster")
    recapture(*words, "--model", tmp_path).refused("--model")
    recapture(*words, "--allow-root", tmp_path / "other").refused("line 2, input_uri", "no allowed root")
    assert not (tmp_path / "out").exists()


def test_results_of_the_version_before_are_read(tmp_path):
    bulk = make_bulk(tmp_path, clips=1, paths=2)
    bulk.run()
    results, scan = Results(bulk.out), scan_output(bulk.out)
    (name,) = scan.shards
    path = tmp_path / "out" / "results" / name
    table = parquet.read_table(path)
    old = table.set_column(table.schema.get_field_index("status"), "status", pa.array(["ok"] * table.num_rows))
    parquet.write_table(old.replace_schema_metadata(table.schema.metadata), path)
    assert set(scan_output(bulk.out).status.values()) == {"completed"}
    assert results.table(scan)["status"].to_pylist() == ["completed"] * 2
    assert bulk.run().rows == {"completed": 2}
