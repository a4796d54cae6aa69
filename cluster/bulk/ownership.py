"""Ownership of an output: one driver at a time, identified by a fence that grows with every owner.

Object stores have no portable put-if-absent, so nothing here is a lock. An owner signs `<out>/owner.json` again and again;
a driver that wants the output watches whether the signature changes (which needs no common clock), and raises the fence to
take over.
A driver that was taken over notices at its next signature, and whatever it wrote since then does not count: the new owner
seals the shards of those before it (see `results.py`).
"""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...engine.errors import OutputError, RecaptureError
from ...engine.store.remote_path import RemotePath

HEARTBEAT_S = 5.0
"""Between two signatures of an owner."""

_SILENCE = 4
"""Signatures missed by an owner that is taken for dead."""


class OwnershipError(RecaptureError):
    """Another driver writes to this output, or has taken it over."""

    code = "output_in_use"
    exit_code = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The content of `owner.json`.

    Attributes:
        fence: larger than that of every owner before.
        sealed: by the fence of each owner before, the number of its last shard that counts.
        beats: grows with every signature.
        released: the owner has ended and said so.
    """

    driver: str
    fence: int
    host: str
    pid: int
    sealed: dict[int, int] = field(default_factory=dict)
    beats: int = 0
    released: bool = False

    @property
    def surely_dead(self) -> bool:
        """It ran on this machine, and its process is gone."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _is_zombie(self.pid)


class Ownership:
    """Held by a driver from `claim` to `release`."""

    def __init__(self, place: RemotePath, owner: Owner, before: Owner | None) -> None:
        self._place, self.owner, self.before = place, owner, before

    @classmethod
    def claim(
        cls,
        out: RemotePath,
        last_numbers: Callable[[], dict[int, int]],
        *,
        takeover: bool,
        beat_s: float = HEARTBEAT_S,
        on_wait: Callable[[str], None] = lambda sentence: None,
    ) -> "Ownership":
        """Become the owner of an output.

        Args:
            last_numbers: lists the shards that there are, by fence; asked after nobody else may add to them.
            takeover: do not check whether the present owner is alive.
            on_wait: called when the present owner must be watched for a while.

        Raises:
            OwnershipError: another driver is alive on it.
            OutputError: the output does not answer.
        """
        place = out / "owner.json"
        before = read_owner(out)
        if before is not None and not (takeover or before.released or before.surely_dead):
            on_wait(f"watching whether the driver on {before.host} (process {before.pid}) still writes to {out}")
            deadline = time.monotonic() + _SILENCE * beat_s
            while time.monotonic() < deadline:
                time.sleep(beat_s / 4)
                now = read_owner(out)
                if now is None or now.released or now.fence != before.fence:
                    break
                if now.beats != before.beats:
                    raise OwnershipError(
                        f"a driver on {now.host} (process {now.pid}) writes to {out}; wait for it, stop it, or take "
                        "over with `takeover`",
                        param="out",
                    )
            before = read_owner(out)
        fence = 1 + max([before.fence if before else 0, *last_numbers()])
        me = Owner(driver=secrets.token_hex(8), fence=fence, host=socket.gethostname(), pid=os.getpid())
        me = replace(me, sealed={} if before is None else before.sealed)
        place.write(_text(me))
        # Only now: the one before may have written a shard until it could see this signature.
        newest = {number: last for number, last in last_numbers().items() if number < fence and number not in me.sealed}
        me = replace(me, sealed={**me.sealed, **newest})
        place.write(_text(me))
        mine = cls(place, me, before)
        mine.check()
        return mine

    def renew(self) -> None:
        """Show that this driver lives.

        Raises:
            OwnershipError: another has taken over.
            OutputError: the output does not answer.
        """
        self.check()
        self.owner = replace(self.owner, beats=self.owner.beats + 1)
        self._place.write(_text(self.owner))

    def check(self) -> None:
        """Raises OwnershipError when another driver has taken over, OutputError when the output does not answer."""
        now = _read(self._place)
        if now is not None and now.driver != self.owner.driver and now.fence >= self.owner.fence:
            raise OwnershipError(
                f"the driver on {now.host} (process {now.pid}) has taken over {str(self._place).rpartition('/')[0]}",
                param="out",
                code="taken_over",
            )

    def release(self) -> None:
        """Say that this driver has ended, unless another has taken over.

        Where the output does not answer nothing is said: the next driver then watches it for a while.
        """
        with contextlib.suppress(OwnershipError, OutputError):
            self.check()
            self._place.write(_text(replace(self.owner, released=True)))


def read_owner(out: RemotePath) -> Owner | None:
    """The present or last owner of an output, or None. Raises OutputError like `check`."""
    return _read(out / "owner.json")


def _read(place: RemotePath) -> Owner | None:
    try:
        return _parse(place.read())
    except OSError as error:
        raise OutputError(f"cannot read {place}: {error.strerror or error}", param="out") from error


def _text(owner: Owner) -> bytes:
    return json.dumps(asdict(owner), indent=1).encode()


def _parse(data: bytes | None) -> Owner | None:
    try:
        values: dict[str, Any] = json.loads(data or b"")
        return Owner(**{**values, "sealed": {int(fence): last for fence, last in values["sealed"].items()}})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # nothing, or a signature that broke off


def _is_zombie(pid: int) -> bool:
    """Dead, but not yet collected by its parent."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
