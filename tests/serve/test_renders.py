"""From a clip to a finished render, over a real socket, with the real client and a real worker."""

import asyncio
import base64
import hashlib
import json
import threading

import cv2
import numpy as np
import pyarrow.parquet
import pytest

from recapture.client import AsyncClient, ClientError, RenderFailed
from recapture.client.errors import Conflict, InvalidRequest, NotFound
from recapture.serve.settings import Settings

from ..engine.test_pipeline import write_clip
from ..engine.video.clips import sound_packets
from ..engine.video.clips import write_clip as write_video
from .service import QUICK, Server, worker_thread

pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture(scope="module")
def server(small_svd, tmp_path_factory):
    settings = Settings(data=tmp_path_factory.mktemp("data"), model=str(small_svd), device="cpu")
    with Server(settings) as server, worker_thread(settings):
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "walk.mp4")


@pytest.fixture(scope="module")
def upload(client, clip):
    return client.uploads.create(clip)


@pytest.fixture(scope="module")
def render(client, upload):
    return client.renders.wait(client.renders.create(upload, "truck(0.1)", options=QUICK, seed=3))


def test_a_render_from_clip_to_files(client, server, upload, render, tmp_path):
    assert (upload.clip.width, upload.clip.height, upload.clip.frames) == (64, 48, 6)
    assert render.status == "completed"
    assert render.progress == 1
    assert (render.seed, render.attempt, render.camera) == (3, 1, "truck(0.1)")
    assert 0 < render.hole_share < 0.5
    assert render.usage.compute_seconds > 0
    for variant, content in render.content.items():
        path = client.renders.download(render, tmp_path / variant, variant=variant)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == content.sha256
        assert not path.with_name(path.name + ".part").exists()
    assert set(render.content) == {
        "video",
        "generated",
        "anchor",
        "mask",
        "side_by_side",
        "contact",
        "camera",
        "config",
        "report",
        "page",
    }
    assert [found.id for found in client.renders.list().data] == [render.id]
    page = client._http.get(f"{server.url}/v1/renders/{render.id}/content?variant=page", headers=client._headers)
    assert page.headers["content-security-policy"].startswith("sandbox")
    part = {**client._headers, "Range": "bytes=10-19"}
    piece = client._http.get(f"{server.url}/v1/renders/{render.id}/content", headers=part)
    assert (piece.status_code, len(piece.content)) == (206, 10)
    known = {**client._headers, "If-None-Match": piece.headers["etag"]}
    assert client._http.get(f"{server.url}/v1/renders/{render.id}/content", headers=known).status_code == 304


def test_resampling_skips_the_tuning_and_repeats_to_the_bit(server, client, clip, render):
    same = client.renders.wait(client.renders.resample(render))
    assert same.frames_digest == render.frames_digest
    assert set(same.reused) >= {"depth", "spatial", "temporal", "sample", "deliver"}
    first = client.renders.wait(client.renders.resample(render, seed=9))
    assert {"spatial", "temporal", "condition"} <= set(first.reused)
    assert "sample" not in first.reused
    assert first.frames_digest != render.frames_digest
    with server.client("elsewhere") as other:  # its own store: nothing is reused
        whole = other.renders.wait(
            other.renders.create(other.uploads.create(clip), "truck(0.1)", options=QUICK, seed=3)
        )
        fresh = other.renders.wait(other.renders.resample(whole, seed=9))
    assert whole.reused == ["frames"]  # decoded by the child process
    assert fresh.frames_digest == first.frames_digest
    assert (first.seed, first.resampled_from) == (9, render.id)
    other = client.renders.wait(client.renders.resample(render, sdedit_sigma=0.0))
    assert "sample" in other.reused
    assert "refine" not in other.reused


def test_previews_and_estimates(client, upload):
    preview = client.preview(upload, "truck(0.1)", count=3, max_side=64)
    assert (preview.width, preview.height) == (64, 48)
    assert [frame.index for frame in preview.frames] == [0, 2, 5]
    assert preview.frames[0].hole_share < preview.frames[-1].hole_share
    assert all(frame.webp for frame in preview.frames)
    film = client.preview(upload, "truck(0.1)", format="mp4")
    assert film.mp4
    assert film.frames[0].webp is None
    estimate = client.estimate(upload, "truck(0.1)", options=QUICK)
    assert estimate.windows == [(0, 3), (2, 5)]
    assert estimate.hole_share == pytest.approx(preview.hole_share, abs=0.1)
    assert estimate.seconds > 0
    assert all(render.id.startswith("rnd_") for render in client.renders.list(limit=100).data)


