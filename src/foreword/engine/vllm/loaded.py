"""`LoadedPrefixes`: the prefixes that a worker has in memory, as its attention layers take them.

They are in the machine's memory: vLLM counts on having that of a GPU for itself.

Shapes: H key/value heads of the prefix, N of this worker, P prefix length, D key dimension, E value
dimension.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.backbone.fit import check_range
from foreword.engine.protocol import Loads
from foreword.engine.threads import give_up_pool
from foreword.engine.vllm.requests import Named
from foreword.engine.vllm.turning import Turning
from foreword.errors import CorruptFile, ForewordError, UnsupportedModel, first_line
from foreword.prefix import Prefix
from foreword.store import PrefixStore

Layers = Sequence[tuple[Tensor, Tensor]]
"""Per layer keys (P, N, D) and values (P, N, E)."""


@dataclass(frozen=True)
class Place:
    """Where a worker keeps prefixes, and what of them.

    Attributes:
        heads: Its own among the key/value heads.
        dtype: What its cache holds.
        pinned: Whether memory is locked, for copies to a GPU.
        turning: How keys of policy ``free`` are moved; or why they cannot be.
        family: The model's family, for messages.
    """

    heads: slice
    dtype: torch.dtype
    pinned: bool
    turning: Turning | UnsupportedModel
    family: str


class LoadedPrefixes:
    """Prefixes by digest, those that were used last.

    Args:
        store: Where their files are.
        place: What of them is kept, and where.
        most: Number of prefixes that are kept.

    Attributes:
        done: What was read and found since somebody last took note; sizes are of this worker's part.
    """

    def __init__(self, store: PrefixStore, place: Place, most: int) -> None:
        self.store = store
        self.place = place
        self.most = most
        self.done = Loads()
        self._kept: OrderedDict[str, Layers] = OrderedDict()

    def get(self, named: Named) -> Layers:
        """A prefix's keys and values; its file is read in full, and proven, unless they are here.

        Raises:
            StoreError: There is none of this name.
            FormatError: Its file is damaged, or holds another prefix than the one named.
            MismatchError: The model's dtype does not hold its numbers.
            UnsupportedModel: It is of a position policy that this model cannot serve.
        """
        layers = self._kept.get(named.digest)
        if layers is not None:
            self._kept.move_to_end(named.digest)
            self.done += Loads(hits=1)
            return layers
        layers = self._kept[named.digest] = self._layers(self._read(named))
        self.done += Loads(1, size_of(layers), misses=1)
        if len(self._kept) > self.most:
            _, gone = self._kept.popitem(last=False)
            self.done += Loads(-1, -size_of(gone))
        return layers

    def _read(self, named: Named) -> Prefix:
        """The prefix, once its contents are those that were asked for."""
        prefix = self.store.load(named.name)
        if prefix.digest != named.digest:
            raise CorruptFile(replaced(named, prefix.digest))
        check_range(prefix, self.place.dtype, self.place.family)
        return prefix

    def _layers(self, prefix: Prefix) -> Layers:
        place = self.place
        keys = [key_HPD[place.heads] for key_HPD in prefix.keys]
        if prefix.meta.positions == "free":
            if isinstance(place.turning, UnsupportedModel):
                raise UnsupportedModel(
                    f"prefixes of position policy 'free': {place.turning}; use one of policy 'offset' "
                    "(trained under it, or Backbone.moved)"
                )
            turned = place.turning.turned
            keys = [turned(layer, key_HPD, prefix.length) for layer, key_HPD in enumerate(keys)]
        values = [value_HPE[place.heads] for value_HPE in prefix.values]
        return [
            (self._placed(key), self._placed(value))
            for key, value in zip(keys, values, strict=True)
        ]

    def _placed(self, tensor_HPD: Tensor) -> Tensor:
        """One tensor as the cache takes it: (P, N, D)."""
        placed_PND = tensor_HPD.transpose(0, 1).to(self.place.dtype).contiguous()
        return placed_PND.pin_memory() if self.place.pinned else placed_PND


def size_of(layers: Layers) -> int:
    """Size of a prefix's tensors in bytes."""
    return sum(key.nbytes + value.nbytes for key, value in layers)


def replaced(named: Named, found: str) -> str:
    """What to say when a name's file is another prefix than a request asks for."""
    return (
        f"prefix {named.name!r} was asked for with digest {named.digest[:12]}; its file has "
        f"{found[:12]}. It was replaced, or another copy of the store has another one: ask again with "
        "the digest that it has now"
    )


def why_failed(store: PrefixStore, named: Named | None) -> str:
    """Why vLLM may have failed a request: it gives no reasons itself.

    Where its file's header has the right digest the file is read whole, as the workers did, for a
    header may promise too much.

    Args:
        store: Where its workers read prefixes.
        named: The prefix that the request names, or None.
    """
    if named is not None:
        try:
            found = store.outline(named.name).digest
            if found == named.digest:
                found = store.load(named.name).digest
        except ForewordError as error:
            return first_line(error)
        finally:
            give_up_pool()
        if found != named.digest:
            return replaced(named, found)
    return "vLLM failed the request; its log says why, under vllm.foreword"
