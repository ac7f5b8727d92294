"""What Foreword uses of vLLM, read in the source of each version that is there; none is imported.

By default the installed one. `scripts/vllm-contract VERSION` gets another one's source from its wheel,
and FOREWORD_VLLM_SOURCES names folders that hold some. It sees names, signatures, fields, and the order
of calls; that a version which keeps them all computes the same is for the tests that run it.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import foreword
from foreword.data.written import Written
from foreword.engine.request import Sampling
from foreword.engine.vllm import requests
from foreword.engine.vllm.sampling import parameters
from tests.engine.vllm.sources import Function, Sources, folders, imports_of, parameters_of

FOLDERS = folders()
if not FOLDERS:
    pytest.skip("needs vLLM's source: make test-vllm", allow_module_level=True)

OURS = Path(foreword.__file__).parent / "engine" / "vllm"
BASE = "vllm.distributed.kv_transfer.kv_connector.v1.base"
CACHES = "vllm.v1.kv_cache_interface"
METRICS = "vllm.distributed.kv_transfer.kv_connector.v1.metrics"
SCHEDULER = "vllm.v1.core.sched.scheduler"
BACKENDS = "vllm.v1.attention.backends"
WORKER = "vllm.v1.worker"
RUNNERS = {
    "kv_connector_model_runner_mixin": "KVConnectorModelRunnerMixin._get_kv_connector_output",
    "gpu.kv_connector": "ActiveKVConnector.pre_forward",
}


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: Sources(folder).version)
def vllm(request) -> Sources:
    return Sources(request.param)


def ours(name: str) -> ast.Module:
    return ast.parse((OURS / name).read_text())


def methods_of(tree: ast.Module, name: str) -> dict[str, list[str]]:
    """The methods of one of our classes, and the names of their parameters."""
    (found,) = [one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name]
    return {one.name: parameters_of(one) for one in found.body if isinstance(one, Function)}


# -- names and signatures ------------------------------------------------------------------------


def test_all_that_is_imported_is_there(vllm) -> None:
    taken = {pair for path in sorted(OURS.glob("*.py")) for pair in imports_of(ours(path.name))}
    assert len(taken) > 15
    missing = [f"{module}.{name}" for module, name in taken if name not in vllm.names(module)]
    assert not missing


def test_the_connector_overrides_with_the_parameters_that_vllm_gives(vllm) -> None:
    """And hides nothing private of vLLM's by accident."""
    own = methods_of(ours("connector.py"), "ForewordPrefixes")
    theirs = vllm.members(BASE, "KVConnectorBase_V1") | vllm.members(BASE, "SupportsHMA")
    overridden = {name for name in own if name in theirs and name != "__init__"}
    assert overridden >= {
        "on_new_request",
        "get_num_new_matched_tokens",
        "update_state_after_alloc",
        "build_connector_meta",
        "request_finished",
        "request_finished_all_groups",
        "register_kv_caches",
        "start_load_kv",
        "get_transfer_results",
        "get_block_ids_with_load_errors",
    }
    assert not [name for name in overridden if name.startswith("_")]
    for name in overridden:
        owner = "SupportsHMA" if name == "request_finished_all_groups" else "KVConnectorBase_V1"
        assert own[name] == vllm.parameters(BASE, f"{owner}.{name}"), name
    wanted = ["self", "vllm_config", "role", "kv_cache_config"]
    assert own["__init__"] == vllm.parameters(BASE, "KVConnectorBase_V1.__init__") == wanted


def test_all_that_vllm_leaves_to_a_connector_is_there(vllm) -> None:
    """Every abstract method is ours; what is new in a version has a default that asks nothing of us."""
    own = methods_of(ours("connector.py"), "ForewordPrefixes")
    abstract = set()
    for name in ("KVConnectorBase_V1", "SupportsHMA"):
        base = vllm.node(BASE, name)
        assert isinstance(base, ast.ClassDef)
        functions = [one for one in base.body if isinstance(one, Function)]
        abstract |= {
            one.name
            for one in functions
            if any(ast.unparse(mark) == "abstractmethod" for mark in one.decorator_list)
        }
    assert len(abstract) >= 7
    assert abstract <= set(own)


