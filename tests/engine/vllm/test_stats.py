"""What workers tell of their prefixes on its way to the server's metrics: `make test-vllm`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

from foreword.engine import Stats
from foreword.engine.protocol import Loads
from foreword.engine.vllm.connector import ForewordPrefixes
from foreword.engine.vllm.runtime import AsyncRuntime
from foreword.engine.vllm.stats import LoadStats

ONE = Loads(1, 100, 2, 1, 0, 300, 0.25, 0.5)


def test_two_workers_add_up_and_a_step_of_nothing_is_empty() -> None:
    one, other = LoadStats(dict(vars(ONE))), LoadStats({"failures": 1, "resident": -1})
    both = one.aggregate(other)
    assert both.to_dict() == dict(vars(replace(ONE, resident=0, failures=1)))
    assert (one.is_empty(), LoadStats().is_empty()) == (False, True)
    assert both.reduce()["write_seconds"] == 0.5
    both.reset()
    assert both.is_empty()


def test_vllm_sums_what_its_workers_tell() -> None:
    """Tensor parallel: each rank counts its own."""
    told = [LoadStats(dict(vars(ONE))), None, LoadStats(dict(vars(ONE)))]
    outputs = [
        ModelRunnerOutput([], {}, kv_connector_output=KVConnectorOutput(kv_connector_stats=one))
        for one in told
    ]
    found = KVOutputAggregator(3).aggregate(outputs)
    assert found is not None
    assert found.kv_connector_output.kv_connector_stats.data == dict(vars(ONE + ONE))


def test_what_came_from_another_process_is_read_again() -> None:
    made = ForewordPrefixes.build_kv_connector_stats(dict(vars(ONE)))
    assert isinstance(made, LoadStats)
    assert made.data == dict(vars(ONE))


def test_the_runtime_sums_what_steps_told() -> None:
    runtime = AsyncRuntime.__new__(AsyncRuntime)
    runtime._last, runtime._steps, runtime._loads, runtime._bytes = None, 0, Loads(), 1000
    assert runtime.stats == Stats(0, 0, 0, 0, Loads())
    for told in (dict(vars(ONE)), None, {"hits": 3, "resident": -1, "resident_bytes": -100}):
        runtime.note(SchedulerStats(num_running_reqs=1, kv_connector_stats=told))
    assert runtime.stats == Stats(0, 1, 3, 0, Loads(0, 0, 5, 1, 0, 300, 0.25, 0.5))


def test_vllms_own_server_tells_them_by_engine() -> None:
    registry = CollectorRegistry()
    kinds = {kind: partial(kind, registry=registry) for kind in (Gauge, Counter, Histogram)}
    config = SimpleNamespace(kv_transfer_config=None)
    engines = {0: ["m", "0"], 1: ["m", "1"]}
    made = ForewordPrefixes.build_prom_metrics(config, kinds, ["model_name", "engine"], engines)
    for told in (dict(vars(ONE)), {"resident": -1, "hits": 3, "misses": 0}):
        made.observe(told, 1)

    def told_of(name: str, engine: str) -> float | None:
        return registry.get_sample_value(name, {"model_name": "m", "engine": engine})

    assert told_of("vllm:foreword_resident_prefixes", "1") == 0
    assert told_of("vllm:foreword_prefix_hits_total", "1") == 5
    assert told_of("vllm:foreword_prefix_hits_total", "0") == 0
    assert told_of("vllm:foreword_prefix_misses_total", "1") == 1
    assert told_of("vllm:foreword_prefix_write_seconds_total", "1") == 0.5


def test_vllm_asks_the_connector_by_these_names() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    for name in ("get_kv_connector_stats", "build_kv_connector_stats", "build_prom_metrics"):
        assert hasattr(KVConnectorBase_V1, name)
        assert name in vars(ForewordPrefixes)
    assert "kv_connector_stats" in SchedulerStats.__dataclass_fields__
