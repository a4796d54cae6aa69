"""Uploads, stages and results in an object store: machines that share no folder, only records and a bucket."""

import contextlib
import hashlib
import os
import time

import pytest
from pyarrow import fs

from recapture.client import Client
from recapture.client.schema import UploadCreate
from recapture.engine.errors import InputError
from recapture.engine.store.remote_path import open_remote_path
from recapture.serve.files import ObjectFiles
from recapture.serve.keys import create_key
from recapture.serve.settings import Settings
from recapture.serve.uploads.uploads import UploadConflict, Uploads

from ..engine.test_pipeline import write_clip
from ..s3_server import s3_server
from .service import QUICK, Server, worker_thread

pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture(scope="module")
def options():
    with s3_server() as found:
        yield found


@pytest.fixture
def machine(options, tmp_path):
    """Settings of the machine of this name."""
    bucket = tmp_path.name.replace("_", "-")
    place = open_remote_path(f"s3://{bucket}?{options}", param="objects")
    place.filesystem.create_dir(place.path)

    def made(name: str, **more) -> Settings:
        return Settings(
            data=tmp_path / name,
            objects=f"s3://{bucket}/films?{options}",
            database=f"sqlite:///{tmp_path / 'records.db'}",
            device="cpu",
            **more,
        )

    return made


def objects(settings: Settings) -> set[str]:
    place = open_remote_path(settings.objects or "", param="objects")
    found = place.filesystem.get_file_info(fs.FileSelector(place.path, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(place.path + "/") for info in found if info.is_file}


def test_a_render_passes_from_machine_to_machine_through_the_bucket(machine, small_svd, tmp_path):
    clip = write_clip(tmp_path / "walk.mp4")
    first, second, third = (machine(name, model=str(small_svd)) for name in ("first", "second", "third"))
    with Server(first) as server, server.client() as client, worker_thread(second):
        upload = client.uploads.create(clip)
        render = client.renders.wait(client.renders.create(upload, "truck(0.1)", options=QUICK), timeout_s=400)
        assert render.status == "completed", render
        key = server.key()
    with Server(third) as server, Client(server.url, api_key=key) as client:  # it has never seen a byte of these
        video = client.renders.download(render, tmp_path / "video.mp4").read_bytes()
        assert hashlib.sha256(video).hexdigest() == render.content["video"].sha256
        with worker_thread(third):
            again = client.renders.wait(client.renders.resample(render, seed=7), timeout_s=400)
        assert {"frames", "spatial", "temporal"} <= set(again.reused)
        kept = {name for name in objects(third) if name.startswith("renders/")}
        assert {f"renders/{each.id}/1/video.mp4" for each in (render, again)} <= kept
        client.renders.delete(render)
        client.renders.delete(again)
        client.uploads.delete(upload)
    assert {name.split("/")[0] for name in objects(third)} == {"stores"}


def test_parts_of_an_upload_arrive_at_any_machine(machine, tmp_path):
    data = write_clip(tmp_path / "walk.mp4").read_bytes()
    uploads = [Uploads(settings.open_database(), settings) for settings in (machine("first"), machine("second"))]
    asked = UploadCreate(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    create_key(uploads[0].database, "studio")
    record = uploads[0].create("studio", asked, key=None)
    with uploads[0].appending(record, 0) as file:
        file.write(data[:1000])
    with pytest.raises(UploadConflict, match="ends at 1000"), uploads[1].appending(record, 0):
        pass
    with contextlib.suppress(ConnectionError), uploads[1].appending(record, 1000) as file:
        file.write(data[1000:1500])
        raise ConnectionError  # what came before the break stays
    # A request that was slow to notice its end writes where another has gone on since: the same bytes, fewer of them.
    with uploads[0].appending(record, 1500) as late:
        late.write(data[1500:1600])
        with uploads[1].appending(record, 1500) as file:
            file.write(data[1500:])
        assert uploads[1].arrived(record) == len(data)
    assert uploads[1].arrived(record) == 1600
    with uploads[1].appending(record, 1600) as file:
        file.write(data[1600:])
    done = uploads[0].finish(record)
    assert (done.status, done.error) == ("ready", None)
    assert uploads[1].files.clip(record.id).read_bytes() == data
    assert objects(machine("first")) == {f"uploads/{record.id}/clip"}
    for each in uploads:
        each.database.close()


def test_unfinished_uploads_are_removed_by_their_last_part(machine, monkeypatch):
    settings = machine("first")
    uploads = Uploads(settings.open_database(), settings)
    create_key(uploads.database, "studio")
    record = uploads.create("studio", UploadCreate(bytes=10, sha256="0" * 64), key=None)
    with uploads.appending(record, 0) as file:
        file.write(b"some")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_000)
    assert uploads.remove_unfinished() == 0
    monkeypatch.setattr(time, "time", lambda: now + 87_000)
    assert uploads.remove_unfinished() == 1
    assert objects(settings) == set()
    uploads.database.close()


def test_copies_that_nobody_reads_make_room(machine):
    settings = machine("first")
    files = ObjectFiles(settings, settings.objects or "")
    for number, name in enumerate(("old", "fresh")):
        folder = files.attempt(name, number)
        folder.mkdir(parents=True)
        (folder / "video.mp4").write_bytes(b"video")
        files.keep_attempt(name, number)
        assert files.content(name, number, "video.mp4").read_bytes() == b"video"
    for path in (settings.render_path("old"), *settings.render_path("old").rglob("*")):
        os.utime(path, (0, 0))
    with pytest.raises(FileNotFoundError):
        files.content("fresh", 1, "nothing")
    files.content("fresh", 1, "video.mp4")
    assert files.content("old", 0, "video.mp4").stat().st_mtime > 0  # a use is seen


def test_an_object_store_that_cannot_be_opened_is_refused_by_its_name(tmp_path):
    with pytest.raises(InputError, match="objects"):
        ObjectFiles(Settings(data=tmp_path, objects="ftp://bucket"), "ftp://bucket")