def test_one_frame_of_a_preview_and_the_scene_that_it_is_of(client, upload):
    preview = client.preview(upload, "truck(0.1)", frame=4, max_side=64)
    assert [frame.index for frame in preview.frames] == [4]
    scene = client.scene(upload, frame=4, max_side=32)
    assert (scene.frame, scene.frames, scene.width, scene.height) == (4, 6, 32, 24)
    assert (scene.start_s, scene.time_s, scene.end_s) == pytest.approx((0, 4 / 12, 5 / 12))
    K_px = np.array(scene.K_px)
    np.testing.assert_allclose(K_px[:2, 2], (16, 12))  # the lens looks at the middle
    depth = np.frombuffer(base64.b64decode(scene.depth), "<f2").reshape(24, 32)
    assert (depth > 0).all()
    assert 0.5 < np.median(depth) < 2  # in median depths of the clip
    assert 0.5 < scene.subject_depth / np.median(depth[8:16, 11:21]) < 2
    colors = cv2.imdecode(np.frombuffer(base64.b64decode(scene.webp), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert colors.shape == (24, 32, 3)
    assert abs(colors[13, 14].astype(int) - (230, 200, 40)).max() < 40  # the square, where it is in that frame
    with pytest.raises(InvalidRequest, match="0 to 5"):
        client.scene(upload, frame=6)
    with pytest.raises(InvalidRequest, match="0 to 5"):
        client.preview(upload, "static", frame=6)


def test_events_end_with_the_render_and_progress_never_falls(client, upload):
    asked = client.renders.create(upload, "pan(2deg)", options=QUICK)
    seen = list(client.renders.events(asked))
    assert [render.progress for render in seen] == sorted(render.progress for render in seen)
    assert [render.revision for render in seen] == sorted({render.revision for render in seen})
    assert seen[-1].status == "completed"
    assert client.renders.retrieve(asked) == seen[-1]


def test_cancel_stops_within_a_step_and_final_is_final(client, server, upload):
    long = QUICK.model_copy(update={"temporal_steps": 2000})
    asked = client.renders.create(upload, "tilt(2deg)", options=long)
    steps = []
    for render in client.renders.events(asked):
        if render.stage == "temporal" and not steps:
            steps.append(render.progress)
            client.renders.cancel(asked)
    assert render.status == "cancelled"
    assert client.renders.cancel(asked).status == "cancelled"
    with pytest.raises(RenderFailed):
        client.renders.wait(asked)
    with pytest.raises(ClientError, match="has no video"):
        client.renders.download(asked, "never.mp4")
    # The worker is free again: the next render is done by it.
    assert client.renders.wait(client.renders.create(upload, "truck(0.1)", options=QUICK, seed=3)).progress == 1
    folder = server.settings.render_path(asked.id)
    assert not folder.exists() or not any(folder.iterdir())


def test_a_deadline_ends_a_render(client, upload):
    long = QUICK.model_copy(update={"temporal_steps": 2000})
    asked = client.renders.create(upload, "tilt(3deg)", options=long, deadline_s=2)
    with pytest.raises(RenderFailed) as failed:
        client.renders.wait(asked)
    assert failed.value.render.status == "expired"
    assert failed.value.render.error.code == "deadline_exceeded"


def test_what_fails_inside_the_engine_says_why(client, upload):
    with pytest.raises(RenderFailed) as failed:
        client.renders.wait(client.renders.create(upload, "pan(150deg, start=150deg)", options=QUICK))
    problem = failed.value.render.error
    assert (problem.code, problem.param) == ("camera_sees_nothing", "camera")
    with pytest.raises(InvalidRequest) as refused:
        client.preview(upload, "swirl(20deg)")
    assert refused.value.param == "camera"


def test_what_would_take_too_long_is_refused_before_it_is_tuned(small_svd, clip, tmp_path):
    settings = Settings(data=tmp_path / "data", model=str(small_svd), device="cpu", max_render_s=3600)
    with Server(settings) as server, worker_thread(settings, "render"), server.client() as client:
        upload = client.uploads.create(clip)
        dear = QUICK.model_copy(update={"temporal_steps": 2000, "height": 2048, "width": 2048})
        asked = client.renders.create(upload, "truck(0.1)", options=dear)
        with pytest.raises(RenderFailed) as failed:
            client.renders.wait(asked)
        assert (failed.value.render.error.code, failed.value.render.error.param) == ("too_costly", "options")
        assert failed.value.render.stage == "frames"
        assert client.renders.wait(client.renders.create(upload, "truck(0.1)", options=QUICK)).progress == 1


def test_one_key_is_one_render(client, upload, render):
    made: list[str] = []

    def ask() -> None:
        made.append(client.renders.create(upload, "truck(0.1)", options=QUICK, seed=3, idempotency_key="k-1").id)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    with pytest.raises(Conflict) as conflict:
        client.renders.create(upload, "truck(0.2)", options=QUICK, idempotency_key="k-1")
    assert conflict.value.code == "idempotency_conflict"
    client.renders.delete(made[0])
    with pytest.raises(NotFound):
        client.renders.retrieve(made[0])


def test_bulk_goes_on_where_it_was(server, clip, tmp_path):
    rows = [
        {"clip_id": "a", "camera": "truck(0.1)", "seed": 3, "priority": 1},
        {"clip_id": "b", "camera": "truck(0.1)", "start_s": 0.1, "end_s": 0.5},
        {"clip_id": "c", "camera": "swirl(2deg)"},
        {"clip_id": "d", "camera": "static", "input_uri": str(tmp_path / "none.mp4")},
    ]
    manifest, results = tmp_path / "clips.jsonl", tmp_path / "results.parquet"
    options = QUICK.model_dump(exclude_unset=True)
    common = {"input_uri": str(clip), "options": options}
    lines = [json.dumps({**common, "output_uri": f"file://{tmp_path}/{row['clip_id']}.mp4", **row}) for row in rows]
    manifest.write_text("\n".join(lines))
    with server.client("bulk") as client:
        found = client.bulk.run(manifest, results, in_flight=2)
        assert [(row.clip_id, row.status, row.error_code) for row in found] == [
            ("a", "completed", None),
            ("b", "completed", None),
            ("c", "failed", "invalid_camera"),
            ("d", "failed", "client"),
        ]
        assert pyarrow.parquet.read_table(results).column("sha256").to_pylist()[0] == found[0].sha256
        assert hashlib.sha256((tmp_path / "a.mp4").read_bytes()).hexdigest() == found[0].sha256
        # Again: what is there is not asked for; what went missing is the same render, not another.
        (tmp_path / "b.mp4").unlink()
        through = []
        again = client.bulk.run(manifest, results, on_row=lambda row, done, total: through.append(row.clip_id))
        assert sorted(through) == ["b", "c", "d"]
        assert [row.render for row in again] == [row.render for row in found]
        assert len(client.renders.list().data) == 2


def test_manifests_that_are_refused_before_anything_is_sent(client, tmp_path):
    good = {"clip_id": "a", "input_uri": "a.mp4", "camera": "static", "output_uri": "o.mp4"}
    for rows, said in [
        ([], "no rows"),
        ([{**good, "output_uri": None}] * 2, "row 2 .*same as row 1"),
        ([{**good, "options": {"tune": {"steps": 1}}}], "row 1 .*options: .*tune.steps"),
        ([good, {**good, "clip_id": "b"}], "row 2 .*output_uri"),
        ([{**good, "seed": -1}], "row 1 .*seed"),
        ([{**good, "color": 1}], "row 1 .*color"),
    ]:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(ClientError, match=said):
            client.bulk.run(path, tmp_path / "results.jsonl")
    (tmp_path / "bad.csv").write_text("clip_id,input_uri\na,b\n")
    with pytest.raises(ClientError, match="camera"):
        client.bulk.run(tmp_path / "bad.csv", tmp_path / "results.jsonl")


def test_another_tenant_sees_nothing(server, client, upload, render, tmp_path):
    with server.client("rival") as rival:
        assert rival.renders.list().data == []
        for act in (
            lambda: rival.renders.retrieve(render),
            lambda: rival.renders.cancel(render),
            lambda: rival.renders.resample(render),
            lambda: rival.renders.delete(render),
            lambda: rival.renders.download(render, tmp_path / "stolen.mp4"),
            lambda: list(rival.renders.events(render)),
            lambda: rival.uploads.retrieve(upload),
            lambda: rival.uploads.delete(upload),
            lambda: rival.renders.create(upload, "static"),
            lambda: rival.preview(upload, "static"),
            lambda: rival.scene(upload),
            lambda: rival.estimate(upload, "static"),
        ):
            with pytest.raises(NotFound):
                act()
    assert client.renders.retrieve(render).status == "completed"


async def _asynchronous(url: str, key: str, clip, target) -> str:
    async with AsyncClient(url, api_key=key) as client:
        upload = await client.uploads.create(clip)
        asked = await client.renders.create(upload, "truck(0.1)", options=QUICK, seed=3)
        seen = [render async for render in client.renders.events(asked)]
        assert seen[-1].status == "completed"
        done = await client.renders.wait(asked)
        await client.renders.download(done, target)
        model = (await client.models())[0]
        assert (model.frames, model.depth) == (4, "embedded")
        assert model.depth_license.startswith("Apache-2.0")
        assert "arc" in {preset.name for preset in await client.presets()}
        assert (await client.preview(upload, "static", count=1)).hole_share == pytest.approx(0, abs=0.05)
        assert (await client.estimate(upload, "static", options=QUICK)).frames == 6
        assert (await client.scene(upload, frame=1)).frames == 6
        again = await client.renders.resample(done)
        assert (await client.renders.cancel(again)).id == again.id
        assert [r.id for r in (await client.renders.list(limit=1)).data] == [again.id]
        await client.renders.delete(again)
        with pytest.raises(NotFound):
            await client.renders.retrieve(again)
        await client.uploads.delete(upload)
        return done.frames_digest


def test_the_asynchronous_client_has_the_same_verbs(server, clip, render, tmp_path):
    target = tmp_path / "video.mp4"
    assert asyncio.run(_asynchronous(server.url, server.key("parallel"), clip, target)) == render.frames_digest
    assert target.stat().st_size > 0


def test_a_worker_that_holds_the_adapters_does_not_read_them_again(small_svd, clip, tmp_path, monkeypatch):
    from recapture.serve.jobs import worker as module

    settings = Settings(data=tmp_path / "data", model=str(small_svd), device="cpu")
    offered: list[str] = []
    with Server(settings, offer=lambda job: offered.append(job.id)) as server, server.client() as client:
        asked = client.renders.create(client.uploads.create(clip), "truck(0.1)", options=QUICK)
        worker = module.JobWorker(settings, ["render"])
        worker.work(worker.jobs.take(worker.name, ["render"], lease_s=60))
        first = client.renders.retrieve(asked)
        held = worker.hold_adapters(first.id)
        assert worker.hold_adapters("rnd_" + "0" * 24).read is not None  # deleted meanwhile: it holds nothing
        read = []
        monkeypatch.setattr(module.adapters, "read", lambda folder: read.append(folder))
        second = client.renders.resample(first, seed=5)
        worker.offer(second.id, held)
        worker.work(worker._take())
        assert client.renders.retrieve(second).status == "completed"
        assert read == []
        # A resample of a resample is offered by the render that was tuned.
        third = client.renders.resample(second, seed=6)
        assert offered == [second.id, third.id]
        assert worker.jobs.get("studio", third.id).request["tuned_by"] == first.id
        monkeypatch.undo()
        worker.work(worker._take())  # nobody offered it: read from the store
        done = client.renders.retrieve(third)
        assert (done.status, done.resampled_from) == ("completed", second.id)


def test_a_worker_never_opens_what_was_uploaded(small_svd, tmp_path, monkeypatch):
    """Not for its pictures and not for its sound: children do, and the sound is in the result all the same."""
    import av

    from recapture.serve.jobs import worker as module

    clip = write_video(tmp_path / "heard.mp4", 6, (64, 48), rate=12, audio="aac")
    settings = Settings(data=tmp_path / "data", model=str(small_svd), device="cpu")
    with Server(settings) as server, server.client() as client:
        asked = client.renders.create(client.uploads.create(clip), "truck(0.1)", options=QUICK)
        worker = module.JobWorker(settings, ["render"])
        opened, really = [], av.open

        def watched(file, *rest, **more):
            opened.append(str(file))
            return really(file, *rest, **more)

        monkeypatch.setattr(av, "open", watched)
        worker.work(worker.jobs.take(worker.name, ["render"], lease_s=60))
        monkeypatch.undo()
        done = client.renders.retrieve(asked)
        assert done.status == "completed"
        assert all("source camera" in warning for warning in done.warnings)  # a clip of few corners
        assert sound_packets(client.renders.download(done, tmp_path / "video.mp4"))
    assert opened  # the results were written by it
    assert not [name for name in opened if "/uploads/" in name or name.endswith("/clip")]
