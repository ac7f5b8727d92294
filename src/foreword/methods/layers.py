"""Which linear layers of a model belong to its attention, which to its MLPs, and where these end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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

KEY_AND_VALUE = (
    *("k_proj", "v_proj", "key", "value", "k", "v", "k_lin", "v_lin", "key_proj", "value_proj"),
    *("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv"),
)
"""Names of the layers that make keys and values, alone or in one product with the queries."""

LAST = (
    *("o_proj", "out_proj", "dense", "c_proj", "o", "out_lin", "Wo", "wo"),
    *("down_proj", "fc2", "lin2", "dense_4h_to_h", "fc_out", "ffn_output", "w2"),
)
"""Names of the layers whose output is that of an attention or of an MLP."""

RECURRENT = ("mamba", "conv", "deltanet", "recurrent", "rglru", "ssm", "linearattention")
"""Parts of the names of classes that mix tokens without attention."""

EXPERTS = ("experts", "moe", "moeblock")
"""Ends of the names of classes whose experts' weights are no linear layers."""


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
    """Every linear layer of attention and MLPs within the stacks of layers of a model, in order.

    Those of recurrent mixers and of mixtures of experts are left out, and so are routers.
    """
    modules = dict(model.named_modules())
    for name, module in modules.items():
        path = name.split(".")
        numbered = [place for place, part in enumerate(path, 1) if part.isdigit()]
        if not isinstance(module, nn.Linear | Conv1D) or not numbered or _routes(module):
            continue
        above = [".".join(path[:end]) for end in range(numbered[0] + 1, len(path))]
        kinds = {one: type(modules[one]).__name__.lower() for one in above}
        if any(part in kind for kind in kinds.values() for part in RECURRENT):
            continue
        if any(kind.endswith(EXPERTS) for kind in kinds.values()):
            continue
        attentions = [one for one, kind in kinds.items() if "attention" in kind]
        yield LinearLayer(
            name,
            ".".join(path[: numbered[0]]),
            attentions[0] if attentions else None,
            int(module.out_features if isinstance(module, nn.Linear) else module.nf),
        )


def _routes(module: nn.Module) -> bool:
    """Whether a linear layer chooses experts, and gives more than one tensor."""
    return type(module).__name__.lower().endswith("router")


def chosen_layers(backbone: Backbone, targets: Targets) -> list[str]:
    """Names of a backbone's linear layers of a kind.

    Raises:
        TrainingError: It has none, or its MLPs are mixtures of experts and are asked for.
    """
    if targets in ("mlp", "all-linear"):
        refuse_experts(backbone, "choose targets='attention' or 'query-value'")
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
            f"targets={targets!r}; choose other targets ({', '.join(get_args(Targets))})"
        )
    return found


def is_transposed(backbone: Backbone, names: Iterable[str]) -> bool:
    """Whether weights are (inputs, outputs), as those of GPT-2 are, which peft must be told."""
    return any(isinstance(backbone.model.get_submodule(name), Conv1D) for name in names)


def last_layers(backbone: Backbone) -> tuple[list[LinearLayer], list[LinearLayer]]:
    """The linear layers that each attention ends with, and those that each MLP ends with.

    Raises:
        TrainingError: They cannot be told from the others, or the MLPs are mixtures of experts.
    """
    refuse_experts(backbone, "choose another method")
    config = backbone.model.config.get_text_config()
    width = getattr(config, "hidden_size", None)
    attentions: dict[str, LinearLayer] = {}
    mlps: dict[str, LinearLayer] = {}
    for one in linear_layers(backbone.model):
        if one.name.rpartition(".")[2] in LAST and one.width == width:
            if one.attention is None:
                mlps[one.layer] = one
            else:
                attentions[one.attention] = one
    layers = {one.layer for one in linear_layers(backbone.model)}
    if not attentions or set(mlps) != layers:
        raise TrainingError(
            f"which linear layers of {backbone.name or backbone.family!r} end its attention and its "
            "MLPs is not known, so nothing is put there; choose another method"
        )
    return list(attentions.values()), list(mlps.values())


def refuse_experts(backbone: Backbone, remedy: str) -> None:
    """Check that a backbone's MLPs are no mixtures of experts, whose weights are no linear layers.

    Raises:
        TrainingError: They are.
    """
    for module in backbone.model.modules():
        kind = type(module).__name__
        if kind.lower().endswith(EXPERTS):
            raise TrainingError(
                f"the MLPs of {backbone.name or backbone.family!r} are mixtures of experts ({kind}), "
                f"and what is added to linear layers does not reach them; {remedy}"
            )
