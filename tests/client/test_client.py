"""The client alone: what it loads, what it tries again, and what it does when connections break. Over real sockets."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import recapture.client as client_package
from recapture.client import APIError, Client, ClientError, ConnectionFailed, DownloadDamaged, Render
from recapture.client.connection import next_poll_s
from recapture.client.errors import Conflict, RateLimited
from recapture.client.retries import LONGEST_RETRY_AFTER_S, pause_s

from .unasync_client import CLIENT, made

RENDER = {
    "id": "rnd_1",
    "status": "completed",
    "progress": 1,
    "revision": 3,
    "created_at": 1,
    "attempt": 1,
    "input": "upl_1",
    "camera": "static",
    "seed": 0,
    "model": "tiny",
    "config_digest": "0",
    "usage": {"compute_seconds": 1, "gpu_seconds": 0},
}


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, recapture, recapture.client; recapture.Client; "
        "heavy = {'torch', 'ray', 'numpy', 'av', 'fastapi', 'sqlalchemy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_are_these():
    assert client_package.__all__ == [
        "APIError",
        "AsyncClient",
        "CameraFile",
        "Client",
        "ClientError",
        "ConnectionFailed",
        "DownloadDamaged",
        "Estimate",
        "EstimateCreate",
        "Options",
        "Preview",
        "PreviewCreate",
        "Render",
        "RenderCreate",
        "RenderFailed",
        "Upload",
        "WaitTimeout",
        "WebhookEvent",
        "WebhookInvalid",
        "verify_webhook",
    ]


class Scripted:
    """A server that answers as told, one reply a request, and remembers what it was asked."""

    def __init__(self, *replies: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        script = iter(replies)
        told = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                told.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
                self.rfile.read(int(self.headers.get("content-length", 0)))
                next(script)(self)

            do_POST = do_DELETE = do_PATCH = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def scripted(monkeypatch) -> Iterator[Callable[..., tuple[Client, Scripted, list[float]]]]:
    """A client on a scripted server, and the pauses that it made: they are noted, not sat through."""
    pauses: list[float] = []
    monkeypatch.setattr("recapture.client.synchronous.sleep", pauses.append)
    servers, clients = [], []

    def start(*replies: Callable[[BaseHTTPRequestHandler], None]) -> tuple[Client, Scripted, list[float]]:
        servers.append(Scripted(*replies))
        clients.append(Client(servers[-1].url, api_key="rk_secret"))
        return clients[-1], servers[-1], pauses

    yield start
    for client in clients:
        client.close()
    for server in servers:
        server.close()


def reply(status: int, body: object = None, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return send


def refusal(status: int, code: str = "c", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    error = {"type": "t", "code": code, "message": "no", "param": None, "request_id": "req_1"}
    return reply(status, {"error": error}, **headers)


def cut(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.close()


def test_a_call_is_tried_again_under_one_key(scripted):
    client, server, pauses = scripted(cut, refusal(503), reply(202, RENDER))
    assert client.renders.create("upl_" + "0" * 24, "static").id == "rnd_1"
    assert len({headers["idempotency-key"] for _, _, headers in server.asked}) == 1
    assert len(server.asked) == 3
    assert 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1.0


def test_two_retries_and_no_more(scripted):
    client, server, _ = scripted(*[refusal(500)] * 4)
    with pytest.raises(APIError) as failed:
        client.renders.retrieve("rnd_1")
    assert len(server.asked) == 3
    assert (failed.value.status, failed.value.request_id) == (500, "req_1")


def test_what_trying_again_cannot_help_is_raised_at_once(scripted):
    client, server, pauses = scripted(refusal(409, "idempotency_conflict"))
    with pytest.raises(Conflict) as conflict:
        client.renders.create("upl_" + "0" * 24, "static")
    assert conflict.value.code == "idempotency_conflict"
    assert (len(server.asked), pauses) == (1, [])


def test_retry_after_is_done_up_to_two_minutes(scripted):
    client, server, pauses = scripted(refusal(429, Retry_After="7"), reply(200, RENDER))
    client.renders.retrieve("rnd_1")
    assert pauses == [7.0]
    client, server, pauses = scripted(refusal(429, Retry_After="121"))
    with pytest.raises(RateLimited) as limited:
        client.renders.retrieve("rnd_1")
    assert limited.value.retry_after_s > LONGEST_RETRY_AFTER_S
    assert len(server.asked) == 1


def test_a_delete_whose_answer_was_lost_has_happened(scripted):
    client, server, _ = scripted(cut, refusal(404))
    client.renders.delete("rnd_1")
    assert [method for method, _, _ in server.asked] == ["DELETE", "DELETE"]


def test_pauses_double_to_eight_seconds_and_are_drawn():
    lost = ConnectionFailed("x")
    assert [pause_s(lost, n, 9, draw=lambda: 1.0) for n in range(7)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert [pause_s(lost, n, 9, draw=lambda: 0.0) for n in range(2)] == [0.25, 0.5]
    assert pause_s(lost, 5000, 9999, draw=lambda: 1.0) == 8
    assert pause_s(lost, 2) is None
    assert pause_s(ClientError("x"), 0) is None


def test_polls_slow_down_to_five_seconds_however_long_it_takes():
    assert next_poll_s(0) == 0.2
    assert 4 < next_poll_s(12) < next_poll_s(13) == next_poll_s(10**6) == 5


def test_no_answer_at_all():
    nobody = Client("http://127.0.0.1:9", api_key="rk_secret", max_retries=0)
    with nobody as client, pytest.raises(ConnectionFailed, match="no answer"):
        client.models()


def test_an_answer_from_something_in_between(scripted):
    client, _, _ = scripted(reply(418, b"<html>teapot</html>"))
    with pytest.raises(APIError) as failed:
        client.models()
    assert (failed.value.status, failed.value.code) == (418, "unknown")


def test_keys_are_in_no_repr(monkeypatch):
    client = Client("http://127.0.0.1:1", api_key="rk_secret")
    for thing in (client, client.renders, client._headers, client.__dict__):
        assert "rk_secret" not in repr(thing)
    monkeypatch.delenv("RECAPTURE_API_KEY", raising=False)
    monkeypatch.delenv("RECAPTURE_URL", raising=False)
    for url, key in ((None, "k"), ("http://x", None), ("ftp://x", "k"), ("x", "k"), ("http://x", "k\ny")):
        with pytest.raises(ClientError):
            Client(url, api_key=key)


DATA = bytes(range(256)) * 64


def part(start: int, length: int, whole: int | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer that promises everything from `start` on, and breaks off after `length` bytes."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        body = DATA[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:length])
        handler.wfile.flush()
        if length < len(body):
            cut(handler)

    return send


def completed(data: bytes = DATA) -> dict[str, Any]:
    content = {"bytes": len(DATA), "sha256": hashlib.sha256(data).hexdigest(), "content_type": "video/mp4"}
    return {**RENDER, "content": {"video": content}}


def test_a_download_goes_on_where_it_broke_off(scripted, tmp_path):
    target = tmp_path / "out" / "video.mp4"
    client, server, _ = scripted(reply(200, completed()), part(0, 5000), part(5000, 3000), part(8000, 10**9))
    assert client.renders.download("rnd_1", target) == target
    assert target.read_bytes() == DATA
    assert [headers.get("range") for _, _, headers in server.asked] == [None, None, "bytes=5000-", "bytes=8000-"]
    assert server.asked[-1][2]["if-range"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
    assert [path.name for path in target.parent.iterdir()] == ["video.mp4"]


def test_a_part_of_an_earlier_process_is_taken_up(scripted, tmp_path):
    target = tmp_path / "video.mp4"
    (tmp_path / "video.mp4.part").write_bytes(DATA[:4096])
    client, server, _ = scripted(reply(200, completed()), part(4096, 10**9))
    client.renders.download(Render.model_validate(completed()), target)
    assert target.read_bytes() == DATA
    assert server.asked[1][2]["range"] == "bytes=4096-"


def test_damaged_bytes_never_get_the_files_name(scripted, tmp_path):
    target = tmp_path / "video.mp4"
    client, server, _ = scripted(reply(200, completed(b"other")), part(0, 10**9), part(0, 10**9))
    with pytest.raises(DownloadDamaged):
        client.renders.download("rnd_1", target)
    assert list(tmp_path.iterdir()) == []
    assert len(server.asked) == 3


def test_the_waiting_client_is_the_awaited_one():
    assert (CLIENT / "synchronous.py").read_text() == made(), "run `make client`"
