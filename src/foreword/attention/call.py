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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foreword.attention import kernels, merge
from foreword.attention.bound import SiteTensors
from foreword.attention.frame import AttentionCall, Frame
from foreword.attention.kernels import grouped_attention, pays
from foreword.attention.masks import as_additive, note_window
from foreword.attention.merge import cascade_attention, merge_pays, shared_attention
from foreword.attention.running import frame_of, is_nowhere
from foreword.attention.strength import Absent, Strength, absent_columns, blended_outputs
from foreword.errors import UnsupportedModel

IMPLEMENTATIONS = {"sdpa": "foreword_sdpa", "eager": "foreword_eager"}
"""Kernels that a prefix can join, and the name of the implementation that does it."""


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


@dataclass(frozen=True)
class _Call:
    """One attention call of the model.

    Attributes:
        frame: The forward pass that it belongs to.
        kernel: What the model would call.
        module: The attention module.
        query: (B, H * G, Q, D).
        key: (B, H, K, D).
        value: (B, H, K, E).
        mask: Boolean (True: seen) or additive, (B or 1, H * G or 1, Q, K), or None.
        kwargs: The other keyword arguments.
        strengths: Of some of the keys.
    """

    frame: Frame
    kernel: Callable[..., Any]
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    kwargs: Mapping[str, Any]
    strengths: Sequence[Strength] = ()

    def with_keys(self, key: Tensor, value: Tensor, mask: Tensor | None) -> _Call:
        """The same queries over other keys and values."""
        return replace(self, key=key, value=value, mask=mask)

    @property
    def is_plain_sdpa(self) -> bool:
        """Whether SDPA is wanted, and nothing that only transformers' own function knows how to do."""
        return self._is_sdpa and self.kwargs.get("position_bias") is None

    @property
    def _is_sdpa(self) -> bool:
        """The same, with a learned bias or without."""
        wanted = self.kwargs
        return (
            self.kernel is sdpa_attention_forward
            and wanted.get("dropout", 0.0) == 0.0
            and wanted.get("cache") is None
            and wanted.get("softcap") is None
        )

    @property
    def _biased_mask(self) -> Tensor | None:
        """The mask with the call's learned bias in it, if it has one."""
        bias: Tensor | None = self.kwargs.get("position_bias")
        mask = self.mask
        if bias is None or mask is None:
            return mask if bias is None else bias

        def make() -> Tensor:
            if mask.dtype != torch.bool:
                return bias + mask
            return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)

        made: Tensor = self.frame.once(bias, ("masked", id(mask)), make)
        return made

    def run(self) -> tuple[Tensor, Tensor | None]:
        """Output (B, Q, heads, E) and weights of the kernel, or of the plain one where it is faster.

        An observer is shown what the model itself does, so then its own kernel is called.
        """
        masked = self.mask is not None or self.query.shape[2] == 1
        ours = masked and self._is_sdpa and self.frame.observer is None
        few = bool(self.strengths) and self.query.shape[2] <= kernels.FEW
        if ours and (few or pays(self.query, self.key)):
            tensors = self.query, self.key, self.value, self._biased_mask
            scaling = self.kwargs.get("scaling")
            return grouped_attention(*tensors, scaling, self.strengths), None
        if self.strengths:
            return self._blended()
        result: tuple[Tensor, Tensor | None] = self.kernel(
            self.module, self.query, self.key, self.value, self.mask, **self.kwargs
        )
        return result

    def _blended(self) -> tuple[Tensor, Tensor | None]:
        """Output and weights under the strengths, of a kernel that knows of none."""

        def run(absent: Absent) -> tuple[Tensor, Tensor | None]:
            mask = self.frame.without(self.mask, self.query, self.strengths, absent)
            return replace(self, mask=mask, strengths=()).run()

        return blended_outputs(self.strengths, run)


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
    if is_nowhere(module):
        # NOTE: the name leaks by configs: TRL loads a reference model under its policy's implementation.
        return _unattached(kernel, module, query, key, value, attention_mask, kwargs)
    frame, name = frame_of(module)
    frame.called.add(name)
    if frame.observer is not None:
        window = window_of(frame, attention_mask, kwargs)
        frame.observer(AttentionCall(name, key, value, window, query.shape[2]))
    if frame.segments:
        return _in_segments(frame, name, base, kernel, module, query, key, value, kwargs), None
    call = _Call(frame, kernel, module, query, key, value, attention_mask, kwargs)
    return _with_prefix(call, name, base)


