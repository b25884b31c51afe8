"""What a server measures of itself, in the words of docs/operations.md, as the text that Prometheus reads.

Labels take few values: a route is its template and not its path, a code one of docs/http.md, a method one that HTTP
knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

TEXT = CONTENT_TYPE_PLAIN_0_0_4
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "other"

# Seconds. A gather takes a GPU 1 ms and a CPU core 10 ms; a stack of 64 takes the core most of a second.
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
GATHERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

STAGES = {"read": "decode"}  # `timings_ms` of the answers says read; the others have one name
WHOLE = "total"  # no stage


class Metrics:
    """The metrics of one application, in a registry of its own: two servers in a process do not add up.

    Counters and histograms may be moved from any thread.
    """

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._registry = own
        self.requests = Counter("seisbind_requests", "Requests answered.", ("method", "route", "status"), registry=own)
        self.request_seconds = Histogram(
            "seisbind_request_seconds",
            "From a request's first byte to its answer's last, seconds.",
            ("route",),
            buckets=SECONDS,
            registry=own,
        )
        self.errors = Counter("seisbind_errors", "Problem documents sent, by their code.", ("code",), registry=own)
        self.in_flight = Gauge("seisbind_requests_in_flight", "Requests begun and not answered.", registry=own)
        self.admitted = Gauge("seisbind_admitted_requests", "Places taken, of SEISBIND_MAX_CONCURRENCY.", registry=own)
        self.arriving = Gauge("seisbind_arriving_bodies", "Bodies on their way, of SEISBIND_MAX_UPLOADS.", registry=own)
        self.streams = Gauge("seisbind_streams", "Streams, of SEISBIND_MAX_STREAMS.", registry=own)
        self.checks = Gauge("seisbind_checks", "Checks that wait or run, of SEISBIND_MAX_CHECKS.", registry=own)
        self.queue_depth = Gauge("seisbind_queue_depth", "Jobs that wait for the model thread.", registry=own)
        self.waiting_gathers = Gauge("seisbind_waiting_gathers", "Gathers that wait for a batch.", registry=own)
        self.received_bytes = Counter("seisbind_received_bytes", "Bytes of request bodies read.", registry=own)
        self.stage_seconds = Histogram(
            "seisbind_stage_seconds",
            "Time in one stage of a request, seconds.",
            ("stage",),
            buckets=SECONDS,
            registry=own,
        )
        self.gathers = Counter("seisbind_gathers", "Gathers answered.", registry=own)
        self.batch_gathers = Histogram(
            "seisbind_batch_gathers", "Gathers encoded in one go.", buckets=GATHERS, registry=own
        )
        self.jobs = Gauge("seisbind_jobs", "Jobs that are kept, by their state.", ("state",), registry=own)
        self.gallery_models = Gauge("seisbind_gallery_models", "Velocity models that are served.", registry=own)
        self.gallery_generation = Gauge(
            "seisbind_gallery_generation", "Changes made to the gallery that is served.", registry=own
        )
        self.search_approximate = Gauge(
            "seisbind_search_approximate", "1 while searches may be approximate.", registry=own
        )
        self.search_recall = Gauge(
            "seisbind_search_recall", "Share of the ten true matches that searches find.", ("of",), registry=own
        )
        self.search_compared = Gauge(
            "seisbind_search_compared", "Live searches that the live recall is of.", registry=own
        )
        self.reload_failures = Counter(
            "seisbind_gallery_reload_failures",
            "Galleries that could not be served in place of the present one, by the fault's code.",
            ("code",),
            registry=own,
        )
        self.reloads = Counter(
            "seisbind_gallery_reloads", "Galleries that were served in place of the one before.", registry=own
        )
        self.search_bytes = Gauge(
            "seisbind_search_device_bytes", "Vectors that a GPU searches, bytes; 0: the CPU searches.", registry=own
        )
        self.search_fall_backs = Counter(
            "seisbind_search_fall_backs",
            "Times that the CPU searched in place of a GPU, by the reason: memory, lost.",
            ("reason",),
            registry=own,
        )
        self.audit_failures = Counter(
            "seisbind_audit_failures", "Audit lines that the file did not take.", registry=own
        )
        self.build = Gauge(
            "seisbind_build_info",
            "1; the labels say what is running.",
            ("version", "weights", "weights_name", "gallery"),
            registry=own,
        )
        ProcessCollector(registry=own)
        self._waiting: set[object] = set()
        self.queue_depth.set_function(lambda: len(self._waiting))

    def describe_build(self, *, version: str, weights: str, weights_name: str, gallery: str) -> None:
        """What is running. ``weights``: their fingerprint; ``gallery``: the name of its folder."""
        self.build.labels(version, weights, weights_name, gallery).set(1)

    def observe_stages(self, timings_ms: Mapping[str, float]) -> None:
        """Stages of a request as its `engine.Stopwatch` has them; its total is none."""
        for stage, ms in timings_ms.items():
            if stage != WHOLE:
                self.stage_seconds.labels(STAGES.get(stage, stage)).observe(ms / 1e3)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Observe the time that the block takes as that of a stage."""
        with self.stage_seconds.labels(name).time():
            yield

    @contextmanager
    def queued(self) -> Iterator[Callable[[], None]]:
        """A job that waits until the given function is called, or until the block ends."""
        ticket = object()
        self._waiting.add(ticket)
        try:
            yield lambda: self._waiting.discard(ticket)
        finally:
            self._waiting.discard(ticket)

    def collect(self) -> Iterator[Metric]:
        """Every metric, without the time at which each series began: it doubles their number, and nothing asks."""
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric

    def text(self) -> bytes:
        """What GET /metrics answers."""
        return text_of(self.collect())


def text_of(metrics: Iterable[Metric]) -> bytes:
    """Metrics as the text that Prometheus reads."""
    return generate_latest(_Collected(metrics))


class _Collected(Collector):
    """What `generate_latest` takes: metrics that were collected already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics
