"""The names and signatures of vLLM that the connector uses: what to look at when vLLM moves on."""

from __future__ import annotations

import inspect
import os

import pytest

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from vllm.config import KVTransferConfig, ModelConfig, ParallelConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1 import base
from vllm.model_executor.layers.attention import Attention
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from foreword.engine.vllm import connector, requests
from foreword.engine.vllm.plugin import register


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    "name",
    [
        "on_new_request",
        "get_num_new_matched_tokens",
        "update_state_after_alloc",
        "build_connector_meta",
        "request_finished",
        "register_kv_caches",
        "start_load_kv",
        "wait_for_layer_load",
        "save_kv_layer",
        "wait_for_save",
        "get_transfer_results",
        "get_block_ids_with_load_errors",
    ],
)
def test_the_connector_overrides_what_vllm_calls(name) -> None:
    theirs = getattr(base.KVConnectorBase_V1, name)
    assert parameters(getattr(connector.ForewordPrefixes, name)) == parameters(theirs)


def test_nothing_of_vllms_is_overridden_by_accident() -> None:
    own = {name for name in vars(connector.ForewordPrefixes) if not name.startswith("__")}
    private = {name for name in own if name.startswith("_")} - {"_abc_impl"}
    assert not {name for name in private if hasattr(base.KVConnectorBase_V1, name)}
    assert not connector.ForewordPrefixes.__abstractmethods__
    assert parameters(base.KVConnectorBase_V1.__init__)[1:] == [
        "vllm_config",
        "role",
        "kv_cache_config",
    ]


def test_a_transfer_that_failed_fails_its_request() -> None:
    """The two ways in which the connector lets a request fail."""
    results = base.KVConnectorTransferResults(finished_recving={"a"}, failed_recving={"a"})
    assert results.failed_recving == {"a"}
    assert {"failed_recving", "invalid_block_ids"} <= set(KVConnectorOutput.__dataclass_fields__)
    assert parameters(Scheduler._handle_failed_recving) == ["self", "failed_req_ids"]
    assert parameters(Scheduler._handle_invalid_blocks)[:2] == ["self", "invalid_block_ids"]


def test_a_request_has_what_the_connector_reads_and_sets() -> None:
    sampling = SamplingParams(extra_args={"kv_transfer_params": {"prefix": 1}}, prompt_logprobs=1)
    made = Request("a", [1, 2], sampling, None, cache_salt="salt")
    assert made.kv_transfer_params == {"prefix": 1}
    assert made.skip_reading_prefix_cache is True
    assert made.block_hashes == []
    made.update_block_hashes()
    assert (made.cache_salt, made.prompt_token_ids) == ("salt", [1, 2])
    assert (made.lora_request, made.prompt_embeds, made.mm_features) == (None, None, [])
    assert made.resumable is False
    assert made.sampling_params.prompt_logprob_token_ids is None


def test_configurations_have_what_the_connector_reads() -> None:
    given = requests.engine_arguments("/store", 5)["kv_transfer_config"]
    made = KVTransferConfig(**given)
    assert made.kv_load_failure_policy == "fail"
    assert KVConnectorFactory.get_connector_class(made) is connector.ForewordPrefixes
    assert {"get_hidden_size", "get_total_num_kv_heads"} <= set(dir(ModelConfig))
    sizes = (
        "pipeline_parallel_size",
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
    )
    assert set(sizes) <= set(ParallelConfig.__dataclass_fields__)
    assert "kv_cache_groups" in KVCacheConfig.__dataclass_fields__
    spec = {"block_size", "head_size", "head_size_v", "sliding_window", "attention_chunk_size"}
    assert spec | {"kv_quant_mode"} <= set(FullAttentionSpec.__dataclass_fields__)


def test_attention_is_called_with_queries_keys_and_values() -> None:
    assert parameters(Attention.forward)[:4] == ["self", "query", "key", "value"]
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    written = parameters(CPUAttentionBackendImpl.do_kv_cache_update)
    assert written == ["self", "layer", "key", "value", "kv_cache", "slot_mapping"]


def test_the_plugin_makes_the_connector_known_by_its_name() -> None:
    register()
    register()
    found = KVConnectorFactory.get_connector_class_by_name(requests.CONNECTOR)
    assert found is connector.ForewordPrefixes


def test_the_asynchronous_engine_is_called_as_it_takes_it() -> None:
    """What `foreword.engine.vllm.runtime` uses."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerBase
    from vllm.v1.metrics.stats import SchedulerStats

    from foreword.engine.vllm import runtime

    assert parameters(AsyncLLM.generate)[:4] == ["self", "prompt", "sampling_params", "request_id"]
    assert {"engine_args", "stat_loggers"} <= set(parameters(AsyncLLM.from_engine_args))
    assert parameters(AsyncLLM.shutdown) == ["self", "timeout"]
    assert parameters(AsyncLLM.collective_rpc)[:2] == ["self", "method"]
    assert "worker_extension_cls" in ParallelConfig.__dataclass_fields__
    assert f"{connector.__name__}.{connector.Reaching.__name__}" == runtime.EXTENSION
    assert isinstance(AsyncLLM.errored, property)
    assert parameters(runtime._Told.record) == parameters(StatLoggerBase.record)
    told = {"num_waiting_reqs", "num_skipped_waiting_reqs", "num_running_reqs", "kv_cache_usage"}
    assert told <= set(SchedulerStats.__dataclass_fields__)


def test_flags_are_vllms_own_and_what_is_set_here_is_refused(tmp_path) -> None:
    from foreword.engine.vllm.runtime import OURS, read_flags
    from foreword.errors import ServeError

    flags = ["--max-model-len", "128", "--enforce-eager", "--tensor-parallel-size=2"]
    made = read_flags(flags, {"dtype": "float32", "model": str(tmp_path)})
    assert (made.max_model_len, made.enforce_eager, made.tensor_parallel_size) == (128, True, 2)
    assert made.dtype == "float32"
    refused = [
        "--model=a",
        "--kv-transfer-config={}",
        "--kv-offloading-size=1",
        "--logprobs_mode=raw_logits",
    ]
    for flag in (*refused, "--worker-extension-cls=a.B"):
        with pytest.raises(ServeError, match="foreword serve sets it"):
            read_flags([flag], {})
    with pytest.raises(SystemExit):
        read_flags(["--no-such-flag"], {})
    assert {"model", "kv_transfer_config", "dtype"} <= set(OURS)


@pytest.mark.parametrize("penalty", ["presence_penalties", "frequency_penalties"])
def test_penalties_count_what_was_written_and_no_placeholders(penalty) -> None:
    import torch
    from vllm.model_executor.layers.utils import apply_penalties

    given = {"presence_penalties": torch.zeros(1), "frequency_penalties": torch.zeros(1)}
    given[penalty] = torch.ones(1)
    found = apply_penalties(
        torch.zeros(1, 8),
        torch.tensor([[3, 3, 4]]),  # the prompt
        torch.tensor([[5]]),
        given["presence_penalties"],
        given["frequency_penalties"],
        torch.ones(1),
    )
    assert found[0].tolist() == [0, 0, 0, 0, 0, -1, 0, 0]
