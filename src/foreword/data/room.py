"""`Room`: the one rule for how many tokens of text stand behind a prefix.

Training, evaluation, generation, prediction and the server ask it: the backbone's context less the
prefix, or what the recipe said (``max_length``) where that is less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foreword.backbone.served import Served
from foreword.described import Described
from foreword.description import PrefixMeta

LONGEST = "longest_target"
"""Among what training measured under a max_length: tokens of the longest target."""


@dataclass(frozen=True)
class Room:
    """Room for text.

    Attributes:
        context: Tokens that the backbone's context leaves beside the prefix.
        max_length: Most tokens of prompt and target together in training, or None for no such limit.
        target: Tokens of the longest target there, which a prompt leaves free within max_length.
    """

    context: int
    max_length: int | None = None
    target: int = 1

    @property
    def limit(self) -> int:
        """Most tokens of prompt and target together."""
        return min(self.context, self.max_length or self.context)

    def of_prompt(self, new: int, target: int | None = None) -> int:
        """Most tokens of a prompt that a text is written after.

        All new tokens are kept free in the context. Within max_length that would cut prompts to less
        than training saw, for what may be written is often more than max_length itself: there a prompt
        leaves free what targets took in training.

        Args:
            new: Tokens that may be written.
            target: Tokens of the row's own target, where it is known.
        """
        if self.max_length is None or self.max_length > self.context:
            return self.context - new
        free = self.target if target is None else target
        return min(self.context - new, self.max_length - free)

    @classmethod
    def behind(cls, backbone: Served, prefix: Described | None) -> Room:
        """The room behind a trained prefix, a captured one, or none."""
        if prefix is None:
            return cls(backbone.context)
        return cls.of(backbone.context - prefix.meta.in_front(prefix.length), prefix.meta)

    @classmethod
    def of(cls, context: int, meta: PrefixMeta | None) -> Room:
        """The room that a context leaves beside a prefix, and that its recipe leaves of it."""
        if meta is None:
            return cls(context)
        longest = _count(meta.training, LONGEST) or 1
        return cls(context, _count(meta.recipe, "max_length"), longest)


def _count(fields: Mapping[str, Any], name: str) -> int | None:
    """A number of tokens; None where there is none, or the file says something else."""
    found = fields.get(name)
    return found if isinstance(found, int) and found > 0 else None
