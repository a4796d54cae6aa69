"""`recapture bulk`, `recapture submit` and `recapture jobs`: many clips, many paths, many machines."""

import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..engine.config import OPTIONS, Quality
from .clip import Device
from .options import RENDER_OPTIONS, by_path, spelling, takes
from .output import Json, emit

if TYPE_CHECKING:
    from ..cluster.bulk.driver import Progress
    from ..cluster.bulk.price import Price
    from ..cluster.jobs import JobStatus


@dataclass(kw_only=True)
class Rows:
    """What `bulk` and `submit` do with which rows."""

    manifest: Annotated[
        str,
        typer.Argument(
            help="Rows as .parquet, .csv or .jsonl: a path, s3:// or gs://.", metavar="MANIFEST", show_default=False
        ),
    ]
    out: Annotated[str, typer.Option(help="Folder or s3://, gs:// for results and bundles.", show_default=False)]
    concurrency: Annotated[
        int | None, typer.Option(help="Workers.", show_default="one per GPU; without GPUs one per CPU")
    ] = None
    device: Device = "auto"
    quality: Annotated[Quality, typer.Option(help="Of rows whose options name none.")] = "standard"
    keep: Annotated[
        Literal["results", "adapters", "all"],
        typer.Option(help="Of a finished clip: results; also the tuned adapters, in each bundle; also every stage."),
    ] = "results"
    allow_root: Annotated[
        list[str] | None,
        typer.Option(help="Rows may name what lies below this; repeat it.", show_default="the manifest's folder"),
    ] = None
    store: Annotated[
        str | None,
        typer.Option(
            "--store", help="Stage store of all workers.", show_default="OUT/stages", envvar="RECAPTURE_BULK_STORE"
        ),
    ] = None
    max_gpu_hours: Annotated[
        float | None, typer.Option(help="Admit no further row beyond this; exit code 3.", show_default=False)
    ] = None
    attempts: Annotated[
        int, typer.Option(help="Workers that a row may lose before that is its error.", min=1, max=100)
    ] = 3
    takeover: Annotated[bool, typer.Option("--takeover", help="Do not ask whether another driver is alive on OUT.")] = (
        False
    )
    upgrade: Annotated[bool, typer.Option("--upgrade", help="Render rows again that another version made.")] = False
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Render rows again that failed.")] = False

    def words(self) -> list[str]:
        """Words of `recapture bulk` that say the same, but for MANIFEST and OUT."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        said = []
        for name, value in given.items():
            if name in ("manifest", "out"):
                continue
            values = value if isinstance(value, list) else [] if value in (None, False) else [value]
            said += [
                word for one in values for word in ([spelling(name)] if one is True else [spelling(name), str(one)])
            ]
        return said


@takes(*RENDER_OPTIONS)
def bulk(
    rows: Rows,
    options: dict[str, Any],
    cluster: Annotated[
        str | None, typer.Option(help="local, auto, or HOST:PORT of a Ray cluster.", show_default="local")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Price what is left of MANIFEST; run nothing.")] = False,
    usd_per_gpu_hour: Annotated[float | None, typer.Option(help="For --dry-run.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Render every row of MANIFEST. Interrupted or killed, the same command resumes.

    Exit codes: 0 all rows well, 1 the run failed, 2 usage or a bad manifest, 3 some rows failed or were not admitted,
    130 interrupted.
    """
    from .clip import silence_libraries

    silence_libraries()
    from ..cluster.bulk.engine_row_renderer import RowDefaults
    from ..cluster.bulk.ray_entrypoint import BulkRun, price_bulk, run_bulk
    from ..cluster.bulk.resume import Resume
    from ..engine.geometry.depth_models import find_depth_model

    given = by_path(options)
    asked = BulkRun(
        manifest=rows.manifest,
        out=rows.out,
        cluster=cluster,
        concurrency=rows.concurrency,
        model=given.pop("model", "tiny"),
        device=rows.device,
        keep=rows.keep,
        allow_roots=tuple(rows.allow_root or ()),
        store=rows.store,
        max_gpu_hours=rows.max_gpu_hours,
        attempts=rows.attempts,
        defaults=RowDefaults(quality=rows.quality, options=given),
        resume=Resume(takeover=rows.takeover, upgrade=rows.upgrade, retry_failed=rows.retry_failed),
    )
    if dry_run:
        _print_price(price_bulk(asked, usd_per_gpu_hour=usd_per_gpu_hour), as_json=as_json)
        return
    display = _Lines(quiet=as_json)
    display.say(find_depth_model("auto").sentence)
    progress = run_bulk(asked, on_wait=display.say, on_heartbeat=display.on_heartbeat)
    if as_json:
        from dataclasses import asdict

        emit(asdict(progress))
    else:
        typer.echo(_line(progress))
        typer.echo(f"results    {rows.out.partition('?')[0].rstrip('/')}/results")
    if progress.exit_code:
        raise typer.Exit(progress.exit_code)