def _unattached(
    kernel: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: Mapping[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """What a model without an attachment computes under our name: what its own kernel does."""
    result: tuple[Tensor, Tensor | None] = kernel(module, query, key, value, mask, **kwargs)
    return result


def _in_segments(
    frame: Frame,
    name: str,
    base: str,
    kernel: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kwargs: Mapping[str, Any],
) -> Tensor:
    """Output (1, T, H * G, E) of a pass over flattened tokens; its keys stand for the segments'."""
    outs = []
    for segment in frame.segments:
        segment.frame.called.add(name)
        parts = segment.split(query), segment.held(key), segment.held(value), segment.masks[name]
        call = _Call(segment.frame, kernel, module, *parts, kwargs)
        outs.append(segment.joined(_with_prefix(call, name, base)[0]))
    padding = query.shape[2] - sum(len(out) for out in outs)
    if padding:
        outs.append(outs[0].new_zeros(padding, *outs[0].shape[1:]))
    return (torch.cat(outs) if len(outs) > 1 else outs[0])[None]


def _with_prefix(call: _Call, name: str, base: str) -> tuple[Tensor, Tensor | None]:
    """Attention of a call that the prefixes of its frame join, if there are any."""
    frame, module, mask, kwargs = call.frame, call.module, call.mask, call.kwargs
    site, own = frame.site(name), frame.own(name)
    if own:
        _refuse_what_cannot_be_apart(module, kwargs)
    additive = base == "eager" if mask is None else mask.dtype != torch.bool
    apart = [_apart(call, each, additive) for each in own]
    strengths = frame.strengths(site, call.key.shape[2], call.query.device)
    call = replace(call, strengths=strengths) if strengths else call
    if site is not None:
        _refuse_what_cannot_be_widened(module, mask, call.query.shape[2], kwargs)
        result = _joint(_with_bias(call, name, site), site)
    else:
        result = call.run()
    for each in apart:
        result = _added(each, result)
    return result


def _joint(call: _Call, site: SiteTensors) -> tuple[Tensor, Tensor | None]:
    """Attention over the prefix and the call's own tokens: merged where that pays, else joined."""
    frame, query, key, value, mask = call.frame, call.query, call.key, call.value, call.mask
    chosen = frame.rows_are_chosen
    if (
        call.is_plain_sdpa
        and site.is_seen_by_all
        and (not call.strengths or query.shape[2] <= merge.FEW)
        and merge_pays(query, key, value, site.key_RHPD, site.value_RHPE, chosen=chosen)
    ):
        prefix = site.like(key, value)
        scaling = call.kwargs.get("scaling")
        if query.shape[2] > merge.FEW:
            filled = frame.filled(site, query.device)
            return cascade_attention(query, key, value, mask, *prefix, scaling, filled), None
        groups = frame.groups(site, query.device)
        both = frame.joint_mask(mask, site, query.shape[2], key)
        out = shared_attention(query, key, value, both, *prefix, groups, scaling, call.strengths)
        return out, None
    if mask is not None:
        mask = frame.widened(mask, site, query.dtype)
    elif not site.is_seen_by_all:
        mask = frame.joint_mask(None, site, query.shape[2], key)
    key, value = frame.with_prefix(site, key, value)
    return call.with_keys(key, value, mask).run()


def _with_bias(call: _Call, name: str, site: SiteTensors) -> _Call:
    """The call with the prefix's columns in its learned bias, if it has one."""
    bias = call.kwargs.get("position_bias")
    if bias is None:
        return call
    widened = call.frame.widened_bias(name, bias, site, call.query.shape[2])
    return replace(call, kwargs={**call.kwargs, "position_bias": widened})


def _apart(call: _Call, site: SiteTensors, additive: bool) -> tuple[Tensor, Tensor | None]:
    """What the prefix gives under a softmax of its own; exactly zero where a query sees none of it."""
    frame, query = call.frame, call.query
    own = replace(call.with_keys(*frame.alone(site, call.key, call.value), None), strengths=())
    strengths = frame.strengths(site, 0, query.device)
    seen_B1QP = frame.columns(site, query.shape[2], query.device)

    def run(absent: Absent) -> tuple[Tensor, Tensor | None]:
        hidden = absent_columns(strengths, absent)
        return _over_seen(own, site, seen_B1QP if hidden is None else seen_B1QP & ~hidden, additive)

    return blended_outputs(strengths, run) if strengths else run(())


def _over_seen(
    call: _Call, site: SiteTensors, seen_B1QP: Tensor, additive: bool
) -> tuple[Tensor, Tensor | None]:
    """A softmax over those of a prefix's virtual tokens that are seen; zero where none is."""
    frame, query = call.frame, call.query
    some_B1Q1 = seen_B1QP.any(dim=-1, keepdim=True)
    # A softmax over nothing is not a number: where nothing is seen, all is, and then taken out.
    shown_B1QP = (seen_B1QP | ~some_B1Q1).expand(query.shape[0], 1, query.shape[2], -1)
    mask = as_additive(shown_B1QP, query.dtype) if additive else shown_B1QP
    if site.bias_RP is not None:
        mask = frame.with_bias(shown_B1QP, site, query.dtype)
    out, weights = replace(call, mask=mask).run()
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
            f"{kind} has learned biases by distance in its softmax; a prefix with a softmax of its own "
            "has none. Use one that shares the text's softmax (parameterization direct or mlp)"
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
    note_window(mask, kwargs.get("local_size"))
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
