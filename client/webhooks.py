"""Webhooks: what the service sends when a render ends, signed as standardwebhooks.com has it, and how to check it.

>>> event = verify_webhook(request.body, request.headers, "whsec_...")
>>> event.data.id, event.data.status
"""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping

from pydantic import ValidationError

from .errors import ClientError
from .schema import WebhookEvent

SECRET_PREFIX = "whsec_"
TOLERANCE_S = 300.0


class WebhookInvalid(ClientError):
    """The request was not sent by the holder of the secret, or not now: answer it with 400 and do nothing."""


def sign_webhook(secret: str, message: str, timestamp: int, body: bytes) -> str:
    """One signature of the header `webhook-signature`.

    Raises:
        ValueError: the secret is none.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("a webhook's secret is whsec_ and base64") from None
    digest = hmac.digest(key, f"{message}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def verify_webhook(
    body: bytes, headers: Mapping[str, str], secret: str, *, tolerance_s: float = TOLERANCE_S, now: float | None = None
) -> WebhookEvent:
    """What a request of the service says, if it is one.

    A message may arrive twice: `id` is the same then.

    Args:
        body: the request's body as it came, not parsed and written again.
        headers: its headers, by names in any case.
        secret: `whsec_...`, as `recapture keys webhook-secret` printed it.
        tolerance_s: how far its time may be from now, so that a recorded request cannot be sent again later.
        now: Unix seconds; the clock's if absent.

    Raises:
        WebhookInvalid: a header is missing, the time is off, or no signature is right.
        ValueError: the secret is none.
    """
    given = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in ("webhook-id", "webhook-timestamp", "webhook-signature") if name not in given]
    if missing:
        raise WebhookInvalid(f"the header {missing[0]} is missing")
    stamp = given["webhook-timestamp"]
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12):
        raise WebhookInvalid("the header webhook-timestamp is not a time")
    if abs((time.time() if now is None else now) - int(stamp)) > tolerance_s:
        raise WebhookInvalid(f"it was sent more than {tolerance_s:g} s from now")
    right = sign_webhook(secret, given["webhook-id"], int(stamp), body).encode()
    signatures = given["webhook-signature"].encode().split(b" ")
    # All of them, whichever is right: the time this takes shall tell nothing.
    if not sum([hmac.compare_digest(right, signature) for signature in signatures]):
        raise WebhookInvalid("no signature is right")
    try:
        return WebhookEvent.model_validate_json(body).model_copy(update={"id": given["webhook-id"]})
    except ValidationError:
        raise WebhookInvalid("it is signed and says nothing that is known; a newer client may understand it") from None
