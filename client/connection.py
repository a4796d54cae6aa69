"""What both clients know of the connection: where to, as whom, how patiently."""

import os
from urllib.parse import urlsplit

import httpx2

from .errors import ClientError

URL_VARIABLE = "RECAPTURE_URL"
KEY_VARIABLE = "RECAPTURE_API_KEY"
DEFAULT_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
"""The longest that the service is silent: previews and estimates wait for their first depth."""


class Headers(dict[str, str]):
    """Request headers that can be printed: the key is not in their repr."""

    def __repr__(self) -> str:
        return f"Headers({sorted(self)})"


def settings(base_url: str | None, api_key: str | None) -> tuple[str, Headers]:
    """The address without a slash at its end, and the headers of every request.

    Raises:
        ClientError: not given and not in the environment, or no http(s) address.
    """
    url = (base_url or os.environ.get(URL_VARIABLE, "")).rstrip("/")
    key = api_key or os.environ.get(KEY_VARIABLE, "")
    if not url:
        raise ClientError(f"give the address of the service, or set {URL_VARIABLE}")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClientError("the address of the service must begin with http:// or https://")
    if not key:
        raise ClientError(f"give an API key, or set {KEY_VARIABLE}")
    if not key.isascii() or not key.isprintable():
        raise ClientError("the API key holds characters that no key has")
    return url, Headers({"Authorization": f"Bearer {key}", "User-Agent": "recapture-client"})


def next_poll_s(polls: int) -> float:
    """Seconds between two looks at a render that is waited for: short at first, for renders that are."""
    return min(5.0, 0.2 * 1.3 ** min(polls, 13))  # bounded: a float ends after 2706 polls, four hours
