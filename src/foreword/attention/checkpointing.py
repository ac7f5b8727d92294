"""Gradient checkpointing: recomputation sees the prefix that the pass saw, and no dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from foreword.attention.bound import Bound
from foreword.attention.running import Running
from foreword.errors import UnsupportedModel


class CheckpointInFrame:
    """A gradient checkpointing function whose recomputation sees its forward's frame."""

    def __init__(self, check: Callable[[], None], running: Running, inner: Any) -> None:
        self.check = check
        self.running = running
        self.inner = inner

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Checkpoint a function, as the inner one does."""
        frame = self.running.frame

        def in_frame(*args: Any, **kwargs: Any) -> Any:
            self.check()
            with self.running.inside(frame):
                return function(*args, **kwargs)

        return self.inner(in_frame, *args, **kwargs)


class CheckpointInEvaluation:
    """A gradient checkpointing function whose layer runs as in evaluation.

    A layer only checkpoints while it is in training, and some take that for a sign to drop numbers out.
    """

    def __init__(self, layer: nn.Module, inner: Any) -> None:
        self.layer = layer
        self.inner = inner

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Checkpoint a function, as the inner one does."""

        def in_evaluation(*args: Any, **kwargs: Any) -> Any:
            self.layer.training = False
            try:
                return function(*args, **kwargs)
            finally:
                self.layer.training = True

        return self.inner(in_evaluation, *args, **kwargs)


def without_evaluation(function: Any) -> Any:
    """A checkpointing function that runs its layer as it finds it, in its frame if it had one."""
    if isinstance(function, CheckpointInFrame):
        inner = without_evaluation(function.inner)
        return CheckpointInFrame(function.check, function.running, inner)
    return function.inner if isinstance(function, CheckpointInEvaluation) else function


def refuse_reentrant(function: Any, bound: Bound | None) -> None:
    """Reentrant checkpointing gives no gradient to what a layer does not take as an argument.

    Where the layer's input needs a gradient, it would run backward through what the layers'
    prefixes share once for each layer, which fails.
    """
    inner = function
    while isinstance(inner, CheckpointInFrame | CheckpointInEvaluation):
        inner = inner.inner
    if getattr(inner, "keywords", {}).get("use_reentrant") is False or bound is None:
        return
    if any(site.key_RHPD.requires_grad or site.value_RHPE.requires_grad for site in bound.tensors):
        raise UnsupportedModel(
            "a prefix cannot be trained under reentrant gradient checkpointing, which would give it "
            "no gradient; use gradient_checkpointing_kwargs={'use_reentrant': False} (from "
            "transformers 5.23 on activation_checkpointing_kwargs)"
        )
