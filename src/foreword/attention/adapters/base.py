"""`Adapter`: one attention module of a family with an attention of its own.

Such modules ask their cache for the keys to attend to, right after rotary positions and right before
attention. So while a model is attached, a hook hands the module a cache that first does what the
real one does (or nothing, where there is none) and then puts the prefix in front of what the module
gets back. The real cache holds real tokens only. The same hook widens the mask and the biases.

Shapes: B batch, H heads, P prefix length, Q queries, K keys of the call, J = P + K keys joined, D key
dimension, E value dimension.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foreword.attention.adapters.turn import Turn
from foreword.attention.bound import SiteTensors
from foreword.attention.frame import AttentionCall, Frame
from foreword.attention.running import frame_of
from foreword.attention.signature import parameters_of
from foreword.errors import UnsupportedModel

Call = dict[str, Any]
"""Arguments of an attention module's forward, by name."""


class Adapter:
    """Hooks on one attention module. This one serves where only the mask has to be widened.

    Args:
        module: The attention module; `attach` hooks it, `remove` leaves it as it was found.
    """

    cache = "layer_past"
    """Name of the module's argument for the cache."""

    relative = False
    """Whether moving the whole text changes nothing, so that a position offset has nothing to do."""

    changes_module = False
    """Whether `prepare` or `widen` change the module until `restore`: then threads take turns."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._turn = Turn()
        self._parameters = parameters_of(type(module))
        self._handles = [
            module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),
            module.register_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        """Leave the module as it was found."""
        for handle in self._handles:
            handle.remove()

    @property
    def window(self) -> int | None:
        """The module's window in tokens."""
        return None

    def real_cache(self, call: Call) -> Any:
        """The cache that the module would ask for its own keys, or None."""
        return call.get(self.cache)

    def prepare(self, call: Call, frame: Frame) -> None:
        """Change a call, with or without a prefix."""

    def restore(self) -> None:
        """Undo what `prepare` and `widen` changed in the module."""

    def widen(self, call: Call, frame: Frame, site: SiteTensors) -> None:
        """Make room for the prefix in the call's mask and biases."""
        mask = call["attention_mask"]
        call["attention_mask"] = frame.widened(mask, site)

    def arranged(self, joined: Tensor, frame: Frame, site: SiteTensors, mask: Tensor) -> Tensor:
        """Keys or values (B, H, J, D) in the order of columns that `widen` gave mask and biases."""
        return joined

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Call
    ) -> tuple[tuple[Any, ...], Call] | None:
        call = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        if call.get("key_value_states") is not None:  # cross-attention, which is no site
            return None
        frame, name = frame_of(module)
        site = frame.site(name)
        if frame.own(name):
            raise no_softmax_of_its_own(module)
        if site is not None and frame.strengths(site, 0, site.key_RHPD.device):
            raise _no_strengths(module)
        if self.changes_module:
            self._turn.take(module)
        call[self.cache] = _Joining(
            self, self.real_cache(call), frame, name, call["attention_mask"], queries_of(call)
        )
        self.prepare(call, frame)
        if site is not None:
            self.widen(call, frame, site)
        return (), call

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.changes_module and self._turn.is_mine:  # else it was refused its turn
            self.restore()
            self._turn.give()


def no_softmax_of_its_own(module: nn.Module) -> UnsupportedModel:
    """The error for a prefix that wants one."""
    return UnsupportedModel(
        f"{type(module).__name__} computes its attention itself, so a prefix cannot have a softmax of "
        "its own there; train one with parameterization='direct' or 'mlp'"
    )


def _no_strengths(module: nn.Module) -> UnsupportedModel:
    """The error for a prefix at another strength than 0 and 1."""
    return UnsupportedModel(
        f"{type(module).__name__} computes its attention itself, so a prefix has strength 0 or 1 there; "
        "mix what it predicts with what the backbone does (foreword.Mixture), or move its keys and "
        "values towards where they started (prefix.interpolate)"
    )


class _Joining:
    """The cache that a module is handed for one call."""

    def __init__(
        self, adapter: Adapter, inner: Any, frame: Frame, name: str, mask: Tensor, queries: int
    ) -> None:
        self.adapter = adapter
        self.inner = inner
        self.frame = frame
        self.name = name
        self.mask = mask
        self.queries = queries

    def update(
        self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys (B, H, J, D) and values (B, H, J, E) to attend to; the real cache gets the call's."""
        if self.inner is not None:
            key, value = self.inner.update(key, value, *args, **kwargs)
        frame = self.frame
        frame.note(AttentionCall(self.name, key, value, self.adapter.window, self.queries))
        site = frame.site(self.name)
        if site is None:
            return key, value
        joined = frame.with_prefix(site, key, value)
        key, value = (self.adapter.arranged(part, frame, site, self.mask) for part in joined)
        return key, value

    def get_seq_length(self, *args: Any) -> int:
        """Tokens in the real cache."""
        return 0 if self.inner is None else int(self.inner.get_seq_length(*args))


def queries_of(call: Call) -> int:
    """Number of queries Q of a call."""
    return int(call["hidden_states"].shape[1])
