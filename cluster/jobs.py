"""Bulk runs as Ray jobs: the driver runs on the cluster, and its progress and results are read from outside."""

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from ..engine.errors import ClusterError, InputError
from ..engine.store.remote_path import open_remote_path
from .bulk.travel import pack


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A job and its run.

    Attributes:
        status: Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED.
        out: the run's output, without its store's options.
        exit_code: of the command, once it has ended.
        progress: what the driver wrote last, None where it cannot be read from here.
    """

    job_id: str
    status: str
    message: str
    out: str
    exit_code: int | None
    progress: dict[str, Any] | None


class RayJobs:
    """A cluster's jobs.

    Args:
        address: of the head's dashboard, `http://HEAD:8265`.

    Raises:
        ClusterError: the dashboard does not answer, or wants another token.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise InputError(f"{address!r} is not of the form http://HEAD:8265", param="address")
        self._address, found = address, token()
        with self._errors():
            self._client = JobSubmissionClient(
                address, headers=None if found is None else {"Authorization": f"Bearer {found}"}
            )

    def submit(self, manifest: str, options: list[str], *, out: str, wheel: Path | None) -> str:
        """Send a bulk run; returns the job's id.

        Args:
            manifest: a URI that the cluster reads, or a file of this machine, which is sent along with the clips and camera
                files that it names relative to itself.
            options: words of `recapture bulk` after the manifest and `--out`.
            wheel: of this project; None where the cluster's image has it installed.

        Raises:
            InputError: the manifest is not there, names files that are not, or is too large to send with them; an address
                holds credentials; `out` is relative.
        """
        if "://" not in out and not os.path.isabs(out):
            raise InputError(
                f"{out} would be lost with the job's folder; give s3://, gs://, or a path that all machines share",
                param="out",
            )
        if any(re.search("//[^/@]*:[^/@]*@", word) for word in (manifest, out, *options)):
            raise InputError(
                "an address with credentials would stand in the job's command line, which all who may list jobs can "
                "read; give the store's keys to the cluster's machines (AWS_ACCESS_KEY_ID and its like)"
            )
        with tempfile.TemporaryDirectory() as folder:
            runtime_env: dict[str, Any] = {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}}
            if "://" not in manifest:
                manifest, with_files = pack(Path(manifest), Path(folder, "job"))
                if with_files and "--allow-root" in options:
                    options = [*options, "--allow-root", "."]  # what came along lies where the job starts
                runtime_env["working_dir"] = str(Path(folder, "job"))
            if wheel is not None:
                runtime_env["py_modules"] = [str(wheel)]
            words = [
                "python",
                "-m",
                "recapture",
                "bulk",
                manifest,
                "--out",
                out,
                "--cluster",
                "auto",
                *options,
            ]
            with self._errors():
                return self._client.submit_job(
                    entrypoint=shlex.join(words),
                    submission_id=f"recapture-{secrets.token_hex(5)}",
                    runtime_env=runtime_env,
                    metadata={"recapture": "bulk", "out": out.partition("?")[0]},
                )

    def status(self, job_id: str) -> JobStatus:
        """Raises InputError: no such job."""
        with self._errors(job_id):
            return _status(self._client.get_job_info(job_id))

    def list(self) -> list[JobStatus]:
        """The bulk runs among the cluster's jobs, newest first."""
        with self._errors():
            found = [job for job in self._client.list_jobs() if (job.metadata or {}).get("recapture") == "bulk"]
        return [_status(job) for job in sorted(found, key=lambda job: -(job.start_time or 0))]

    def logs(self, job_id: str) -> str:
        """The job's output so far."""
        with self._errors(job_id):
            return self._client.get_job_logs(job_id)

    def follow(self, job_id: str) -> AsyncIterator[str]:
        """The job's output, line by line until it ends."""
        return self._client.tail_job_logs(job_id)

    def stop(self, job_id: str) -> None:
        """Ask the job to end: its driver records finished rows, and submitting again resumes."""
        with self._errors(job_id):
            self._client.stop_job(job_id)

    @contextmanager
    def _errors(self, job_id: str | None = None) -> Iterator[None]:
        try:
            yield
        except AuthenticationError:
            raise ClusterError(
                f"{self._address} wants a token, or another one; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file",
                param="address",
                code="unauthorized",
            ) from None
        except ConnectionError as error:
            raise ClusterError(f"no answer from {self._address} ({error})", param="address") from None
        except RuntimeError as error:
            if job_id is not None and "404" in str(error):
                raise InputError(f"{self._address} has no job {job_id!r}", param="job") from None
            raise ClusterError(f"{self._address} refused: {_first_line(error)}", param="address") from None


def token() -> str | None:
    """The cluster's token, from where Ray itself looks for it."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else None


def build_wheel(folder: Path) -> Path:
    """This project's wheel, built from the tree that runs now.

    Raises:
        InputError: it does not run from a tree.
    """
    tree = Path(__file__).resolve().parents[1]
    if not (tree / "pyproject.toml").is_file():
        raise InputError(
            "this installation is not a source tree, so no wheel can be built; give `wheel`, or `installed` "
            "where the cluster's image has recapture",
            param="wheel",
        )
    copy = folder / "tree"  # setuptools leaves its build folder in the tree that it builds
    shutil.copytree(
        tree, copy, symlinks=True, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "tests")
    )
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, copy],
        capture_output=True,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise InputError(f"the wheel cannot be built: {done.stderr.strip()[-300:]}", param="wheel")
    return wheels[0]


def _status(job: JobDetails) -> JobStatus:
    out = (job.metadata or {}).get("out", "")
    return JobStatus(
        job_id=str(job.submission_id),
        status=str(job.status.value),
        message=_first_line(job.message or ""),
        out=out,
        exit_code=job.driver_exit_code,
        progress=_progress(out),
    )


def _progress(out: str) -> dict[str, Any] | None:
    try:
        return json.loads((open_remote_path(out, param="out") / "progress.json").read() or b"")
    except (OSError, ValueError, InputError):
        return None


def _first_line(text: object) -> str:
    return re.split(r"[\r\n]", str(text).strip())[0][:300]
