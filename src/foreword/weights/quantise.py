"""Backbones with 8-bit weights, through torchao.

Each row of a linear layer's weight is rounded to 8 bits with a scale of its own; activations stay in
the backbone's dtype. The embeddings and the output layer stay as they are: they are often one
tensor, and torchao would widen the whole table for every batch that is embedded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import nn
from transformers import PreTrainedModel

from foreword.errors import BackboneError
from foreword.weights.fingerprint import remember_unquantised, weights_fingerprint
from foreword.weights.stored import is_quantised

Quantization = Literal["int8"]
INSTALL = "pip install 'foreword[quantize]'"

Rounding = Callable[[PreTrainedModel], None]
"""Rounds a model's weights in place."""


def rounding(word: str) -> Rounding:
    """What `quantize=word` does to a loaded model; called before the model is loaded.

    Raises:
        BackboneError: The word is unknown, or torchao is not installed.
    """
    if word not in get_args(Quantization):
        known = ", ".join(get_args(Quantization))
        raise BackboneError(f"quantize={word!r} is unknown; expected one of {known}, or nothing")
    try:
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        # its setter would change torch.compile's options for the whole process
        config = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    except (ImportError, ValueError) as error:
        raise BackboneError(
            f"quantize={word!r} needs the package torchao, which is not installed; run: {INSTALL}"
        ) from error
    return lambda model: _round(model, config)


def quantization_of(model: PreTrainedModel) -> str | None:
    """How the model's weights are quantised: ``int8``, the method of its folder, or None."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    kind = type(getattr(config, "quant_type", None)).__name__
    method = getattr(config, "quant_method", "unknown")
    return "int8" if kind == "Int8WeightOnlyConfig" else str(getattr(method, "value", method))


def _round(model: PreTrainedModel, config: Any) -> None:
    """Round in place, layer by layer, and make the model one that transformers knows as quantised."""
    from torchao.quantization import quantize_
    from transformers.quantizers import AutoHfQuantizer

    found = quantization_of(model)
    if found is not None:
        raise BackboneError(
            f"quantize='int8' rounds plain weights, but this backbone is quantised already "
            f"({found}); load it without quantize"
        )
    before = weights_fingerprint(model)
    output = model.get_output_embeddings()

    def wanted(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and module is not output

    quantize_(model, config.quant_type, filter_fn=wanted)
    _let_go_of_the_file(model)
    remember_unquantised(model, before)
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    model.hf_quantizer = quantizer  # save_pretrained asks it
    model.config.quantization_config = config


def _let_go_of_the_file(model: nn.Module) -> None:
    """Copy what was not rounded: it may be a view of a mapped file that holds all wide weights."""
    for parameter in model.parameters():
        if not is_quantised(parameter):
            parameter.data = parameter.data.clone()
