"""Logits where they are wanted only: the output layer is the widest of a model.

Shapes: B rows, T tokens, N wanted positions, D hidden size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def head_sees(model: nn.Module, wanted_BT: Tensor) -> Iterator[list[bool]]:
    """The model's output layer gets the wanted positions only, as one row (1, N, D).

    Yields a list that is not empty after a call in which that happened. A model without a module for
    its output layer, or one that calls it otherwise, gives all logits as ever.
    """
    narrowed: list[bool] = []
    rows_N, tokens_N = wanted_BT.nonzero(as_tuple=True)  # now: it waits for the device

    def narrow(states_BTD: Tensor) -> Tensor:
        if states_BTD.shape[:-1] != wanted_BT.shape:
            return states_BTD
        narrowed.append(True)
        return states_BTD[rows_N, tokens_N][None]

    with _before_head(model, narrow):
        yield narrowed


@contextmanager
def head_sees_last(model: nn.Module) -> Iterator[None]:
    """The model's output layer gets each row's last position only, (B, 1, D), as decoding needs it.

    In memory of its own: of a slice of longer rows torch computes each row's logits by itself, which
    reads the whole layer once a row.
    """
    with _before_head(model, lambda states_BTD: states_BTD[:, -1:].contiguous()):
        yield


@contextmanager
def _before_head(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change the hidden states (B, T, D) that this thread's calls give to the output layer.

    A model without a module for its output layer, or one that calls it otherwise, stays as it is.
    """
    mine = threading.local()  # other threads may run the model meanwhile
    mine.wants = True

    def changed(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not getattr(mine, "wants", False) or len(inputs) != 1 or inputs[0].ndim != 3:
            return None
        return (change(inputs[0]),)

    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    hook = head.register_forward_pre_hook(changed) if isinstance(head, nn.Module) else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
