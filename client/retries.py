"""When a call is made again, and after how long."""

import random
from collections.abc import Callable

from .errors import APIError, ClientError, ConnectionFailed

MAX_RETRIES = 2
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
LONGEST_RETRY_AFTER_S = 120.0
RETRIED = frozenset({408, 429, 500, 502, 503, 504})


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
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**retries) * (0.5 + 0.5 * draw())
