"""Clips by URI: below the folders that the operator lets a tenant name, and nowhere else."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recapture.client import RenderFailed
from recapture.client.errors import InvalidRequest
from recapture.client.schema import UploadCreate
from recapture.engine.errors import InputError
from recapture.serve.database import ensure_tenant
from recapture.serve.settings import Settings
from recapture.serve.uploads.clip_sources import InputRefused, InputRoots
from recapture.serve.uploads.uploads import Uploads

from ..engine.test_pipeline import write_clip
from .service import QUICK, Server, worker_thread


def test_only_what_lies_below_a_root_of_the_tenant_may_be_named(tmp_path):
    footage, secret = tmp_path / "footage", tmp_path / "secret"
    for folder in (footage, secret):
        folder.mkdir()
        (folder / "a.mp4").touch()
    (footage / "link.mp4").symlink_to(secret / "a.mp4")
    (footage / "inside.mp4").symlink_to(footage / "a.mp4")
    roots = InputRoots({"studio": [str(footage), "s3://bucket/clips?region=eu-north-1"], "rival": [str(secret)]})
    for uri in (footage / "a.mp4", f"file://{footage}/a.mp4", footage / "inside.mp4", "s3://bucket/clips/x/a.mp4"):
        assert roots.find("studio", str(uri)).path.endswith("a.mp4")
    refused = [
        secret / "a.mp4",
        footage / "link.mp4",
        f"{footage}/../secret/a.mp4",
        f"file://{footage}/%2e%2e/secret/a.mp4",
        f"{footage}2/a.mp4",
        "a.mp4",
        "~/a.mp4",
        "/etc/passwd",
        "/dev/zero",
        "s3://bucket/clipsy/a.mp4",
        "s3://other/a.mp4",
        "s3://bucket/clips/a.mp4?endpoint_override=169.254.169.254",
        "s3://key:secret@bucket/clips/a.mp4",
        "s3://bucket/clips/../../x",
        "gs://bucket/clips/a.mp4",
        "http://169.254.169.254/clips/a.mp4",
        "https://example.com/a.mp4",
        "hdfs://bucket/clips/a.mp4",
        f"file://evil.example{footage}/a.mp4",
    ]
    for uri in refused:
        with pytest.raises(InputRefused) as failed:
            roots.find("studio", str(uri))
        assert (failed.value.code, failed.value.param) == ("input_refused", "input.uri")
    with pytest.raises(InputRefused):
        roots.find("rival", str(footage / "a.mp4"))
    with pytest.raises(InputRefused, match="upload"):
        roots.find("nobody", str(footage / "a.mp4"))
    with pytest.raises(InputError):
        InputRoots({"studio": ["nonsense://x"]})


PARTS = st.lists(
    st.sampled_from(
        ["..", ".", "", "a", "link", "%2e%2e", "%2F", "~", "\x00", "c:", "footage", "?x", "#y", "\\", " ", "@", ":"]
    )
    | st.text(max_size=4),
    max_size=6,
)


@settings(deadline=None, derandomize=True)
@example(parts=["["], scheme="s3://")
@given(parts=PARTS, scheme=st.sampled_from(["", "file://", "file://localhost", "FILE://", "s3://", "file:///", "//"]))
def test_whatever_is_named_is_below_the_root_or_refused(parts, scheme, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "property"
    footage = folder / "footage"
    footage.mkdir(parents=True, exist_ok=True)
    if not (footage / "link").is_symlink():
        (footage / "link").symlink_to(folder)
    roots = InputRoots({"studio": [str(footage)]})
    for start in ("", f"{footage}/"):
        try:
            place = roots.find("studio", scheme + start + "/".join(parts))
        except InputRefused:
            continue
        assert Path(os.path.realpath(place.path)).is_relative_to(footage)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(name=st.text(max_size=255))
def test_no_name_of_a_user_becomes_a_name_on_disk(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    service = Settings(data=folder / "data")
    database = service.open_database()
    with database.writing() as connection:
        ensure_tenant(connection, "studio")
    asked = UploadCreate.model_construct(bytes=1, sha256="0" * 64, filename=name.replace("\x00", ""))
    record = Uploads(database, service).create("studio", asked, key=None)
    database.close()
    assert [path.relative_to(folder).parts for path in folder.rglob("clip")] == [("data", "uploads", record.id, "clip")]
    assert {path.name.split("-")[0] for path in folder.rglob("*")} <= {
        "data",
        "uploads",
        record.id,
        "clip",
        "recapture.db",
    }


@pytest.fixture
def footage(tmp_path) -> Path:
    (tmp_path / "footage").mkdir()
    return tmp_path / "footage"


@pytest.mark.slow
@pytest.mark.ci
def test_a_render_of_a_file_that_was_never_uploaded(small_svd, footage, tmp_path):
    service = Settings(
        data=tmp_path / "data", model=str(small_svd), device="cpu", input_roots={"studio": [str(footage)]}
    )
    clip = write_clip(footage / "walk.mp4")
    (footage / "text.mp4").write_text("no clip at all")
    os.mkfifo(footage / "pipe.mp4")
    with Server(service) as server, worker_thread(service), server.client() as client:
        assert client.preview(str(clip), "truck(0.1)", count=2, max_side=64).hole_share > 0
        done = client.renders.wait(client.renders.create(str(clip), "truck(0.1)", options=QUICK, seed=3))
        assert done.input == str(clip)
        sent = client.renders.wait(
            client.renders.create(client.uploads.create(clip), "truck(0.1)", options=QUICK, seed=3)
        )
        assert sent.frames_digest == done.frames_digest
        assert "temporal" in sent.reused  # the same bytes are the same clip
        again = client.renders.wait(client.renders.resample(done, seed=9))
        assert {"frames", "temporal"} <= set(again.reused)
        for name, code in (("none.mp4", "input_missing"), ("text.mp4", "invalid_video"), ("pipe.mp4", "input_missing")):
            with pytest.raises(RenderFailed) as failed:
                client.renders.wait(client.renders.create(str(footage / name), "static", options=QUICK))
            assert failed.value.render.error.code == code
        # A resample goes on from what was filmed: another file of that name is no ground for it.
        write_clip(clip, frames=7)
        with pytest.raises(RenderFailed) as failed:
            client.renders.wait(client.renders.resample(done, seed=10))
        assert failed.value.render.error.code == "input_changed"
        with server.client("rival") as rival, pytest.raises(InvalidRequest) as refused:
            rival.renders.create(str(clip), "static")
        assert refused.value.code == "input_refused"