SIGNATURES = {
    ("vllm.v1.request", "Request.update_block_hashes"): ["self"],
    ("vllm.model_executor.models.utils", "extract_layer_index"): ["layer_name", "num_attn_module"],
    ("vllm.model_executor.layers.attention.attention", "Attention.forward"): [
        "self",
        "query",
        "key",
        "value",
    ],
    (SCHEDULER, "Scheduler._handle_failed_recving"): ["self", "failed_req_ids"],
    (SCHEDULER, "Scheduler._handle_invalid_blocks"): ["self", "invalid_block_ids"],
    ("vllm.v1.core.kv_cache_manager", "KVCacheBlocks.get_block_ids"): ["self"],
    (
        "vllm.distributed.kv_transfer.kv_connector.factory",
        "KVConnectorFactory.register_connector",
    ): ["cls", "name", "module_path", "class_name"],
    ("vllm.v1.engine.async_llm", "AsyncLLM.generate"): [
        "self",
        "prompt",
        "sampling_params",
        "request_id",
    ],
    ("vllm.v1.engine.async_llm", "AsyncLLM.shutdown"): ["self", "timeout"],
    ("vllm.engine.arg_utils", "AsyncEngineArgs.add_cli_args"): ["parser"],
    ("vllm.engine.arg_utils", "EngineArgs.from_cli_args"): ["cls", "args"],
}
"""Functions that we call or replace, and the beginning of their parameters."""


