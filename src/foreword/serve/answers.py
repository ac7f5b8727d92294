"""OpenAI's objects: completions, chat completions, and the chunks that streams are made of."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

from foreword.engine import Event, TokenLogprobs
from foreword.engine.request import Completion
from foreword.errors import ForewordError
from foreword.serve.completions import Asked
from foreword.serve.failures import Failure, as_failure, body
from foreword.serve.schemas import ChatRequest, CompletionRequest

DONE = b"data: [DONE]\n\n"
FINISH = {"stop": "stop", "length": "length", "cancelled": "stop", "error": "stop"}

Json = dict[str, Any]


class Answers:
    """Writes the answers to one request.

    Args:
        asked: The request.
        tokenizer: Spells the tokens of log-probabilities.
    """

    def __init__(self, asked: Asked, tokenizer: Any) -> None:
        self.asked = asked
        self.is_chat = isinstance(asked.body, ChatRequest)
        self.tokenizer = tokenizer

    def whole(self, completions: Sequence[Completion]) -> Json:
        """The answer as one object."""
        choices = [self._choice(index, one) for index, one in enumerate(completions)]
        generated = sum(len(one.tokens) for one in completions if self._generates)
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self._usage(generated)}

    async def stream(self, events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""
        generated = 0
        options = self.asked.body.stream_options
        if self.is_chat:
            for index in range(len(self.asked.requests)):
                opening = {"role": "assistant", "content": ""}
                yield self._sent([{"index": index, "delta": opening, "finish_reason": None}])
        try:
            async for index, event in events:
                generated += len(event.tokens)
                if event.text or event.finish or event.logprobs:
                    yield self._sent([self._piece(index, event)])
        except (Failure, ForewordError) as error:  # the status has been sent; say it in the stream
            failure = as_failure(error)
            yield _data(body(failure.status, failure.message, failure.param))
            return
        if options is not None and options.include_usage:
            yield self._sent([], usage=self._usage(generated))
        yield DONE

    def _sent(self, choices: list[Json], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return _data({**self._head(kind), "choices": choices, **more})

    def _head(self, kind: str) -> Json:
        asked = self.asked
        return {
            "id": asked.identity,
            "object": kind,
            "created": asked.created,
            "model": asked.body.model,
        }

    def _usage(self, generated: int) -> Json:
        prompt = self.asked.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
        }

    @property
    def _generates(self) -> bool:
        """Whether more than the prompt's own log-probabilities was asked for."""
        asked = self.asked.body
        return not (isinstance(asked, CompletionRequest) and asked.max_tokens == 0)

    def _choice(self, index: int, one: Completion) -> Json:
        finish = FINISH[one.finish]
        if self.is_chat:
            message = {"role": "assistant", "content": one.text}
            content = self._chat_logprobs(one.logprobs)
            return {
                "index": index,
                "message": message,
                "logprobs": content,
                "finish_reason": finish,
            }
        text, told = (one.text, one.logprobs) if self._generates else ("", ())
        prompt = self.asked.prompts[index]
        if one.prompt_logprobs is not None:
            told = (*one.prompt_logprobs, *told)
        return {
            "index": index,
            "text": prompt + text,
            "logprobs": self._logprobs(told),
            "finish_reason": finish if self._generates else "length",
        }

    def _piece(self, index: int, event: Event) -> Json:
        finish = None if event.finish is None else FINISH[event.finish]
        if self.is_chat:
            delta = {"content": event.text} if event.text else {}
            content = self._chat_logprobs(event.logprobs)
            return {"index": index, "delta": delta, "logprobs": content, "finish_reason": finish}
        told = self._logprobs(event.logprobs)
        return {"index": index, "text": event.text, "logprobs": told, "finish_reason": finish}

    def _logprobs(self, told: Sequence[TokenLogprobs]) -> Json | None:
        """As completions tell them: parallel lists."""
        if not told:
            return None
        spelled = [self._spelled(one.token) for one in told]
        offsets = [0]
        for text in spelled[:-1]:
            offsets.append(offsets[-1] + len(text))
        return {
            "tokens": spelled,
            "token_logprobs": [_finite(one.logprob) for one in told],
            "top_logprobs": [self._by_text(one.top) or None for one in told],
            "text_offset": offsets,
        }

    def _by_text(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        """Log-probabilities by text, best first; of tokens that spell alike the likeliest counts."""
        found: dict[str, float] = {}
        for token, value in top:
            found.setdefault(self._spelled(token), value)
        return found

    def _chat_logprobs(self, told: Sequence[TokenLogprobs]) -> Json | None:
        """As chats tell them: one object per token."""
        if not told:
            return None
        return {
            "content": [
                {
                    **self._token(one.token, one.logprob),
                    "top_logprobs": [self._token(token, value) for token, value in one.top],
                }
                for one in told
            ],
            "refusal": None,
        }

    def _token(self, token: int, logprob: float) -> Json:
        text = self._spelled(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _spelled(self, token: int) -> str:
        text: str = self.tokenizer.decode([token])
        return text


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _data(value: Json) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
