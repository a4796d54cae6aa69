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
def postgres_server(*, port: int | None = None, password: str = "") -> Iterator[str]:
    """URL of a PostgreSQL server of the test's own, which is gone afterwards.

    Args:
        port: on this machine's address, with a database and a user `recapture` who needs the password; on a socket file
            only, for anybody, if absent.
    """
    binaries = postgres_binaries()
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix="recapture-pg-"))
    account = None
    if os.geteuid() == 0:  # the server refuses to run as root; the Debian package makes this user
        account = "postgres"
        shutil.chown(folder, account)
    data = folder / "data"

    def run(*words: str | Path) -> None:
        output = folder / "output"
        with output.open("w+") as out:  # a pipe would be held open by the server
            told = subprocess.run([*words], user=account, cwd=folder, stdout=out, stderr=out, check=False)
        assert told.returncode == 0, output.read_text()

    try:
        secret = folder / "secret"
        secret.write_text(password or "none")
        owner, auth = ("postgres", "trust") if port is None else ("recapture", "scram-sha-256")
        run(
            binaries / "initdb", "-D", data, "-U", owner, "--auth-local=trust", f"--auth-host={auth}",
            f"--pwfile={secret}", "--no-sync", "--encoding=UTF8",
        )  # fmt: skip
        options = f"-c unix_socket_directories='{folder}' -c fsync=off "
        options += "-c listen_addresses=''" if port is None else f"-c listen_addresses=127.0.0.1 -p {port}"
        control = (binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log")
        run(*control, "-o", options, "start")
        try:
            if port is None:
                yield f"postgresql://postgres@/postgres?host={folder}"
            else:
                run(binaries / "createdb", "-h", folder, "-p", str(port), "-U", owner, "recapture")
                yield f"postgresql://recapture:{password}@127.0.0.1:{port}/recapture"
        finally:
            run(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
