"""How a weight is stored: as one plain tensor, or in the parts of a quantised one.

torchao's weights are tensors whose numbers and scales are tensors of their own. Without torchao in
the process there are none of them, so it is never imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from torch import Tensor


def is_quantised(weight: Tensor) -> bool:
    """Whether torchao keeps the weight in another form than its dtype says."""
    torchao = sys.modules.get("torchao.utils")
    return torchao is not None and isinstance(weight, torchao.TorchAOBaseTensor)


def parts(weight: Tensor) -> dict[str, Tensor]:
    """What is in memory for a weight: its tensors by name, or the weight itself as ``""``."""
    if not is_quantised(weight):
        return {"": weight}
    names: list[str] = weight.__tensor_flatten__()[0]  # type: ignore[attr-defined]
    return {name: getattr(weight, name) for name in names}


def resident_bytes(weights: Iterable[Tensor]) -> int:
    """Bytes that weights take, those that are one tensor counted once."""
    every = {id(part): part for weight in weights for part in parts(weight).values()}
    return sum(part.numel() * part.element_size() for part in every.values())
