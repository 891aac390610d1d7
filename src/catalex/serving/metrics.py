"""What Prometheus reads at ``/metrics``. Labels are route templates and statuses: never a caller's values."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper bounds in seconds, from a GPU's batch to the time limit."""


class Metrics:
    """Of one service; a registry of its own, so that several services can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("catalex_requests", "Requests answered.", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "catalex_request_seconds", "Time to answer.", ["route"], buckets=LATENCIES, registry=own
        )
        self.refused = Counter("catalex_refused", "Requests refused by a guard.", ["guard"], registry=own)
        self.at_work = Gauge("catalex_requests_at_work", "Requests at work or waiting.", registry=own)
        self.items = Gauge("catalex_items", "Items that can be recommended.", registry=own)
        self.revision = Gauge("catalex_catalogue_revision", "Changes of the catalogue so far.", registry=own)
        self.batches = Gauge("catalex_batches", "Batches searched by the present model.", registry=own)
        self.model = Gauge("catalex_model", "1 for the bundle that is served.", ["bundle"], registry=own)
        self.silence = Gauge(
            "catalex_store_silence_seconds", "Since the store answered last; 0 while it does.", registry=own
        )
        self.ready = Gauge("catalex_ready", "Whether the service takes requests.", registry=own)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
