"""From a text or a conversation to the tokens that a model is given under a prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.backbone.served import Served
from foreword.data import Encoder, Task
from foreword.data.chat import rendered
from foreword.data.room import Room
from foreword.data.selecting import values_of
from foreword.data.seq2seq import encoder_of
from foreword.data.template import as_row
from foreword.described import Described
from foreword.errors import WRITES_NONE, MismatchError

PLAIN = Task("{input}", "{output}")
"""Text as it is given."""

CHAT = Task(None, None)
"""Conversations in the backbone's own chat template."""


def task_of(prefix: Described) -> Task:
    """The templates that the prefix was trained with; plain text for one that was captured."""
    recipe = prefix.meta.recipe
    if "prompt" not in recipe:
        return PLAIN
    return Task(recipe.get("prompt"), recipe.get("target"))


def has_templates(prefix: Described | None) -> bool:
    """Whether a prefix was trained with templates, so that it is asked in them and not in a chat."""
    return prefix is not None and "prompt" in prefix.meta.recipe and not task_of(prefix).chat


def encoder_for(
    backbone: Served, prefix: Described | None, task: Task, like: Described | None = None
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


def text_ids(backbone: Served, prefix: Described | None, text: str) -> list[int]:
    """Token ids of a text, taken as it is."""
    return encoder_for(backbone, prefix, PLAIN).uncut({"input": text})


def chat_ids(
    backbone: Served, prefix: Described | None, turns: Sequence[Mapping[str, str]]
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


def values_in(prefix: Described, text: str) -> dict[str, str]:
    """By attribute of a prefix with control the value that an input's text names, as in `generate`.

    Where the prefix was trained with templates, a JSON object with their columns is a row.

    Raises:
        DataError: The text cannot be told apart into the columns, or a value cannot be read.
    """
    if not prefix.meta.attributes or not has_templates(prefix):
        return {}
    return values_of(prefix.meta, as_row(text, task_of(prefix)))


def under_bos(
    backbone: Served, ids: Sequence[int], made_for: Described | None, prefix: Described | None
) -> list[int]:
    """A prompt made for one prefix, as another (or the frozen model) is given it: they differ in BOS.

    Args:
        backbone: The backbone.
        ids: The prompt.
        made_for: The prefix whose prompt it is; None for the frozen model.
        prefix: The one that it is to be for.
    """
    was, becomes = (backbone.bos if one is None else one.meta.bos for one in (made_for, prefix))
    start = getattr(backbone.tokenizer, "bos_token_id", None)
    given = list(ids)
    if start is None or backbone.kind != "decoder" or "input" not in (was, becomes):
        return given
    if was == becomes:
        return given
    begins = given[:1] == [start]
    if becomes == "input":
        return given if begins else [start, *given]
    return given[1:] if begins and len(given) > 1 else given


def refuse_head(prefix: Described) -> None:
    """Check that a prefix is one that writes text.

    Raises:
        MismatchError: It carries a head.
    """
    if prefix.head_task is not None:
        raise MismatchError(WRITES_NONE.format(prefix.head_task))
