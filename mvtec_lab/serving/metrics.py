"""Count what a service does, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)  # a small network on one image, to a queue at its limit


class Metrics:
    """Hold the counters of one service; nothing of the process around it."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time, open files; on Linux
        self.requests = Counter(
            "mvtec_lab_requests",
            "Requests for a prediction, by the status of their answer",
            ["status"],
            registry=registry,
        )
        self.images = Counter("mvtec_lab_images", "Judged images by their decision", ["decision"], registry=registry)
        self.inside = Gauge("mvtec_lab_images_inside", "Images that wait or are judged", registry=registry)
        self.seconds = Histogram(
            "mvtec_lab_request_seconds",
            "From a request's first byte to its answer, of those that were judged",
            buckets=SECONDS,
            registry=registry,
        )
        self.model_seconds = Histogram(
            "mvtec_lab_model_seconds", "What the model takes for an image", buckets=SECONDS, registry=registry
        )

    def text(self) -> bytes:
        """Return all of them in Prometheus's text format."""
        return generate_latest(self.registry)

    def count(self, name: str) -> dict[str, int]:
        """Return the totals of ``requests`` or ``images`` by their label."""
        (family,) = getattr(self, name).collect()
        return {
            next(iter(sample.labels.values())): int(sample.value)
            for sample in family.samples
            if sample.name.endswith("_total")
        }
