"""Text of tokens as they come: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreword.data.written import Written

REPLACEMENT = "\ufffd"
"""What a tokenizer decodes the beginning of a character to."""

CONTEXT = 6
"""Tokens before the new ones that are decoded with them: some tokenizers drop a leading space."""


class Detokeniser:
    """The text of one request's tokens.

    Args:
        tokenizer: The backbone's tokenizer.
        stop: Texts that end the output.
        kept: Special tokens that are text.
    """

    def __init__(
        self, tokenizer: Any, stop: Sequence[str] = (), kept: frozenset[int] = frozenset()
    ) -> None:
        self._written = Written(tokenizer, kept=kept)
        self.stop = tuple(stop)
        self.stopped = False
        self._tokens: list[int] = []
        self._read = 0
        self._held = ""

    def add(self, tokens: Sequence[int]) -> str:
        """New text that can be shown after these tokens; sets `stopped` where a stop text ended it."""
        self._tokens += tokens
        return self._shown(self._new(whole=False), last=False)

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        return self._shown(self._new(whole=True), last=True)

    def _new(self, *, whole: bool) -> str:
        """Text of the tokens since the last whole character; all of it at the end."""
        begin = max(0, self._read - CONTEXT)
        before = self._decoded(self._tokens[begin : self._read])
        now = self._decoded(self._tokens[begin:])
        if len(now) <= len(before) or (now.endswith(REPLACEMENT) and not whole):
            return ""
        self._read = len(self._tokens)
        return now[len(before) :]

    def _decoded(self, tokens: Sequence[int]) -> str:
        return self._written.spelled(tokens)

    def _shown(self, new: str, *, last: bool) -> str:
        """What can be shown of held and new text."""
        if self.stopped:
            return ""
        text = self._held + new
        places = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        kept = 0 if last else self._beginning(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def _beginning(self, text: str) -> int:
        """Length of the longest end of the text that is the beginning of a stop text."""
        for size in range(max(map(len, self.stop), default=1) - 1, 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.stop if size < len(stop)):
                return min(size, len(text))
        return 0
