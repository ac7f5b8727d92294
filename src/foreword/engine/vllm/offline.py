"""`OfflinePrefixes`: the prefixes of a store for ``vllm.LLM``, from a text to what it writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from foreword.arguments import expect
from foreword.data.each import of_each
from foreword.data.template import Input
from foreword.engine.vllm.asking import Asked, Asker
from foreword.engine.vllm.geometry import Found, least
from foreword.engine.vllm.loaded import why_failed
from foreword.engine.vllm.model import ServedModel
from foreword.engine.vllm.refusals import check_options
from foreword.engine.vllm.requests import (
    EXTENSION,
    PrefixedPrompt,
    engine_arguments,
    placeholder_of,
)
from foreword.errors import DataError, ServeError
from foreword.generate import Generated
from foreword.options import GenerateOptions
from foreword.store import PrefixStore

Pair = tuple[str | None, Input]
"""A prefix's name in the store, or None for the model alone, and a text or row."""

FAILED = frozenset({"error", "abort"})
"""vLLM's words for the ends of requests that were not served."""


class OfflinePrefixes:
    """The prefixes of a store, for a model that vLLM runs in this process.

    Args:
        store: The store's folder.
        model: The model, as ``vllm.LLM`` takes it.
        placeholder: The token that stands for virtual tokens; see `placeholder_of`.
        context: Most tokens of prefix and text together, which the engine is given as its
            ``max_model_len``. By default what the model's config says.
        resident: Prefixes that each worker keeps in memory.
        revision: The model's revision on the Hub.

    Raises:
        BackboneError: There is no such model, or no tokenizer with it.
        UnsupportedModel: It is no decoder.

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
        revision: str | None = None,
    ) -> None:
        self.store = PrefixStore(store)
        self.model = ServedModel.read(model, revision=revision, context=context)
        self.given_context = context
        self.resident = resident
        self.revision = revision
        self.placeholder = (
            placeholder_of(self.tokenizer, self.vocabulary) if placeholder is None else placeholder
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.model.tokenizer

    @property
    def vocabulary(self) -> int:
        """Rows of the model's embeddings."""
        return self.model.vocabulary

    @property
    def context(self) -> int:
        """Most tokens of prefix and text together."""
        return self.model.context

    def limit(self, context: int) -> None:
        """Make prompts for an engine that was given another ``max_model_len`` already."""
        self.model = replace(self.model, context=context)

    def meet(self, llm: Any, names: Iterable[str | None] = ()) -> None:
        """Take over what the workers of a ``vllm.LLM`` found in the running model.

        Args:
            llm: The ``vllm.LLM``. One that was started without `engine_arguments` tells nothing.
            names: Prefixes that shall be served; None for none.

        Raises:
            MismatchError: One cannot be served there.
        """
        config = getattr(getattr(llm, "llm_engine", None), "vllm_config", None)
        if config is not None and config.parallel_config.worker_extension_cls == EXTENSION:
            told = llm.collective_rpc("foreword_found")
            self.model = self.model.met(least(map(Found.of, told)))
        for name in {*names} - {None}:
            self.model.check(self.store.outline(str(name)))

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments for ``vllm.LLM`` beside the model's name."""
        made = engine_arguments(
            self.store.folder,
            self.placeholder,
            resident=self.resident,
            tokenizer=self.model.tokenizer_digest,
        )
        made["worker_extension_cls"] = EXTENSION
        if self.revision is not None:
            made["revision"] = self.revision
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
        return self._asker(name).ask(given, new, tenant).prompt

    def generate(self, llm: Any, inputs: Sequence[Pair], sampling: Any) -> list[Any]:
        """What vLLM writes for pairs of a prefix's name (or None) and a text or row, as it gives it.

        The ends that training gave a prefix's texts end them, beside the stops of the parameters;
        ``ignore_eos`` turns them off.

        Args:
            llm: The ``vllm.LLM``.
            inputs: The pairs.
            sampling: The ``vllm.SamplingParams`` of all.

        Returns:
            vLLM's outputs, one for each pair. One that failed has the finish reason ``error``, and as
            ``stop_reason`` what is known of why.

        Raises:
            DataError: A pair is none, or its text does not fit the template or the context.
            MismatchError: vLLM cannot serve a prefix, or not with these parameters.
        """
        self.meet(llm)
        asked = self._asked(inputs, sampling.max_tokens or 0)
        if sampling.prompt_logprobs is not None and any(one.prompt.prefix for one in asked):
            raise DataError(
                "prompt_logprobs under a prefix are not served by vLLM, which would give numbers for "
                "placeholders that it never computed; use foreword.Engine"
            )
        parameters = [one.sampled(sampling) for one in asked]
        prompts = [one.prompt.prompt for one in asked]
        outputs = list(llm.generate(prompts, parameters, use_tqdm=False))
        for one, output in zip(asked, outputs, strict=True):
            if _has_failed(output):
                reason = why_failed(self.store, one.prompt.prefix)
                for completion in output.outputs:
                    completion.stop_reason = reason
        return outputs

    def generated(
        self,
        llm: Any,
        inputs: Sequence[Pair],
        options: GenerateOptions | None = None,
        *,
        frozen: bool = False,
    ) -> list[list[Generated]]:
        """Texts for pairs of a prefix's name (or None) and a text or row, with why each ends.

        In float32 and greedy they are the texts that Foreword's own backbone writes.

        Args:
            llm: The ``vllm.LLM``.
            inputs: The pairs.
            options: How to generate; greedy by default.
            frozen: The model alone answers, in the templates of each prefix.

        Returns:
            Per input its texts, ``num_return_sequences`` of them, as `foreword.generate` has them.

        Raises:
            DataError: A pair is none, its text does not fit, or vLLM does not have an option.
            MismatchError: vLLM cannot serve a prefix.
            ServeError: A request failed; the message says which, and why.
        """
        options = GenerateOptions() if options is None else options
        self.meet(llm)
        return self.answers(llm, self.asked(inputs, options, frozen=frozen), options)

    def asked(
        self, inputs: Sequence[Pair], options: GenerateOptions, *, frozen: bool = False
    ) -> list[Asked]:
        """What `generated` asks, all of it checked; no ``vllm.LLM`` is needed for it."""
        expect("options", options, GenerateOptions, "GenerateOptions", DataError)
        asked = self._asked(inputs, options.max_new_tokens, frozen=frozen)
        check_options(options, frozen=not any(one.prompt.prefix for one in asked))
        for one in asked[:1]:
            one.arguments(options, 0)
        return asked

    def answers(
        self, llm: Any, asked: Sequence[Asked], options: GenerateOptions, *, progress: bool = False
    ) -> list[list[Generated]]:
        """What `generated` gives for what was asked, with vLLM's bar of progress if that is wanted."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(**one.arguments(options, number), extra_args=one.prompt.extra_args)
            for number, one in enumerate(asked)
        ]
        prompts = [one.prompt.prompt for one in asked]
        outputs = llm.generate(prompts, parameters, use_tqdm=progress)
        self._check_answered(asked, outputs)
        return [one.answer(output) for one, output in zip(asked, outputs, strict=True)]

    def _asked(self, inputs: Sequence[Pair], new: int, *, frozen: bool = False) -> list[Asked]:
        """Pairs as requests; each prefix's file is looked at once."""
        askers: dict[str | None, Asker] = {}

        def ask(pair: Pair) -> Asked:
            expect("an input", pair, tuple, "a pair of a prefix's name and a text", DataError)
            name, given = pair
            if name not in askers:
                askers[name] = self._asker(name, frozen=frozen)
            return askers[name].ask(given, new)

        return of_each(inputs, ask)

    def _asker(self, name: str | None, *, frozen: bool = False) -> Asker:
        if name is None:
            return Asker.alone(self.model, self.placeholder)
        outline = self.store.outline(name)
        return Asker.under(self.model, self.placeholder, name, outline, frozen=frozen)

    def _check_answered(self, asked: Sequence[Asked], outputs: Iterable[Any]) -> None:
        """Check that no request failed.

        Raises:
            ServeError: One did.
        """
        failed = [number for number, output in enumerate(outputs) if _has_failed(output)]
        if failed:
            first = failed[0]
            raise ServeError(
                f"{len(failed)} of {len(asked)} inputs failed on vLLM; the first is input "
                f"{first + 1}: {why_failed(self.store, asked[first].prompt.prefix)}"
            )


def _has_failed(output: Any) -> bool:
    """Whether a request was not served: its texts, if any, are none."""
    return any(one.finish_reason in FAILED for one in output.outputs)
