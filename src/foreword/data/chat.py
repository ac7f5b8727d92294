"""Conversations in the model's own chat template, and where in the text the assistant speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foreword.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, ask: bool
) -> str:
    """The conversation as text; with `ask`, up to where the assistant's next turn begins.

    Raises:
        DataError: The tokenizer has no chat template, or the template refuses the conversation.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise DataError(
            "the backbone's tokenizer has no chat template, so a messages column cannot be used; "
            "give --prompt and --target templates"
        )
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=ask
        )
    except TemplateError as error:
        raise DataError(f"the chat template refuses the conversation: {error}") from error
    assert isinstance(text, str)
    return text


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Any
) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and the character spans of the assistant's turns.

    A span runs from where the assistant is asked to speak to the end of its turn, the end-of-turn
    mark included, found by rendering the conversation up to each turn. A first turn of the
    assistant answers nothing and has no span.

    Raises:
        DataError: The value is not a conversation, has no assistant turn, or the template rewrites
            earlier turns.
    """
    check_answered(messages)
    whole = rendered(tokenizer, messages, ask=False)
    spans = []
    for index in answers(messages):
        before = rendered(tokenizer, messages[:index], ask=True)
        after = rendered(tokenizer, messages[: index + 1], ask=False)
        if not (after.startswith(before) and whole.startswith(after)):
            raise DataError(
                f"turn {index + 1} cannot be found in the rendered conversation: the chat template "
                "rewrites earlier turns; give --prompt and --target templates"
            )
        spans.append((len(before), len(before) + len(after[len(before) :].rstrip())))
    return whole, spans


def answers(messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Places of the assistant's turns that answer an earlier turn."""
    return [place for place, turn in enumerate(messages) if place and turn["role"] == "assistant"]


def asked(messages: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
    """What there is to answer: the conversation, less an answer that it ends with."""
    return messages[:-1] if answers(messages)[-1:] == [len(messages) - 1] else messages


def check_answered(messages: Any) -> None:
    """Check that a value is a conversation in which the assistant answers.

    Raises:
        DataError: It is not.
    """
    check_turns(messages)
    if not answers(messages):
        raise DataError(
            "its messages have no assistant turn after another turn; expected at least one"
        )


def check_turns(messages: Any) -> None:
    """Check that a value is a conversation: a list of turns with role and content.

    Raises:
        DataError: It is not.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(f"its messages must be a list of turns; found {type(messages).__name__}")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise DataError(f"turn {number} of its messages must have role and content")
        for key in ("role", "content"):
            if not isinstance(message[key], str):
                kind = type(message[key]).__name__
                raise DataError(f"turn {number} of its messages: {key} must be text, found {kind}")
