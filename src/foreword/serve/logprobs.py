"""`Telling`: one choice's log-probabilities, as completions and chats tell them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from foreword.engine import TokenLogprobs
from foreword.serve.spelling import Offsets, Spelling

Json = dict[str, Any]


class Telling:
    """Tells the log-probabilities of one choice's tokens, whole or as they come.

    Args:
        spelling: What the tokens are.
    """

    def __init__(self, spelling: Spelling) -> None:
        self.spelling = spelling
        self.offsets = Offsets(spelling)

    def in_text(self, *runs: Sequence[TokenLogprobs]) -> Json | None:
        """As completions tell them: parallel lists. Runs, such as the prompt's, are texts of their own.

        As with OpenAI and vLLM the chosen token is always among the likeliest ones.
        """
        if not any(runs):
            return None
        names: list[str] = []
        places: list[int] = []
        for number, run in enumerate(runs):
            if number:
                self.offsets.begin()
            for one in run:
                found, place = self.offsets.next(one.token)
                names.append(self._name(one.token, found, "bytes:"))
                places.append(place)
        every = [one for run in runs for one in run]
        return {
            "tokens": names,
            "token_logprobs": [_finite(one.logprob) for one in every],
            "top_logprobs": [
                self._by_name(one, name) for one, name in zip(every, names, strict=True)
            ],
            "text_offset": places,
        }

    def _by_name(self, one: TokenLogprobs, name: str) -> dict[str, float] | None:
        """The likeliest tokens by name, best first; of two of one name the likelier counts."""
        if not math.isfinite(one.logprob):
            return None
        found: dict[str, float] = {}
        for token, value in one.top:
            is_chosen = token == one.token
            other = (
                name if is_chosen else self._name(token, self.spelling.bytes_of(token), "bytes:")
            )
            found.setdefault(other, value)
        found.setdefault(name, one.logprob)
        return found

    def in_chat(self, told: Sequence[TokenLogprobs]) -> Json | None:
        """As chats tell them: one object per token."""
        if not told:
            return None
        content = []
        for one in told:
            found, _ = self.offsets.next(one.token)
            likeliest = [self._object(t, self.spelling.bytes_of(t), value) for t, value in one.top]
            content.append(
                {**self._object(one.token, found, one.logprob), "top_logprobs": likeliest}
            )
        return {"content": content, "refusal": None}

    def _object(self, token: int, found: bytes | None, logprob: float) -> Json:
        spelled = None if found is None else list(found)
        return {"token": self._name(token, found, ""), "logprob": logprob, "bytes": spelled}

    def _name(self, token: int, found: bytes | None, mark: str) -> str:
        """A token as text; a part of a character as OpenAI writes it, in escaped bytes."""
        if found is None:
            return self.spelling.name(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return mark + "".join(f"\\x{byte:02x}" for byte in found)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
