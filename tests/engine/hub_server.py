"""A hub on this machine: the part of its protocol that downloads use, over directories of real models.

As the real one does, it answers a large file's address with its sha256 and a redirect to another host, names each
commit, serves ranges, and says by `X-Error-Code` what it refuses.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(kw_only=True)
class Repository:
    """A directory under a hub name.

    Attributes:
        gated: files need this token.
        card: its card's metadata.
        claimed: sizes that the hub says instead of the true ones.
        damaged: files whose content is not what their sha256 says.
    """

    folder: Path
    commit: str = COMMIT
    gated: str | None = None
    card: dict[str, str] = field(default_factory=lambda: {"license": "apache-2.0"})
    claimed: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)

    def files(self) -> dict[str, Path]:
        return {str(p.relative_to(self.folder)): p for p in sorted(self.folder.rglob("*")) if p.is_file()}


class HubServer:
    """Serves repositories while entered.

    Attributes:
        cut_after: the connection of the next large file breaks once, after so many bytes.
        requests: (method, path, Range header) of every request, in order.
    """

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.cut_after: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fetched(self) -> list[tuple[str, str | None]]:
        """Name and Range header of each large file's GET, in order."""
        return [(path.rpartition("/")[2], part) for method, path, part in self.requests if "/cdn/" in path]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers["Range"]))
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            return self._about("/".join(parts[2:4]))
        if parts[0] == "cdn":
            repository, name = self.hub.repositories["/".join(parts[1:3])], "/".join(parts[3:])
            return self._content(repository, name)
        repository, name = self.hub.repositories.get("/".join(parts[:2])), "/".join(parts[4:])
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        if repository.gated and self.headers["Authorization"] != f"Bearer {repository.gated}":
            return self._refuse(403 if self.headers["Authorization"] else 401, "GatedRepo")
        if name not in repository.files():
            return self._refuse(404, "EntryNotFound")
        return self._resolve(repository, name, "/".join(parts[:2]))

    def _about(self, repo_id: str) -> None:
        repository = self.hub.repositories.get(repo_id)
        if repository is None:  # as the real one: without a token it does not say that there is none
            return self._refuse(404 if self.headers["Authorization"] else 401, "RepoNotFound")
        about = {
            "id": repo_id,
            "sha": repository.commit,
            "gated": "auto" if repository.gated else False,
            "cardData": repository.card,
            "siblings": [{"rfilename": name} for name in repository.files()],
        }
        self._send(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repository: Repository, name: str, repo_id: str) -> None:
        content = repository.files()[name].read_bytes()
        headers = {"X-Repo-Commit": repository.commit}
        if name.endswith(".safetensors"):
            size = repository.claimed.get(name, len(content))
            linked = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(size)}
            where = {"Location": f"http://localhost:{self.hub.port}/cdn/{repo_id}/{name}"}
            return self._send(302, b"", {**headers, **linked, **where})
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return self._send(200, content, {**headers, "ETag": f'"{blob}"'})

    def _content(self, repository: Repository, name: str) -> None:
        content = repository.files()[name].read_bytes()
        if name in repository.damaged:
            content = bytes(len(content))
        part = self.headers["Range"]
        begin = int(part.removeprefix("bytes=").partition("-")[0]) if part else 0
        headers = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if part else {}
        cut, self.hub.cut_after = self.hub.cut_after, None
        self._send(206 if part else 200, content[begin:], headers, cut=cut)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True
