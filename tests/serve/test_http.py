"""The HTTP side alone, over a real socket: who is let in, what is refused, how errors look, uploads. No worker runs."""

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import httpx2
import pytest
import torch
from fastapi.routing import APIRoute

from recapture.client import Client, Options
from recapture.client.errors import AuthenticationError, InvalidRequest, NotFound, RateLimited, UploadFailed
from recapture.client.schema import TERMINAL, PreviewCreate, RenderCreate, Resample, Status, Variant
from recapture.engine.config import RunConfig
from recapture.serve.api.middleware import MOST_JSON_BYTES, OPEN
from recapture.serve.artifacts import CONTENT
from recapture.serve.jobs.jobs import UNCLAIMED_S
from recapture.serve.jobs.options import resampled
from recapture.serve.jobs.records import FINAL, Job
from recapture.serve.logs import redacted
from recapture.serve.processes.maintenance import Maintenance
from recapture.serve.settings import Settings
from recapture.serve.uploads.uploads import UploadRecord

from ..engine.test_pipeline import write_clip
from ..engine.video.clips import sound_packets, write_bomb, write_sound
from ..engine.video.clips import write_clip as write_video
from .service import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    settings = Settings(data=tmp_path_factory.mktemp("data"), max_active=2, interactive_wait_s=0.3)
    with Server(settings) as server:
        yield server


@pytest.fixture(scope="module")
def http(server) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {server.key()}"}
    with httpx2.Client(base_url=server.url, headers=headers, timeout=30) as http:
        yield http


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "walk.mp4")


@pytest.fixture(scope="module")
def upload(server, clip) -> str:
    with server.client() as client:
        return client.uploads.create(clip).id


def routes(server: Server) -> list[tuple[str, str]]:
    """Every (method, path) that the app answers, found in its own routes."""
    found = []
    pending: list[Any] = list(server.api.routes)
    while pending:
        route = pending.pop()
        if hasattr(route, "original_router"):
            pending += route.original_router.routes
        else:
            found += [(method, route.path) for method in route.methods]
            assert isinstance(route, APIRoute) or route.path == "/openapi.json", route
    return found


def test_every_route_is_on_the_open_list_or_wants_a_key(server):
    seen = routes(server)
    assert len(seen) >= 18
    with httpx2.Client(base_url=server.url) as http:
        for method, path in [
            *seen,
            ("GET", "/nowhere"),
            ("GET", "/healthz/"),
        ]:
            url = re.sub(r"\{\w+\}", "x", path)
            for headers in (
                {},
                {"Authorization": "Bearer rk_" + "0" * 12 + "_" + "a" * 43},
                {"Authorization": "Basic eDp5"},
            ):
                answer = http.request(method, url, headers=headers)
                if path in OPEN:
                    assert answer.status_code in (200, 503)
                elif method == "HEAD":
                    assert answer.status_code == 401
                else:
                    assert answer.status_code == 401, (method, path)
                    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_revoked_keys_are_refused_from_the_next_request_on(server):
    from recapture.serve.database import Database
    from recapture.serve.keys import revoke_key

    with server.client("leaving") as client:
        assert client.presets()
        database = Database(server.settings.database_url)
        assert revoke_key(database, client._headers["Authorization"].split("_")[1])
        with pytest.raises(AuthenticationError):
            client.presets()
        database.close()


