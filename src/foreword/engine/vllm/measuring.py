"""How a model that vLLM runs turns keys: its own attention modules are run on test texts.

Shapes: C hidden size, H key/value heads of this worker, Q its query heads, T tokens of a test text,
D key dimension.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foreword.engine.vllm.turning import Turning, measured
from foreword.errors import UnsupportedModel, first_line

TOKENS = 64
"""Length of the test texts that turns of keys are measured on."""

POSITIONS = ("positions", "position_ids")
"""What vLLM's attention modules call the places that tokens stand at."""


def turning_of(
    layers: Sequence[nn.Module], model_config: Any, device: torch.device
) -> Turning | UnsupportedModel:
    """How a model's layers turn keys, or why that cannot be measured.

    All workers run it at the same time, since layers that they share exchange results.
    """
    width, dtype = model_config.get_hidden_size(), model_config.dtype
    family = model_config.hf_config.model_type
    try:
        blocks = list(zip(blocks_of(layers), layers, strict=True))
    except UnsupportedModel as error:
        return error

    def run(first: int, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        hidden_TC = torch.randn(TOKENS, width, generator=generator).to(device, dtype)
        place_T = torch.arange(first, first + TOKENS, device=device)
        return [turned_of(block, layer, place_T, hidden_TC) for block, layer in blocks]

    try:
        with torch.inference_mode():
            return measured(run, model_config.max_model_len - TOKENS, family, dtype)
    except Exception as error:  # prefixes of policy offset are served all the same
        return UnsupportedModel(f"its turns of keys could not be measured: {first_line(error)}")


def blocks_of(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """For each attention layer the module that projects hidden states to keys, turns them and calls it.

    vLLM tells a connector of attention layers alone, so they are looked for among all modules there are.

    Raises:
        UnsupportedModel: One is not given positions to turn keys by, or there is none.
    """
    wanted = {id(layer) for layer in layers}
    owners: dict[int, nn.Module] = {}
    for module in [found for found in gc.get_objects() if issubclass(type(found), nn.Module)]:
        owners |= {id(child): module for child in module.children() if id(child) in wanted}
    blocks = [owners.get(id(layer)) for layer in layers]
    for block in blocks:
        if block is None or set(needed(block)) - set(POSITIONS) != {"hidden_states"}:
            raise UnsupportedModel(
                f"the attention of this model ({type(block).__name__}) is not given positions to turn "
                "keys by, as that of rotary models is"
            )
    return [block for block in blocks if block is not None]


def needed(block: nn.Module) -> list[str]:
    """The arguments that a module's forward must have."""
    given = inspect.signature(block.forward).parameters.items()
    return [
        name
        for name, one in given
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]


def turned_of(block: nn.Module, layer: nn.Module, place_T: Tensor, hidden_TC: Tensor) -> Tensor:
    """What a block gives its attention layer for hidden states at positions: keys, then queries.

    Returns:
        (H + Q, T, D): a prefix is moved as text is only if both are turned alike.
    """
    heads: Any = layer.num_kv_heads
    given = {name: place_T if name in POSITIONS else hidden_TC for name in needed(block)}
    with called(layer) as calls:
        block(**given)
    ((query, key),) = calls
    key_THD = key.view(len(place_T), heads, -1)
    query_TQD = query.view(len(place_T), -1, key_THD.shape[-1])
    return torch.cat((key_THD, query_TQD), dim=1).transpose(0, 1)


@contextmanager
def called(layer: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect the queries and keys that an attention layer is given; it answers with its queries."""
    calls: list[tuple[Tensor, Tensor]] = []

    def forward(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((query.clone(), key.clone()))
        return query.reshape(len(query), -1)

    own: Callable[..., Any] = forward
    layer.forward = own
    try:
        yield calls
    finally:
        del layer.forward
