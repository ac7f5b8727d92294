"""`ForewordPrefixes`: learned prefixes as hits of vLLM's key-value cache.

vLLM builds the connector once beside its scheduler and once in each worker. A request that names a
prefix begins with placeholders. The scheduler's side checks it, gives it a cache salt of its prefix, and
says that the placeholders are computed already; the worker's side writes the prefix's keys and values
into the blocks that were meant for theirs, before the step that reads them.

Shapes: C hidden size, H key/value heads of this worker, Q its query heads, T tokens of a test text,
P prefix length, D key dimension, E value dimension.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.version import __version__ as version

from foreword.engine.protocol import Loads
from foreword.engine.vllm.caches import geometry_of, groups_of, in_order, kinds_of
from foreword.engine.vllm.geometry import Found, Reach, Setting
from foreword.engine.vllm.loaded import Layers, LoadedPrefixes, Place, replaced
from foreword.engine.vllm.measuring import turning_of
from foreword.engine.vllm.paging import Load, gathered
from foreword.engine.vllm.requests import (
    Named,
    check_prompt,
    check_served,
    check_text_alone,
    check_tokenizer,
    foreign_salt,
    named_in,
)
from foreword.engine.vllm.stats import LoadMetrics, LoadStats
from foreword.engine.vllm.windows import check_text
from foreword.errors import (
    CorruptFile,
    FormatError,
    MismatchError,
    StoreError,
    UnsupportedModel,
    first_line,
)
from foreword.outlines import Outlines
from foreword.store import PrefixStore

log = logging.getLogger("vllm.foreword")

SUPPORTED = ("0.32",)
"""Versions of vLLM that the connector was tested with.

