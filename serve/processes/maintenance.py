"""Maintenance: delivers webhooks and removes unused uploads and records. `python -m recapture.serve.processes.maintenance`.

It is a process of its own, so its outgoing calls delay no request and no render. Several may run.
"""

import asyncio
import signal
import threading
import time
from collections.abc import Callable

import httpx2

from ..jobs.jobs import Jobs
from ..logs import get_logger, set_up_logs
from ..safe_http import AddressRefused, Outbound
from ..settings import Settings
from ..uploads.uploads import Uploads
from ..webhooks import Message, Messages

_IDLE_S, _TIDY_EVERY_S = 0.5, 60.0
_AT_ONCE = 16
_TRY_S = 15.0
"""A receiver answers within this, or is tried again."""

log = get_logger("maintenance")


class Maintenance:
    """Returns from `run` when `stop` is set.

    Args:
        clock: Unix seconds, by which messages are due.
        outbound: where messages may go; by the settings if absent.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        stop: threading.Event | None = None,
        clock: Callable[[], float] = time.time,
        outbound: Outbound | None = None,
    ) -> None:
        self.settings, self.stop = settings, stop or threading.Event()
        database = settings.open_database()
        self.messages, self.uploads = Messages(database, clock=clock), Uploads(database, settings)
        self.jobs = Jobs(database, clock=clock)
        self.outbound = outbound or settings.outbound()
        self._serving: set[str] = set()

    def run(self) -> None:
        asyncio.run(self._run())

    async def deliver_due(self) -> int:
        """Try every message that is due once; returns how many were tried."""
        tried = 0
        while (message := await asyncio.to_thread(self.messages.take)) is not None:
            await self._deliver(message)
            tried += 1
        return tried

    async def _run(self) -> None:
        log.info("keeper_ready")
        tasks: set[asyncio.Task[None]] = set()
        tidied_at = -_TIDY_EVERY_S
        while not self.stop.is_set():
            if time.monotonic() - tidied_at >= _TIDY_EVERY_S:
                tidied_at = time.monotonic()
                await asyncio.to_thread(self._tidy)
            message = None
            if len(tasks) < _AT_ONCE:
                try:
                    message = await asyncio.to_thread(self.messages.take, not_of=set(self._serving))
                except Exception:  # the database is away: nothing is lost
                    log.exception("keeper_broke")
            if message is None:
                await asyncio.sleep(_IDLE_S)
                continue
            self._serving.add(message.tenant)  # one of a tenant at a time
            task = asyncio.create_task(self._deliver(message))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)  # each ends within its time
        log.info("keeper_ended")

    async def _deliver(self, message: Message) -> None:
        told = log.bind(message=message.id, tenant=message.tenant, attempt=message.tries)
        try:
            headers = await asyncio.to_thread(self.messages.headers, message)
            why, for_good = "", False
            try:
                status = await self.outbound.post(message.url, message.body.encode(), headers, timeout_s=_TRY_S)
                if not 200 <= status < 300:
                    # 410 is how a receiver says that it wants no more.
                    why, for_good = f"the receiver answered {status}", status == 410
            except AddressRefused as error:
                why = error.message
            except TimeoutError:
                why = f"the receiver did not answer within {_TRY_S:g} s"
            except (httpx2.HTTPError, OSError, ValueError) as error:
                why = f"the receiver could not be reached ({type(error).__name__})"
            if not why:
                await asyncio.to_thread(self.messages.delivered, message)
                told.info("webhook_delivered")
                return
            again_in_s = await asyncio.to_thread(self.messages.failed, message, why, for_good=for_good)
            told.warning("webhook_failed", why=why, again_in_s=again_in_s)
        except Exception:  # what is held comes up again
            told.exception("keeper_broke")
        finally:
            self._serving.discard(message.tenant)

    def _tidy(self) -> None:
        try:
            self.messages.tidy()
            self.jobs.expire_overdue()
            if removed := self.jobs.remove_unclaimed():
                log.info("jobs_removed", count=removed)
            if removed := self.uploads.remove_unfinished() + self.uploads.remove_unused():
                log.info("uploads_removed", count=removed)
        except Exception:
            log.exception("keeper_broke")


def main() -> None:
    """Run until SIGTERM."""
    settings = Settings.of_process()
    set_up_logs()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Maintenance(settings, stop=stop).run()


if __name__ == "__main__":
    main()
