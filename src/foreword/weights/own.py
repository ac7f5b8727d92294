"""What of a model is its own: neither an adapter's nor a prefix in training.

Models with adapters of the peft library are told by what they have, so that peft is not needed. A
`PeftModel` wraps the transformers model that a prefix joins. Inside it an adapted layer keeps the
frozen one as its child ``base_layer``, and a layer that is trained as a whole keeps the frozen one as
``original_module``; both list the children that they added in ``adapter_layer_names``.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from foreword.errors import UnsupportedModel

TRAINED = "foreword_prefix"
"""The model's child that holds a prefix in training."""
_COMPILED = "_orig_mod"
"""Name under which the module that `torch.compile` gives keeps the model."""
KEYS_AND_VALUES = ("PREFIX_TUNING", "CARTRIDGE")
"""PEFT's kinds of virtual tokens that are keys and values, as a prefix is."""
_FROZEN = ("base_layer", "original_module")


def unwrapped(model: Any) -> Any:
    """The transformers model inside a `PeftModel`, or behind `torch.compile`; else the model itself.

    Raises:
        UnsupportedModel: It is not a transformers model.
    """
    *_, inner = _unwrapping(model)
    if not isinstance(inner, PreTrainedModel):
        raise UnsupportedModel(
            f"expected a transformers model, a PeftModel or a foreword.Backbone; found "
            f"{_what(inner)}. {_remedy(inner)}"
        )
    return inner


def joinable(model: Any) -> Any:
    """The model inside, as `unwrapped` finds it, for a prefix to join.

    Raises:
        UnsupportedModel: It is not a transformers model, or its `PeftModel` has virtual tokens of its
            own, which the model inside would do without.
    """
    inner = unwrapped(model)
    for wrapper in _unwrapping(model):
        if wrapper is not inner:
            _refuse_virtual_tokens(wrapper)
    return inner


def _refuse_virtual_tokens(wrapper: Any) -> None:
    active = getattr(wrapper, "active_adapter", None)
    configs: dict[str, Any] = getattr(wrapper, "peft_config", {})
    config: Any = configs.get(active) if isinstance(active, str) else None
    if not getattr(config, "is_prompt_learning", False):
        return
    kind = getattr(config.peft_type, "value", config.peft_type)
    use = ""
    if kind in KEYS_AND_VALUES:
        use = (
            "To use them here, save them (model.save_pretrained(folder)) and import the folder: "
            "foreword.import_peft(folder, backbone), or the command foreword import. "
        )
    raise UnsupportedModel(
        f"this PeftModel has virtual tokens of its own (adapter {active!r}, {kind}), which are no part "
        f"of the model inside and would be ignored. {use}To go on without them, give "
        "model.get_base_model()"
    )


def _unwrapping(model: Any) -> Iterator[Any]:
    """A model, what is inside, what is inside that, down to one of transformers or to no wrapper."""
    yield model
    while not isinstance(model, PreTrainedModel):
        around, model = model, _inside(model)
        if model is around:
            return
        yield model


def _inside(model: Any) -> Any:
    """What a wrapper that runs the model whole keeps inside it; another thing as it is."""
    compiled = getattr(model, "_modules", {}).get(_COMPILED)
    if compiled is not None:
        return compiled
    if not hasattr(model, "peft_config"):
        return model
    inside = getattr(model, "get_base_model", None)
    return inside() if callable(inside) else getattr(model, "model", model)


def _what(found: Any) -> str:
    """A thing in a few words: a value of text by itself, else its kind."""
    if isinstance(found, str | type):
        return reprlib.repr(found)
    return "None" if found is None else f"a {type(found).__name__}"


def _remedy(found: Any) -> str:
    if isinstance(found, str | os.PathLike):
        return "Load it first: foreword.load(name)"
    for name in ("model", "module", "auto_model"):
        held = getattr(found, name, None)
        if isinstance(held, PreTrainedModel):
            return f"It holds one: give its .{name}"
    return "Load one with foreword.load, or with from_pretrained of transformers"


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
