"""`LoadStats`: what a worker did with prefixes, on its way to vLLM's front."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)
from vllm.v1.metrics.utils import create_metric_per_engine

from foreword.engine.protocol import IN_MEMORY, OF_WORKERS, Loads


class LoadStats(KVConnectorStats):  # type: ignore[misc]
    """Figures of `Loads` by name, of one step. All of them add up, over workers and over steps.

    With tensor parallelism each worker counts what it does itself, so that two of them that read one
    prefix have read twice, each its own heads.
    """

    def reset(self) -> None:
        """Begin anew."""
        self.data = dict(vars(Loads()))

    def aggregate(self, other: LoadStats) -> LoadStats:
        """Those of two workers, or of two steps."""
        return LoadStats(dict(vars(Loads(**self.data) + Loads(**other.data))))

    def reduce(self) -> dict[str, int | float]:
        """As vLLM logs them."""
        return {name: round(value, 3) for name, value in self.data.items()}

    def is_empty(self) -> bool:
        """Whether nothing was done."""
        return not any(self.data.values())


class LoadMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """The same figures in the metrics of vLLM's own server.

    Args:
        vllm_config: vLLM's configuration.
        metric_types: vLLM's classes of metrics.
        labelnames: Labels of all of its metrics.
        per_engine_labelvalues: Their values, by engine.
    """

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._figures: dict[str, dict[int, Any]] = {}
        for field, (name, text) in {**IN_MEMORY, **OF_WORKERS}.items():
            shrinks = field.startswith("resident")
            more = {"multiprocess_mode": "sum"} if shrinks else {}
            made = (self._gauge_cls if shrinks else self._counter_cls)(
                name=f"vllm:foreword_{name}", documentation=text, labelnames=labelnames, **more
            )
            self._figures[field] = create_metric_per_engine(made, per_engine_labelvalues)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add what was done in a step."""
        for field, value in transfer_stats_data.items():
            if value:
                self._figures[field][engine_idx].inc(value)
