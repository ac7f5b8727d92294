"""`Asker`: from texts and rows to requests of vLLM, and from what it wrote to texts.

Both are Foreword's own: prompts go through the templates of a prefix's training, texts end where
training ended them, and are made from tokens as under the embedded engine.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from foreword.data.encode import Encoder
from foreword.data.template import Input, Task, as_row
from foreword.data.written import Written, written_for
from foreword.engine.request import Sampling
from foreword.engine.vllm.model import ServedModel
from foreword.engine.vllm.requests import PrefixedPrompt, prefixed
from foreword.engine.vllm.sampling import parameters
from foreword.engine.vllm.windows import check_text
from foreword.generate import Generated
from foreword.options import GenerateOptions
from foreword.outline import Outline
from foreword.prompts import PLAIN, encoder_for, task_of


@dataclass(frozen=True)
class Asked:
    """One input as vLLM is asked it.

    Attributes:
        prompt: The prompt, which names the prefix.
        written: How its texts end, and which of their tokens are text.
    """

    prompt: PrefixedPrompt
    written: Written

    def arguments(self, options: GenerateOptions, number: int) -> dict[str, Any]:
        """Arguments of ``vllm.SamplingParams``.

        Args:
            options: How texts are generated.
            number: The input's, from 0: each draws from a seed of its own.

        Raises:
            NotServed: An option is out of vLLM's range.
        """
        is_drawn, several = options.do_sample, options.num_return_sequences
        sampling = Sampling(
            max_tokens=options.max_new_tokens,
            temperature=options.temperature if is_drawn else 0.0,
            top_p=options.top_p if is_drawn else 1.0,
            top_k=options.top_k if is_drawn else 0,
            seed=options.seed + number * several if is_drawn else None,
        )
        stops: dict[str, Any] = {}
        if self.written.stop:  # vLLM looks for them in a text of its own, and only so can it stop
            is_bare = not self.written.kept
            stops = {
                "stop": list(self.written.stop),
                "detokenize": True,
                "skip_special_tokens": is_bare,
            }
        return {
            **parameters(sampling, self.written),
            "n": several,
            "repetition_penalty": float(options.repetition_penalty),
            **stops,
        }

    def sampled(self, given: Any) -> Any:
        """Parameters of vLLM's for this request: a caller's, with the prefix and the ends of its texts.

        Args:
            given: The caller's, left as they are. With ``ignore_eos`` their own stops alone are ends.
        """
        own = copy.deepcopy(given)
        if self.prompt.extra_args is not None:
            own.extra_args = {**(given.extra_args or {}), **self.prompt.extra_args}
        if not given.ignore_eos:
            own.ignore_eos = True  # vLLM's own ends, which are not training's
            own.stop_token_ids = sorted({*given.stop_token_ids, *self.written.ends})
            if given.detokenize:
                own.stop = [*given.stop, *self.written.stop]
            own.__post_init__()  # which makes of them what vLLM's parts read
        return own

    def answer(self, output: Any) -> list[Generated]:
        """The texts that vLLM wrote, of which none failed.

        Args:
            output: Its ``RequestOutput``.
        """
        return [self._text(one) for one in output.outputs]

    def _text(self, one: Any) -> Generated:
        ids = list(one.token_ids)
        is_ended = one.finish_reason == "stop" or self.written.is_ended(ids)
        return Generated(self.written.text(ids), "stop" if is_ended else "length")


@dataclass(frozen=True)
class Asker:
    """Makes requests under one prefix, or for the model alone.

    Attributes:
        placeholder: The token that stands for virtual tokens.
        task: The templates.
        encoder: What makes tokens of an input.
        written: How texts end.
        name: The prefix's name in the store, or empty for none.
        outline: What its file says of it, or None for the model alone.
    """

    placeholder: int
    task: Task
    encoder: Encoder
    written: Written
    name: str = ""
    outline: Outline | None = None

    @classmethod
    def under(
        cls, model: ServedModel, placeholder: int, name: str, outline: Outline, *, frozen: bool
    ) -> Asker:
        """One for a prefix.

        Args:
            model: The model.
            placeholder: The token that stands for virtual tokens.
            name: The prefix's name in the store.
            outline: What its file says of it.
            frozen: The model alone answers, in the prefix's templates.

        Raises:
            MismatchError: vLLM cannot serve the prefix on this model.
        """
        task = task_of(outline)
        if frozen:
            encoder = encoder_for(model, None, task, like=outline)
            return cls(placeholder, task, encoder, written_for(model, None, task, like=outline))
        model.check(outline)
        encoder = encoder_for(model, outline, task)
        return cls(placeholder, task, encoder, written_for(model, outline, task), name, outline)

    @classmethod
    def alone(cls, model: ServedModel, placeholder: int) -> Asker:
        """One for the model alone, which takes text as it is."""
        encoder, written = encoder_for(model, None, PLAIN), written_for(model, None, PLAIN)
        return cls(placeholder, PLAIN, encoder, written)

    def ask(self, given: Input, new: int, tenant: str | None = None) -> Asked:
        """A text or row as a request.

        Args:
            given: The text or row.
            new: Tokens that may be written after it.
            tenant: Requests with different ones share no blocks of vLLM's cache.

        Raises:
            DataError: It does not fit the templates or the context.
            TooLong: vLLM's sliding windows would drop what it shall see of the prefix.
        """
        ids = self.encoder.prompt(as_row(given, self.task), new)
        if self.outline is not None:
            check_text(self.outline, len(ids), new)
        prompt = prefixed(ids, self.placeholder, self.name, self.outline, tenant)
        return Asked(prompt, self.written)
