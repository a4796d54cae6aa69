"""Numbers for a scraper: names end in their unit, labels have few values."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .jobs.jobs import Jobs
from .jobs.worker_registry import WorkerRegistry
from .webhooks import Messages


class Metrics:
    """The service's numbers; those of the queue are read from the database when they are asked for."""

    def __init__(self, jobs: Jobs, workers: WorkerRegistry, messages: Messages) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "recapture_http_requests_total", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "recapture_http_request_duration_seconds",
            "From the first byte in to the last byte out.",
            ["route"],
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
        )
        self.uploaded = Counter("recapture_upload_bytes_total", "Bytes of clips that arrived.", registry=self.registry)
        self.registry.register(_Queue(jobs, workers, messages))

    def seen(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Queue(Collector):
    def __init__(self, jobs: Jobs, workers: WorkerRegistry, messages: Messages) -> None:
        self.jobs, self.workers, self.messages = jobs, workers, messages

    def collect(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily("recapture_jobs", "Jobs on record.", labels=["kind", "status"])
        for (kind, status), count in self.jobs.counts().items():
            jobs.add_metric([kind, status], count)
        yield jobs
        yield GaugeMetricFamily(
            "recapture_queue_oldest_seconds", "How long the first in the queue has waited.", self.jobs.oldest_queued_s()
        )
        webhooks = GaugeMetricFamily("recapture_webhooks", "Webhooks on record.", labels=["status"])
        for status, count in self.messages.counts().items():
            webhooks.add_metric([status], count)
        yield webhooks
        yield GaugeMetricFamily("recapture_workers", "Workers that live.", len(self.workers.live()))

    def describe(self) -> Iterable[Metric]:
        return []  # registering must not need the database
