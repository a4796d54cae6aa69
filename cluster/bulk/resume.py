"""`recapture bulk`, without the terminal: read the manifest, own the output, find out what is finished, run the rest."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at import, which no checker sees.

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...engine.errors import InputError
from ...engine.store.references import References
from ...engine.store.remote_path import RemotePath
from .driver import Driver, Policy, Progress
from .manifest import Manifest
from .outcome import RowResult
from .ownership import Ownership, read_owner
from .pool import Pool
from .results import Results, Scan

_NAMED = 10
"""Rows that a refusal names."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    """How to treat rows of an earlier run.

    Attributes:
        takeover: do not check whether another driver is alive on the output.
        upgrade: redo rows that another pipeline made.
        retry_failed: retry failed rows.
    """

    takeover: bool = False
    upgrade: bool = False
    retry_failed: bool = False


class UpgradeError(InputError):
    """The output was made by another pipeline; `rows` would be done again."""

    code = "pipeline_changed"

    def __init__(self, rows: list[str], clips: list[str]) -> None:
        named = ", ".join(clips[:_NAMED]) + (f" and {len(clips) - _NAMED} more" if len(clips) > _NAMED else "")
        super().__init__(
            f"this output was made by another version of the code or the model; {len(rows)} finished rows would be "
            f"done again (clips {named}); say so with `upgrade`, or choose another output",
            param="out",
        )
        self.rows = rows


def run_manifest(
    manifest: Manifest,
    out: RemotePath,
    policy: Policy,
    make_pool: Callable[[str], Pool],
    *,
    pipeline: str,
    resume: Resume | None = None,
    stages: RemotePath | None = None,
    facts: dict[str, Any] | None = None,
    on_wait: Callable[[str], None] = lambda sentence: None,
    on_outcome: Callable[[RowResult, int], None] = lambda outcome, attempts: None,
    on_heartbeat: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Run a manifest into an output, from wherever an earlier run stopped.

    Args:
        make_pool: the workers of a driver, by the driver's name; called when there is something for them to do.
        stages: the stage store, where runs say what they still need.
        facts: additional content of `run.json`.

    Raises:
        OwnershipError: another driver is alive on the output.
        UpgradeError: the output was made by another pipeline.
        Cancelled, WorkersError, OutputError: see `Driver.run`.
    """
    resume = resume or Resume()
    results = Results(out)
    owned = Ownership.claim(out, results.last_numbers, takeover=resume.takeover, beat_s=policy.beat_s, on_wait=on_wait)
    try:
        scan, first_shard = _resume(results, owned, pipeline, resume)
        (out / "run.json").write(
            json.dumps(
                {
                    "schema": "recapture.bulk.run",
                    "version": 1,
                    "pipeline": pipeline,
                    "rows": len(manifest),
                    "manifest": manifest.digest,
                    "driver": owned.owner.driver,
                    **(facts or {}),
                },
                indent=1,
            ).encode()
        )
        if stages is not None and owned.before is not None:
            References(stages, owned.before.driver).drop()  # it is dead, or was taken over
        pool = make_pool(owned.owner.driver)
    except BaseException:
        owned.release()
        raise
    driver = Driver(
        manifest,
        out,
        owned,
        pool,
        policy,
        pipeline=pipeline,
        scan=scan,
        first_shard=first_shard,
        references=None if stages is None else References(stages, owned.owner.driver),
        on_outcome=on_outcome,
        on_heartbeat=on_heartbeat,
    )
    return driver.run()


def scan_output(out: RemotePath) -> Scan:
    """The current content of an output, also while a run writes to it."""
    owner = read_owner(out)
    return Results(out).scan({} if owner is None else owner.sealed, 0 if owner is None else owner.fence)


def _resume(results: Results, owned: Ownership, pipeline: str, resume: Resume) -> tuple[Scan, int]:
    """Take out what is to be done again; what stays, and the next shard's number."""
    sealed, fence = owned.owner.sealed, owned.owner.fence
    scan = results.scan(sealed, fence)
    results.tidy(scan)
    if set(scan.pipelines) - {pipeline} and not resume.upgrade:
        table = results.table(scan)
        others = table.filter(
            pc.and_(pc.not_equal(table["pipeline"], pipeline), pc.equal(table["status"], "completed"))
        )
        if others.num_rows:
            raise UpgradeError(others["row_id"].to_pylist(), sorted(set(others["clip_id"].to_pylist())))
    redo = {"not_admitted"} | ({"failed"} if resume.retry_failed else set())
    changed = bool(set(scan.pipelines) - {pipeline})
    number = 1
    if changed or redo & set(scan.status.values()):

        def is_dropped(table: pa.Table) -> Any:
            mask = pc.is_in(table["status"], value_set=pa.array(sorted(redo), pa.string()))
            return pc.or_(mask, pc.not_equal(table["pipeline"], pipeline)) if changed else mask

        number = results.drop(scan, fence, number, is_dropped)
        scan = results.scan(sealed, fence)
    return scan, number
