"""`OfflinePrefixes`: the prefixes of a store for ``vllm.LLM``, from a text to what it writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from foreword.arguments import expect
from foreword.data.encode import Encoder
from foreword.data.room import Room
from foreword.data.template import Input, as_row
from foreword.engine.vllm.requests import (
    PrefixedPrompt,
    check_tokenizer,
    engine_arguments,
    placeholder_of,
    prefixed,
)
from foreword.errors import DataError
from foreword.prefix import Bos
from foreword.prompts import PLAIN, task_of
from foreword.store import PrefixStore
from foreword.weights.fingerprint import adds_bos, tokenizer_digest


class OfflinePrefixes:
    """The prefixes of a store, for a model that vLLM runs in this process.

    Args:
        store: The store's folder.
        model: The model, as ``vllm.LLM`` takes it.
        placeholder: The token that stands for virtual tokens; see `placeholder_of`.
        context: Most tokens of prefix and text together, which the engine is given as its
            ``max_model_len``. By default what the model's config says.
        resident: Prefixes that each worker keeps in memory.

    Examples:
        >>> prefixes = OfflinePrefixes("prefixes", "Qwen/Qwen3-0.6B")  # doctest: +SKIP
        ... llm = vllm.LLM("Qwen/Qwen3-0.6B", **prefixes.engine_arguments())
        ... prefixes.generate(llm, [("restaurants", "name[Zizzi]")], vllm.SamplingParams())
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        model: str,
        *,
        placeholder: int | None = None,
        context: int | None = None,
        resident: int = 256,
    ) -> None:
        self.store = PrefixStore(store)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        config = AutoConfig.from_pretrained(model).get_text_config()
        self._tokenizer_digest = tokenizer_digest(self.tokenizer)
        self.vocabulary = int(config.vocab_size)
        self.given_context = context
        self.context = context or int(config.max_position_embeddings)
        self.resident = resident
        self.placeholder = (
            placeholder_of(self.tokenizer, self.vocabulary) if placeholder is None else placeholder
        )

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments for ``vllm.LLM`` beside the model's name."""
        made = engine_arguments(
            self.store.folder,
            self.placeholder,
            resident=self.resident,
            tokenizer=self._tokenizer_digest,
        )
        return made if self.given_context is None else {**made, "max_model_len": self.context}

    def prompt(
        self, name: str | None, given: Input, new: int = 0, tenant: str | None = None
    ) -> PrefixedPrompt:
        """A text or row as a prompt, in the templates that the prefix was trained with.

        Args:
            name: The prefix's name in the store; None for the model alone, which takes text as it is.
            given: The text or row, as `foreword.generate` takes it.
            new: Tokens that may be written after it.
            tenant: Requests with different ones share no blocks of vLLM's cache.

        Raises:
            NameUnknown: There is no such prefix.
            MismatchError: It is one that vLLM cannot serve, or of another tokenizer.
            DataError: The text does not fit the template or the context.
        """
        outline = None if name is None else self.store.outline(name)
        if outline is not None:
            check_tokenizer(outline, self._tokenizer_digest, self.tokenizer.name_or_path)
        task = PLAIN if outline is None else task_of(outline)
        own: Bos = "input" if adds_bos(self.tokenizer) else "none"
        bos = own if outline is None else outline.meta.bos
        taken = 0 if outline is None else outline.length
        room = Room.of(self.context - taken, None if outline is None else outline.meta)
        encoder = Encoder(self.tokenizer, task, bos=bos, limit=room, vocabulary=self.vocabulary)
        ids = encoder.prompt(as_row(given, task), new)
        return prefixed(ids, self.placeholder, name or "", outline, tenant)

    def generate(
        self, llm: Any, inputs: Sequence[tuple[str | None, Input]], sampling: Any
    ) -> list[Any]:
        """What vLLM writes for pairs of a prefix's name (or None) and a text or row.

        Args:
            llm: The ``vllm.LLM``.
            inputs: The pairs.
            sampling: The ``vllm.SamplingParams`` of all.

        Returns:
            vLLM's outputs, one for each pair. One that failed has the finish reason ``error``; vLLM's
            log says why.

        Raises:
            DataError: A pair is none, or its text does not fit the template or the context.
            MismatchError: vLLM cannot serve a prefix, or not with these parameters.
        """
        asked = []
        for one in inputs:
            expect("an input", one, tuple, "a pair of a prefix's name and a text", DataError)
            asked.append(self.prompt(*one, new=sampling.max_tokens or 0))
        if sampling.prompt_logprobs is not None and any(one.prefix for one in asked):
            raise DataError(
                "prompt_logprobs under a prefix are not served by vLLM, which would give numbers for "
                "placeholders that it never computed; use foreword.Engine"
            )
        parameters = [_under(sampling, one) for one in asked]
        return list(llm.generate([one.prompt for one in asked], parameters, use_tqdm=False))


def _under(sampling: Any, asked: PrefixedPrompt) -> Any:
    """Sampling parameters of a request's own."""
    own = sampling.clone()
    if asked.extra_args is not None:
        own.extra_args = {**(sampling.extra_args or {}), **asked.extra_args}
    return own
