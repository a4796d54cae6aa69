"""Middleware for every request: an id, a key, a limit on the body, a line in the log. Only listed paths are open."""

import secrets
import time

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..database import Database
from ..keys import KeyInfo, check_key
from ..logs import get_logger
from ..metrics import Metrics
from .error_handlers import envelope
from .routes_page import FILES

OPEN = frozenset({"/healthz", "/readyz", *FILES})
"""Paths that need no key: health, and the page, which holds no tenant data."""

MOST_JSON_BYTES = 8 << 20
"""Limit for requests other than upload parts; a camera file of 3000 frames fits."""

log = get_logger("http")


class Guard:
    """The outermost layer of the app.

    `request.state.id` and, behind a key, `request.state.key` are what routes get from it.
    """

    def __init__(self, app: ASGIApp, *, database: Database, metrics: Metrics, open_paths: frozenset[str]) -> None:
        self.app, self.database, self.metrics, self.open_paths = app, database, metrics, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            return
        request = _Request(scope, send, self.metrics)
        try:
            if scope["path"] not in self.open_paths:
                key = await run_in_threadpool(check_key, self.database, _bearer(Headers(scope=scope)))
                if key is None:
                    wanted = {"WWW-Authenticate": "Bearer"}
                    refusal = envelope(
                        request.id,
                        401,
                        "invalid_api_key",
                        "give a valid API key as `Authorization: Bearer rk_...`",
                        headers=wanted,
                    )
                    await refusal(scope, receive, request.send)
                    return
                scope["state"]["key"] = request.key = key
            await self.app(scope, _capped(scope, receive), request.send)
        except Exception:
            log.exception("request_broke", request_id=request.id)
            if not request.status:
                broken = envelope(request.id, 500, "internal", "the service failed; its log has the reason")
                await broken(scope, receive, request.send)
        finally:
            request.end()


class _Request:
    """One request on its way: what the log will say of it."""

    def __init__(self, scope: Scope, send: Send, metrics: Metrics) -> None:
        self.id = f"req_{secrets.token_hex(12)}"
        self.key: KeyInfo | None = None
        self.status = 0
        self._scope, self._send, self._metrics, self._began = scope, send, metrics, time.monotonic()
        scope["state"] = {**scope.get("state", {}), "id": self.id}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            headers["X-Content-Type-Options"] = "nosniff"
            headers.setdefault("Cache-Control", "no-store")
        await self._send(message)

    def end(self) -> None:
        seconds = time.monotonic() - self._began
        route = getattr(self._scope.get("route"), "path", "none")  # the pattern: ids would make a series each
        method = self._scope["method"]
        self._metrics.seen(method, route, self.status, seconds)
        log.info(
            "request",
            request_id=self.id,
            method=method,
            path=self._scope["path"],
            status=self.status,
            seconds=round(seconds, 4),
            tenant=self.key and self.key.tenant,
            key=self.key and self.key.id,
        )


def _bearer(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _capped(scope: Scope, receive: Receive) -> Receive:
    """`receive` that ends a body that is too long; parts of uploads are counted where they are written."""
    if scope["method"] == "PATCH":
        return receive
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MOST_JSON_BYTES:
            raise HTTPException(413, f"at most {MOST_JSON_BYTES} bytes are accepted")
        return message

    return counted
