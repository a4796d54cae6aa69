"""A real service for tests: the app on a real socket, real workers with a small model, a real client."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from recapture.client import Client, Options
from recapture.serve.api.app import create_api
from recapture.serve.database import Database
from recapture.serve.keys import create_key
from recapture.serve.settings import Settings

QUICK = Options(rank=2, spatial_steps=1, temporal_steps=2, sample_steps=1, sdedit_steps=1, overlap=2)
"""A render of seconds."""


class Server:
    """The app behind uvicorn, in a thread of this process, on a port of its own or where an earlier one was."""

    def __init__(self, settings: Settings, *, port: int = 0, **more: Any) -> None:
        self.settings = settings
        self.api = create_api(settings, **more)
        self.socket = socket.create_server(("127.0.0.1", port))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(self.api, log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self.socket],), daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def key(self, tenant: str = "studio") -> str:
        database = Database(self.settings.database_url)
        try:
            return create_key(database, tenant)
        finally:
            database.close()

    def client(self, tenant: str = "studio", **more: Any) -> Client:
        return Client(self.url, api_key=self.key(tenant), **more)


@contextlib.contextmanager
def worker_thread(settings: Settings, *kinds: str) -> Iterator[threading.Event]:
    """A worker in this process; the event stops it."""
    from recapture.serve.jobs.worker import JobWorker

    stop = threading.Event()
    worker = JobWorker(settings, kinds or ("render", "preview", "estimate"), stop=stop)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


def worker_process(settings: Settings, log: Path, *kinds: str) -> subprocess.Popen:
    """A worker as the supervisor starts it."""
    environment = {**os.environ, **settings.variables(), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "recapture.serve.jobs.worker", *(kinds or ("render",))], env=environment, stderr=out
        )
