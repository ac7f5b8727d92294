"""What is refused before a forward pass of an attached model, and proved after it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from foreword.attention.bound import Bound
from foreword.attention.call import IMPLEMENTATIONS
from foreword.attention.frame import Frame
from foreword.attention.running import Running
from foreword.errors import BusyError, BypassError, RowsError, UnsupportedModel

_BEHIND = {ours: kernel for kernel, ours in IMPLEMENTATIONS.items()}
"""By the name of an implementation of ours the kernel behind it."""


def configs_of(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every config object that a module of the model holds, each once."""
    found: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        config = module.__dict__.get("config")
        if isinstance(config, PreTrainedConfig):
            found.setdefault(id(config), config)
    return list(found.values())


_holders: weakref.WeakSet[Any] = weakref.WeakSet()
"""The attachments of all models that have one."""


def hold(attachment: Any) -> None:
    """Take in that the configs of an attachment's model name our implementations because of it."""
    _holders.add(attachment)


def let_go(attachment: Any) -> None:
    """Take in that they do so no longer."""
    _holders.discard(attachment)


def _is_held(config: PreTrainedConfig) -> bool:
    """Whether a config belongs to a model that has an attachment."""
    return any(config is own for holder in list(_holders) for own in holder.configs)


def kernels_of(model: PreTrainedModel) -> list[str]:
    """The kernel that each of the model's configs names, ``sdpa`` or ``eager``.

    A config may name an implementation of ours without an attachment: it was copied, or given to
    another model as a name (TRL's reference models). Then the kernel is the one behind it.

    Raises:
        UnsupportedModel: One names another, or is shared with a model that is attached already.
    """
    return [_kernel(model, config) for config in configs_of(model)]


def _kernel(model: PreTrainedModel, config: PreTrainedConfig) -> str:
    """The implementation that the config names, which a prefix must be able to join."""
    found = _BEHIND.get(config._attn_implementation, config._attn_implementation)
    if found != config._attn_implementation and _is_held(config):
        raise UnsupportedModel(
            f"the config of this {type(model).__name__} is shared with a model that has a prefix "
            "attached; build each model from its own copy (copy.deepcopy)"
        )
    if found is None:
        return "eager"
    if found not in IMPLEMENTATIONS:
        raise UnsupportedModel(
            f"attention implementation {found!r} cannot carry a prefix; expected one of "
            f"{sorted(IMPLEMENTATIONS)}. Load the model with attn_implementation='sdpa'"
        )
    return str(found)


def check_implementation(
    model: nn.Module, configs: Sequence[PreTrainedConfig], kernels: Sequence[str]
) -> None:
    """Check that every config still names the implementation that attaching gave it.

    Args:
        model: The attached model.
        configs: Its configs.
        kernels: The kernel that each named before.

    Raises:
        BypassError: One names another by now.
    """
    for config, kernel in zip(configs, kernels, strict=True):
        expected = IMPLEMENTATIONS[kernel]
        found = config._attn_implementation_internal
        if found != expected:
            raise BypassError(
                f"the attention implementation of {type(model).__name__} was changed from "
                f"{expected!r} to {found!r} while a prefix is attached, which would drop the "
                "prefix; call foreword.detach first (generate_batch makes such a change)"
            )


def check_alone(model: nn.Module, running: Running, what: str) -> None:
    """Check that no other thread is at work on an attached model.

    Args:
        model: The model.
        running: Who runs it.
        what: What is about to be done, such as ``a forward pass``.

    Raises:
        BusyError: One is in a forward pass, or holds a block open.
    """
    others = running.elsewhere()
    if others:
        raise BusyError(
            f"{what} of {type(model).__name__} was asked for in thread "
            f"{threading.current_thread().name!r}, which has bound no prefix to it, while "
            f"{', '.join(sorted(map(repr, others)))} runs it under one of its own. Give each thread a "
            "block of its own (backbone.attached(prefix), or attached(None) for no prefix), or attach "
            "one prefix for all threads before they start (foreword.attach)"
        )


