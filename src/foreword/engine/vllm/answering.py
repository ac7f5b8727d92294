"""`Answer`: what vLLM gives for one request, as events of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreword.data.written import Written
from foreword.engine.request import Event, FinishReason, Request
from foreword.engine.slots.detokeniser import Detokeniser
from foreword.engine.vllm.sampling import told

REASONS: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}
"""vLLM's words for ends; any other is an error. It also aborts what nobody asked it to, when it ends."""


class Answer:
    """Makes events of what vLLM gives for one request: tokens as they come, each once.

    Args:
        request: The request.
        written: How its text ends, and which of its tokens are text.

    Attributes:
        finish: Why the request has ended, or None.
    """

    def __init__(self, request: Request, written: Written) -> None:
        self.request = request
        self.finish: FinishReason | None = None
        sampling = request.sampling
        self._ends = frozenset() if sampling.ignore_eos else written.ends
        stop = (*sampling.stop, *written.stop)
        self._text = Detokeniser(written.tokenizer, stop, written.kept)
        self._prompt_told = sampling.prompt_logprobs is None

    def take(self, output: Any) -> Event:
        """The event of one of vLLM's outputs (a delta); sets `finish` where it is the last.

        vLLM computes on until it hears that a stop text was met; what it wrote after that is left out.
        """
        one = output.outputs[0]
        tokens, text = self._read(one.token_ids)
        if self.finish is None and one.finish_reason is not None:
            self.finish = REASONS.get(one.finish_reason, "error")
        top, found = self.request.sampling.logprobs, one.logprobs
        logprobs = () if top is None or found is None else told(tokens, found[: len(tokens)], top)
        prompt = self._prompt(output.prompt_logprobs)
        return Event(self.request.name, tokens, text, logprobs, prompt_logprobs=prompt)

    def end(self, finish: FinishReason, error: str = "") -> Event:
        """The last event, with the text that was held back."""
        return Event(self.request.name, text=self._text.end(), finish=finish, error=error)

    def _read(self, given: Any) -> tuple[tuple[int, ...], str]:
        """Tokens up to the end of the text, and what can be shown of them."""
        tokens: list[int] = []
        text = ""
        for token in given:
            tokens.append(token)
            if token in self._ends:
                self.finish = "stop"
                break
            text += self._text.add([token])
            if self._text.stopped:
                self.finish = "stop"
                break
        return tuple(tokens), text

    def _prompt(self, found: Any) -> Any:
        """Log-probabilities of the prompt, the first time that they are there."""
        top = self.request.sampling.prompt_logprobs
        if self._prompt_told or not found or top is None:
            return None
        self._prompt_told = True
        return told(self.request.prompt, found, top)