Of 0.33.0 there is no build for CPUs. It has all that is used here (`scripts/vllm-contract`), and its
Python code passes the connector's tests over the kernels of 0.32 (`scripts/vllm-next`).
"""


@dataclass
class Step(KVConnectorMetadata):  # type: ignore[misc]
    """What the scheduler's side tells the workers' with each step."""

    loads: list[Load] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    """Requests that shall fail."""


class ForewordPrefixes(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """vLLM's connector for Foreword's prefixes.

    A request that cannot be served fails alone: it ends with ``finish_reason="error"``, and the reason
    is logged. None is ever served without its prefix.

    Raises:
        UnsupportedModel: vLLM's version, the model or its configuration cannot serve prefixes exactly.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        setting_of(vllm_config, kv_cache_config).check(SUPPORTED)
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        missing = {"store", "placeholder"} - set(extra)
        if missing:
            raise UnsupportedModel(
                f"kv_connector_extra_config has no {min(missing)!r}; make it with "
                "foreword.engine.vllm.engine_arguments"
            )
        self._store = PrefixStore(extra["store"])
        self._placeholder = int(extra["placeholder"])
        self._resident = int(extra.get("resident", 256))
        self._tokenizer = str(extra.get("tokenizer", ""))
        # Read here: vLLM adds layers without a cache of their own later.
        self._groups = groups_of(kv_cache_config)
        model = vllm_config.model_config
        heads = model.get_total_num_kv_heads()
        self._geometry = geometry_of(kv_cache_config, heads, model.model)
        self._outlines = Outlines(self._store)
        self._live: dict[str, tuple[Named, int] | None] = {}  # None: it shall fail
        self._step = Step()
        self._layers: list[tuple[nn.Module, int]] = []  # and the number of its group
        self._recurrent: list[tuple[nn.Module, int]] = []
        self._loaded: LoadedPrefixes | None = None
        self._done = Loads()
        self._bad_blocks: set[int] = set()
        self._received: set[str] = set()
        self._refused: set[str] = set()

    # -- beside the scheduler --------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """Check a request, and keep its blocks apart from those of other prefixes and of none."""
        try:
            named = named_in(request.kv_transfer_params)
            if named is None:
                check_text_alone(request.prompt_token_ids, self._placeholder)
                self._salt(request, foreign_salt(request.cache_salt))
                return
            length = self._checked(request, named)
        except Exception as error:  # one that left this method would end the engine
            self._refuse(request, error)
            return
        salt = named.salt(request.cache_salt)
        if request.skip_reading_prefix_cache:  # which would skip the connector as well
            request.skip_reading_prefix_cache = False
            salt += f":{uuid.uuid4()}"
        self._live[request.request_id] = (named, length)
        self._salt(request, salt)

    def _checked(self, request: Any, named: Named) -> int:
        """The length of the prefix that a request names, once it can be served under it."""
        outline = self._outlines.get(named.name)
        if outline.digest != named.digest:
            raise CorruptFile(replaced(named, outline.digest))
        check_served(outline)
        self._geometry.check(outline)
        check_tokenizer(outline, self._tokenizer, self._geometry.model)
        sampling = request.sampling_params
        for given, what in (
            (sampling is not None and sampling.prompt_logprobs is not None, "prompt_logprobs"),
            (
                sampling is not None and sampling.prompt_logprob_token_ids,
                "prompt_logprob_token_ids",
            ),
            (request.lora_request, "a LoRA adapter"),
            (request.mm_features, "images or sound"),
            (request.prompt_embeds is not None, "prompt embeddings"),
            (request.resumable, "input that goes on"),
        ):
            if given:
                raise MismatchError(f"a request under a prefix cannot have {what} on vLLM")
        check_prompt(request.prompt_token_ids, outline.length, self._placeholder)
        check_text(outline, len(request.prompt_token_ids) - outline.length, request.max_tokens)
        return outline.length

    def _refuse(self, request: Any, error: Exception) -> None:
        """Let a request fail: it waits for a transfer that the workers will say has failed."""
        log.error("request %s: %s", request.request_id, first_line(error))
        self._done += Loads(failures=isinstance(error, StoreError | FormatError))
        self._live[request.request_id] = None
        request.skip_reading_prefix_cache = False
        self._salt(request, f"refused:{uuid.uuid4()}")

    def _salt(self, request: Any, salt: str | None) -> None:
        """Give a request another cache salt, and its blocks the names that follow from it."""
        if salt == request.cache_salt:
            return
        request.cache_salt = salt
        request.block_hashes.clear()
        request.update_block_hashes()

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Placeholders that lie in no block yet, and whether the request waits for them."""
        if request.request_id not in self._live:
            return 0, False
        live = self._live[request.request_id]
        if live is None:
            return 1, True
        left = max(0, live[1] - num_computed_tokens)
        return left, left > 0 and self._waits

    @property
    def _waits(self) -> bool:
        """Whether requests wait until their prefix is loaded.

        With several groups vLLM cannot tell from a block whose load has failed, so that a request that
        does not wait could not fail alone.
        """
        return len(self._groups) > 1

    def get_loaded_kv_cache_group_ids(self, request: Any) -> tuple[int, ...]:
        """None: a prefix may end within a block, so vLLM shall clear all blocks before it is loaded."""
        return ()

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note what shall be written; called anew for a request that had lost its blocks."""
        if num_external_tokens == 0:
            return
        live = self._live[request.request_id]
        if live is None:
            self._step.refused.add(request.request_id)
            return
        named, length = live
        tables = tuple(tuple(table) for table in blocks.get_block_ids())
        start = length - num_external_tokens
        self._step.loads.append(Load(request.request_id, named, start, length, tables))

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """What was noted for this step."""
        step, self._step = self._step, Step()
        return step

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request; its blocks are vLLM's to free."""
        self._live.pop(request.request_id, None)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """As `request_finished`."""
        return self.request_finished(request, [])

    # -- in a worker -----------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        """Find the attention layers, and measure how they turn keys."""
        config = self._vllm_config
        by_name = config.compilation_config.static_forward_context
        self._layers = [(by_name[name], number) for name, number in in_order(self._groups)]
        others = in_order(self._groups, recurrent=True)
        self._recurrent = [(by_name[name], number) for name, number in others]
        layers = [layer for layer, _ in self._layers]
        check_backend(layers)
        first: Any = layers[0]
        model, device = config.model_config, first.kv_cache.device
        place = Place(
            heads_of(model.get_total_num_kv_heads(), first.num_kv_heads),
            model.dtype,
            device.type == "cuda",
            turning_of(layers, model, device),
            model.hf_config.model_type,
        )
        self._loaded = LoadedPrefixes(self._store, place, self._resident)

    @property
    def found(self) -> Found:
        """What was found in the running model."""
        assert self._loaded is not None
        turning = self._loaded.place.turning
        if isinstance(turning, UnsupportedModel):
            return Found(self._geometry, Reach(0, first_line(turning)))
        return Found(self._geometry, Reach(turning.longest))

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Write the step's prefixes into the cache; one that cannot be had fails its request."""
        step = self._get_connector_metadata()
        assert isinstance(step, Step)
        assert self._loaded is not None
        self._refused |= step.refused
        if not step.loads:
            return
        began = time.perf_counter()
        ready = []
        for load in step.loads:
            try:
                ready.append((load, self._loaded.get(load.named)))
            except Exception as error:  # one that left this method would end the engine
                self._fail(load, error)
        read, written = time.perf_counter(), 0
        try:
            written = self._write(ready) if ready else 0
        except Exception as error:
            for load, _ in ready:
                self._fail(load, error)
            ready = []
        if self._waits:
            self._received.update(load.request for load, _ in ready)
        self._done += Loads(
            written_bytes=written,
            read_seconds=read - began,
            write_seconds=time.perf_counter() - read,
        )

    def _fail(self, load: Load, error: Exception) -> None:
        """Let a request fail whose prefix could not be had, or not be written."""
        log.error("request %s: %s", load.request, first_line(error))
        self._done += Loads(failures=1)
        if self._waits:
            self._refused.add(load.request)
        else:
            self._bad_blocks.update(load.written(0, self._groups[0].block))

    def _write(self, ready: Sequence[tuple[Load, Layers]]) -> int:
        """Write prefixes, all of a layer at once, as its attention backend lays them out: the bytes."""
        first: Any = self._layers[0][0]
        device, written = first.kv_cache.device, 0
        blocks = {n: one.block for n, one in enumerate(self._groups) if not one.is_recurrent}
        firsts = {n: [load.first(n, size) for load, _ in ready] for n, size in blocks.items()}
        slots = {
            n: torch.cat([load.slots(n, size) for load, _ in ready]).to(device)
            for n, size in blocks.items()
        }
        for number, (layer, group) in enumerate(self._layers):
            write: Any = layer.impl.do_kv_cache_update  # type: ignore[union-attr]
            key_PHD, value_PHE = gathered(ready, number, firsts[group], device)
            write(layer, key_PHD, value_PHE, layer.kv_cache, slots[group])
            written += key_PHD.nbytes + value_PHE.nbytes
        for layer, group in self._recurrent:
            states: Any = layer.kv_cache
            for state in states:
                state[[block for load, _ in ready for block in load.blocks[group]]] = 0
        return written

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Requests that need not wait any more, and those of them that shall fail."""
        refused, self._refused = self._refused, set()
        received, self._received = self._received, set()
        return KVConnectorTransferResults(
            finished_recving=received | refused, failed_recving=refused
        )

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks of requests whose prefix could not be loaded."""
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def get_kv_connector_stats(self) -> LoadStats | None:
        """What was done here since it was last asked for; None for nothing."""
        done, self._done = self._done, Loads()
        if self._loaded is not None:
            done, self._loaded.done = done + self._loaded.done, Loads()
        return None if done == Loads() else LoadStats(dict(vars(done)))

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> LoadStats:
        """What `LoadStats` holds, as it came from another process."""
        return LoadStats(data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> LoadMetrics:
        """Those figures in the metrics of vLLM's own server."""
        return LoadMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: what is loaded is there before the step begins."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing: prefixes are only read."""

    def wait_for_save(self) -> None:
        """Nothing: prefixes are only read."""


class Reaching:
    """What vLLM's workers can be asked beside their own methods (``worker_extension_cls``)."""

    def foreword_found(self) -> dict[str, Any]:
        """The worker's `Found`, of plain values."""
        return asdict(get_kv_transfer_group().found)


def check_backend(layers: Sequence[nn.Module]) -> None:
    """Check that keys and values can be written into a model's cache before a step.

    Raises:
        UnsupportedModel: A layer's backend of attention writes them within the step alone.
    """
    for layer in layers:
        backend: Any = layer.impl
        if not hasattr(backend, "do_kv_cache_update"):
            raise UnsupportedModel(
                f"vLLM's backend of attention {type(backend).__name__} writes keys and values within a "
                "step alone, so no prefix can be put before it; give another --attention-backend"
            )


def heads_of(total: int, local: int) -> slice:
    """This worker's heads among all key/value heads; several workers share one where there are few."""
    size, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
    first = rank * local if local * size == total else rank * total // size
    return slice(first, first + local)


def setting_of(vllm_config: Any, kv_cache_config: Any) -> Setting:
    """What of a configuration of vLLM decides whether prefixes can be served."""
    transfer, parallel = vllm_config.kv_transfer_config, vllm_config.parallel_config
    return Setting(
        version=version,
        role=transfer.kv_role,
        on_failure=transfer.kv_load_failure_policy,
        caches=kinds_of(kv_cache_config),
        pipeline=parallel.pipeline_parallel_size,
        context=parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size,
        drafts=vllm_config.speculative_config is not None,
        experts=vllm_config.aux_output_config.enabled,
    )