class _Lines:
    """Progress as lines on standard error: every few seconds on a terminal, every minute in a log."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._every_s = quiet, 5.0 if sys.stderr.isatty() else 60.0
        self._said_at = float("-inf")

    def say(self, sentence: str) -> None:
        if not self._quiet:
            typer.echo(sentence, err=True)

    def on_heartbeat(self, progress: "Progress") -> None:
        if time.monotonic() - self._said_at >= self._every_s or progress.state != "running":
            self._said_at = time.monotonic()
            self.say(_line(progress))


def _line(progress: "Progress") -> str:
    done = ", ".join(f"{count} {status}" for status, count in sorted(progress.rows.items())) or "none yet"
    reused = sum(progress.stages_reused.values())
    return (
        f"rows       {done} of {progress.total}; {progress.running} running on {progress.workers} workers; "
        f"{progress.gpu_seconds / 3600:.3f} GPU hours, {reused} stages reused, {progress.retries} retries"
    )


def _print_price(price: "Price", *, as_json: bool) -> None:
    if as_json:
        emit(price.to_json())
        return
    from .store import size_text

    def size_or_unknown(count: int | None) -> str:
        return "not known before a row is finished" if count is None else size_text(count)

    usd = "" if price.usd is None else f", {price.usd:.2f} USD"
    typer.echo(f"rows       {price.rows} to do of {price.clips} clips, {price.finished} finished")
    typer.echo(f"time       {price.gpu_hours:.3f} GPU hours{usd}; {price.hours:.3f} hours on {price.workers} workers")
    typer.echo(f"bundles    {size_or_unknown(price.output_bytes)}")
    typer.echo(
        f"stages     {size_or_unknown(price.stage_bytes_per_clip)} a clip while it is worked on, after it with --keep all"
    )
    typer.echo(f"from       {price.basis}")


Address = Annotated[
    str,
    typer.Option(
        help="Dashboard of the cluster's head, http://HEAD:8265.", envvar="RECAPTURE_RAY_ADDRESS", show_default=False
    ),
]
JobId = Annotated[str, typer.Argument(help="As `submit` printed it.", metavar="JOB", show_default=False)]

jobs = typer.Typer(help="Bulk runs that were submitted to a cluster.", no_args_is_help=True)


@takes(*RENDER_OPTIONS)
def submit(
    rows: Rows,
    options: dict[str, Any],
    address: Address,
    wheel: Annotated[
        Path | None, typer.Option(help="This project's wheel.", show_default="built from this tree")
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Send no wheel: the cluster's image has recapture installed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send `recapture bulk MANIFEST` to a cluster as a Ray job; a local MANIFEST travels along with the clips beside it."""
    import tempfile

    from ..cluster.jobs import RayJobs, build_wheel

    words = rows.words() + [
        word for path, value in by_path(options).items() for word in OPTIONS[path].words(value) or ()
    ]
    cluster = RayJobs(address)
    with tempfile.TemporaryDirectory() as folder:
        packed = None if installed else (wheel or build_wheel(Path(folder)))
        job_id = cluster.submit(rows.manifest, words, out=rows.out, wheel=packed)
    if as_json:
        emit({"job_id": job_id})
        return
    typer.echo(f"job        {job_id}")
    typer.echo(f"follow     recapture jobs status {job_id} --address {address}")


@jobs.command("status")
def status(job: JobId, address: Address, as_json: Json = False) -> None:
    """Where a job and its rows stand."""
    from dataclasses import asdict

    from ..cluster.jobs import RayJobs

    found = RayJobs(address).status(job)
    if as_json:
        emit(asdict(found))
        return
    typer.echo(_job_line(found))
    if found.progress is not None:
        from ..cluster.bulk.driver import Progress

        typer.echo(_line(Progress(**found.progress)))
    if found.status == "FAILED" and found.exit_code != 3:
        typer.echo(f"message    {found.message}")


@jobs.command("logs")
def logs(
    job: JobId, address: Address, follow: Annotated[bool, typer.Option("--follow", help="Until the job ends.")] = False
) -> None:
    """What a job printed."""
    import asyncio

    from ..cluster.jobs import RayJobs

    cluster = RayJobs(address)
    if not follow:
        typer.echo(cluster.logs(job), nl=False)
        return

    async def print_all() -> None:
        async for part in cluster.follow(job):
            typer.echo(part, nl=False)

    cluster.status(job)
    asyncio.run(print_all())


@jobs.command("stop")
def stop(job: JobId, address: Address) -> None:
    """End a job; submitting the same again goes on where it was."""
    from ..cluster.jobs import RayJobs

    RayJobs(address).stop(job)


@jobs.command("list")
def list_jobs(address: Address, as_json: Json = False) -> None:
    """The cluster's bulk runs, newest first."""
    from dataclasses import asdict

    from ..cluster.jobs import RayJobs

    found = RayJobs(address).list()
    if as_json:
        emit([asdict(job) for job in found])
        return
    for job in found:
        typer.echo(_job_line(job))


def _job_line(job: "JobStatus") -> str:
    code = "" if job.exit_code is None else f" (exit code {job.exit_code})"
    return f"{job.job_id}  {job.status.lower()}{code}  {job.out}"
