"""`Written`: how a text that a model writes begins and ends, and which of its tokens are text.

Training decides it. What it puts after a target ends a text wherever one is written, what an
encoder-decoder's tokenizer puts before a target begins one, and special tokens that stand in targets
are text, in what is written as in references.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from foreword.backbone import Backbone
from foreword.backbone.served import Served
from foreword.data.chat import assistant_spans
from foreword.data.template import Task
from foreword.errors import DataError
from foreword.outline import Outline
from foreword.prefix import Prefix


class OtherBeginning(UserWarning):
    """A model's own config would begin texts otherwise than training did."""


SPECIAL = "target_specials"
"""Among what training measured: special tokens that stood in targets."""


@dataclass(frozen=True)
class Written:
    """How texts are written under a prefix, or by a frozen model.

    Attributes:
        tokenizer: The backbone's, or None where texts are token ids.
        begin: What a decoder behind an encoder is given before the text; none for others.
        ends: Tokens any of which ends a text.
        kept: Special tokens that are text.
        stop: Texts any of which ends a text and is no part of it, as a chat template may write them.
    """

    tokenizer: Any
    begin: tuple[int, ...] = ()
    ends: frozenset[int] = frozenset()
    kept: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()

    def text(self, ids: Sequence[int]) -> str:
        """The text of written tokens, up to their end and without outer spaces.

        An end that is no special token, as a model's own config may name one, is text as well.
        """
        end = next((place for place, token in enumerate(ids) if token in self.ends), len(ids))
        text = self.spelled(ids[: end + 1])
        for stop in self.stop:
            text = text.partition(stop)[0]
        return text.strip()

    def is_ended(self, ids: Sequence[int]) -> bool:
        """Whether written tokens came to an end of their own; else there was no room for more."""
        if not self.ends.isdisjoint(ids):
            return True
        return bool(self.stop) and any(stop in self.spelled(ids) for stop in self.stop)

    def spelled(self, ids: Sequence[int]) -> str:
        """The text of tokens, as they stand: without special tokens that are no text."""
        text: str = self.tokenizer.decode(
            [token for token in ids if token not in self._dropped],
            skip_special_tokens=not self.kept,
            clean_up_tokenization_spaces=False,
        )
        return text

    @cached_property
    def _dropped(self) -> frozenset[int]:
        """Special tokens that are no text, where some are; else the tokenizer drops all of them."""
        return special_ids(self.tokenizer) - self.kept if self.kept else frozenset()

    def reference(self, text: str) -> str:
        """A target's text as a model would write it: what is text in the one is in the other."""
        if self.tokenizer is None:
            return text.strip()
        ids = _target(self.tokenizer, text, add_special_tokens=False)
        return text.strip() if _meant(self.tokenizer).isdisjoint(ids) else self.text(ids)

    def ended_by(self, ends: frozenset[int]) -> Written:
        """The same, which these tokens end as well, unless they are text."""
        return replace(self, ends=self.ends | (ends - self.kept))

    def keeping(self, targets: Iterable[str]) -> Written:
        """The same, where special tokens of these targets are text too."""
        if self.tokenizer is None:
            return self
        special, found = _meant(self.tokenizer), set(self.kept)
        for text in targets:
            found |= special.intersection(_target(self.tokenizer, text, add_special_tokens=False))
        return replace(self, kept=frozenset(found) - self.ends - set(self.begin))


def written_for(
    backbone: Served,
    prefix: Prefix | Outline | None,
    task: Task,
    like: Prefix | Outline | None = None,
) -> Written:
    """How a text is written for a task.

    Under a prefix that was trained, what training appended ends a text, and so do ends of the model's
    own that no ordinary text holds. A frozen model, and a captured text, have all of the model's own.

    Args:
        backbone: The backbone.
        prefix: The prefix that writes, or None for the frozen model.
        task: The templates.
        like: Without a prefix, one whose targets are to be written.
    """
    tokenizer = backbone.tokenizer
    if tokenizer is None:
        return Written(None, ends=backbone.eos_ids)
    front, appended = _marks(backbone, task)
    begin: tuple[int, ...] = ()
    if isinstance(backbone, Backbone) and backbone.kind == "encoder-decoder":
        begin = _begin(backbone, len(front))
    kept = _kept(tokenizer, prefix or like, task) - appended - set(begin)
    own = backbone.eos_ids
    if prefix is not None and "prompt" in prefix.meta.recipe:
        own = own & (special_ids(tokenizer) | set(tokenizer.added_tokens_decoder)) - kept
    stop = stop_of_turn(tokenizer) if task.chat and backbone.kind == "decoder" else ()
    return Written(tokenizer, begin, appended | own, kept, stop)