def refused(answer: httpx2.Response, status: int, param: str | None = None) -> dict[str, Any]:
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert set(error) == {"type", "code", "message", "param", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    if param is not None:
        assert error["param"] == param
    return error


def test_requests_that_are_refused_by_name(http, upload):
    good = {"input": {"upload": upload}, "camera": "static"}
    for change, param in [
        ({"color": 1}, "color"),
        ({"options": {"stepz": 1}}, "options.stepz"),
        ({"options": {"temporal_steps": 10**9}}, "options.temporal_steps"),
        ({"options": {"height": 33, "width": None}}, "options.height"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"camera": "swirl(3deg)"}, "camera"),
        ({"camera": "/etc/passwd"}, "camera"),
        ({"camera": "camera.json"}, "camera"),
        ({"camera": ""}, "camera"),
        ({"model": "svd"}, "model"),
        ({"input": {"upload": "../../etc/passwd"}}, "input.upload"),
        ({"input": {"uri": "http://169.254.169.254/"}}, "input.uri"),
        ({"input": {"uri": "/etc/passwd"}}, "input.uri"),
        ({"input": {"uri": "a\nb"}}, "input.uri"),
        ({"input": {}}, "input"),
        ({"input": {"upload": upload, "uri": "/footage/a.mp4"}}, "input"),
    ]:
        error = refused(http.post("/v1/renders", json={**good, **change}), 422)
        assert error["param"].startswith(param), (change, error)
    for raw, status in ((b"{", 422), (b"[]", 422), (b"null", 422), (b'{"input": NaN}', 422), (b"\xff", 400)):
        refused(http.post("/v1/renders", content=raw, headers={"Content-Type": "application/json"}), status)
    refused(http.post("/v1/renders", content=b" " * (MOST_JSON_BYTES + 1)), 413)
    refused(http.get("/v1/renders", params={"limit": 101}), 422, "limit")
    refused(http.get("/v1/nothing"), 404)
    for name in ("x", "rnd_%00", "rnd_" + "0" * 24, "rnd_" + "0" * 24 + "%0A"):
        refused(http.get(f"/v1/renders/{name}"), 404)
        refused(http.get(f"/v1/uploads/{name}"), 404)
    nameless = {"bytes": 1, "sha256": "0" * 64, "filename": "a\x00b"}
    refused(http.post("/v1/uploads", json=nameless), 422, "filename")
    refused(http.get("/v1/renders", params={"after": "a\x00"}), 422, "after")
    refused(http.put("/v1/renders"), 405)
    refused(http.get("/v1/renders/rnd_0/content"), 404)
    refused(http.post("/v1/renders", json=good, headers={"Idempotency-Key": "x" * 256}), 422, "Idempotency-Key")


def test_every_number_of_a_request_is_bounded():
    for kind in (Options, RenderCreate, Resample, PreviewCreate):
        for name, about in kind.model_json_schema()["properties"].items():
            kinds = about.get("anyOf", [about])
            for number in (k for k in kinds if k.get("type") in ("integer", "number")):
                assert {"minimum", "maximum"} <= set(number), (kind, name)


