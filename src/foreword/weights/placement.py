"""Where a model's weights are, when accelerate has spread it over devices or offloaded parts of it.

An offloaded parameter is on the meta device between calls; a hook of accelerate's brings its contents
in for each call of its module.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foreword.errors import UnsupportedModel


def input_device(model: Any) -> torch.device:
    """Where token ids go: the device that the model's input embeddings are computed on.

    Raises:
        UnsupportedModel: The embeddings have no contents anywhere.
    """
    table = model.get_input_embeddings()
    if not table.weight.is_meta:
        return torch.device(table.weight.device)
    hook = getattr(table, "_hf_hook", None)
    for one in getattr(hook, "hooks", [hook]):
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.device(device)
    raise UnsupportedModel(
        f"{type(model).__name__} has no weights (meta device) and no hook that brings them in; load "
        "the model with from_pretrained before a prefix joins it"
    )


def contents(module: nn.Module, name: str) -> Tensor:
    """A module's own parameter with its contents, on the meta device only if it has none.

    What FSDP2 keeps in shards is gathered, for which all processes must ask.
    """
    with align_module_device(module):
        parameter: Tensor = module._parameters[name]  # type: ignore[assignment]
        whole = parameter.detach()
        return whole.full_tensor() if isinstance(whole, DTensor) else whole