def check_idle(model: nn.Module, running: Running, borrowers: int) -> None:
    """Check that an attached model can be left.

    Args:
        model: The model.
        running: Who runs it.
        borrowers: Blocks that need its hooks.

    Raises:
        BusyError: A thread is in a forward pass, or a block is open.
    """
    others = running.elsewhere()
    if not borrowers and not others:
        return
    who = f" ({', '.join(sorted(map(repr, others)))})" if others else ""
    raise BusyError(
        f"a prefix was to be taken off {type(model).__name__} while it is in use{who}: a forward pass "
        "runs in another thread, or a block of backbone.attached(...), an engine or a training is "
        "open. Wait for its end, then detach"
    )


def check_windows(
    model: nn.Module, configs: Sequence[PreTrainedConfig], bound: Bound | None
) -> None:
    """Check that the model's attention can drop a prefix as its windows drop text.

    Raises:
        UnsupportedModel: It is cut into chunks.
    """
    if bound is None or not bound.is_windowed:
        return
    if any(_is_chunked(config) for config in configs):
        raise UnsupportedModel(
            f"{type(model).__name__} cuts its attention into chunks. With window policy "
            "'windowed' a prefix would move the borders between them, as text does, and no longer "
            "be one for every text; use window policy 'visible'"
        )


def _is_chunked(config: PreTrainedConfig) -> bool:
    return "chunked_attention" in (getattr(config, "layer_types", None) or ())


def check_rows(batch: int, bound: Bound | None, *, expanded: bool) -> None:
    """Check that there is a prefix for each row of the batch.

    Args:
        batch: Rows of the batch.
        bound: What the pass attends to.
        expanded: Whether the batch may have several rows for each prefix, as inside `generate`.

    Raises:
        RowsError: The numbers differ.
    """
    rows = bound.batch if bound is not None else None
    if rows is None or rows == batch or (expanded and batch % rows == 0):
        return
    raise RowsError(
        f"expected a batch of {rows} rows, one for each attached prefix; found {batch}. "
        "Attach one prefix for all rows, or as many as the batch has"
    )


def check_output_attentions(
    model: PreTrainedModel, call: Mapping[str, Any], kernels: Sequence[str]
) -> None:
    """Check that a call that wants attention weights can have them.

    Raises:
        UnsupportedModel: No kernel of the model gives any.
    """
    wanted = call.get("output_attentions")
    if wanted is None:
        wanted = getattr(model.config, "output_attentions", False)
    if wanted and "eager" not in kernels:
        raise UnsupportedModel(
            "output_attentions=True needs eager attention (the weights then include the prefix's "
            "columns); load the model with attn_implementation='eager'"
        )


def check_context(model: nn.Module, end: int, limit: int | None) -> None:
    """Check that a table of absolute positions is long enough.

    Args:
        model: The model.
        end: Positions that prefix and text need.
        limit: Positions that the table has, or None where there is no table.

    Raises:
        UnsupportedModel: It is too short.
    """
    if limit is not None and end > limit:
        raise UnsupportedModel(
            f"{type(model).__name__} has {limit} learned positions; prefix and text "
            f"together need {end}. Shorten the text"
        )


def check_every_site(model: nn.Module, under: str, frame: Frame) -> None:
    """Check that a pass that ended attended to the prefix at every site.

    Args:
        model: The attached model.
        under: Name of the module that was called, empty for the model itself.
        frame: The pass.

    Raises:
        BypassError: It left some out.
    """
    for segment in frame.segments:
        check_every_site(model, under, segment.frame)
    if frame.bound is None:
        return
    names = frame.bound.names - frame.absent
    expected = {n for n in names if not under or n.startswith(under + ".")}
    missed = sorted(expected - frame.called)
    if missed:
        raise BypassError(
            f"the prefix was not attended to at {len(missed)} of {len(expected)} sites "
            f"(first: {missed[0]}); something replaced the attention of "
            f"{type(model).__name__} or skipped layers"
        )
