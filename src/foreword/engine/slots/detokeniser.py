"""Text of tokens as they come: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreword.data.written import Written
from foreword.engine.slots.stops import Stop

REPLACEMENT = "\ufffd"
"""What a tokenizer decodes the beginning of a character to."""

LONGEST = 3
"""Tokens that a character can still be waiting for the rest of: it has four bytes at most."""


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
        self.stopped = False
        self._stops = tuple(map(Stop, stop))
        self._tokens: list[int] = []
        self._begin = self._read = 0
        self._held = ""

    def add(self, tokens: Sequence[int]) -> str:
        """New text that can be shown after these tokens; sets `stopped` where a stop text ended it."""
        self._tokens += tokens
        return self._shown(self._new(whole=False), last=False)

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        return self._shown(self._new(whole=True), last=True)

    def _new(self, *, whole: bool) -> str:
        """Text of the tokens since the last whole character; all of it at the end.

        The tokens of the text before are decoded with them: some tokenizers drop a leading space. They
        begin where a character does: some decode bytes that follow each other all together, or not.
        """
        before = self._decoded(self._tokens[self._begin : self._read])
        now = self._decoded(self._tokens[self._begin :])
        end = len(self._tokens)
        if now.endswith(REPLACEMENT) and not whole:  # a beginning, or bytes that are no character
            end = max(self._read, end - LONGEST)
            known = self._decoded(self._tokens[self._begin : end])
            now = known if now.startswith(known) else ""
        if len(now) <= len(before):
            return ""
        self._begin, self._read = self._read, end
        return now[len(before) :]

    def _decoded(self, tokens: Sequence[int]) -> str:
        return self._written.spelled(tokens)

    def _shown(self, new: str, *, last: bool) -> str:
        """What can be shown of held and new text."""
        if self.stopped:
            return ""
        text = self._held + new
        ends = [(stop, end) for stop in self._stops if (end := stop.find(new)) is not None]
        if ends:
            first = min(len(self._held) + end - len(stop.stop) for stop, end in ends)
            self.stopped, self._held = True, ""
            return text[:first]
        kept = 0 if last else max((stop.met for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]