def test_the_queue_says_when_to_come_back(server, http, upload):
    good = {"input": {"upload": upload}, "camera": "static"}
    answers = [http.post("/v1/renders", json=good) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert answers[0].headers["location"] == f"/v1/renders/{answers[0].json()['id']}"
    assert int(answers[2].headers["retry-after"]) > 0
    assert refused(answers[2], 429)["code"] == "quota_used"
    with server.client("studio", max_retries=0) as client, pytest.raises(RateLimited) as limited:
        client.renders.create(upload, "static")
    assert limited.value.retry_after_s > 0
    for answer in answers[:2]:
        assert http.post(answer.headers["location"] + "/cancel").json()["status"] == "cancelled"
        refused(http.get(answer.headers["location"] + "/content"), 409)
        refused(http.post(answer.headers["location"] + "/resample", json={}), 409)
        assert http.delete(answer.headers["location"]).status_code == 204


def test_events_tell_each_revision_and_go_on_behind_what_was_seen(http, server, upload):
    render = http.post("/v1/renders", json={"input": {"upload": upload}, "camera": "pan(3deg)"}).json()["id"]
    http.post(f"/v1/renders/{render}/cancel")
    answer = http.get(f"/v1/renders/{render}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"  # nginx would keep the events until the stream ends
    with server.client() as client:
        (seen,) = client.renders.events(render)
    lines = answer.text.split("\n")
    assert lines[0] == "event: render"
    assert f"id: {seen.revision}" in lines
    assert json.loads(lines[1].removeprefix("data: "))["status"] == seen.status == "cancelled"
    behind = http.get(f"/v1/renders/{render}/events", headers={"Last-Event-ID": str(seen.revision)})
    assert behind.text == ""
    refused(http.get("/v1/renders/rnd_0/events"), 404)


def test_without_workers_nothing_is_ready_and_interactive_requests_end(http, upload):
    ready = http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["checks"]["workers"].startswith("none")
    assert ready.json()["checks"]["database"] == ready.json()["checks"]["disk"] == "ok"
    assert http.get("/healthz").json()["status"] == "ok"
    answer = http.post("/v1/previews", json={"input": {"upload": upload}, "camera": "static"})
    assert refused(answer, 503)["code"] == "busy"
    assert "retry-after" in answer.headers
    assert b'recapture_jobs{kind="preview"' not in http.get("/metrics").content  # and leave nothing behind


def test_who_goes_away_is_not_worked_for(clip, tmp_path):
    with Server(Settings(data=tmp_path / "data")) as server, server.client() as client:  # waits for 55 s
        upload = client.uploads.create(clip).id
        body = {"input": {"upload": upload}, "camera": "static"}
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{server.url}/v1/previews", json=body, headers=client._headers, timeout=1)
        until = time.monotonic() + 10
        while server.api.state.service.jobs.counts():
            assert time.monotonic() < until
            time.sleep(0.05)


def raw(
    server: Server, client: Client, method: str, path: str, body: bytes, announced: int = 0, **headers: object
) -> socket.socket:
    """A request on a connection that the test closes when it likes."""
    told = {"Host": "x", "Content-Length": announced or len(body), **client._headers, **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in told.items())
    connection = socket.create_connection(server.socket.getsockname(), timeout=30)
    connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    return connection


def test_work_under_way_outlives_the_wait_for_it_but_not_its_caller(clip, tmp_path):
    settings = Settings(data=tmp_path / "data", interactive_wait_s=1.5)
    with Server(settings) as server, server.client() as client:
        jobs = server.api.state.service.jobs
        body = {"input": {"upload": client.uploads.create(clip).id}, "camera": "static"}

        def taken() -> Job:
            until = time.monotonic() + 20
            while (job := jobs.take("w", ["preview"], lease_s=60)) is None:
                assert time.monotonic() < until
                time.sleep(0.02)
            return job

        with ThreadPoolExecutor() as pool:
            asked = pool.submit(
                httpx2.post, f"{server.url}/v1/previews", json=body, headers=client._headers, timeout=60
            )
            job = taken()
            assert job.deadline_at > time.time() + 60
            assert refused(asked.result(), 503)["code"] == "busy"
            jobs.complete(job.claim, {"width": 1}, warnings=[])  # it went on
            Maintenance(settings)._tidy()
            assert jobs.counts() == {("preview", "completed"): 1}  # somebody may be about to fetch it
            Maintenance(settings, clock=lambda: time.time() + UNCLAIMED_S)._tidy()
            assert jobs.counts() == {}
            with raw(
                server, client, "POST", "/v1/previews", json.dumps(body).encode(), Content_Type="application/json"
            ):
                job = taken()
            until = time.monotonic() + 20
            while jobs.holds(job.claim):
                assert time.monotonic() < until
                time.sleep(0.02)
            assert jobs.counts() == {}


def test_files_of_a_render_are_refused_in_the_envelope(clip, tmp_path):
    settings = Settings(data=tmp_path / "data")
    with Server(settings) as server, server.client() as client, httpx2.Client(headers=client._headers) as http:
        jobs = server.api.state.service.jobs
        render = client.renders.create(client.uploads.create(clip), "static").id
        job = jobs.take("w", ["render"], lease_s=60)
        folder = settings.render_path(render) / "1"
        folder.mkdir(parents=True)
        (folder / CONTENT["video"][0]).write_bytes(b"0123456789")
        about = {"bytes": 10, "sha256": "0" * 64, "content_type": "video/mp4"}
        jobs.complete(job.claim, {"folder": "1", "content": {"video": about}}, warnings=[])
        where = f"{server.url}/v1/renders/{render}/content"
        part = http.get(where, headers={"Range": "bytes=2-4"})
        assert (part.status_code, part.content) == (206, b"234")
        for asked, status, code in (
            ("bytes=10-", 416, "range_not_satisfiable"),
            ("bytes=4-2", 400, "bad_request"),
            ("lines=1-2", 400, "bad_request"),
            ("bytes=", 400, "bad_request"),
        ):
            answer = http.get(where, headers={"Range": asked})
            assert refused(answer, status)["code"] == code
            assert answer.headers.get("content-range") == ("bytes */10" if status == 416 else None)
        shutil.rmtree(settings.render_path(render))  # as a DELETE under way does
        assert refused(http.get(where), 404)["code"] == "not_found"


def test_a_database_that_is_away_is_an_answer_too(tmp_path):
    with Server(Settings(data=tmp_path / "data")) as server, server.client() as client:
        state = server.api.state.service
        with state.database.writing() as connection:
            connection.exec_driver_sql("ALTER TABLE api_keys RENAME TO elsewhere")
        answer = httpx2.get(f"{server.url}/v1/presets", headers=client._headers)
        assert refused(answer, 500)["code"] == "internal"
        until = time.monotonic() + 10  # it is counted after the answer is sent
        while b'status="500"' not in state.metrics.text():
            assert time.monotonic() < until
            time.sleep(0.02)


def test_uploads_go_on_where_they_broke_off(http, clip):
    data = clip.read_bytes()
    about = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "filename": "../../walk.mp4"}
    made = http.post("/v1/uploads", json=about, headers={"Idempotency-Key": "u"})
    assert made.json()["offset"] == 0
    again = http.post("/v1/uploads", json=about, headers={"Idempotency-Key": "u"})
    assert again.json()["id"] == made.json()["id"]
    refused(http.post("/v1/uploads", json={**about, "bytes": 7}, headers={"Idempotency-Key": "u"}), 409)
    where = made.headers["location"]
    assert http.patch(where, content=data[:1000], headers={"Upload-Offset": "0"}).json()["offset"] == 1000
    refused(http.patch(where, content=data[:1000], headers={"Upload-Offset": "0"}), 409, "Upload-Offset")
    refused(http.patch(where, content=data[1000:] + b"x", headers={"Upload-Offset": "1000"}), 413)
    offset = http.get(where).json()["offset"]
    done = http.patch(where, content=data[offset:], headers={"Upload-Offset": str(offset)}).json()
    assert (done["status"], done["clip"]["frames"]) == ("ready", 6)
    refused(http.patch(where, content=b"", headers={"Upload-Offset": str(len(data))}), 409)
    assert http.delete(where).status_code == 204
    refused(http.get(where), 404)


def test_a_connection_that_dies_silently_does_not_hold_its_upload(tmp_path):
    with Server(Settings(data=tmp_path / "data", upload_silence_s=0.5)) as server, server.client() as client:
        about = {"bytes": 5, "sha256": hashlib.sha256(b"abcde").hexdigest()}
        where = httpx2.post(f"{server.url}/v1/uploads", json=about, headers=client._headers).headers["location"]
        with raw(server, client, "PATCH", where, b"abc", Upload_Offset=0, announced=5) as connection:
            answer = b"".join(iter(lambda: connection.recv(4096), b""))  # it is closed, too
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"code":"too_slow"' in answer
        headers = {**client._headers, "Upload-Offset": "3"}
        done = httpx2.patch(f"{server.url}{where}", content=b"de", headers=headers, timeout=30).json()
        assert (done["status"], done["error"]["code"]) == ("failed", "invalid_video")


def test_an_ingress_decides_on_a_few_uploads_at_once(clip, tmp_path, monkeypatch):
    with Server(Settings(data=tmp_path / "data")) as server, server.client() as client:
        uploads, now, most = server.api.state.service.uploads, [], []
        finish = uploads.finish

        def watched(record: UploadRecord) -> UploadRecord:
            now.append(record)
            most.append(len(now))
            try:
                return finish(record)
            finally:
                now.remove(record)

        monkeypatch.setattr(uploads, "finish", watched)
        with ThreadPoolExecutor(6) as pool:
            made = list(pool.map(lambda _: client.uploads.create(clip), range(6)))
        assert {upload.status for upload in made} == {"ready"}
        assert (len(most), max(most)) == (6, 2)


def test_uploads_that_are_no_clips(server, tmp_path):
    canary = tmp_path / "canary"
    evil = tmp_path / "model.bin"
    # What a pickle that runs a command looks like; nothing here ever loads one.
    evil.write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())
    saved = tmp_path / "model.pt"  # and the same as torch would write it

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {canary}",)

    torch.save({"weights": Evil()}, saved)
    playlist = tmp_path / "list.mp4"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    short = write_clip(tmp_path / "short.mp4")
    short.write_bytes(short.read_bytes()[: short.stat().st_size // 2])
    with server.client("uploader") as client:
        for path in (
            evil,
            saved,
            playlist,
            short,
            write_sound(tmp_path / "sound.mp4"),
            write_bomb(tmp_path / "bomb.mp4"),
        ):
            with pytest.raises(UploadFailed) as failed:
                client.uploads.create(path)
            assert failed.value.problem.code == "invalid_video"
            assert str(server.settings.data) not in failed.value.problem.message
            with pytest.raises(InvalidRequest):
                client.renders.create(failed.value.upload, "static")
            assert not server.settings.upload_path(failed.value.upload.id).exists()
    assert not canary.exists()


def test_bytes_that_are_not_those_announced(http):
    about = {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    where = http.post("/v1/uploads", json=about).headers["location"]
    done = http.patch(where, content=b"abd", headers={"Upload-Offset": "0"}).json()
    assert (done["status"], done["error"]["code"]) == ("failed", "sha256_mismatch")


def test_the_child_process_is_held_to_its_memory(clip, tmp_path):
    from recapture.engine.errors import VideoError
    from recapture.serve.uploads.decoding import probe_upload

    settings = Settings(data=tmp_path)
    assert probe_upload(clip, settings)["codec"] == "h264"
    with pytest.raises(VideoError) as refused:
        probe_upload(clip, settings.model_copy(update={"child_memory_bytes": 1 << 20}))
    assert refused.value.code in ("clip_too_heavy", "clip_damaged")


def test_sound_is_copied_by_the_child_process(tmp_path):
    from recapture.engine.errors import VideoError
    from recapture.serve.uploads.decoding import add_sound

    settings = Settings(data=tmp_path)
    source = write_video(tmp_path / "source.mp4", 24, audio="aac")
    video = write_clip(tmp_path / "video.mp4")
    silent = video.read_bytes()
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(source.read_bytes()[:-3000])
    for clip, limits in ((damaged, {}), (source, {"child_memory_bytes": 1 << 20})):
        with pytest.raises(VideoError):
            add_sound(video, clip, start_s=0.0, settings=settings.model_copy(update=limits))
        assert video.read_bytes() == silent
        assert sorted(path.name for path in tmp_path.glob("video*")) == ["video.mp4"]
    assert add_sound(video, source, start_s=0.0, settings=settings) == []
    assert sound_packets(video)


def test_logs_have_ids_and_no_secrets(server, capfd, monkeypatch):
    from recapture.serve.logs import set_up_logs

    set_up_logs()
    with server.client("logged") as client:
        key = client._headers["Authorization"].removeprefix("Bearer ")
        with pytest.raises(NotFound) as missing:
            client.renders.retrieve(f"rnd_{key}")
    lines, mine, patience = [], [], time.monotonic() + 20
    while not mine and time.monotonic() < patience:  # the line is written after the answer is sent
        lines += [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
        mine = [line for line in lines if line.get("request_id") == missing.value.request_id]
        time.sleep(0.05)
    assert [(line["status"], line["tenant"], line["method"]) for line in mine] == [(404, "logged", "GET")]
    assert key not in str(lines)
    signed = "https://h/x?X-Amz-Signature=abc&y=1 postgresql://u:pw@host/db Bearer abc.def"
    assert redacted({"Authorization": "x", "a": [signed]}) == {
        "Authorization": "[redacted]",
        "a": ["https://h/x?[redacted]&y=1 postgresql://[redacted]@host/db Bearer [redacted]"],
    }


def test_the_surface_is_this(server):
    """A new route or answer is a decision: change this list with it."""
    paths = server.api.openapi()["paths"]
    assert {path: sorted(verbs) for path, verbs in paths.items()} == {
        "/healthz": ["get"],
        "/metrics": ["get"],
        "/readyz": ["get"],
        "/v1/models": ["get"],
        "/v1/presets": ["get"],
        "/v1/previews": ["post"],
        "/v1/renders": ["get", "post"],
        "/v1/renders/{render}": ["delete", "get"],
        "/v1/renders/{render}/cancel": ["post"],
        "/v1/renders/{render}/content": ["get"],
        "/v1/renders/{render}/events": ["get"],
        "/v1/renders/{render}/resample": ["post"],
        "/v1/renders:estimate": ["post"],
        "/v1/scenes": ["post"],
        "/v1/uploads": ["post"],
        "/v1/uploads/{upload}": ["delete", "get", "patch"],
    }


def test_names_that_are_said_twice_agree():
    assert set(get_args(Variant)) == set(CONTENT)
    assert set(TERMINAL) == set(FINAL) < set(get_args(Status))


def test_a_resample_keeps_the_depth_that_its_render_was_tuned_with():
    """Whatever was pulled to the worker's machine since."""
    kept = resampled(RunConfig(), Resample(seed=5), depth="depth-anything/Depth-Anything-V2-Small-hf")
    assert kept.depth.model == "depth-anything/Depth-Anything-V2-Small-hf"
    assert kept.sample.seed == 5
    assert resampled(RunConfig(), Resample(), depth=None) == RunConfig()  # of a render made before this was kept
