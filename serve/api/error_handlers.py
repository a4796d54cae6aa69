"""Errors as callers see them: one envelope, a status by kind, never a trace."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from ...engine.config import OPTIONS
from ...engine.errors import InputError, RecaptureError
from ..jobs.jobs import IdempotencyConflict, QueueFull
from ..uploads.uploads import TooLarge, UploadConflict

RETRY_AFTER_S = 5


class Missing(RecaptureError):
    """It does not exist, or belongs to another tenant: callers cannot tell which."""

    code = "not_found"


class NotNow(RecaptureError):
    """The state of the thing does not allow it."""

    code = "not_completed"


class Busy(RecaptureError):
    """It was not done in the time that a request may take."""

    code = "busy"


_STATUS: dict[type[RecaptureError], int] = {
    Missing: 404,
    IdempotencyConflict: 409,
    UploadConflict: 409,
    NotNow: 409,
    TooLarge: 413,
    InputError: 422,
    QueueFull: 429,
    Busy: 503,
    RecaptureError: 500,
}
"""By class; the first that an error is an instance of counts."""

_TYPES = {401: "authentication_error", 404: "not_found_error", 409: "conflict_error", 429: "rate_limit_error"}
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    416: "range_not_satisfiable",
}


def envelope(
    request_id: str,
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"type": kind, "code": code, "message": message, "param": param, "request_id": request_id}
    more = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else {}
    return JSONResponse({"error": error}, status_code=status, headers={**more, **(headers or {})})


def request_field(name: str) -> str:
    """The request's name for an engine parameter; other parameters keep their name."""
    option = OPTIONS.get(name)
    if option is not None and option.request:
        return f"options.{option.request_name}"
    return {"video": "input"}.get(name, name)


def status_of(error: RecaptureError) -> int:
    return next(status for kind, status in _STATUS.items() if isinstance(error, kind))


def add_handlers(app: FastAPI) -> None:
    """Let the app answer every error that routes raise in the envelope."""

    @app.exception_handler(RecaptureError)
    async def ours(request: Request, error: RecaptureError) -> Response:
        message, param = error.spelled(request_field)
        return envelope(request.state.id, status_of(error), error.code, message, param)

    @app.exception_handler(RequestValidationError)
    async def refused(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return envelope(request.state.id, 422, "invalid_request", _sentence(first), _param(first))

    @app.exception_handler(HTTPException)
    async def by_status(request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "error")
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the router names the methods of the first route of this path alone
            headers["Allow"] = ", ".join(sorted(_methods(request)))
        return envelope(request.state.id, error.status_code, code, str(error.detail), headers=headers)


def _methods(request: Request) -> set[str]:
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE]
    return set().union(*(getattr(route, "methods", None) or () for route in routes))


def _sentence(problem: dict[str, Any]) -> str:
    # Only what was wrong, never the value: it may be long, or a secret in the wrong field.
    return str(problem["msg"])


def _param(problem: dict[str, Any]) -> str | None:
    where = [str(part) for part in problem["loc"] if part not in ("body", "query", "path", "header")]
    return ".".join(where) or None
