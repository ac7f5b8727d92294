"""Bottleneck adapters: Houlsby et al. 2019 (arXiv 1902.00751), Pfeiffer et al. 2021 (arXiv 2005.00247).

An adapter adds to the output of a sublayer, before the residual, what a small MLP makes of it:
``x + up(act(down(x)))``. After Houlsby each layer has one behind each attention and one behind its MLP,
after Pfeiffer only the latter.

Shapes: D hidden size, M width of the bottleneck; an adapter has 2 D M + D + M parameters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn

from foreword.backbone import Backbone
from foreword.head import Head
from foreword.methods.added import Added, AddedStart, Parameters, refuse_adapted
from foreword.methods.base import Method, Rows
from foreword.methods.heads import new_head, numbers_of
from foreword.methods.layers import LinearLayer, last_layers, linear_layers
from foreword.objectives.encode import InFront
from foreword.objectives.settings import DataSettings, check_counts, check_words
from foreword.prefix import canonical_json

Places = Literal["houlsby", "pfeiffer"]
Activation = Literal["relu", "gelu", "silu"]

_CHOICES = {"places": get_args(Places), "activation": get_args(Activation)}

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}

SPREAD = 0.01
"""Standard deviation of the first matrix, as Houlsby et al. start it; the second starts at zero."""


@dataclass(frozen=True, kw_only=True)
class AdapterSettings(DataSettings):
    """Bottleneck adapters, on the rows that the data settings read.

    Raises:
        TrainingError: A number is out of range, or a word is none of its choices.
        DataError: A template is ill-formed.
    """

    width: int = 16
    """Width M of the bottleneck."""

    places: Places = "houlsby"
    """Where they are: behind each attention and each MLP, or behind each MLP only."""

    activation: Activation = "relu"
    """What is between the two matrices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words(self, _CHOICES)
        check_counts(self, "width")


class Adapter(nn.Module):
    """A bottleneck with a residual around it, in float32; it changes nothing at first.

    Args:
        size: D.
        width: M.
        activation: What is between the two matrices.
    """

    def __init__(self, size: int, width: int, activation: Activation = "relu") -> None:
        super().__init__()
        self.down = nn.Linear(size, width)
        self.up = nn.Linear(width, size)
        self.activation = _ACTIVATIONS[activation]()
        nn.init.normal_(self.down.weight, std=SPREAD)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Of the input's shape and dtype."""
        added: Tensor = self.up(self.activation(self.down(x.float())))
        return x + added.to(x.dtype)


def adapted_layers(backbone: Backbone, places: Places) -> list[LinearLayer]:
    """The linear layers behind which adapters stand: the last of each MLP, and of each attention.

    Raises:
        TrainingError: They are not known.
    """
    attentions, mlps = last_layers(backbone)
    wanted = {*attentions, *mlps} if places == "houlsby" else {*mlps}
    return [one for one in linear_layers(backbone.model) if one in wanted]


class AdapterMethod(Method[AdapterSettings, Added]):
    """Small MLPs behind frozen sublayers."""

    name = "adapter"
    settings = AdapterSettings

    def start(self, backbone: Backbone, settings: AdapterSettings, rows: Rows) -> AdapterStart:
        """Adapters that change nothing yet.

        Raises:
            TrainingError: Where to put them is not known.
        """
        layers = adapted_layers(backbone, settings.places)
        return AdapterStart(backbone, settings, layers, new_head(backbone, settings, rows))


class AdapterStart(AddedStart[AdapterSettings]):
    """Where adapters start.

    Args:
        backbone: The backbone.
        settings: The settings.
        layers: The layers behind which they stand.
        head: Where the head starts, if there is one.
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: AdapterSettings,
        layers: list[LinearLayer],
        head: Head | None,
    ) -> None:
        self.backbone = backbone
        self.settings = settings
        self.layers = layers
        self.in_front = InFront(backbone.bos, 0, head)
        told = {"backbone": backbone.fingerprint, "settings": settings.as_json()}
        self.digest = hashlib.sha256(canonical_json(told)).hexdigest()
        width = settings.width
        self.numbers = sum(2 * one.width * width + one.width + width for one in layers)
        self.numbers += numbers_of(head)

    @contextmanager
    def added(self) -> Iterator[tuple[Backbone, Parameters]]:
        """The adapters' parameters by name, behind their layers for a block."""
        settings, model = self.settings, self.backbone.model
        refuse_adapted(self.backbone)
        with ExitStack() as stack:
            found = {}
            for layer in self.layers:
                adapter = Adapter(layer.width, settings.width, settings.activation)
                module = model.get_submodule(layer.name)
                adapter.to(next(module.parameters()).device)
                handle = module.register_forward_hook(partial(_behind, adapter))
                stack.callback(handle.remove)
                for name, parameter in adapter.named_parameters():
                    found[f"{layer.name}.adapter.{name}"] = parameter
            yield self.backbone, found


def _behind(adapter: Adapter, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A forward hook: what the adapter makes of a layer's output."""
    adapted: Tensor = adapter(output)
    return adapted
