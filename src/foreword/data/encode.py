"""Rows to token ids with labels, under one rule for what is too long.

The rule: a target is never cut; a prompt (or the oldest turns of a conversation) loses tokens from
its left until prefix, prompt and target fit the context; a BOS that inputs add stays. How many rows
that touched is counted. A target that does not fit alone is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from foreword.backbone.kinds.base import IGNORED
from foreword.backbone.tokens import check_known, tokenized
from foreword.data.chat import asked, assistant_spans, check_turns, rendered
from foreword.data.each import of_each
from foreword.data.room import Room
from foreword.data.template import MESSAGES, Task, fill
from foreword.errors import DataError, Notice
from foreword.prefix import Bos


@dataclass(frozen=True)
class Encoded:
    """One row as token ids.

    Attributes:
        input_ids: Prompt and target tokens; the source alone for an encoder-decoder.
        labels: The same length, `IGNORED` where no token is predicted; the target of an
            encoder-decoder; whole numbers or, where rows are measured, one fraction.
        truncated: Tokens that the prompt lost.
        types: Of a pair which text each token belongs to, 0 or 1, for models that are told.
        pieces: Under a prefix with control, numbers of the pieces that it selects beside the shared one.
    """

    input_ids: list[int]
    labels: list[Any]
    truncated: int = 0
    types: list[int] | None = None
    pieces: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Tokens that its longest stack sees."""
        return max(len(self.input_ids), len(self.labels))

    @property
    def targets(self) -> int:
        """Number of predicted tokens."""
        return sum(label != IGNORED for label in self.labels)

    @property
    def answer(self) -> int:
        """Number of tokens of the last run of predicted ones: all, but for earlier turns of a chat."""
        predicted = [place for place, label in enumerate(self.labels) if label != IGNORED]
        return predicted[-1] + 1 - _last_run(predicted)


class Truncated(Notice):
    """A prompt did not fit the context beside the tokens to generate, or the recipe's max_length."""


@dataclass(frozen=True)
class Report:
    """What encoding a set of rows did to it."""

    rows: int
    truncated_rows: int
    truncated_tokens: int

    def __str__(self) -> str:
        """One line for people."""
        if not self.truncated_rows:
            return f"{self.rows} rows, none truncated"
        return (
            f"{self.rows} rows, {self.truncated_rows} of them with {self.truncated_tokens} prompt "
            "tokens cut to fit the context"
        )


