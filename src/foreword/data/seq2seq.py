"""Rows of encoder-decoders: the prompt is what the encoder reads, the target what the decoder writes.

The rule for what is too long is that of decoders: a target is never cut, a prompt loses tokens from its
left. Each stack has the whole context for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreword.backbone.served import Served
from foreword.backbone.tokens import tokenized
from foreword.data.encode import Encoded, Encoder
from foreword.data.room import Room
from foreword.data.template import Task, fill
from foreword.errors import DataError
from foreword.prefix import Bos


class Seq2SeqEncoder(Encoder):
    """`Encoder` for encoder-decoders."""

    def row(self, row: Mapping[str, Any]) -> Encoded:
        """One row: source tokens, and target tokens as labels."""
        self._refuse_chat()
        prompt, target = self.task.pair(row)
        labels = self.target_ids(target)
        if len(labels) > self.limit:
            raise DataError(
                f"its target has {len(labels)} tokens; the decoder's context leaves {self.limit}. "
                "Shorten it, or use fewer virtual tokens"
            )
        source = self._source(prompt)
        kept = self._cut(source, self.limit)
        return Encoded(kept, labels, len(source) - len(kept))

    def target_ids(self, target: str) -> list[int]:
        """Tokens of a target as the tokenizer ends it, with the end of sequence in any case."""
        bare = tokenized(self.tokenizer, text_target=target, add_special_tokens=False)["input_ids"]
        if not bare:
            raise DataError(f"its target {target!r} has no tokens; drop the row")
        ids: list[int] = self.tokenizer(text_target=target)["input_ids"]
        end = self.tokenizer.eos_token_id
        return ids if end is None or end in ids[len(bare) :] else [*ids, end]

    def prompt(
        self, row: Mapping[str, Any] | str, room: int = 0, target: int | None = None
    ) -> list[int]:
        """Source tokens; what the decoder writes takes no room beside them."""
        return super().prompt(row, 0, 0)

    def uncut(self, row: Mapping[str, Any] | str) -> list[int]:
        """The source, not cut."""
        self._refuse_chat()
        assert self.task.prompt is not None
        return self._source(row if isinstance(row, str) else fill(self.task.prompt, row))

    def _source(self, prompt: str) -> list[int]:
        ids: list[int] = tokenized(self.tokenizer, prompt)["input_ids"]
        if not ids:
            raise DataError("its prompt has no tokens")
        return self._known(ids)

    def _cut(self, ids: list[int], limit: int) -> list[int]:
        """The last `limit` tokens, of which the tokenizer's own at the front stay."""
        if len(ids) <= limit:
            return ids
        marks = set(self.tokenizer.all_special_ids)
        front = next((place for place, token in enumerate(ids) if token not in marks), 0)
        return [*ids[:front], *ids[len(ids) - limit + front :]] if front < limit else ids[-limit:]

    def _refuse_chat(self) -> None:
        if self.task.chat:
            raise DataError(
                "an encoder-decoder has no chat template here; give templates for prompt and target"
            )


def encoder_of(backbone: Served, task: Task, bos: Bos, room: Room) -> Encoder:
    """What encodes rows of a task for a backbone.

    Raises:
        DataError: The backbone has no tokenizer.
    """
    if backbone.tokenizer is None:
        raise DataError("this backbone has no tokenizer, so texts cannot be encoded")
    made = Seq2SeqEncoder if backbone.kind == "encoder-decoder" else Encoder
    return made(backbone.tokenizer, task, bos=bos, limit=room, vocabulary=backbone.vocabulary)
