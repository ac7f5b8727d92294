"""Logits where they are wanted only: the output layer is the widest of a model.

Shapes: B rows, T tokens, N wanted positions, D hidden size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
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
    mine = threading.local()  # other threads may run the model meanwhile, with rows of this shape
    mine.wants = True
    rows_N, tokens_N = wanted_BT.nonzero(as_tuple=True)  # now: it waits for the device

    def narrow(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not getattr(mine, "wants", False):
            return None
        if len(inputs) != 1 or inputs[0].shape[:-1] != wanted_BT.shape:
            return None
        narrowed.append(True)
        return (inputs[0][rows_N, tokens_N][None],)

    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    hook = head.register_forward_pre_hook(narrow) if isinstance(head, nn.Module) else None
    try:
        yield narrowed
    finally:
        if hook is not None:
            hook.remove()