class Encoder:
    """Turns rows of a task into token ids for one tokenizer.

    Args:
        tokenizer: The backbone's tokenizer.
        task: Templates, or conversations.
        bos: BOS policy of the prefix that the rows are for.
        limit: Most tokens of prompt and target together; or the room that a recipe leaves.
        vocabulary: Tokens that the backbone has embeddings for; None: not looked at.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        *,
        bos: Bos,
        limit: int | Room,
        vocabulary: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.task = task
        self.bos = bos
        self.room = limit if isinstance(limit, Room) else Room(limit)
        self.vocabulary = vocabulary

    @property
    def limit(self) -> int:
        """Most tokens of prompt and target together."""
        return self.room.limit

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Encoded], Report]:
        """All rows encoded, and what was cut.

        Raises:
            DataError: A column is missing, or a target cannot be used; the message names the row.
        """
        self.task.check(rows)
        encoded = of_each(rows, self.row, "row")
        cut = [one.truncated for one in encoded if one.truncated]
        return encoded, Report(len(encoded), len(cut), sum(cut))

    def row(self, row: Mapping[str, Any]) -> Encoded:
        """One row with its target."""
        if self.task.chat:
            return self._conversation(row[MESSAGES])
        prompt, target = self.task.pair(row)
        return self._fitted(self._start(prompt), self.target_ids(target))

    def target_ids(self, target: str) -> list[int]:
        """Tokens of a target, with the end of sequence after them."""
        ids: list[int] = tokenized(self.tokenizer, target, add_special_tokens=False)["input_ids"]
        if not ids:
            raise DataError(f"its target {target!r} has no tokens; drop the row")
        end = self.tokenizer.eos_token_id
        return self._known(ids if end is None else [*ids, end])

    def prompt(
        self, row: Mapping[str, Any] | str, room: int = 0, target: int | None = None
    ) -> list[int]:
        """Token ids that generation starts from, leaving `room` tokens of the context free.

        A row is filled into the prompt template; text of its own is taken as the prompt, or in a
        chat task as the user's message. An answer that a conversation ends with is left out.

        Args:
            row: The row or text.
            room: Tokens that may be written after it.
            target: Tokens of the row's own target, where it is known.
        """
        limit = self.room.of_prompt(room, target)
        if limit < 1:
            raise DataError(
                f"{room} new tokens leave no room for a prompt in a context of {self.room.context}; "
                "ask for fewer"
            )
        return self.fitted(self.uncut(row), limit, room)

    def within_recipe(self, ids: list[int]) -> list[int]:
        """A prompt cut to the recipe's max_length alone; one beyond the context is for others to refuse.

        Warns:
            Truncated: It has more tokens.
        """
        limit = self.room.of_prompt(0)
        return ids if limit == self.room.context else self.fitted(ids, limit)

    def fitted(self, ids: list[int], limit: int, room: int = 0) -> list[int]:
        """The last `limit` tokens of a prompt.

        Warns:
            Truncated: It has more.
        """
        if len(ids) > limit:
            lost = f"a prompt of {len(ids)} tokens lost {len(ids) - limit} from its left"
            why = (
                f"to leave room for {room} new tokens in the context; ask for fewer with "
                "--max-new-tokens"
                if limit == self.room.context - room
                else f"as prompts did in training, whose max_length is {self.room.max_length}"
            )
            warnings.warn(f"{lost} {why}", Truncated, stacklevel=3)
        return self._cut(ids, limit)

    def _cut(self, ids: list[int], limit: int) -> list[int]:
        """The last `limit` tokens; a BOS that inputs add stays in front."""
        if len(ids) <= limit:
            return ids
        if self.bos == "input" and limit > 1 and ids[0] == self.tokenizer.bos_token_id:
            return [ids[0], *ids[len(ids) - limit + 1 :]]
        return ids[len(ids) - limit :]

    def uncut(self, row: Mapping[str, Any] | str) -> list[int]:
        """What `prompt` gives where the context is large enough."""
        if not self.task.chat:
            assert self.task.prompt is not None
            return self._start(row if isinstance(row, str) else fill(self.task.prompt, row))
        if isinstance(row, str):
            messages: Sequence[Mapping[str, str]] = [{"role": "user", "content": row}]
        else:
            check_turns(row.get(MESSAGES))
            messages = asked(row[MESSAGES])
        text = rendered(self.tokenizer, messages, ask=True)
        ids = list(tokenized(self.tokenizer, text, add_special_tokens=False)["input_ids"])
        return self._known(self.without_doubled_bos(ids))

    def _start(self, prompt: str) -> list[int]:
        """Tokens of a prompt text, BOS by policy; never empty, so that the first target has one."""
        ids: list[int] = tokenized(self.tokenizer, prompt, add_special_tokens=False)["input_ids"]
        if self.bos == "input":
            return self._known([self.tokenizer.bos_token_id, *ids])
        if ids:
            return self._known(ids)
        start = self.tokenizer.bos_token_id
        if start is None:
            start = self.tokenizer.eos_token_id
        if start is None:
            raise DataError("its prompt has no tokens, and the tokenizer has no BOS to start from")
        return self._known([start])

    def _known(self, ids: list[int]) -> list[int]:
        """The tokens, once the backbone is seen to know each."""
        check_known(ids, self.vocabulary, self.tokenizer)
        return ids

    def _conversation(self, messages: Any) -> Encoded:
        text, spans = assistant_spans(self.tokenizer, messages)
        tokens = tokenized(
            self.tokenizer, text, add_special_tokens=False, return_offsets_mapping=True
        )
        ids, labels = self._known(list(tokens["input_ids"])), []
        for token, (start, end) in zip(ids, tokens["offset_mapping"], strict=True):
            inside = any(first <= start and end <= last and start < end for first, last in spans)
            labels.append(token if inside else IGNORED)
        kept = self.without_doubled_bos(ids)
        labels = labels[len(ids) - len(kept) :]
        predicted = [index for index, label in enumerate(labels) if label != IGNORED]
        if not predicted:
            raise DataError("its assistant turns have no tokens")
        # What follows the last answer is neither read nor predicted.
        kept = kept[: predicted[-1] + 1]
        labels = labels[: len(kept)]
        cut = max(0, len(kept) - self.limit)
        last_turn = _last_run(predicted)
        if cut >= last_turn:
            raise DataError(
                f"its last assistant turn has {len(kept) - last_turn} tokens; the context leaves "
                f"{self.limit}. Shorten it or use fewer virtual tokens"
            )
        return Encoded(kept[cut:], [IGNORED, *labels[cut + 1 :]], cut)

    def without_doubled_bos(self, ids: list[int]) -> list[int]:
        """Chat templates often write a BOS; where the prefix carries it, it is taken out."""
        if self.bos == "prefix" and ids[:1] == [self.tokenizer.bos_token_id]:
            return ids[1:]
        return ids

    def _fitted(self, prompt: list[int], target: list[int]) -> Encoded:
        room = self.limit - len(target)
        if room < 1:
            raise DataError(
                f"its target has {len(target)} tokens; the context leaves {self.limit} for prompt "
                "and target. Shorten it, or use fewer virtual tokens or a larger context"
            )
        kept = self._cut(prompt, room)
        cut = len(prompt) - len(kept)
        return Encoded([*kept, *target], [*[IGNORED] * len(kept), *target], cut)


def _last_run(indices: list[int]) -> int:
    """First index of the last run of consecutive ones."""
    start = indices[-1]
    for index in reversed(indices[:-1]):
        if index != start - 1:
            break
        start = index
    return start
