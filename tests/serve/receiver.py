"""A real HTTP receiver on loopback: remembers what came, answers as told."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Came:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Use as a context manager.

    Args:
        answer: status and headers by how many requests came before.
    """

    def __init__(self, answer: Callable[[int], tuple[int, dict[str, str]]] = lambda n: (204, {})) -> None:
        self.came: list[Came] = []
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                told.came.append(Came(self.command, self.path, dict(self.headers.items()), body))
                status, headers = answer(len(told.came) - 1)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD = do_PUT = do_POST  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Receiver":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
