"""What forward passes are bound to: by a block of their own thread or task, or else by the model.

A block (`Backbone.attached`, `generate`) binds what runs inside it and nothing else: other threads, and
other tasks of an event loop, go on under what they are bound to. A context variable tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from foreword.attention.bound import Bound
from foreword.attention.masks import MaskWindows
from foreword.attention.segments import Segment


class Source(Protocol):
    """What makes the prefix anew for each outermost forward pass: a prefix that is being trained."""

    def __call__(self) -> Bound:
        """What the pass that begins now attends to."""

    def release(self) -> None:
        """Undo what the source changed in the model; it is not asked again."""


@dataclass(frozen=True)
class Scope:
    """What the passes of a block are bound to.

    Attributes:
        fixed: One prefix for all of them; None: no prefix.
        source: What makes one for each pass; it goes before `fixed`.
        segments: Parts of a pass over flattened tokens, each with prefixes of its own.
        observer: Who is shown every attention call.
        mask_windows: The windows of the masks that the block makes, while there is an observer.
        generating: Whether a batch may have several rows for each prefix, as inside `generate`.
    """

    fixed: Bound | None = None
    source: Source | None = None
    segments: Sequence[Segment] = ()
    observer: Any = None
    mask_windows: MaskWindows = field(default_factory=dict)
    generating: bool = False

    def bound(self) -> Bound | None:
        """What the pass that begins now attends to."""
        return self.fixed if self.source is None else self.source()


_scopes: ContextVar[Mapping[int, Scope] | None] = ContextVar("foreword_scopes", default=None)
"""The innermost block's, by the key of the model's `Running`."""


def scope_of(key: int) -> Scope | None:
    """The scope of the innermost block that this thread or task has open on a model, if any."""
    return (_scopes.get() or {}).get(key)


def set_scope(key: int, scope: Scope | None) -> None:
    """Put a scope in place of the innermost block's; None: there is no block any more."""
    others = {other: held for other, held in (_scopes.get() or {}).items() if other != key}
    _scopes.set(others if scope is None else {**others, key: scope})
