"""The attention function through which a prefix joins a model, and its mask twin.

transformers lets a model name its attention implementation. Foreword registers two names,
``foreword_sdpa`` and ``foreword_eager``. Each puts the prefix's keys and values in front of the
call's own, widens the mask by one column per virtual token, and calls the kernel that the model had:
SDPA, or the modelling file's own ``eager_attention_forward`` (soft-capping, attention sinks). The
key-value cache never holds the prefix.

Shapes: B batch, R rows of prefixes (1 or a divisor of B), H key/value heads, P prefix length,
Q queries, K keys of the call, D key dimension, E value dimension.

A prefix may have a softmax of its own instead: then the kernel is called a second time with the
prefix's keys and values alone, and the two results are added.

Sources: Li and Liang, "Prefix-Tuning", ACL 2021, section 4.2, stated for keys and values; for the
softmax of its own Zhang et al., "LLaMA-Adapter", 2023 (arXiv 2303.16199), section 3.2.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foreword.errors import BypassError, UnsupportedModel
from foreword.kernels import grouped_attention, pays

IMPLEMENTATIONS = {"sdpa": "foreword_sdpa", "eager": "foreword_eager"}
"""Kernels that a prefix can join, and the name of the implementation that does it."""


@dataclass(frozen=True)
class SiteTensors:
    """One site's prefix, ready for the call.

    Attributes:
        key_RHPD: Keys, in any floating dtype; cast to the call's.
        value_RHPE: Values.
        length_R: True prefix length per row, 0 for a row without a prefix here; shorter rows are
            padded on the right with columns that nobody sees.
        window: The site's window in tokens, for prefixes that it may drop.
    """

    key_RHPD: Tensor
    value_RHPE: Tensor
    length_R: tuple[int, ...]
    window: int | None = None


@dataclass(frozen=True)
class Bound:
    """What one forward pass attends to: one prefix for all rows, or one (or none) per row.

    Attributes:
        sites: Tensors by module name, of prefixes that share the text's softmax.
        rows: Number of rows R, or None where one prefix serves every row.
        offset_R: Positions that text is moved up by, one per row (or one for all).
        windowed_R: Whether the row's prefix is dropped by windows as text would be.
        identity: Digest of the prefixes, or a name for one still in training. Caches carry it.
        own: Tensors by module name, of prefixes with a softmax of their own.
        kept_P: Which virtual tokens this pass sees (prefix dropout); None: all of them.
    """

    sites: Mapping[str, SiteTensors]
    rows: int | None
    offset_R: tuple[int, ...]
    windowed_R: tuple[bool, ...]
    identity: str
    own: Mapping[str, SiteTensors] = field(default_factory=dict)
    kept_P: tuple[bool, ...] | None = None

    @property
    def names(self) -> set[str]:
        """Modules that the prefixes join."""
        return {*self.sites, *self.own}


@dataclass
class Frame:
    """One forward pass of an attached model, from its outermost call to its return.

    Recomputation under gradient checkpointing re-enters the frame of its forward, so that it sees
    the prefix that the forward saw, whatever is bound by then.
    """

    module: nn.Module
    bound: Bound | None
    batch: int
    text_positions_BQ: Tensor | None
    called: set[str] = field(default_factory=set)
    observer: Callable[[AttentionCall], None] | None = None
    mask_windows: MaskWindows = field(default_factory=dict)
    _made: dict[tuple[int, object], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def site(self, name: str) -> SiteTensors | None:
        """The prefix at the named site, if one is bound there."""
        return None if self.bound is None else self.bound.sites.get(name)

    def own(self, name: str) -> SiteTensors | None:
        """The prefix with a softmax of its own at the named site, if one is bound there."""
        return None if self.bound is None else self.bound.own.get(name)

    def note(self, call: AttentionCall) -> None:
        """Count a site as called, and show the call to who observes."""
        self.called.add(call.name)
        if self.observer is not None:
            self.observer(call)

    def once(self, source: Tensor, tag: object, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives for a tensor that all layers share, made once a frame and tag."""
        if torch.compiler.is_compiling():  # which shares what is computed twice by itself
            return make()
        known = self._made.get((id(source), tag))
        if known is None or known[0] is not source:
            known = self._made[(id(source), tag)] = (source, make())
        return known[1]

    def widened(self, mask: Tensor, site: SiteTensors) -> Tensor:
        """The mask (B or 1, any, Q, K) with P columns for the prefix in front, made once a frame."""

        def make() -> Tensor:
            return join_columns(self.columns(site, mask.shape[2], mask.device), mask)

        return self.once(mask, (self._window(site), site.length_R), make)

    def _window(self, site: SiteTensors) -> int | None:
        """The window that drops virtual tokens at the site, if one does."""
        assert self.bound is not None
        return site.window if any(self.bound.windowed_R) else None

    def places(self, site: SiteTensors, device: torch.device) -> Tensor:
        """Where virtual tokens stand before the text's position 0: int64 (B or 1, P).

        Virtual token j of a row of length L stands at j - L; at and after 0 there are columns that
        nobody sees.
        """
        assert self.bound is not None
        column_P = torch.arange(site.key_RHPD.shape[2], device=device)
        if self.bound.rows is None:
            return (column_P - site.key_RHPD.shape[2])[None]
        length_R = torch.tensor(site.length_R, device=device)
        return self._per_row(column_P - length_R[:, None])

    def columns(self, site: SiteTensors, queries: int, device: torch.device) -> Tensor:
        """Which virtual tokens each query sees: boolean (B or 1, 1, Q or 1, P)."""
        bound = self.bound
        assert bound is not None
        window = self._window(site)
        column_P = torch.arange(site.key_RHPD.shape[2], device=device)
        if window is None and bound.rows is None and bound.kept_P is None:
            return torch.ones_like(column_P, dtype=torch.bool)[None, None, None, :]
        length_R = torch.tensor(site.length_R, device=device)
        seen_R1QP = (column_P < length_R[:, None])[:, None, None, :]
        if bound.kept_P is not None:
            seen_R1QP = seen_R1QP & torch.tensor(bound.kept_P, device=device)
        if window is None:
            return self._per_row(seen_R1QP)
        if self.text_positions_BQ is None:
            raise UnsupportedModel(
                "a windowed prefix needs the positions of the text; pass position_ids or a 2-D "
                "attention_mask"
            )
        # Virtual token j of a row of length P stands j - P before the text's position 0.
        place_R11P = (column_P - length_R[:, None])[:, None, None, :]
        # Layers that reuse the keys of others may be asked for the last queries only (gemma4).
        query_B1Q1 = self.text_positions_BQ[:, None, -queries:, None].to(device)
        near_B1QP = query_B1Q1 - self._per_row(place_R11P) < window
        free_R111 = ~torch.tensor(bound.windowed_R, device=device)[:, None, None, None]
        return self._per_row(seen_R1QP) & (near_B1QP | self._per_row(free_R111))

    def _per_row(self, tensor_R: Tensor) -> Tensor:
        """Repeat each row's entry for the rows of the batch that it serves (i serves i // k)."""
        rows = tensor_R.shape[0]
        if rows == 1 or rows == self.batch:
            return tensor_R
        return tensor_R.repeat_interleave(self.batch // rows, dim=0)

    def with_prefix(self, site: SiteTensors, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, H, P + K, D) and values (B, H, P + K, E), the prefix's in front."""
        key_BHPD, value_BHPE = self.alone(site, key, value)
        return torch.cat([key_BHPD, key], dim=2), torch.cat([value_BHPE, value], dim=2)

    def alone(self, site: SiteTensors, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix's keys (B, H, P, D) and values (B, H, P, E), on the call's device, in its dtype."""
        return self._rows_like(site.key_RHPD, key), self._rows_like(site.value_RHPE, value)

    def _rows_like(self, prefix_RHPD: Tensor, own_BHKD: Tensor) -> Tensor:
        rows_BHPD = self._per_row(prefix_RHPD).to(own_BHKD)
        return rows_BHPD.expand(own_BHKD.shape[0], -1, -1, -1)


@dataclass(frozen=True)
class AttentionCall:
    """What an observer sees of one call, before any prefix joins."""

    name: str
    key_BHKD: Tensor
    value_BHKE: Tensor
    window: int | None


_frames: dict[int, Frame] = {}
"""The forward pass that each attached model is in, by the key of its `Running`.

Not a context variable, which torch.compile cannot trace, and not an attribute of the model, whose
tensors torch.compile takes to have one shape for ever: each length of a prefix would compile again.
"""

_keys = itertools.count()


class Running:
    """Which forward pass an attached model is in. One for the model, shared by all its modules.

    Recomputation in another thread (backward passes on a GPU) finds it too; so an attached model runs
    in one thread at a time.
    """

    def __init__(self) -> None:
        self.key = next(_keys)

    @property
    def frame(self) -> Frame | None:
        """The forward pass, or None outside one."""
        return _frames.get(self.key)

    @frame.setter
    def frame(self, frame: Frame | None) -> None:
        if frame is None:
            _frames.pop(self.key, None)
        else:
            _frames[self.key] = frame

    @contextmanager
    def inside(self, frame: Frame | None) -> Iterator[None]:
        """Run a block as part of `frame`."""
        before, self.frame = self.frame, frame
        try:
            yield
        finally:
            self.frame = before


@dataclass(frozen=True)
class Place:
    """What a module of an attached model knows: its name, and the model's forward pass."""

    name: str
    running: Running


_PLACE = "_foreword_place"
"""Attribute of each module of an attached model: its `Place`."""

MaskWindows = dict[int, tuple[Tensor, int | None]]
"""By a mask's id: the mask, kept alive so that the id stays its own, and its window."""

_noted: list[MaskWindows] = []
"""Where the windows of masks are noted, while somebody wants to know them."""


def set_place(module: nn.Module, place: Place | None) -> None:
    """Tell a module its place in an attached model, or (None) that it has none any more."""
    if place is None:
        module.__dict__.pop(_PLACE, None)
    else:
        module.__dict__[_PLACE] = place


def frame_of(module: nn.Module) -> tuple[Frame, str]:
    """The forward pass that an attention module is called in, and the module's name.

    Raises:
        BypassError: The module is called outside a forward pass of an attached model.
    """
    place: Place | None = getattr(module, _PLACE, None)
    frame = None if place is None else place.running.frame
    if place is None or frame is None:
        raise BypassError(
            f"{type(module).__name__} was called outside a forward pass of the model that carries "
            "the prefix. Call the whole model; for gradient checkpointing use "
            "model.gradient_checkpointing_enable(); a config object shared by two models must be "
            "copied first (copy.deepcopy)"
        )
    return frame, place.name


@contextmanager
def noting_windows() -> Iterator[MaskWindows]:
    """Note the windows of the masks that a block makes."""
    windows: MaskWindows = {}
    _noted.append(windows)
    try:
        yield windows
    finally:
        _noted.remove(windows)


def join_columns(columns: Tensor, mask: Tensor) -> Tensor:
    """Put boolean columns (R, 1, Q or 1, P) in front of a mask (B or 1, heads or 1, Q, K).

    The mask is boolean (True: seen) or additive (0: seen); its dtype is kept.
    """
    if mask.dtype != torch.bool:
        columns = as_additive(columns, mask.dtype)
    batch = max(columns.shape[0], mask.shape[0])
    heads, queries = mask.shape[1], mask.shape[2]
    columns = columns.expand(batch, heads, queries, -1)
    return torch.cat([columns, mask.expand(batch, -1, -1, -1)], dim=-1)


def as_additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask (True: seen) as one that is added to the scores."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def kernel_of(attention: type[nn.Module], base: str) -> Callable[..., Any]:
    """The kernel that modules of class `attention` call under implementation `base`.

    The modelling file may override the registry or bring an eager kernel of its own, so both are
    looked up where the class's forward looks them up.

    Raises:
        UnsupportedModel: The modelling file has no eager kernel.
    """
    known = _KERNELS.get((attention, base))
    if known is None:
        known = _KERNELS[(attention, base)] = _kernel(attention.forward, base)
    return known


_KERNELS: dict[tuple[type[nn.Module], str], Callable[..., Any]] = {}
"""Kernels found so far. A plain dict: torch.compile looks through functools.cache."""


def _kernel(forward: Callable[..., Any], base: str) -> Callable[..., Any]:
    names = inspect.unwrap(forward).__globals__
    eager = names.get("eager_attention_forward")
    if base == "eager" and eager is None:
        raise UnsupportedModel(
            f"{forward.__qualname__} has no eager_attention_forward in {forward.__module__}; "
            "load the model with attn_implementation='sdpa'"
        )
    registry = names.get("ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    kernel: Callable[..., Any] = registry.get_interface(base, eager)
    return kernel


def _attend(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    kernel = kernel_of(type(module), base)
    frame, name = frame_of(module)
    frame.called.add(name)
    if frame.observer is not None:
        window = window_of(frame, attention_mask, kwargs)
        frame.observer(AttentionCall(name, key, value, window))
    site, own = frame.site(name), frame.own(name)
    apart = None
    if own is not None:
        _refuse_what_cannot_be_apart(module, kwargs)
        additive = base == "eager" if attention_mask is None else attention_mask.dtype != torch.bool
        apart = _apart(frame, own, kernel, module, query, key, value, additive, kwargs)
    if site is not None:
        _refuse_what_cannot_be_widened(module, attention_mask, query.shape[2], kwargs)
        key, value = frame.with_prefix(site, key, value)
        if attention_mask is not None:
            attention_mask = frame.widened(attention_mask, site)
    result = _call(kernel, module, query, key, value, attention_mask, kwargs)
    return result if apart is None else _added(apart, result)


def _call(
    kernel: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: Mapping[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Output (B, Q, heads, E) and weights of the kernel, or of the plain one where it is faster."""
    plain = kernel is sdpa_attention_forward and pays(query, key, kwargs.get("dropout", 0.0))
    if plain and (mask is not None or query.shape[2] == 1):
        return grouped_attention(query, key, value, mask, kwargs.get("scaling")), None
    result: tuple[Tensor, Tensor | None] = kernel(module, query, key, value, mask, **kwargs)
    return result


def _apart(
    frame: Frame,
    site: SiteTensors,
    kernel: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    additive: bool,
    kwargs: Mapping[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """What the prefix gives under a softmax of its own; exactly zero where a query sees none of it."""
    seen_B1QP = frame.columns(site, query.shape[2], query.device)
    some_B1Q1 = seen_B1QP.any(dim=-1, keepdim=True)
    # A softmax over nothing is not a number: where nothing is seen, all is, and then taken out.
    shown_B1QP = (seen_B1QP | ~some_B1Q1).expand(query.shape[0], 1, query.shape[2], -1)
    mask = as_additive(shown_B1QP, query.dtype) if additive else shown_B1QP
    out, weights = _call(kernel, module, query, *frame.alone(site, key, value), mask, kwargs)
    out = torch.where(some_B1Q1.transpose(1, 2), out, torch.zeros_like(out))
    return out, None if weights is None else weights * some_B1Q1


def _added(
    apart: tuple[Tensor, Tensor | None], joint: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """The two outputs' sum; weights with the columns of the prefix's own softmax in front."""
    weights = None
    if apart[1] is not None and joint[1] is not None:
        weights = torch.cat([apart[1], joint[1]], dim=-1)
    return joint[0] + apart[0], weights


def _refuse_what_cannot_be_apart(module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    kind = type(module).__name__
    if kwargs.get("position_bias") is not None:
        raise UnsupportedModel(
            f"{kind} passes a position_bias to attention; a prefix on such models is not supported yet"
        )
    sinks = (kwargs.get("s_aux"), kwargs.get("sinks"), getattr(module, "sinks", None))
    if any(sink is not None for sink in sinks):
        raise UnsupportedModel(
            f"{kind} has attention sinks in its softmax; a prefix with a softmax of its own would "
            "count them twice. Use one that shares the text's softmax (parameterization direct or mlp)"
        )


def _refuse_what_cannot_be_widened(
    module: nn.Module, mask: Tensor | None, queries: int, kwargs: Mapping[str, Any]
) -> None:
    if kwargs.get("position_bias") is not None:
        raise UnsupportedModel(
            f"{type(module).__name__} passes a position_bias to attention; a prefix on such models "
            "is not supported yet"
        )
    causal = kwargs.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    if mask is None and causal and queries > 1:
        # Under a static cache no mask means upper-left alignment, else lower-right: no way to know.
        raise UnsupportedModel(
            f"{type(module).__name__} calls causal attention without a mask, so the prefix's columns "
            "have no place in it; pass an attention_mask"
        )


def window_of(frame: Frame, mask: Tensor | None, kwargs: Mapping[str, Any]) -> int | None:
    """The call's window as its mask was made with, else as the call names it, else None."""
    if mask is not None and id(mask) in frame.mask_windows:
        return frame.mask_windows[id(mask)][1]
    window = kwargs.get("sliding_window")
    return int(window) if isinstance(window, int) and window > 0 else None


def _sdpa(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    return _attend("sdpa", module, *args, **kwargs)


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    return _attend("eager", module, *args, **kwargs)


def _mask(base: str, **kwargs: Any) -> Tensor:
    """The base implementation's mask, which is never None."""
    kwargs["allow_is_causal_skip"] = False
    kwargs["allow_is_bidirectional_skip"] = False
    mask: Tensor = ALL_MASK_ATTENTION_FUNCTIONS[base](**kwargs)
    for windows in _noted:
        windows[id(mask)] = (mask, kwargs.get("local_size"))
    return mask


def _sdpa_mask(**kwargs: Any) -> Tensor:
    return _mask("sdpa", **kwargs)


def _eager_mask(**kwargs: Any) -> Tensor:
    return _mask("eager", **kwargs)


def register() -> None:
    """Tell transformers about the two implementations. Calling it again changes nothing."""
    AttentionInterface.register(IMPLEMENTATIONS["sdpa"], _sdpa)
    AttentionInterface.register(IMPLEMENTATIONS["eager"], _eager)
    AttentionMaskInterface.register(IMPLEMENTATIONS["sdpa"], _sdpa_mask)
    AttentionMaskInterface.register(IMPLEMENTATIONS["eager"], _eager_mask)


register()
