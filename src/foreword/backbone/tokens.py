"""Text to token ids that a backbone's embeddings know; what no tokenizer takes is refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

from foreword.arguments import check_text
from foreword.errors import DataError, ForewordError


def tokenized(
    tokenizer: PreTrainedTokenizerBase,
    *texts: str,
    refusal: type[ForewordError] = DataError,
    **options: Any,
) -> Any:
    """What a tokenizer gives for texts.

    Args:
        tokenizer: The tokenizer.
        texts: One text, or two that belong together; or none, with ``text_target`` among the options.
        refusal: The error to raise.
        options: What else the tokenizer takes.

    Raises:
        DataError: A text is no text, or holds half of a character.
    """
    for text in (*texts, *filter(None, [options.get("text_target")])):
        check_text("its text", text, refusal)
    return tokenizer(*texts, **options)


def check_known(
    ids: Iterable[int],
    vocabulary: int | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    refusal: type[ForewordError] = DataError,
) -> None:
    """Check that the embeddings have a row for each token.

    Args:
        ids: Token ids.
        vocabulary: Rows of the embeddings; None where they are not known.
        tokenizer: What the ids came from, to name the token.
        refusal: The error to raise.

    Raises:
        DataError: A token is not among them.
    """
    if vocabulary is None:
        return
    wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
    if wrong is None:
        return
    named = "" if tokenizer is None else f" ({tokenizer.convert_ids_to_tokens(wrong)!r})"
    raise refusal(
        f"token {wrong}{named} is not among the {vocabulary} that the backbone has embeddings for; use "
        "the tokenizer that belongs to it, or give it embeddings of the tokens that were added: "
        "model.resize_token_embeddings(len(tokenizer))"
    )
