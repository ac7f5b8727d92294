"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector

from foreword.engine import EngineClient
from foreword.engine.protocol import IN_MEMORY, OF_WORKERS, Loads
from foreword.serve.registry import Registry

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one server, with a registry of their own.

    Args:
        engine: The engine, whose queue is told.
        registry: Who knows the prefixes.
    """

    def __init__(self, engine: EngineClient, registry: Registry) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "requests", "Requests by prefix and how they ended", ["model", "finish"]
        )
        self.refused = self._counter("refused", "Requests refused because the queue was full", [])
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts", ["model"])
        self.generated_tokens = self._counter("generated_tokens", "Tokens generated", ["model"])
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From the request's arrival to its first token"
        )
        self.between_tokens = self._histogram(
            "time_between_tokens_seconds", "From one token of a request to the next"
        )
        self._gauge("waiting", "Requests without a place", lambda: engine.stats.waiting)
        self._gauge("running", "Requests with a place: the batch", lambda: engine.stats.running)
        self._gauge("steps", "Steps of the engine so far", lambda: engine.stats.steps)
        self._gauge(
            "cache_bytes", "Size of requests' keys and values", lambda: engine.stats.cache_bytes
        )
        self._tell(IN_MEMORY, lambda: registry.loads or engine.stats.loads)
        if engine.stats.loads is not None:
            self._tell(OF_WORKERS, lambda: engine.stats.loads)

    def _tell(
        self, figures: Mapping[str, tuple[str, str]], now: Callable[[], Loads | None]
    ) -> None:
        """Tell figures of what is done with prefixes."""
        for field, (name, text) in figures.items():
            self._gauge(name, text, partial(lambda one: getattr(now() or Loads(), one), field))

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"foreword_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"foreword_{name}", text, registry=self.registry, buckets=SECONDS)

    def _gauge(self, name: str, text: str, value: object) -> Collector:
        gauge = Gauge(f"foreword_{name}", text, registry=self.registry)
        gauge.set_function(value)  # type: ignore[arg-type]
        return gauge

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
