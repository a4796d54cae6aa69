"""`recapture serve`: starts the service's processes on this machine, starts again what ends, stops all of it in order."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence

from ...client.retries import backoff_s
from ...engine.errors import RecaptureError
from ..logs import get_logger
from ..settings import Settings

PROCESSES: Mapping[str, Sequence[str]] = {
    "ingress": ("recapture.serve.processes.ingress",),
    "renderer": ("recapture.serve.jobs.worker", "render"),
    # Apart from the renderer, so that interactive previews never queue behind renders.
    "previewer": ("recapture.serve.jobs.worker", "preview", "estimate"),
    "maintenance": ("recapture.serve.processes.maintenance",),
}

_LOOK_EVERY_S = 0.2
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0
"""A process that lived for so long is taken for sound: when it ends it is started again at once."""
_STOP_S = 30.0

log = get_logger("supervisor")


class Child:
    """One process, and when it may be started again."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name, self._command, self._environment = name, command, environment
        self.process: subprocess.Popen[bytes] | None = None
        self._began, self._early_ends, self._not_before = 0.0, 0, 0.0

    def look(self) -> None:
        """Start it if it does not run, later each time that it ends soon."""
        now = time.monotonic()
        if self.process is not None and (code := self.process.poll()) is not None:
            steady = now - self._began > _STEADY_S
            self._early_ends = 0 if steady else self._early_ends + 1
            self._not_before = now if steady else now + backoff_s(self._early_ends, longest_s=_LONGEST_PAUSE_S)
            self.process = None
            log.warning("process_ended", process=self.name, code=code, again_in_s=round(self._not_before - now, 1))
        if self.process is None and now >= self._not_before:
            # A session of its own: Ctrl-C on the terminal is for the supervisor, which ends the others in order.
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self._command], env=dict(self._environment), start_new_session=True
            )
            self._began = now
            log.info("process_started", process=self.name, pid=self.process.pid)


class Supervisor:
    """The service on this machine, until `stop` is set."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.stop = settings, threading.Event()
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **settings.variables()}
        self.children = [Child(name, command, environment) for name, command in PROCESSES.items()]

    @property
    def url(self) -> str:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self.settings.port}"

    def run(self, on_up: Callable[[], None], *, start_within_s: float = 120.0) -> None:
        """Run until `stop`, SIGINT or SIGTERM, then return when all processes have ended.

        Args:
            on_up: called once, when the ingress answers.

        Raises:
            RecaptureError: it does not answer in time.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.stop.set())
        told, until = False, time.monotonic() + start_within_s
        try:
            while not self.stop.is_set():
                for child in self.children:
                    child.look()
                if not told and self._answers():
                    told = True
                    on_up()
                if not told and time.monotonic() > until:
                    raise RecaptureError(f"the service does not answer at {self.url}; its log says why", param="port")
                self.stop.wait(_LOOK_EVERY_S)
        finally:
            self._end()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _end(self) -> None:
        """Workers give their jobs back within a step; what does not end in time is killed, and loses a lease's time."""
        running = [child.process for child in self.children if child.process is not None]
        for process in running:
            process.terminate()
        until = time.monotonic() + _STOP_S
        for process in running:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
