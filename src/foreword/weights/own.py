"""What of a model is its own: neither an adapter's nor a prefix in training.

Models with adapters of the peft library are told by what they have, so that peft is not needed. A
`PeftModel` wraps the transformers model that a prefix joins. Inside it an adapted layer keeps the
frozen one as its child ``base_layer``, and a layer that is trained as a whole keeps the frozen one as
``original_module``; both list the children that they added in ``adapter_layer_names``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from foreword.arguments import shown
from foreword.errors import BackboneError

TRAINED = "foreword_prefix"
"""The model's child that holds a prefix in training."""
_FROZEN = ("base_layer", "original_module")


def check_model(given: object) -> None:
    """Check that what stands for a model can be one of transformers, whatever it is wrapped in.

    Raises:
        BackboneError: It is not a module, or says nothing about itself.
    """
    if isinstance(given, nn.Module) and hasattr(given, "config"):
        return
    named = type(given).__name__ if isinstance(given, nn.Module) else shown(given)
    raise BackboneError(
        f"model must be a model of transformers; found {named}; load one with from_pretrained"
    )


def unwrapped(model: Any) -> Any:
    """The transformers model inside a `PeftModel`; any other model as it is."""
    is_peft = hasattr(model, "peft_config") and callable(getattr(model, "get_base_model", None))
    return model.get_base_model() if is_peft else model


def own_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that the model was built of, by the names that they had then, parents first."""
    frozen = [child for child in _FROZEN if child in module._modules]
    if frozen and hasattr(module, "adapter_layer_names"):
        yield from own_modules(module.get_submodule(frozen[0]), name)
        return
    yield name, module
    for child, inner in module.named_children():
        if child != TRAINED:
            yield from own_modules(inner, f"{name}.{child}" if name else child)
