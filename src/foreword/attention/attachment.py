"""Attachment: the hooks that lead a transformers model's forward passes through its prefix.

Everything that attaching changes is undone by `Attachment.remove`: the attention implementation in
each config, the hooks, the instance's `generate` and the gradient checkpointing functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foreword.attention import guards
from foreword.attention.adapters import adapt
from foreword.attention.bias import biases_of
from foreword.attention.bindings import Bindings
from foreword.attention.bound import Bound
from foreword.attention.cache_owner import held_tokens, own_caches
from foreword.attention.call import IMPLEMENTATIONS
from foreword.attention.checkpointing import CheckpointInFrame, refuse_reentrant
from foreword.attention.direct import direct_forward
from foreword.attention.frame import AttentionCall, Bias, Frame
from foreword.attention.generating import REPLACED, check_every_layer
from foreword.attention.position_table import PositionTable, table_of
from foreword.attention.positions import moved, one_part, text_positions, text_slots, texts_of
from foreword.attention.running import Place, set_place
from foreword.attention.scope import Scope, scope_of
from foreword.attention.signature import parameters_of
from foreword.attention.text_model import placed_in, text_model_of
from foreword.errors import UnsupportedModel
from foreword.prefix import Site

F = TypeVar("F", bound=Callable[..., Any])

_HELD = "_foreword_attachment"
"""Attribute of a model: its attachment."""


def _untraced(function: F) -> F:
    """A function that torch.compile leaves alone."""
    return cast("F", torch.compiler.disable(function))


@dataclass(frozen=True)
class Known:
    """What an attachment knows of its model; before the probe has run, next to nothing.

    Attributes:
        places_text: Whether the model is told where its text stands: else padding on the left moves
            text, prefix or not, by a rule of the model's own.
        absolute_limit: Number of positions that its table of absolute positions has, if it has one.
        biases: Learned biases by distance, by the name of the attention module that has any.
        encoder_sites: Names of the attention modules of an encoder.
        sites: Names of all attention modules that a prefix can join.
    """

    places_text: bool = False
    absolute_limit: int | None = None
    biases: Mapping[str, Bias | None] = field(default_factory=dict)
    encoder_sites: frozenset[str] = frozenset()
    sites: frozenset[str] = frozenset()


class Attachment(Bindings):
    """Hooks on one model, and the prefix that its next forward pass is bound to.

    Args:
        model: A transformers model. Its class stays as it is.

    Raises:
        UnsupportedModel: The model's attention implementation is neither sdpa nor eager, or its
            config is shared with a model that is attached already.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._borrowers = 0
        self._is_left = False
        self.known = Known()
        self._names = {module: name for name, module in model.named_modules()}
        self.configs = guards.configs_of(model)
        self._base = guards.kernels_of(model)
        self._text_model = text_model_of(model)
        self._own_methods = {name: model.__dict__.get(name) for name in ("generate", *REPLACED)}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._install()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        """That of a copied model, which is bound as the model is where it was copied, and by itself."""
        copied = memo[id(self)] = object.__new__(type(self))
        inner = scope_of(self._running.key)
        own: dict[str, Any] = {"_borrowers": 0, "_is_left": False}
        if inner is not None:
            own |= {"_own": Scope(inner.fixed, inner.source), "_is_held": True}
        copied.__setstate__(copy.deepcopy({**self.__dict__, **own}, memo))
        return copied

    # -- putting in and taking out ---------------------------------------------------------------

    def _install(self) -> None:
        self._adapters = adapt(self._names)
        for index, config in enumerate(self.configs):
            config._attn_implementation_internal = IMPLEMENTATIONS[self._base[index]]
        for module, name in self._names.items():
            set_place(module, Place(name, self._running))
            if isinstance(module, PreTrainedModel):
                before = module.register_forward_pre_hook(
                    self._before, with_kwargs=True, prepend=True
                )
                after = module.register_forward_hook(
                    self._after, with_kwargs=True, always_call=True
                )
                self._handles += [before, after]
        table = table_of(self.model)
        self._table = None if table is None else PositionTable(table, self._running)
        if self._table is not None:
            self._handles.append(self._table.hook())
        self._direct = direct_forward(self.model, self._running)
        for name, answer in {"generate": self.generate, **REPLACED}.items():
            if callable(getattr(type(self.model), name, None)):
                self.model.__dict__[name] = answer
        self.model.__dict__[_HELD] = self
        guards.hold(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, with a copy of the model, holds its own configs."""
        self.__dict__.update(state)
        guards.hold(self)

    def remove(self) -> None:
        """Leave the model as it was found."""
        with self.exclusive():
            self._remove()

    def part(self) -> None:
        """Leave the model as it was found, if nobody is at work on it.

        Raises:
            BusyError: Another thread is in a forward pass, or this or another one holds a block open.
        """
        with self.exclusive():
            guards.check_idle(self.model, self._running, self._borrowers)
            self._remove()

    def _remove(self) -> None:
        self.release()
        for index, config in enumerate(self.configs):
            if config._attn_implementation_internal in IMPLEMENTATIONS.values():
                config._attn_implementation_internal = self._base[index]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for adapter in self._adapters:
            adapter.remove()
        guards.let_go(self)
        self._running.frame = None
        if self._direct is not None:
            self._direct.remove()
        for name, own in self._own_methods.items():
            self.model.__dict__.pop(name, None)
            if own is not None:
                self.model.__dict__[name] = own
        for module in self._names:
            set_place(module, None)
        for module in self.model.modules():
            function = module.__dict__.get("_gradient_checkpointing_func")
            if isinstance(function, CheckpointInFrame):
                module.__dict__["_gradient_checkpointing_func"] = function.inner
        # At last: from here on another thread may attach anew, and nothing of that may be undone.
        self.model.__dict__.pop(_HELD, None)

    def borrow(self) -> bool:
        """Keep the hooks on until `give_back`; False if they were taken off already."""
        with self.exclusive():
            if attachment_of(self.model) is not self:
                return False
            self._borrowers += 1
            return True

    def give_back(self) -> None:
        """End what `borrow` began: of hooks that nothing holds, the last one takes them off."""
        with self.exclusive():
            self._borrowers -= 1
            self._leave()

    def _leave(self) -> None:
        """Take the hooks off if nobody needs them; passes of other threads do it when they end."""
        self._is_left = not self._is_held and not self._borrowers
        if self._is_left and not self._running.elsewhere() and attachment_of(self.model) is self:
            self._remove()

    def recorded(self, *args: Any, **kwargs: Any) -> list[AttentionCall]:
        """The attention calls of one forward pass without a prefix and without gradients."""
        calls: list[AttentionCall] = []
        with torch.no_grad(), self.using(None), self.observing(calls.append):
            self.model(*args, **kwargs)
        return calls

    # -- around each forward pass ----------------------------------------------------------------

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        running = self._running.frame
        if running is not None and self._is_inside(module, running.name):
            return placed_in(running, args, kwargs) if module is self._text_model else None
        return self._begin(module, args, kwargs)

    @_untraced  # so that torch.compile makes one graph of what lies between begin and end
    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        with self.exclusive():
            self._running.frame = None
            if attachment_of(self.model) is not self:  # another thread detached it just now
                return None
            self._check_implementation()
            names = parameters_of(type(module))
            frame, position_ids = self._frame(
                module, {**dict(zip(names, args, strict=False)), **kwargs}
            )
            self._keep_checkpoints_in_frame(frame.bound)
            self._running.frame = frame
        if position_ids is None:
            return None
        index = names.index("position_ids")
        if len(args) > index:
            return (*args[:index], position_ids, *args[index + 1 :]), kwargs
        return args, {**kwargs, "position_ids": position_ids}

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        running = self._running.frame
        if running is not None and running.name == self._names[module]:
            self._end(module, running, output)

    @_untraced
    def _end(self, module: nn.Module, frame: Frame, output: Any) -> None:
        self._running.frame = None
        if self._is_left:
            with self.exclusive():
                self._leave()
        if output is None:  # the forward raised; its own error goes on
            return
        guards.check_every_site(self.model, self._names[module], frame)
        own_caches(output, frame.bound)

    def _is_inside(self, module: nn.Module, around: str) -> bool:
        """Whether a module is a proper part of the one of that name."""
        name = self._names[module]
        return name != around and (not around or name.startswith(around + "."))

    def _is_beside_text(self, module: nn.Module) -> bool:
        """Whether a module has no place for a prefix: the tower that reads images, called by itself."""
        around = self._names[module]
        under = f"{around}." if around else ""
        sites = self.known.sites
        return bool(sites) and not any(name.startswith(under) for name in sites)

    def _frame(self, module: nn.Module, call: Mapping[str, Any]) -> tuple[Frame, Tensor | None]:
        """The frame of a call, and the position_ids to hand to the model (None: as they are)."""
        source, decoded = texts_of(call, parameters_of(type(module)))
        if source is None and self._is_beside_text(module):
            return Frame(self._names[module], None, 1, None, observer=self.scope.observer), None
        if source is None:
            raise UnsupportedModel(
                f"{type(module).__name__} was called without input_ids or inputs_embeds; "
                "only language models carry a prefix for now"
            )
        scope = self.scope
        bound = scope.bound()
        if scope.segments:
            return Frame(self._names[module], bound, 1, None, segments=scope.segments), None
        self.check_windows(bound)
        batch, queries = source.shape[:2]
        guards.check_rows(batch, bound, expanded=scope.generating)
        guards.check_output_attentions(self.model, call, self._base)
        held = past = held_tokens(call.get("past_key_values"), bound)
        decoder_slots = None
        if decoded is not None:  # the cache is the decoder's, behind an encoder that has none
            past = 0
            mask, size = call.get("decoder_attention_mask"), decoded.shape[1]
            decoder_positions = text_positions(mask, batch, size, held, decoded.device)
            decoder_slots = text_slots(mask, decoder_positions, held)
        positions = call.get("position_ids")
        if positions is None:
            mask = call.get("attention_mask")
            positions = text_positions(mask, batch, queries, past, source.device)
        frame = Frame(
            self._names[module],
            bound,
            batch,
            one_part(positions),
            decoder_slots,
            text_slots(call.get("attention_mask"), one_part(positions), past),
            absent=self.known.encoder_sites
            if call.get("encoder_outputs") is not None
            else frozenset(),
            biases=self.known.biases,
            observer=scope.observer,
            mask_windows=scope.mask_windows,
        )
        offsets = bound.offsets if bound is not None else (0,)
        if not self.known.places_text and not any(offsets):
            return frame, None
        if self._table is not None and any(offsets) and not self.known.places_text:
            read = self._table.text(parameters_of(type(module)), source, decoded)
            if read is not None:
                self._table.place(frame, offsets, held + read.shape[1])
            return frame, None
        if self._text_model is not None and self._text_model is not module:
            frame.text_offsets = offsets
            guards.check_context(
                self.model, past + queries + max(offsets), self.known.absolute_limit
            )
            return frame, None
        placed = self.known.places_text or call.get("position_ids") is not None
        if placed and "position_ids" in parameters_of(type(module)):
            moved_ids = moved(positions, batch, offsets)
            guards.check_context(
                self.model, past + queries + max(offsets), self.known.absolute_limit
            )
            return frame, moved_ids
        relative = bool(self.known.biases) or any(adapter.relative for adapter in self._adapters)
        if any(offsets) and not relative:
            raise UnsupportedModel(
                f"{type(module).__name__} takes no position_ids, or counts them by a rule of its own "
                f"and was given none, so text cannot start at the offset {max(offsets)} that this "
                "prefix was made for; use position policy 'free'"
            )
        return frame, None

    def check_windows(self, bound: Bound | None) -> None:
        """Check that the model's attention can drop a prefix as its windows drop text.

        Raises:
            UnsupportedModel: It is cut into chunks.
        """
        guards.check_windows(self.model, self.configs, bound)

    def _check_implementation(self) -> None:
        guards.check_implementation(self.model, self.configs, self._base)

    def know(self, sites: Sequence[Site], absolute_limit: int | None, *, places_text: bool) -> None:
        """Take in what the probe measured of the model."""
        self.known = Known(
            places_text,
            absolute_limit,
            biases_of(self._names, {site.name: site.stack for site in sites}),
            frozenset(site.name for site in sites if site.stack == "encoder"),
            frozenset(site.name for site in sites),
        )

    def _keep_checkpoints_in_frame(self, bound: Bound | None) -> None:
        if not torch.is_grad_enabled():
            return
        functions = {
            module: module.__dict__.get("_gradient_checkpointing_func") for module in self._names
        }
        for module, function in functions.items():
            if getattr(module, "gradient_checkpointing", False) and module.training:
                refuse_reentrant(function, bound)
        for module, function in functions.items():
            if function is not None and not isinstance(function, CheckpointInFrame):
                module.__dict__["_gradient_checkpointing_func"] = CheckpointInFrame(
                    self._check_implementation, self._running, function
                )

    def _joined(self) -> set[str]:
        """Names of the modules that the prefix joins."""
        bound = self.bound
        return set() if bound is None else bound.names

    # -- generate --------------------------------------------------------------------------------

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `generate`, in which row i of the expanded batch is served i // k."""
        source = args[0] if args else None
        for name in ("inputs", "input_ids", "inputs_embeds"):
            source = kwargs.get(name) if source is None else source
        # Another thread may attach another prefix meanwhile: this text is written under one.
        with self.exclusive():
            scope = self.scope
        if source is not None and scope.source is None:
            guards.check_rows(source.shape[0], scope.fixed, expanded=scope.generating)
        check_every_layer(self.model, self._joined, args, kwargs)
        own = self._own_methods["generate"]
        with self._within(replace(scope, generating=True)):
            if own is not None:
                return own(*args, **kwargs)
            return type(self.model).generate(self.model, *args, **kwargs)


def attachment_of(model: nn.Module) -> Attachment | None:
    """The model's attachment, if it has one."""
    found = model.__dict__.get(_HELD)
    return found if isinstance(found, Attachment) else None
