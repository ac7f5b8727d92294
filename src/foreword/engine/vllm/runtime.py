"""`AsyncRuntime`, vLLM's asynchronous engine for `VllmEngine`, and `running` for its offline one."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

from foreword.engine.protocol import Loads, Stats
from foreword.engine.request import NotServed
from foreword.engine.vllm.geometry import Found, least
from foreword.engine.vllm.requests import EXTENSION, PrefixedPrompt
from foreword.errors import ForewordError, ServeError, first_line

GRACE = 10.0
"""Seconds in which vLLM's processes may end by themselves."""

OURS = {
    "model": "--backbone",
    "tokenizer": "--backbone",
    "revision": "--revision",
    "dtype": "--dtype",
    "served_model_name": "--backbone",
    "kv_transfer_config": "--store",
    "worker_extension_cls": "no flag: workers tell what they found",
    "kv_offloading_size": "no flag: vLLM would put another connector in the place of Foreword's",
    "logprobs_mode": "no flag: log-probabilities are the model's own",
}
"""By its name in vLLM what `foreword` sets itself, and with which of its flags."""


def read_flags(
    flags: Sequence[str], own: Mapping[str, Any], kind: Any = AsyncEngineArgs, verb: str = "serve"
) -> Any:
    """Arguments of vLLM, from flags as ``vllm serve`` takes them and what Foreword sets.

    Args:
        flags: The flags; for one that vLLM does not know, its own parser ends the process.
        own: Arguments that Foreword sets, by their names in vLLM.
        kind: vLLM's class of arguments.
        verb: Foreword's verb, for messages.

    Raises:
        ServeError: A flag sets what Foreword sets.
    """
    parser = kind.add_cli_args(FlexibleArgumentParser(prog=f"foreword {verb} --engine vllm --"))
    found: Namespace = parser.parse_args(list(flags))
    for name, flag in OURS.items():
        if getattr(found, name) != parser.get_default(name):
            raise ServeError(
                f"--{name.replace('_', '-')} is not for vLLM's flags: foreword {verb} sets it ({flag})"
            )
    return kind.from_cli_args(Namespace(**{**vars(found), **own}))


def read_offline_flags(flags: Sequence[str], own: Mapping[str, Any]) -> tuple[EngineArgs, int]:
    """As `read_flags`, for ``vllm.LLM``; and most tokens of prefix and text together under them.

    Raises:
        ServeError: A flag sets what Foreword sets, or vLLM refuses one.
    """
    arguments = read_flags(flags, own, EngineArgs, "generate")
    arguments.disable_log_stats = True
    with _said("did not start"):
        return arguments, int(arguments.create_model_config().max_model_len)


@contextmanager
def running(arguments: EngineArgs) -> Iterator[LLM]:
    """A ``vllm.LLM`` in a block, whose processes end with it.

    Raises:
        ServeError: vLLM does not start, or fails in the block; its own log says why.
    """
    with _said("did not start"):
        llm = LLM.from_engine_args(arguments)
    try:
        with _said("failed"):
            yield llm
    finally:
        llm.llm_engine.engine_core.shutdown(timeout=GRACE)


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Say in one line what vLLM raises in a block, which is of many kinds, from several processes."""
    try:
        yield
    except ForewordError:
        raise
    except Exception as error:
        found = (
            error.errors()[0]["msg"] if isinstance(error, ValidationError) else first_line(error)
        )
        raise ServeError(f"vLLM {what}: {found.splitlines()[0]}") from error


class _Told(StatLoggerBase):  # type: ignore[misc]
    """Keeps what vLLM's scheduler told last.

    Args:
        runtime: Who is told.
    """

    def __init__(self, runtime: AsyncRuntime) -> None:
        self.runtime = runtime

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Note one step."""
        if scheduler_stats is not None:
            self.runtime.note(scheduler_stats)

    def log_engine_initialized(self) -> None:
        """Nothing."""


class AsyncRuntime:
    """vLLM's asynchronous engine.

    Args:
        arguments: vLLM's arguments.

    Raises:
        ServeError: vLLM does not start; its own log says why.
    """

    def __init__(self, arguments: AsyncEngineArgs) -> None:
        self._last: Any = None
        self._steps = 0
        self._loads = Loads()
        arguments.disable_log_stats = True  # vLLM's own lines; what is counted comes to `note`
        arguments.enable_log_requests = False  # which would log prompts
        arguments.worker_extension_cls = EXTENSION
        with _said("did not start"):
            self._llm = AsyncLLM.from_engine_args(
                arguments, stat_loggers=[lambda config, index: _Told(self)]
            )
        config = self._llm.vllm_config
        cache, model = config.cache_config, config.model_config
        self.context = int(model.max_model_len)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._blocks = int(cache.num_gpu_blocks or 0)
        self._tokens = int(cache.kv_cache_size_tokens or self._blocks * cache.block_size)
        self._most_logprobs = int(model.max_logprobs)
        self._itemsize = int(model.dtype.itemsize)
        self._bytes = 0

    def note(self, told: Any) -> None:
        """What the scheduler tells of a step."""
        self._last = told
        self._steps += 1
        if told.kv_connector_stats:  # what the connector did in this step, of all workers together
            self._loads += Loads(**told.kv_connector_stats)

    @property
    def has_died(self) -> bool:
        """Whether it goes on no more."""
        return bool(self._llm.errored)

    @property
    def stats(self) -> Stats:
        """What its scheduler told last; zeros before it told anything."""
        last = self._last
        if last is None:
            return Stats(0, 0, 0, 0, self._loads)
        waiting = last.num_waiting_reqs + last.num_skipped_waiting_reqs
        used = int(last.kv_cache_usage * self._bytes)
        return Stats(waiting, last.num_running_reqs, self._steps, used, self._loads)

    @property
    def cache_tokens(self) -> int:
        """Tokens that its key-value cache holds."""
        return self._tokens

    async def found(self) -> Found:
        """What its workers found in the running model."""
        told = await self._llm.collective_rpc("foreword_found")
        found = least(map(Found.of, told))
        self._bytes = found.geometry.size(self._itemsize) * self._tokens
        return found

    def check(self, sampling: Mapping[str, Any]) -> None:
        """Check arguments of ``vllm.SamplingParams``.

        Raises:
            NotServed: vLLM refuses them.
        """
        try:
            SamplingParams(**sampling)
        except VLLMClientError as error:
            field = getattr(error, "parameter", None) or "sampling"
            raise NotServed(field, first_line(error)) from error
        for field in ("logprobs", "prompt_logprobs"):
            given = sampling[field] or 0
            if 0 <= self._most_logprobs < given:
                raise NotServed(
                    field,
                    f"vLLM tells at most {self._most_logprobs} of the likeliest tokens; found {given}. "
                    "Ask for fewer, or start it with --max-logprobs",
                )

    async def generate(
        self, asked: PrefixedPrompt, sampling: Mapping[str, Any], name: str
    ) -> AsyncGenerator[Any]:
        """Outputs of vLLM, each with what is new; leaving early ends the request."""
        delta = RequestOutputKind.DELTA
        params = SamplingParams(**sampling, output_kind=delta, extra_args=asked.extra_args)
        outputs = self._llm.generate(asked.prompt, params, name)
        try:
            async for output in outputs:
                yield output
        finally:
            await outputs.aclose()

    def shutdown(self) -> None:
        """End vLLM's processes."""
        self._llm.shutdown(timeout=GRACE)
