"""What the waiting client does differently from the awaited one."""

import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from .bulk import Bulk

if TYPE_CHECKING:
    from .synchronous import Client

_P = ParamSpec("_P")
_T = TypeVar("_T")

sleep = time.sleep


def in_thread(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call it here: nothing else waits."""
    return call(*args, **kwargs)


class OnlyHere:
    """Verbs of this client alone: a bulk run has threads of its own."""

    @cached_property
    def bulk(self) -> Bulk:
        """Many clips by a manifest."""
        return Bulk(cast("Client", self))
