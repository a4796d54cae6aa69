"""What can go wrong, as a tree.

ClientError
├── ConnectionFailed    no answer, after all retries
├── APIError            the service refused: `status`, `type`, `code`, `message`, `param`, `request_id`
│   ├── AuthenticationError   401
│   ├── NotFound              404, also for what belongs to somebody else
│   ├── Conflict              409: another request under this idempotency key, a state that does not allow it
│   ├── InvalidRequest        any other 4xx
│   ├── RateLimited           429, after all retries
│   └── ServerError           5xx, after all retries
├── UploadFailed        the service got the clip and cannot use it: `problem`
├── RenderFailed        the render that was waited for ended otherwise than completed: `render`
├── WaitTimeout         it did not end in time; it goes on
├── DownloadDamaged     what arrived is not what was published
└── WebhookInvalid      a webhook that the service did not send, or not now (webhooks.py)
"""

from __future__ import annotations

import email.utils
import time
from typing import TYPE_CHECKING

import httpx2
from pydantic import ValidationError

from .schema import ErrorBody, Problem, Render, Upload

if TYPE_CHECKING:
    from collections.abc import Mapping


class ClientError(Exception):
    """Base of all; `message` is one sentence."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConnectionFailed(ClientError):
    pass


class WaitTimeout(ClientError):
    pass


class DownloadDamaged(ClientError):
    pass


class UploadFailed(ClientError):
    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.problem = upload.error or Problem(code="invalid_video", message="the clip cannot be used")
        super().__init__(self.problem.message)


class RenderFailed(ClientError):
    def __init__(self, render: Render) -> None:
        self.render = render
        why = f": {render.error.message}" if render.error else ""
        super().__init__(f"{render.id} is {render.status}{why}")


class APIError(ClientError):
    """An answer of the service that is an error."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str,
        code: str,
        param: str | None,
        request_id: str | None,
        retry_after_s: float | None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.code, self.param, self.request_id = status, type, code, param, request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        where = f"{self.param}: " if self.param else ""
        return f"{where}{self.message} ({self.status} {self.code}, request {self.request_id})"


class InvalidRequest(APIError):
    pass


class AuthenticationError(APIError):
    pass


class NotFound(APIError):
    pass


class Conflict(APIError):
    pass


class RateLimited(APIError):
    pass


class ServerError(APIError):
    pass


_BY_STATUS = {401: AuthenticationError, 404: NotFound, 409: Conflict, 429: RateLimited}


def error_of(response: httpx2.Response) -> APIError:
    """The error that a read response is, also where something between answers in a form that is not ours."""
    status = response.status_code
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else InvalidRequest)
    retry_after_s = _retry_after_s(response.headers)
    request_id = response.headers.get("x-request-id")
    try:
        detail = ErrorBody.model_validate_json(response.content).error
    except ValidationError:
        return kind(
            f"the answer was {status} {response.reason_phrase}",
            status=status,
            type="unknown",
            code="unknown",
            param=None,
            request_id=request_id,
            retry_after_s=retry_after_s,
        )
    return kind(
        detail.message,
        status=status,
        type=detail.type,
        code=detail.code,
        param=detail.param,
        request_id=detail.request_id,
        retry_after_s=retry_after_s,
    )


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, given as a number or as a date; None where there is none that can be read."""
    text = headers.get("retry-after", "")
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
