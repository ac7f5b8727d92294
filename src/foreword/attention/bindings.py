"""`Bindings`: what the forward passes of one model are bound to, by its blocks and by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from foreword.attention import guards
from foreword.attention.bound import Bound
from foreword.attention.masks import noting_windows
from foreword.attention.running import Running
from foreword.attention.scope import Scope, Source, scope_of, set_scope
from foreword.attention.segments import Segment


class Bindings(ABC):
    """What passes of a model attend to: what a block of their thread or task says, else the model's own.

    Attributes:
        model: The model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._running = Running()
        self._own = Scope()
        self._is_held = False

    @abstractmethod
    def check_windows(self, bound: Bound | None) -> None:
        """Check that the model's attention can drop a prefix as its windows drop text."""

    @property
    def scope(self) -> Scope:
        """What the passes of this thread or task are bound to: its innermost block's, or the model's.

        Raises:
            BusyError: There is neither, and other threads have blocks open: whether this one's
                passes belong into one of theirs, nobody can know.
        """
        own = scope_of(self._running.key)
        if own is not None or self._is_held:
            return own or self._own
        guards.check_alone(self.model, self._running, "a forward pass")
        return self._own

    @property
    def bound(self) -> Bound | None:
        """What the next forward pass attends to; None: no prefix."""
        return self.scope.bound()

    @bound.setter
    def bound(self, bound: Bound | None) -> None:
        self.check_windows(bound)
        self._bind(bound, None)

    def hold(self, bound: Bound | None, source: Source | None = None) -> None:
        """Bind every thread's forward passes from here on, but for those in blocks of their own.

        Args:
            bound: What they attend to.
            source: What makes that anew for each pass; it goes before `bound`.
        """
        self.check_windows(bound)
        with self.exclusive():
            self.release()
            self._is_held = True
            self._own = Scope(bound, source)
            self._bind(bound, source)

    def release(self) -> None:
        """Let go of the model's own prefix; a source is told."""
        with self.exclusive():
            source, self._own = self._own.source, Scope()
            if scope_of(self._running.key) is not None:
                self._bind(None, None)
            self._running.frame = None
            if source is not None:
                source.release()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Let no forward pass of another thread begin in a block."""
        with self._running.lock:
            yield

    def _bind(self, bound: Bound | None, source: Source | None) -> None:
        """Bind this thread's innermost block, or where it has none the model."""
        inner = scope_of(self._running.key)
        if inner is None:
            self._own = replace(self._own, fixed=bound, source=source)
        else:
            set_scope(self._running.key, replace(inner, fixed=bound, source=source))
        self._running.frame = None  # one that Ctrl-C cut off: torch runs no hook on its way out

    @contextmanager
    def _within(self, scope: Scope) -> Iterator[None]:
        """Bind what this thread or task runs in a block."""
        running = self._running
        before = scope_of(running.key)
        with running.block():
            running.frame = None
            set_scope(running.key, scope)
            try:
                yield
            finally:
                set_scope(running.key, before)
                running.frame = None

    @contextmanager
    def using(self, bound: Bound | None, segments: Sequence[Segment] = ()) -> Iterator[None]:
        """Bind the forward passes of a block to `bound` (None: to no prefix).

        With `segments` a pass is one over flattened tokens: each segment has prefixes of its own, and
        the caller has moved their positions.
        """
        self.check_windows(bound)
        around = scope_of(self._running.key) or Scope()
        with self._within(replace(around, fixed=bound, source=None, segments=segments)):
            yield

    @contextmanager
    def observing(self, observer: Any) -> Iterator[None]:
        """Show every attention call of a block to `observer`, as an `AttentionCall`."""
        with noting_windows() as windows:
            watched = replace(self.scope, observer=observer, mask_windows=windows)
            with self._within(watched):
                yield
