"""What a request to vLLM must say to be served under a prefix; nothing here needs vLLM.

vLLM takes a prefix for text that it has computed already. So a prompt begins with P placeholders, one
token for each virtual token, and the connector puts the prefix's keys and values where theirs would be.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.arguments import check_count, path_of, shown
from foreword.described import Described
from foreword.errors import DataError, MismatchError, ServeError, StoreError

CONNECTOR = "ForewordPrefixes"
"""The connector's name, as vLLM's flags and configurations call it."""

MODULE = "foreword.engine.vllm.connector"
"""Where it is."""

EXTENSION = "foreword.engine.vllm.connector.Reaching"
"""What vLLM's workers can be asked beside their own methods."""

MARK = "foreword:"
"""What the cache salt of a request under a prefix begins with, and no other's."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RESERVED = re.compile(r"[<\[].*(reserved|unused|extra_id|placeholder|dummy|control_).*[>\]]", re.I)
_USED = re.compile(r"end|eo[stm]|sep|mask|pad|fim|tool|image|audio|video", re.I)
"""In the names of special tokens that may end or fill a text, or mark what is no text."""


@dataclass(frozen=True)
class Named:
    """A prefix as a request names it: by its name in the store and by its contents.

    Attributes:
        name: Its name in the store.
        digest: Its digest, without which a file that was replaced under the name would be served.
    """

    name: str
    digest: str

    @property
    def params(self) -> dict[str, Any]:
        """The ``kv_transfer_params`` of a request under it."""
        return {"prefix": {"name": self.name, "digest": self.digest}}

    def salt(self, given: str | None = None) -> str:
        """The cache salt under which blocks of the prefix are shared, and no others.

        Args:
            given: A salt of the caller's own, such as a tenant's; one made here stays as it is.
        """
        own = f"{MARK}{self.digest}:"
        given = given or ""
        return given if given.startswith(own) else own + given


def named_in(params: Mapping[str, Any] | None) -> Named | None:
    """The prefix that a request's ``kv_transfer_params`` name; None if they name none.

    Raises:
        DataError: They are not of the form that `Named.params` has.
    """
    if not params or "prefix" not in params:
        return None
    found = params["prefix"]
    expected = "kv_transfer_params['prefix'] must be an object with the texts 'name' and 'digest'"
    if not isinstance(found, Mapping) or set(found) != {"name", "digest"}:
        raise DataError(f"{expected}; found {shown(found)}")
    name, digest = found["name"], found["digest"]
    if not isinstance(name, str) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise DataError(f"{expected}, the latter of 64 hexadecimal digits; found {shown(found)}")
    return Named(name, digest)


def foreign_salt(salt: str | None) -> str | None:
    """The cache salt of a request without a prefix, which must not share a prefix's blocks."""
    return f"text:{salt}" if salt is not None and salt.startswith(MARK) else salt


@dataclass(frozen=True)
class PrefixedPrompt:
    """A prompt as vLLM takes it.

    Attributes:
        token_ids: The placeholders, then the text.
        prefix: The prefix, or None.
        salt: The cache salt, or None.
    """

    token_ids: tuple[int, ...]
    prefix: Named | None = None
    salt: str | None = None

    @property
    def prompt(self) -> dict[str, Any]:
        """A prompt for ``vllm.LLM.generate``."""
        salted = {} if self.salt is None else {"cache_salt": self.salt}
        return {"prompt_token_ids": list(self.token_ids), **salted}

    @property
    def extra_args(self) -> dict[str, Any] | None:
        """The argument of this name of ``vllm.SamplingParams``."""
        return None if self.prefix is None else {"kv_transfer_params": self.prefix.params}


def prefixed(
    token_ids: Sequence[int],
    placeholder: int,
    name: str = "",
    outline: Described | None = None,
    tenant: str | None = None,
) -> PrefixedPrompt:
    """A prompt behind a prefix, or behind none.

    Args:
        token_ids: The text, at least one token.
        placeholder: See `placeholder_of`.
        name: The prefix's name in the store.
        outline: The prefix, or what its file says of it (`PrefixStore.outline`); None for the model
            alone.
        tenant: Requests with different ones share no blocks of vLLM's cache.

    Raises:
        DataError: There is no text.
        MismatchError: It is not a prefix that vLLM can serve.
    """
    if not token_ids:
        raise DataError("a prompt needs at least one token behind its prefix; found none")
    if outline is None:
        return PrefixedPrompt(tuple(token_ids), None, foreign_salt(tenant))
    check_served(outline)
    named = Named(name, outline.digest)
    return PrefixedPrompt((*[placeholder] * outline.length, *token_ids), named, named.salt(tenant))


