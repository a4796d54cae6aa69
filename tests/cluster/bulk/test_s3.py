"""Bulk on a real S3 server: manifest, clips, stages, bundles and results in buckets."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from recapture.cluster.bulk.driver import Policy
from recapture.cluster.bulk.manifest import COLUMNS, Manifest, ManifestError, read_manifest
from recapture.cluster.bulk.render import RowRenderer
from recapture.cluster.bulk.results import Results
from recapture.cluster.bulk.resume import run_manifest, scan_output
from recapture.cluster.bulk.single_flight import SingleFlightStore
from recapture.engine.store.remote_path import AllowedRoots, join_uri, open_remote_path

from ...s3_server import s3_server
from .rows import HerePool, NoLeases, Sketch, files_below

pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture(scope="module")
def server():
    with s3_server() as options:
        yield options


@pytest.fixture
def uri(server, tmp_path, monkeypatch):
    """URI of a fresh bucket, with what it takes to reach it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = f"s3://{tmp_path.name.replace('_', '-')}?{server}"
    place = open_remote_path(found, param="out")
    place.filesystem.create_dir(place.path)
    return found


class S3Bulk:
    """Clips, manifest and output below one bucket; rows name it without its options."""

    def __init__(self, uri: str, clips: int = 2, paths: int = 2) -> None:
        self.bucket = open_remote_path(uri, param="out")
        self.out = open_remote_path(join_uri(uri, "run"), param="out")
        self.roots = AllowedRoots([uri])
        rows = []
        for number in range(clips):
            (self.bucket / f"in/clip {number}.mp4").write(b"clip" * (number + 1))
            at = f"{self.bucket.uri}/in/clip%20{number}.mp4"
            rows += [
                {"clip_id": str(number), "input_uri": at, "camera": f"truck(0.{path + 1})"} for path in range(paths)
            ]
        sink = pa.BufferOutputStream()
        parquet.write_table(pa.Table.from_pylist(rows, schema=COLUMNS), sink)
        (self.bucket / "manifest.parquet").write(sink.getvalue().to_pybytes())

    def manifest(self) -> Manifest:
        return read_manifest(self.bucket / "manifest.parquet", self.roots, self.out)

    def renderer(self) -> RowRenderer:
        store = SingleFlightStore(self.out / "stages", leases=NoLeases())
        return RowRenderer(Sketch(store), store, self.roots)

    def run(self, **policy):
        self.pool = HerePool(self.renderer)
        return run_manifest(
            self.manifest(),
            self.out,
            Policy(workers=2, shard_rows=3, beat_s=0.2, **policy),
            lambda driver: self.pool,
            pipeline=Sketch.pipeline,
            stages=self.out / "stages",
        )


def test_a_run_whose_every_byte_is_in_a_bucket(uri):
    bulk = S3Bulk(uri)
    progress = bulk.run()
    assert progress.rows == {"completed": 4}
    assert progress.stages_reused == {"shared": 2}
    rows = Results(bulk.out).table(scan_output(bulk.out)).to_pylist()
    assert sorted(row["row_id"] for row in rows) == sorted(bulk.manifest().row_ids)
    for row in rows:
        bundle = bulk.roots.find(row["output_uri"], param="output_uri")
        assert row["output_uri"].startswith(f"{bulk.bucket.uri}/run/clips/")
        assert "?" not in row["output_uri"]
        assert json.loads((bundle / "result.json").read())["sha256"] == row["sha256"]
    files = files_below(bulk.out)
    assert {name.split("/")[0] for name in files} == {"clips", "owner.json", "progress.json", "results", "run.json"}
    assert bulk.run().rows == {"completed": 4}
    assert bulk.pool.rendered == []


def test_every_stage_stays_when_all_are_kept(uri):
    bulk = S3Bulk(uri, clips=1)
    bulk.run(evict_stages=False)
    stages = {name for name in files_below(bulk.out / "stages") if name.endswith("manifest.json")}
    assert len(stages) == 3  # the shared one, and one a path


def test_a_lost_bundle_mark_and_a_lost_shard_are_made_again(uri):
    bulk = S3Bulk(uri)
    bulk.run()
    before = sorted(
        (row["row_id"], row["sha256"]) for row in Results(bulk.out).table(scan_output(bulk.out)).to_pylist()
    )
    for name in (bulk.out / "results").sizes():
        (bulk.out / "results" / name).delete()
    first = bulk.roots.find(bulk.manifest().row(0).output_uri, param="output_uri")
    (first / "result.json").delete()
    assert bulk.run().rows == {"completed": 4}
    after = sorted((row["row_id"], row["sha256"]) for row in Results(bulk.out).table(scan_output(bulk.out)).to_pylist())
    assert after == before


def test_another_bucket_is_out_of_reach(uri, server):
    other = open_remote_path(f"s3://another-bucket?{server}", param="out")
    other.filesystem.create_dir(other.path)
    (other / "clip.mp4").write(b"clip")
    bulk = S3Bulk(uri, clips=1, paths=1)
    (bulk.bucket / "bad.csv").write(b"clip_id,input_uri,camera\na,s3://another-bucket/clip.mp4,static\n")
    with pytest.raises(ManifestError, match=r"line 2, input_uri: s3:.*is below no allowed root"):
        read_manifest(bulk.bucket / "bad.csv", bulk.roots, bulk.out)
