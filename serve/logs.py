"""Logs: one JSON document a line on standard error, with ids, without secrets."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRETS = re.compile(
    r"rk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}"  # our keys
    r"|whsec_[A-Za-z0-9+/=]+"
    r"|(?<=[Bb]earer )\S+"
    r"|(?<=//)[^/@\s]+(?=@)"  # user:password@ of an address
    r"|(?<=[?&])(?:X-Amz-[A-Za-z-]+|[Ss]ignature|[Ss]ig|[Tt]oken|[Kk]ey)=[^&\s\"']+"  # of a signed address
)
_SECRET_NAMES = ("authorization", "cookie", "api_key", "password", "secret", "token")


def redacted(value: Any) -> Any:
    """The value without what looks like a secret, at any depth."""
    if isinstance(value, str):
        return _SECRETS.sub("[redacted]", value)
    if isinstance(value, dict):
        return {k: "[redacted]" if str(k).lower() in _SECRET_NAMES else redacted(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value


def _redact(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return redacted(dict(event))


class _Redacting(logging.Formatter):
    """For the lines of libraries: uvicorn's errors, a driver's warnings."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def set_up_logs() -> None:
    """Send our lines and the libraries' to standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacting('{"level": "%(levelname)s", "logger": "%(name)s", "event": %(message)r}'))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def get_logger(part: str) -> Any:
    """A logger whose lines say which part of the service speaks."""
    return structlog.get_logger(part=part)
