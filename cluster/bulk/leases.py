"""Leases as a plain state machine: at most one live holder per key, and a fence that only grows."""

from dataclasses import dataclass


@dataclass(slots=True)
class _Lease:
    holder: str
    fence: int
    until_s: float


class Leases:
    """Leases by key. Time is the caller's, in seconds, and never runs back.

    Args:
        ttl_s: a holder that was not heard of for this long has lost all its leases.
    """

    def __init__(self, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self._leases: dict[str, _Lease] = {}
        self._fence = 0

    def acquire(self, key: str, holder: str, now_s: float) -> int | None:
        """The fence of a new lease, or of the holder's own; None while another holder has the lease."""
        lease = self._leases.get(key)
        if lease is not None and lease.until_s > now_s:
            if lease.holder != holder:
                return None
            lease.until_s = now_s + self.ttl_s
            return lease.fence
        self._fence += 1
        self._leases[key] = _Lease(holder, self._fence, now_s + self.ttl_s)
        return self._fence

    def release(self, key: str, fence: int) -> bool:
        """End a lease. A fence that is no longer the key's changes nothing."""
        lease = self._leases.get(key)
        if lease is None or lease.fence != fence:
            return False
        del self._leases[key]
        return True

    def renew(self, holder: str, now_s: float) -> None:
        """The holder lives: all leases that it still has run on."""
        for lease in self._leases.values():
            if lease.holder == holder and lease.until_s > now_s:
                lease.until_s = now_s + self.ttl_s

    def drop(self, holder: str) -> list[str]:
        """The holder is dead; the keys that it held."""
        held = [key for key, lease in self._leases.items() if lease.holder == holder]
        for key in held:
            del self._leases[key]
        return held

    def holder(self, key: str, now_s: float) -> str | None:
        lease = self._leases.get(key)
        return lease.holder if lease is not None and lease.until_s > now_s else None