@pytest.mark.parametrize(("module", "name"), SIGNATURES)
def test_what_is_called_takes_what_it_is_given(vllm, module, name) -> None:
    wanted = SIGNATURES[module, name]
    assert vllm.parameters(module, name)[: len(wanted)] == wanted


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("cpu_attn", "CPUAttentionBackendImpl"),
        ("flash_attn", "FlashAttentionImpl"),
        ("triton_attn", "TritonAttentionImpl"),
        ("flashinfer", "FlashInferImpl"),
        ("flex_attention", "FlexAttentionImpl"),
        ("rocm_attn", "RocmAttentionImpl"),
    ],
)
def test_each_backend_of_attention_writes_keys_and_values_alike(vllm, backend, name) -> None:
    found = vllm.parameters(f"{BACKENDS}.{backend}", f"{name}.do_kv_cache_update")
    assert found == ["self", "layer", "key", "value", "kv_cache", "slot_mapping"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt_j", "gemma", "granite"])
def test_attention_is_given_positions_and_hidden_states(vllm, family) -> None:
    """So turns of keys can be measured; where they cannot, prefixes of policy `offset` are served."""
    module = f"vllm.model_executor.models.{family}"
    (name,) = {
        one for one in vllm.names(module) if one.lower() == f"{family}attention".replace("_", "")
    }
    found = vllm.parameters(module, f"{name}.forward")
    assert found in [["self", place, "hidden_states"] for place in ("positions", "position_ids")]


MEMBERS = {
    ("vllm.model_executor.layers.attention.attention", "Attention"): {
        "num_kv_heads",
        "kv_cache",
        "impl",
    },
    ("vllm.v1.request", "Request"): {
        "request_id",
        "kv_transfer_params",
        "cache_salt",
        "skip_reading_prefix_cache",
        "block_hashes",
        "prompt_token_ids",
        "sampling_params",
        "lora_request",
        "mm_features",
        "prompt_embeds",
        "resumable",
    },
    (CACHES, "AttentionSpec"): {
        "num_kv_heads",
        "head_size",
        "head_size_v",
        "kv_quant_mode",
        "tokens_per_state",
    },
    (CACHES, "FullAttentionSpec"): {"block_size", "sliding_window", "attention_chunk_size"},
    (CACHES, "SlidingWindowSpec"): {"block_size", "sliding_window"},
    (CACHES, "MambaSpec"): {"block_size", "mamba_cache_mode"},
    (CACHES, "KVQuantMode"): {"NONE"},
    (CACHES, "KVCacheConfig"): {"kv_cache_groups"},
    (CACHES, "KVCacheGroupSpec"): {"layer_names", "kv_cache_spec"},
    ("vllm.config.kv_transfer", "KVTransferConfig"): {
        *requests.engine_arguments("/store", 5)["kv_transfer_config"]
    },
    ("vllm.config.model", "ModelConfig"): {
        "model",
        "dtype",
        "max_model_len",
        "max_logprobs",
        "hf_config",
        "get_hidden_size",
        "get_head_size",
        "get_num_layers",
        "get_total_num_kv_heads",
    },
    ("vllm.config.parallel", "ParallelConfig"): {
        "pipeline_parallel_size",
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
    },
    ("vllm.config.cache", "CacheConfig"): {"num_gpu_blocks", "kv_cache_size_tokens", "block_size"},
    ("vllm.config.compilation", "CompilationConfig"): {"static_forward_context"},
    ("vllm.config.aux_output", "AuxOutputConfig"): {"enabled"},
    ("vllm.config.vllm", "VllmConfig"): {
        "kv_transfer_config",
        "parallel_config",
        "model_config",
        "cache_config",
        "compilation_config",
        "speculative_config",
        "aux_output_config",
    },
    (BASE, "KVConnectorTransferResults"): {"finished_recving", "failed_recving"},
    (BASE, "KVConnectorBase_V1"): {"_vllm_config", "_get_connector_metadata"},
    (BASE, "KVConnectorRole"): {"SCHEDULER", "WORKER"},
    ("vllm.v1.outputs", "KVConnectorOutput"): {"failed_recving", "invalid_block_ids"},
    (METRICS, "KVConnectorStats"): {"data", "reset", "aggregate", "reduce", "is_empty"},
    (METRICS, "KVConnectorPromMetrics"): {"_gauge_cls", "_counter_cls", "observe"},
    ("vllm.v1.metrics.stats", "SchedulerStats"): {
        "kv_connector_stats",
        "num_waiting_reqs",
        "num_skipped_waiting_reqs",
        "num_running_reqs",
        "kv_cache_usage",
    },
    ("vllm.v1.engine.async_llm", "AsyncLLM"): {"errored", "vllm_config", "from_engine_args"},
    ("vllm.outputs", "CompletionOutput"): {"token_ids", "finish_reason", "logprobs"},
    ("vllm.outputs", "RequestOutput"): {"outputs", "prompt_logprobs"},
    ("vllm.distributed.kv_transfer.kv_connector.factory", "KVConnectorFactory"): {"_registry"},
}
"""Fields, properties and methods of vLLM's classes that we read, set or call."""


@pytest.mark.parametrize(("module", "name"), MEMBERS)
def test_what_is_read_of_a_class_is_there(vllm, module, name) -> None:
    assert MEMBERS[module, name] <= vllm.members(module, name)


def test_sampling_parameters_and_flags_have_the_names_that_are_given(vllm) -> None:
    given = parameters(Sampling(), Written(None))
    wanted = {*given, "output_kind", "extra_args", "prompt_logprob_token_ids"}
    assert wanted <= vllm.members("vllm.sampling_params", "SamplingParams")
    (set_here,) = [
        ast.literal_eval(one.value)
        for one in ours("runtime.py").body
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "OURS"
    ]
    assert {*set_here, "disable_log_stats"} <= vllm.members("vllm.engine.arg_utils", "EngineArgs")
    for name in ("enable_log_requests",):
        assert name in vllm.members("vllm.engine.arg_utils", "AsyncEngineArgs")


def test_what_is_counted_is_told_with_the_same_parameters(vllm) -> None:
    own = methods_of(ours("runtime.py"), "_Told")
    for name in ("record", "log_engine_initialized"):
        theirs = vllm.parameters("vllm.v1.metrics.loggers", f"StatLoggerBase.{name}")
        assert own[name] == theirs


# -- what the scheduler and the workers do -------------------------------------------------------


def test_the_scheduler_asks_in_the_order_that_the_connector_counts_on(vllm) -> None:
    """`on_new_request`, then a claim, then the blocks of it, then the step's metadata."""
    assert "on_new_request" in vllm.calls(SCHEDULER, "Scheduler.add_request")
    calls = vllm.calls(SCHEDULER, "Scheduler.schedule")
    wanted = [
        "get_num_new_matched_tokens",
        "allocate_slots",
        "update_state_after_alloc",
        "_build_kv_connector_meta",
    ]
    assert [name for name in calls if name in wanted][-4:] == wanted
    finished = vllm.calls(SCHEDULER, "Scheduler._connector_finished")
    assert {"request_finished", "request_finished_all_groups"} <= set(finished)
    found = vllm.calls(SCHEDULER, "Scheduler.update_from_output")
    assert "_handle_invalid_blocks" in found
    assert "_handle_failed_recving" in {
        *found,
        *vllm.calls(SCHEDULER, "Scheduler._update_from_kv_xfer_finished"),
    }


CLAIMED = {
    "self.connector.get_num_new_matched_tokens(request, block_aligned_local)",
    "(0, False)",
    "ext_tokens % self.block_size",
}
"""What the scheduler makes of the tokens that the connector claims: the claim itself; none, for a
request that skips reading the cache, which the connector undoes; whole blocks of it, where a model
computes a window anew, which the connector does not start under."""

TAKEN = {
    "0",
    "ext_tokens",
    "self.aux_output_connector.cap_external_hit(request, num_new_local_computed_tokens, "
    "num_external_computed_tokens)",
}
"""What it then takes: none, where it had found a part of a block, which one plain cache has not, or
for such a window; all of it; and, new in 0.33, what routed experts are known of, where they are asked
for. The connector does not start then."""


def test_a_claim_is_taken_whole_or_the_engine_is_refused(vllm) -> None:
    """Tokens that were claimed and are not taken would be computed: placeholders, as if they were text.

    So a change that is not listed here is to be read, and answered in `Setting.check`.
    """
    assert vllm.assigned(SCHEDULER, "Scheduler.schedule", "ext_tokens") == CLAIMED
    taken = vllm.assigned(SCHEDULER, "Scheduler.schedule", "num_external_computed_tokens")
    assert {"0", "ext_tokens"} <= taken <= TAKEN


@pytest.mark.parametrize("module", RUNNERS)
def test_workers_load_before_the_step_that_reads(vllm, module) -> None:
    """Where a load is one that the step waits for, as ours are."""
    text = ast.unparse(vllm.node(f"{WORKER}.{module}", RUNNERS[module]))
    assert "has_sync_kv_loads" in text
    assert "start_load_kv" in text


def test_requests_under_a_salt_share_no_blocks_with_others(vllm) -> None:
    text = ast.unparse(vllm.node("vllm.v1.core.kv_cache_utils", "generate_block_hash_extra_keys"))
    assert "request.cache_salt" in text
    assert "start_token_idx == 0" in text


def test_the_reader_finds_what_is_not_there() -> None:
    """Else all above would pass on any source."""
    sources = Sources(FOLDERS[0])
    with pytest.raises(AssertionError, match=r"has no module vllm\.v1\.nothing"):
        sources.tree("vllm.v1.nothing")
    with pytest.raises(AssertionError, match=r"has no Request\.nothing in vllm\.v1\.request"):
        sources.node("vllm.v1.request", "Request.nothing")
    assert "nothing" not in sources.names("vllm.v1.request")
    assert "nothing" not in sources.members("vllm.v1.request", "Request")
