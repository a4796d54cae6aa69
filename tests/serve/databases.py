"""The databases that the service runs on: a SQLite file, and a PostgreSQL server of the test's own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BINARIES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


def postgres_binaries() -> Path | None:
    return next((folder for folder in _BINARIES if (folder / "initdb").exists()), None)


@contextmanager
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server that listens on a socket file only and is gone afterwards."""
    binaries = postgres_binaries()
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix="recapture-pg-"))
    user = None
    if os.geteuid() == 0:  # the server refuses to run as root; the Debian package makes this user
        user = "postgres"
        shutil.chown(folder, user)
    data = folder / "data"
    try:
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8"],
            check=True,
            capture_output=True,
            user=user,
            cwd=folder,
        )
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
        control = [binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
        subprocess.run([*control, "-o", options, "start"], check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            subprocess.run(
                [*control, "-m", "immediate", "stop"], check=True, capture_output=True, user=user, cwd=folder
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
