"""A run's numbers for Prometheus, through Ray: each node's metrics agent exports them."""

from ray.util.metrics import Counter, Gauge

from .driver import Progress
from .outcome import RowResult

NAMES = {
    "recapture_bulk_rows_total": "Rows with a result, by outcome.",
    "recapture_bulk_gpu_seconds_total": "Seconds of work, by stage.",
    "recapture_bulk_cache_hits_total": "Stages that were there already, by stage.",
    "recapture_bulk_retries_total": "Attempts that ended without a result.",
    "recapture_bulk_waits_total": "Times that a worker waited for another's stage.",
    "recapture_bulk_rows_waiting": "Rows that wait.",
    "recapture_bulk_rows_running": "Rows that run.",
    "recapture_bulk_queue_age_seconds": "How long the rows that still wait have waited.",
}
"""Every metric; the dashboard in `deploy/` draws these."""


class BulkMetrics:
    """Kept by the driver, which sees every outcome: workers send nothing."""

    def __init__(self, run: str) -> None:
        tags = {
            "rows_total": ("outcome",),
            "gpu_seconds_total": ("stage",),
            "cache_hits_total": ("stage",),
        }
        self._metrics = {}
        for name, about in NAMES.items():
            short = name.removeprefix("recapture_bulk_")
            # Ray's exporter adds the `_total` of a counter itself.
            kind, base = (Counter, name.removesuffix("_total")) if name.endswith("_total") else (Gauge, name)
            metric = kind(base, description=about, tag_keys=("run", *tags.get(short, ())))
            metric.set_default_tags({"run": run})
            self._metrics[short] = metric
        self._retries = self._waits = 0

    def on_outcome(self, outcome: RowResult, attempts: int) -> None:
        self._metrics["rows_total"].inc(
            1, {"outcome": "ok" if outcome.status == "completed" else str(outcome.error_code)}
        )
        for stage, seconds in outcome.stage_seconds.items():
            if seconds > 0:
                self._metrics["gpu_seconds_total"].inc(seconds, {"stage": stage})
        for stage in outcome.reused:
            self._metrics["cache_hits_total"].inc(1, {"stage": stage})

    def on_heartbeat(self, progress: Progress) -> None:
        self._grow("retries_total", progress.retries - self._retries)
        self._grow("waits_total", progress.waits - self._waits)
        self._retries, self._waits = progress.retries, progress.waits
        self._metrics["rows_waiting"].set(progress.waiting)
        self._metrics["rows_running"].set(progress.running)
        self._metrics["queue_age_seconds"].set(progress.elapsed_s if progress.waiting else 0.0)

    def _grow(self, name: str, by: int) -> None:
        if by > 0:
            self._metrics[name].inc(by)
