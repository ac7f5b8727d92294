"""Which linear layers of a model belong to its attention, and which to its MLPs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

from torch import nn
from transformers.pytorch_utils import Conv1D

from foreword.backbone import Backbone
from foreword.errors import TrainingError

Targets = Literal["query-value", "attention", "mlp", "all-linear"]

QUERY_AND_VALUE = (
    *("q_proj", "v_proj", "query", "value", "q", "v", "q_lin", "v_lin", "query_proj", "value_proj"),
    *("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv"),
)
"""Names of the layers that make queries and values, alone or in one product with the keys."""


class LinearLayer(NamedTuple):
    """A linear layer in one of a model's layers.

    Attributes:
        name: Its name in the model.
        layer: Name of the model's layer that it is in: ``model.layers.3``.
        attention: Name of the attention that it is in, or None: it is in the MLP.
        width: Size of its output.
    """

    name: str
    layer: str
    attention: str | None
    width: int


def linear_layers(model: nn.Module) -> Iterator[LinearLayer]:
    """Every linear layer within the stacks of layers of a model, in order."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        path = name.split(".")
        numbered = [place for place, part in enumerate(path, 1) if part.isdigit()]
        if not isinstance(module, nn.Linear | Conv1D) or not numbered:
            continue
        above = [".".join(path[:end]) for end in range(1, len(path))]
        attentions = [one for one in above if "attention" in type(modules[one]).__name__.lower()]
        yield LinearLayer(
            name,
            ".".join(path[: numbered[0]]),
            attentions[0] if attentions else None,
            int(module.out_features if isinstance(module, nn.Linear) else module.nf),
        )


def chosen_layers(backbone: Backbone, targets: Targets) -> list[str]:
    """Names of a backbone's linear layers of a kind.

    Raises:
        TrainingError: It has none.
    """
    found = [
        layer.name
        for layer in linear_layers(backbone.model)
        if {
            "query-value": layer.attention and layer.name.rpartition(".")[2] in QUERY_AND_VALUE,
            "attention": layer.attention,
            "mlp": not layer.attention,
            "all-linear": True,
        }[targets]
    ]
    if not found:
        raise TrainingError(
            f"the backbone {backbone.name or backbone.family!r} has no linear layers for "
            f"targets={targets!r}; choose other targets ({', '.join(get_args(Targets))}), and load it "
            "without quantisation"
        )
    return found
