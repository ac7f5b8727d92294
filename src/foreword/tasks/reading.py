"""Text as the token ids that a head looks at, and where in the text each token stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from foreword.attention.signature import parameters_of
from foreword.backbone import Backbone
from foreword.backbone.tokens import check_known, tokenized
from foreword.errors import DataError
from foreword.prefix import Bos

Span = tuple[int, int]
"""Where a token's characters begin and end."""


@dataclass(frozen=True)
class Reading:
    """A text, or a window of it, as token ids.

    Attributes:
        ids: Token ids, the tokenizer's marks included.
        spans: Per token its characters in the text that is labelled; None for marks and for the
            tokens of a question.
        cut: Tokens that did not fit.
        types: Of a pair which text each token belongs to, for backbones that are told.
    """

    ids: list[int]
    spans: Sequence[Span | None]
    cut: int = 0
    types: list[int] | None = None


@dataclass(frozen=True)
class Reader:
    """Reads text for one tokenizer.

    Attributes:
        tokenizer: The backbone's tokenizer.
        marks: Whether the tokenizer adds its own marks (encoders); else a BOS stands in front if the
            policy says that inputs have one.
        bos: BOS policy of the prefix.
        limit: Most tokens of a reading.
        vocabulary: Tokens that the backbone has embeddings for; None: not looked at.
        typed: Whether the backbone is told which text of a pair a token belongs to.

    Raises:
        DataError: The tokenizer cannot say where its tokens stand.
    """

    tokenizer: PreTrainedTokenizerBase
    marks: bool
    bos: Bos
    limit: int
    vocabulary: int | None = None
    typed: bool = False

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise DataError(
                "a head needs a fast tokenizer, which says where in the text its tokens stand; found "
                f"{type(self.tokenizer).__name__}"
            )

    def read(self, text: str) -> Reading:
        """A text; what does not fit is cut from its right.

        Raises:
            DataError: It has no tokens.
        """
        whole = self._tokens(text)
        check_known(whole["input_ids"], self.vocabulary, self.tokenizer)
        found = whole
        if len(whole["input_ids"]) > self._room:
            found = self._tokens(text, truncation=True, max_length=self._room)
        ids = [*self._front, *found["input_ids"]]
        if not ids:
            raise DataError("its text has no tokens")
        spans = [*[None] * len(self._front), *_spans(found["offset_mapping"])]
        return Reading(ids, spans, len(whole["input_ids"]) - len(found["input_ids"]))

    def pair(self, first: str, second: str) -> Reading:
        """Two texts as the tokenizer puts pairs together; what does not fit is cut from the longer one.

        Where the tokenizer adds no marks (decoders), a line break stands between them, and they are read
        as one text.

        Raises:
            DataError: There is no room for them, or they have no tokens.
        """
        if not self.marks:
            return self.read(f"{first}\n{second}")
        around = self.tokenizer.num_special_tokens_to_add(pair=True)
        if self._room <= around:
            raise DataError(
                f"{self.limit} tokens leave no room for a pair of texts, whose marks take {around}"
            )
        whole = self._tokens(first, second)
        check_known(whole["input_ids"], self.vocabulary, self.tokenizer)
        found = whole
        if len(whole["input_ids"]) > self._room:
            found = self._tokens(first, second, truncation="longest_first", max_length=self._room)
        ids: list[int] = list(found["input_ids"])
        if all(sequence is None for sequence in found.sequence_ids()):
            raise DataError("its texts have no tokens")
        types = list(found["token_type_ids"]) if self.typed else None
        return Reading(ids, [None] * len(ids), len(whole["input_ids"]) - len(ids), types)

    def windows(self, question: str, context: str, stride: int) -> list[Reading]:
        """A question with a context, in as many windows of the context as are needed.

        Args:
            question: Stands whole in front of each window.
            context: What spans refer to.
            stride: Tokens that two windows have in common.

        Raises:
            DataError: The question leaves no room.
        """
        room = self._room - self._around_second(question)
        if room < 2:
            raise DataError(
                f"its question leaves {max(room, 0)} of {self.limit} tokens for the context"
            )
        found = self._tokens(
            question,
            context,
            truncation="only_second",
            max_length=self._room,
            stride=min(stride, room // 2),
            return_overflowing_tokens=True,
        )
        made = []
        for number, ids in enumerate(found["input_ids"]):
            check_known(ids, self.vocabulary, self.tokenizer)
            second = [sequence == 1 for sequence in found.sequence_ids(number)]
            spans = _spans(found["offset_mapping"][number])
            shown = [span if own else None for span, own in zip(spans, second, strict=True)]
            made.append(Reading([*self._front, *ids], [*[None] * len(self._front), *shown]))
        return made

    def _around_second(self, first: str) -> int:
        """Tokens of a pair that are not of its second text: those of the first, and all marks.

        Not counted on a pair with an empty second text: the tokenizer takes that for one text alone,
        which has fewer marks.
        """
        own: int = sum(sequence == 0 for sequence in self._tokens(first).sequence_ids())
        marks: int = self.tokenizer.num_special_tokens_to_add(pair=True) if self.marks else 0
        return own + marks

    @property
    def _front(self) -> list[int]:
        takes = not self.marks and self.bos == "input"
        return [int(self.tokenizer.bos_token_id)] if takes else []

    @property
    def _room(self) -> int:
        return self.limit - len(self._front)

    def _tokens(self, *texts: str, **options: Any) -> Any:
        return tokenized(
            self.tokenizer,
            *texts,
            add_special_tokens=self.marks,
            return_offsets_mapping=True,
            verbose=False,
            **options,
        )


def reader_for(backbone: Backbone, bos: Bos, limit: int) -> Reader:
    """The reader of a backbone's inputs, under a prefix's BOS policy.

    Raises:
        DataError: The backbone has no tokenizer.
    """
    if backbone.tokenizer is None:
        raise DataError("this backbone has no tokenizer, so texts cannot be encoded")
    marks = backbone.kind != "decoder"
    typed = marks and _is_typed(backbone)
    return Reader(backbone.tokenizer, marks, bos, limit, backbone.vocabulary, typed)


def _is_typed(backbone: Backbone) -> bool:
    """Whether tokenizer and model know token types; a model with one type of token tells none apart."""
    model = backbone.model.base_model
    takes = "token_type_ids" in parameters_of(type(model))
    gives = "token_type_ids" in backbone.tokenizer.model_input_names  # type: ignore[union-attr]
    return takes and gives and getattr(model.config, "type_vocab_size", 2) > 1


def _spans(offsets: list[Span]) -> list[Span | None]:
    """Marks have no characters."""
    return [(start, end) if end > start else None for start, end in offsets]