def specials_of(backbone: Backbone, task: Task, targets: Iterable[Iterable[int]]) -> list[int]:
    """Special tokens in targets that training did not put there itself, in order.

    Args:
        backbone: The backbone, with its tokenizer.
        task: The templates.
        targets: The predicted token ids of each row.
    """
    front, appended = _marks(backbone, task)
    found = set().union(*targets) & _meant(backbone.tokenizer)
    return sorted(found - appended - set(front) - set(_around(backbone)[1]))


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that decoding leaves out where it is asked for plain text."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset([*tokenizer.all_special_ids, *(i for i, token in added if token.special)])


def _meant(tokenizer: Any) -> frozenset[int]:
    """Special tokens that a target can mean: the unknown one stands for what cannot be written."""
    return special_ids(tokenizer) - {tokenizer.unk_token_id}


def _kept(tokenizer: Any, prefix: Prefix | Outline | None, task: Task) -> frozenset[int]:
    """Special tokens that the target template names, and that training found in targets."""
    found: list[Any] = []
    if task.target is not None:
        found += _target(tokenizer, task.target, add_special_tokens=False)
    told = prefix.meta.training.get(SPECIAL) if prefix is not None else None
    if isinstance(told, list | tuple):
        found += [token for token in told if isinstance(token, int)]
    return _meant(tokenizer).intersection(found)


def _marks(backbone: Served, task: Task) -> tuple[tuple[int, ...], frozenset[int]]:
    """What a target begins with, and what ends it."""
    tokenizer: Any = backbone.tokenizer
    if backbone.kind == "encoder-decoder":
        front, back = _around(backbone)
        return front, frozenset(back[:1])
    if task.chat:
        return (), end_of_turn(tokenizer)
    end = tokenizer.eos_token_id
    return (), frozenset() if end is None else frozenset([end])


def _around(backbone: Served) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The marks in front of an encoder-decoder's target, and those after it."""
    tokenizer: Any = backbone.tokenizer
    end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    if backbone.kind != "encoder-decoder":
        return (), end
    bare = _target(tokenizer, "a", add_special_tokens=False)
    whole = _target(tokenizer, "a")
    for place in range(len(whole) - len(bare) + 1):
        if whole[place : place + len(bare)] == bare:
            back = tuple(whole[place + len(bare) :])
            return tuple(whole[:place]), back if set(end) <= set(back) else (*back, *end)
    return (), end


def _begin(backbone: Backbone, front: int) -> tuple[int, ...]:
    """What training gives the decoder before the first token of a target's own text."""
    model: Any = backbone.model
    labels = torch.tensor([_labels(backbone)], device=backbone.device)
    given = model.prepare_decoder_input_ids_from_labels(labels=labels)[0, : 1 + front]
    begin: list[int] = given.tolist()
    _tell_other(model, begin)
    return tuple(begin)


def _labels(backbone: Backbone) -> list[int]:
    """The labels of a short target."""
    front, back = _around(backbone)
    return [*front, *_target(backbone.tokenizer, "a", add_special_tokens=False), *back]


def _tell_other(model: Any, begin: Sequence[int]) -> None:
    """Say where the model's own config would begin texts otherwise.

    Warns:
        OtherBeginning: It would.
    """
    own = model.generation_config
    named = {"decoder_start_token_id": begin[0], "forced_bos_token_id": (*begin[1:], None)[0]}
    for name, token in named.items():
        other = getattr(own, name, None)
        if other not in (None, token):
            warnings.warn(
                f"the model's generation config has {name}={other}; texts begin with the tokens "
                f"{list(begin)}, as targets do in training. If another language is meant, set the "
                "tokenizer's tgt_lang",
                OtherBeginning,
                stacklevel=2,
            )


def _target(tokenizer: Any, text: str, **options: Any) -> list[int]:
    return list(tokenizer(text_target=text, **options)["input_ids"])


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The special token that a chat template ends the assistant's turns with, if it is one."""
    return _turn_ends(tokenizer, str(tokenizer.chat_template), tokenizer.eos_token_id)[0]


def stop_of_turn(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The text that a chat template ends the assistant's turns with, where it is no special token."""
    return _turn_ends(tokenizer, str(tokenizer.chat_template), tokenizer.eos_token_id)[1]


@lru_cache(maxsize=32)
def _turn_ends(
    tokenizer: Any, template: str, end: int | None
) -> tuple[frozenset[int], tuple[str, ...]]:
    """How turns end; what else is given tells a tokenizer that was changed from what it was."""
    said = "Yes."
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
    try:
        text, spans = assistant_spans(tokenizer, turns)
    except DataError:
        return frozenset(), ()
    first, last = spans[-1]
    ids = tokenizer(text[:last], add_special_tokens=False)["input_ids"]
    ends = frozenset(ids[-1:]) & special_ids(tokenizer)
    mark = text[first:last].rpartition(said)[2]
    return ends, () if ends or not mark.strip() else (mark,)
