"""When a call is made again, and after how long."""

import random
from collections.abc import Callable

from .errors import APIError, ClientError, ConnectionFailed, NotFound

MAX_RETRIES = 2
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
LONGEST_RETRY_AFTER_S = 120.0
RETRIED = frozenset({408, 429, 500, 502, 503, 504})
MAX_CONFLICTS = 10
"""Times in a row that somebody else may be sending a part of the same upload which does not grow: most of a minute."""


def backoff_s(tries: int, *, longest_s: float = LONGEST_PAUSE_S, draw: Callable[[], float] = random.random) -> float:
    """Seconds after so many tries: doubling from 0.5 s to the longest, drawn from the upper half."""
    return min(longest_s, FIRST_PAUSE_S * 2.0 ** min(tries, 30)) * (0.5 + 0.5 * draw())


def pause_s(
    failure: ClientError, retries: int, most: int = MAX_RETRIES, draw: Callable[[], float] = random.random
) -> float | None:
    """Seconds to wait before the next try; None when there shall be none.

    Args:
        retries: how many there were already.
        draw: uniform in [0, 1): many clients that failed together must not come back together.

    The pause doubles from 0.5 to 8 s and is drawn from its upper half. What the service asks for in Retry-After is
    done, unless that is over two minutes: then the caller should know rather than sit.
    """
    if retries >= most:
        return None
    asked = None
    if isinstance(failure, APIError):
        if failure.status not in RETRIED:
            return None
        asked = failure.retry_after_s
    elif not isinstance(failure, ConnectionFailed):
        return None
    if asked is not None:
        return asked if asked <= LONGEST_RETRY_AFTER_S else None
    return backoff_s(retries, draw=draw)


def part_pause_s(failure: ClientError, lost: int, most: int = MAX_RETRIES) -> float | None:
    """Seconds before looking again at an upload whose part was not taken; None when it shall be given up.

    Args:
        lost: parts before this one that brought the upload no further.

    In a conflict another process sends the same clip: its part has to arrive first.
    """
    if isinstance(failure, APIError) and failure.code == "upload_conflict":
        return None if lost >= MAX_CONFLICTS else backoff_s(lost)
    return None if lost >= most or isinstance(failure, NotFound) else 0.0
