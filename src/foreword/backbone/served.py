"""`Served`: what a server asks of the backbone that an engine runs, wherever its weights are."""

from __future__ import annotations

from typing import Protocol

from transformers import PreTrainedTokenizerBase

from foreword.backbone.kinds import KindName
from foreword.prefix import Bos, Prefix


class Served(Protocol):
    """A backbone as servers, and those who make tokens of texts, see it.

    A `Backbone` is one; so is what tells of a model whose weights another process has.
    """

    @property
    def name(self) -> str:
        """What requests call it."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its tokenizer, or None where texts are token ids."""

    @property
    def kind(self) -> KindName:
        """``decoder``, ``encoder`` or ``encoder-decoder``."""

    @property
    def context(self) -> int:
        """Most tokens, prefix and text together."""

    @property
    def vocabulary(self) -> int:
        """Tokens that it has embeddings for: ids are below it."""

    @property
    def bos(self) -> Bos:
        """BOS policy of a prefix that does not carry the BOS itself."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a sequence."""

    def check(self, prefix: Prefix, *, warn: bool = True) -> None:
        """Check whether a prefix fits it.

        Args:
            prefix: The prefix, with its tensors or as its file's header describes it.
            warn: Warn of other weights, where that can be told.

        Raises:
            MismatchError: It does not; the message names what differs.
        """
