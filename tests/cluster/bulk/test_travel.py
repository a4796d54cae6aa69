"""A local manifest travels with the files that it names beside itself, or is refused before anything is sent."""

import csv
import json

import pytest

from recapture.cluster.bulk.travel import pack
from recapture.cluster.jobs import RayJobs
from recapture.engine.errors import InputError


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "shoot"
    (folder / "clips").mkdir(parents=True)
    (folder / "clips" / "a.mp4").write_bytes(b"a" * 100)
    (folder / "clips" / "b.mp4").write_bytes(b"b" * 100)
    (folder / "cameras").mkdir()
    (folder / "cameras" / "arc.json").write_text("{}")
    return folder


def rows_of(home, *rows: dict[str, object]):
    path = home / "rows.jsonl"
    path.write_text("".join(json.dumps({"clip_id": "c", "camera": "arc(5deg)", **row}) + "\n" for row in rows))
    return path


def test_clips_and_cameras_beside_the_manifest_come_along(home, tmp_path):
    manifest = rows_of(
        home,
        {"input_uri": "clips/a.mp4"},
        {"input_uri": "clips/a.mp4", "camera": "cameras/arc.json"},
        {"input_uri": "./clips/../clips/b.mp4"},
        {"input_uri": "s3://bucket/c.mp4", "output_uri": "s3://bucket/out"},
        {"input_uri": "/mnt/shared/d.mp4"},
    )
    name, with_files = pack(manifest, tmp_path / "job")
    assert with_files
    sent = {str(path.relative_to(tmp_path / "job")) for path in (tmp_path / "job").rglob("*") if path.is_file()}
    assert sent == {name, "clips/a.mp4", "clips/b.mp4", "cameras/arc.json"}
    assert (tmp_path / "job" / name).read_bytes() == manifest.read_bytes()


def test_a_csv_without_files_of_its_own(home, tmp_path):
    path = home / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("clip_id", "input_uri", "camera"), ("c", "s3://bucket/c.mp4", "pan(3deg)")])
    assert pack(path, tmp_path / "job") == ("manifest.csv", False)


def test_what_cannot_travel_is_refused_by_its_line(home, tmp_path):
    (home.parent / "outside.mp4").write_bytes(b"x")
    (home / "clips" / "link.mp4").symlink_to(home.parent / "outside.mp4")
    manifest = rows_of(
        home,
        {"input_uri": "clips/none.mp4"},
        {"input_uri": "../outside.mp4"},
        {"input_uri": "clips/link.mp4"},
        {"input_uri": "clips/a.mp4", "output_uri": "out/a"},
    )
    with pytest.raises(InputError) as refused:
        pack(manifest, tmp_path / "job")
    for said in (
        "line 1, input_uri: clips/none.mp4 is not a file beside the manifest",
        "line 2, input_uri: ../outside.mp4 is not below the manifest's folder",
        "line 3, input_uri: clips/link.mp4 is not below",
        "line 4, output_uri: out/a would be lost",
    ):
        assert said in str(refused.value)
    assert not (tmp_path / "job").exists()


def test_too_much_is_refused_before_it_is_copied(home, tmp_path):
    with (home / "clips" / "a.mp4").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(InputError, match="1 files that it names beside it have"):
        pack(rows_of(home, {"input_uri": "clips/a.mp4"}), tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_an_output_that_would_be_lost_is_refused(monkeypatch, home):
    monkeypatch.setattr("recapture.cluster.jobs.JobSubmissionClient", lambda *address, **more: None)
    with pytest.raises(InputError, match="out: results would be lost with the job's folder"):
        RayJobs("http://127.0.0.1:1").submit(str(rows_of(home)), [], out="results", wheel=None)
