"""OpenAI's objects: completions, chat completions, and the chunks that streams are made of."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from foreword.engine import Event
from foreword.engine.request import Completion
from foreword.errors import ForewordError
from foreword.serve.completions import Asked
from foreword.serve.failures import Failure, as_failure
from foreword.serve.logprobs import Telling
from foreword.serve.schemas import ChatRequest, CompletionRequest
from foreword.serve.spelling import Spelling

DONE = b"data: [DONE]\n\n"
FINISH = {"stop": "stop", "length": "length", "cancelled": "stop", "error": "stop"}

Json = dict[str, Any]


class Answers:
    """Writes the answers to one request.

    Args:
        asked: The request.
        spelling: What the tokens of log-probabilities are.
    """

    def __init__(self, asked: Asked, spelling: Spelling) -> None:
        self.asked = asked
        self.is_chat = isinstance(asked.body, ChatRequest)
        self.telling = [Telling(spelling) for _ in asked.requests]

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
            yield as_event(as_failure(error).body)
            return
        if options is not None and options.include_usage:
            yield self._sent([], usage=self._usage(generated))
        yield DONE

    def _sent(self, choices: list[Json], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return as_event({**self._head(kind), "choices": choices, **more})

    def _head(self, kind: str) -> Json:
        asked = self.asked
        return {
            "id": asked.identity,
            "object": kind,
            "created": asked.created,
            "model": asked.model,
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
            content = self.telling[index].in_chat(one.logprobs)
            return {
                "index": index,
                "message": message,
                "logprobs": content,
                "finish_reason": finish,
            }
        text, told = (one.text, one.logprobs) if self._generates else ("", ())
        prompt = self.asked.prompts[index]
        runs = (told,) if one.prompt_logprobs is None else (one.prompt_logprobs, told)
        return {
            "index": index,
            "text": prompt + text,
            "logprobs": self.telling[index].in_text(*runs),
            "finish_reason": finish if self._generates else "length",
        }

    def _piece(self, index: int, event: Event) -> Json:
        finish = None if event.finish is None else FINISH[event.finish]
        if self.is_chat:
            delta = {"content": event.text} if event.text else {}
            content = self.telling[index].in_chat(event.logprobs)
            return {"index": index, "delta": delta, "logprobs": content, "finish_reason": finish}
        told = self.telling[index].in_text(event.logprobs)
        return {"index": index, "text": event.text, "logprobs": told, "finish_reason": finish}


def as_event(value: Json) -> bytes:
    """One event. What some clients take for an end of the line is escaped; JSON escapes the others."""
    line = json.dumps(value, ensure_ascii=False)
    for end in "\u0085\u2028\u2029":
        line = line.replace(end, f"\\u{ord(end):04x}")
    return b"data: " + line.encode() + b"\n\n"
