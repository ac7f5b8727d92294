"""From a text or a conversation to the tokens that a model is given under a prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.backbone.served import Served
from foreword.data import Encoder, Task
from foreword.data.chat import rendered
from foreword.data.room import Room
from foreword.data.seq2seq import encoder_of
from foreword.data.template import as_row
from foreword.errors import WRITES_NONE, MismatchError
from foreword.outline import Outline
from foreword.prefix import Prefix

PLAIN = Task("{input}", "{output}")
"""Text as it is given."""

CHAT = Task(None, None)
"""Conversations in the backbone's own chat template."""


def task_of(prefix: Prefix | Outline) -> Task:
    """The templates that the prefix was trained with; plain text for one that was captured."""
    recipe = prefix.meta.recipe
    if "prompt" not in recipe:
        return PLAIN
    return Task(recipe.get("prompt"), recipe.get("target"))


def has_templates(prefix: Prefix | None) -> bool:
    """Whether a prefix was trained with templates, so that it is asked in them and not in a chat."""
    return prefix is not None and "prompt" in prefix.meta.recipe and not task_of(prefix).chat


def encoder_for(
    backbone: Served,
    prefix: Prefix | Outline | None,
    task: Task,
    like: Prefix | Outline | None = None,
) -> Encoder:
    """The encoder of inputs for a prefix, or for the frozen model alone (None).

    Args:
        backbone: The backbone.
        prefix: The prefix that will be attached.
        task: The templates.
        like: Without a prefix, one to leave room for, so that both see the same text.
    """
    bos = prefix.meta.bos if prefix is not None else backbone.bos
    return encoder_of(backbone, task, bos, Room.behind(backbone, prefix or like))


def text_ids(backbone: Served, prefix: Prefix | None, text: str) -> list[int]:
    """Token ids of a text, taken as it is."""
    return encoder_for(backbone, prefix, PLAIN).uncut({"input": text})


def chat_ids(
    backbone: Served, prefix: Prefix | None, turns: Sequence[Mapping[str, str]]
) -> list[int]:
    """Token ids of a conversation up to where the assistant speaks.

    A prefix that was trained with templates is asked in them: the one message fills the prompt
    template, as in `generate`. Others get the chat template.

    Raises:
        DataError: The conversation does not go through the template, or is too long for the recipe.
    """
    if prefix is not None and has_templates(prefix):
        task = task_of(prefix)
        encoder = encoder_for(backbone, prefix, task)
        return encoder.within_recipe(encoder.uncut(as_row(turns[-1]["content"], task)))
    tokenizer: Any = backbone.tokenizer
    text = rendered(tokenizer, turns, ask=True)
    encoder = encoder_for(backbone, prefix, CHAT)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return encoder.within_recipe(encoder.without_doubled_bos(ids))


def refuse_head(prefix: Prefix) -> None:
    """Check that a prefix is one that writes text.

    Raises:
        MismatchError: It carries a head.
    """
    if prefix.head is not None:
        raise MismatchError(WRITES_NONE.format(prefix.head.task))