def check_served(prefix: Described) -> None:
    """Check that a prefix is one that a plain key-value cache can stand for.

    Raises:
        MismatchError: It is not; the message says what it is.
    """
    remedy = "use Foreword's own engine (foreword serve, foreword.generate)"
    if prefix.head_task is not None:
        raise MismatchError(
            f"this prefix carries a head for {prefix.head_task!r}, so it labels text and writes "
            "none; use predict, or save prefix.with_head(None)"
        )
    if prefix.meta.combination != "attention":
        raise MismatchError(
            f"this prefix is a combination of pieces ({prefix.meta.combination!r}), of which vLLM would "
            f"attend to all; {remedy}, or save one of its pieces"
        )
    if strengths := [piece.strength for piece in prefix.meta.pieces if piece.strength != 1]:
        raise MismatchError(
            f"this prefix has a piece at strength {strengths[0]:g}, and vLLM's attention knows of none "
            f"but 1; {remedy}"
        )
    if prefix.meta.softmax == "own":
        raise MismatchError(
            "this prefix is gated: it has a softmax of its own (softmax policy 'own'), which vLLM's "
            f"attention cannot add; {remedy}"
        )
    for site in prefix.sites:
        if site.stack != "decoder":
            raise MismatchError(
                f"site {site.label} of this prefix is of stack {site.stack!r}; vLLM is given prefixes "
                f"of decoders. For others {remedy}"
            )


def check_tokenizer(prefix: Described, own: str, model: str) -> None:
    """Check that a prefix was made with a model's tokenizer, as far as both say.

    Args:
        prefix: The prefix.
        own: Digest of the tokenizer, or empty where it is not known.
        model: The model's name, for messages.

    Raises:
        MismatchError: It was made with another.
    """
    made_with = prefix.meta.tokenizer
    if made_with and own and made_with != own:
        raise MismatchError(
            f"the prefix was made with another tokenizer (digest {made_with[:12]}) than that of "
            f"{model!r} ({own[:12]}); use the model that it was made on: {prefix.meta.backbone!r}"
        )


def check_prompt(token_ids: Sequence[int] | None, length: int, placeholder: int) -> None:
    """Check that a prompt begins with the placeholders of a prefix, and goes on after them.

    Raises:
        DataError: It does not.
    """
    ids = list(token_ids or ())
    found = next((i for i, token in enumerate(ids[:length]) if token != placeholder), len(ids))
    if found < length:
        raise DataError(
            f"a prompt under a prefix of {length} begins with {length} placeholders (token "
            f"{placeholder}); found {found}. Make it with foreword.engine.vllm.prefixed"
        )
    if len(ids) == length:
        raise DataError("a prompt needs at least one token behind its prefix; found none")


def check_text_alone(token_ids: Sequence[int] | None, placeholder: int) -> None:
    """Check that a prompt that names no prefix begins with none's placeholders.

    Raises:
        DataError: It does: what named its prefix was lost, and placeholders would be read as text.
    """
    if token_ids and token_ids[0] == placeholder:
        raise DataError(
            f"a prompt begins with the placeholder of prefixes (token {placeholder}), and its "
            "kv_transfer_params name none; give them as PrefixedPrompt.params has them. A search by "
            "beams loses them, so it cannot be had under a prefix"
        )


def placeholder_of(tokenizer: Any, vocabulary: int) -> int:
    """The token that stands for virtual tokens in a prompt.

    vLLM never computes it, so no text depends on it but through penalties on repetition, which count
    prompts. So it is one that texts do not have: a row of the embeddings without a token; else a token
    that is reserved by its name; else a special one that conversations do not use; else the last of the
    plain ones. It is never a beginning, an end or a filling, which vLLM and its clients look for.

    Args:
        tokenizer: The model's tokenizer.
        vocabulary: Number of rows of the model's embeddings.

    Raises:
        ServeError: There is none.
    """
    if len(tokenizer) < vocabulary:
        return vocabulary - 1
    roles = {getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "pad", "unk")}
    added = tokenizer.added_tokens_decoder.items()
    special = {token for token, one in added if one.special} | set(tokenizer.all_special_ids)
    known = sorted(tokenizer.get_vocab().items(), key=lambda item: -item[1])
    free: list[tuple[str, int]] = [
        (name, token) for name, token in known if token < vocabulary and token not in roles
    ]
    template = str(tokenizer.chat_template)
    kinds = (
        (token for name, token in free if _RESERVED.fullmatch(name)),
        (t for name, t in free if t in special and name not in template and not _USED.search(name)),
        (token for _, token in free if token not in special),
    )
    found = next(itertools.chain(*kinds), None)
    if found is None:
        raise ServeError(
            f"none of {vocabulary} tokens can stand for virtual tokens; give placeholder= a token that "
            "your texts do not have"
        )
    return found


def engine_arguments(
    store: str | os.PathLike[str], placeholder: int, *, resident: int = 256, tokenizer: str = ""
) -> dict[str, Any]:
    """Arguments of ``vllm.LLM`` that let it serve the prefixes of a store.

    Args:
        store: The store's folder, which every worker sees under this path.
        placeholder: See `placeholder_of`.
        resident: Prefixes that each worker keeps in memory, those that were used last.
        tokenizer: Digest of the model's tokenizer; prefixes made with another are refused.

    Raises:
        StoreError: The folder is no path.
        ServeError: A number is out of range.
    """
    folder = path_of("store", store, StoreError).absolute()
    check_count("placeholder", placeholder, ServeError, least=0)
    check_count("resident", resident, ServeError)
    return {
        "kv_transfer_config": {
            "kv_connector": CONNECTOR,
            "kv_connector_module_path": MODULE,
            "kv_role": "kv_consumer",
            "kv_load_failure_policy": "fail",
            "kv_connector_extra_config": {
                "store": str(folder),
                "placeholder": placeholder,
                "resident": resident,
                **({"tokenizer": tokenizer} if tokenizer else {}),
            },
        }
    }
