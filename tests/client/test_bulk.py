"""Bulk runs of the client against the real service: rows that share a clip, outages, renders that did not end well."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from recapture.client import AsyncClient, Client, ConnectionFailed, Render, Upload
from recapture.client.bulk import read_manifest
from recapture.client.errors import AuthenticationError, NotFound
from recapture.serve.settings import Settings

from ..engine.test_pipeline import write_clip
from ..serve.service import Server
from .test_client import Scripted, refusal, reply


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "walk.mp4")


def write_manifest(folder: Path, clip: Path, cameras: list[str]) -> Path:
    rows = [
        {"clip_id": str(i), "input_uri": str(clip), "camera": camera, "output_uri": str(folder / f"{i}.mp4")}
        for i, camera in enumerate(cameras)
    ]
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "clips.jsonl"


def newest(client: Client) -> Render:
    """The newest render, as soon as there is one under way; no worker takes it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if found := client.renders.list(status="queued").data:
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no render was asked for")


def in_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    """Begin the call; what is returned waits for its result."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return lambda: future.result(60)


def test_rows_that_share_a_clip_send_it_once(clip, tmp_path, monkeypatch):
    monkeypatch.setattr("recapture.client.files.PART_BYTES", clip.stat().st_size // 12)
    manifest = write_manifest(tmp_path, clip, ["swirl(2deg)"] * 8)  # refused, but not before the clip is there
    with Server(Settings(data=tmp_path / "data")) as server, server.client() as client:
        found = client.bulk.run(manifest, tmp_path / "results.jsonl", in_flight=8)
        assert [row.error_code for row in found] == ["invalid_camera"] * 8
        assert server.api.state.service.metrics.uploaded._value.get() == clip.stat().st_size


def test_who_sends_the_same_clip_at_once_waits_for_the_other(clip, tmp_path, monkeypatch):
    monkeypatch.setattr("recapture.client.files.PART_BYTES", clip.stat().st_size // 12)
    with Server(Settings(data=tmp_path / "data")) as server, server.client() as client:
        with ThreadPoolExecutor(6) as pool:
            uploads = list(pool.map(lambda _: client.uploads.create(clip, once=True), range(6)))
        assert {upload.status for upload in uploads} == {"ready"}
        assert len({upload.id for upload in uploads}) == 1

        async def together() -> list[Upload]:
            async with AsyncClient(server.url, api_key=server.key("other")) as other:
                return await asyncio.gather(*(other.uploads.create(clip, once=True) for _ in range(6)))

        uploads = asyncio.run(together())
        assert {upload.status for upload in uploads} == {"ready"}
        assert len({upload.id for upload in uploads}) == 1


def test_an_outage_is_waited_out(clip, tmp_path):
    manifest, settings = write_manifest(tmp_path, clip, ["truck(0.1)"]), Settings(data=tmp_path / "data")
    paused = threading.Event()
    with Server(settings) as before:
        client = before.client(max_retries=0)
        run = in_thread(lambda: client.bulk.run(manifest, tmp_path / "results.jsonl", on_pause=lambda *_: paused.set()))
        render = newest(client)
    assert paused.wait(30)
    with client, Server(settings, port=before.port), Client(before.url, api_key=before.key()) as other:
        assert other.renders.cancel(render).status == "cancelled"
        (row,) = run()
    assert (row.status, row.render) == ("cancelled", render.id)


def test_a_render_that_ended_badly_is_asked_for_again(clip, tmp_path):
    manifest, results = write_manifest(tmp_path, clip, ["truck(0.1)"]), tmp_path / "results.jsonl"
    with Server(Settings(data=tmp_path / "data")) as server, server.client() as client:
        ended = []
        for _ in range(2):
            run = in_thread(lambda: client.bulk.run(manifest, results))
            ended.append(client.renders.cancel(newest(client)).id)
            (row,) = run()
            assert (row.status, row.render) == ("cancelled", ended[-1])
        assert ended[0] != ended[1]
        with pytest.raises(NotFound):
            client.renders.retrieve(ended[0])


def test_a_row_that_waits_is_interrupted_at_once(clip, tmp_path):
    manifest = write_manifest(tmp_path, clip, ["static"])
    server = Scripted(reply(200, {"data": []}), refusal(429, "queue_full", Retry_After="300"))
    said = []

    def interrupt(clip_id: str, why: str, pause_s: float) -> None:
        said.append((clip_id, why, pause_s))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    began = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with Client(server.url, api_key="rk_secret") as client, pytest.raises(KeyboardInterrupt):
            client.bulk.run(manifest, tmp_path / "results.jsonl", on_pause=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    server.close()
    assert said == [("0", "no", 60.0)]
    assert time.monotonic() - began < 30
    assert not (tmp_path / "results.jsonl").exists()


def test_a_wrong_address_or_key_is_no_rows_fault(clip, tmp_path):
    manifest, results = write_manifest(tmp_path, clip, ["static"]), tmp_path / "results.jsonl"
    with Client("http://127.0.0.1:9", api_key="rk_secret", max_retries=0) as nobody, pytest.raises(ConnectionFailed):
        nobody.bulk.run(manifest, results)
    with (
        Server(Settings(data=tmp_path / "data")) as server,
        Client(server.url, api_key="rk_wrong") as stranger,
        pytest.raises(AuthenticationError),
    ):
        stranger.bulk.run(manifest, results)
    assert not results.exists()


def test_a_manifest_reads_as_the_cluster_reads_it(tmp_path):
    """The same rows for both: options flat and by section, clips that repeat, outputs left out."""
    from recapture.cluster.bulk.manifest import options_of
    from recapture.cluster.bulk.manifest import read_manifest as read_on_cluster
    from recapture.engine.store.remote_path import AllowedRoots, open_remote_path

    common = {"clip_id": "walk", "input_uri": "walk.mp4"}
    flat, nested = (
        {"temporal_steps": 5, "guidance": 2.0},
        {"tune": {"temporal_steps": 5}, "sample": {"guidance": [1.0, 2.0]}},
    )
    manifest = tmp_path / "clips.jsonl"
    rows = [{**common, "camera": "static", "options": flat}, {**common, "camera": "pan(1deg)", "options": nested}]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    here = read_manifest(manifest)
    there = read_on_cluster(
        open_remote_path(str(manifest), param="m"),
        AllowedRoots([str(tmp_path)]),
        open_remote_path(str(tmp_path), param="o"),
    )
    assert [row.options.temporal_steps for row in here] == [5, 5]
    assert here[0].options.guidance == 2.0
    given = {"tune.temporal_steps": 5, "sample.guidance": (1.0, 2.0)}
    assert [options_of(there.row(index).options) for index in (0, 1)] == [(None, given)] * 2
    targets = [row.target(manifest, tmp_path / "out" / "results.jsonl") for row in here]
    assert len(set(targets)) == 2
    assert {target.parents[1] for target in targets} == {tmp_path / "out" / "clips"}
