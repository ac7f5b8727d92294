"""One forward pass of an attached model: the prefix that it is bound to, and what its calls share.

Shapes: B batch, R rows of prefixes (1 or a divisor of B), H key/value heads, P prefix length,
Q queries, K keys of the call, D key dimension, E value dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from foreword.attention.bound import Bound, Dial, SiteTensors
from foreword.attention.masks import (
    MaskWindows,
    as_additive,
    biased,
    filled_columns,
    join_columns,
    virtual_places,
    within_window,
    without_columns,
)
from foreword.attention.merge import Groups
from foreword.attention.strength import Absent, Strength, absent_columns
from foreword.errors import UnsupportedModel

T = TypeVar("T")


class Bias(Protocol):
    """Learned biases by distance, of one stack.

    Attributes:
        of_decoder: Whether the stack is a decoder behind an encoder.
    """

    of_decoder: bool

    def columns(self, place_BP: Tensor, position_BQ: Tensor, dtype: torch.dtype) -> Tensor:
        """Biases (B, H, Q, P) of tokens at places, for queries at positions."""


@dataclass
class Frame:
    """One forward pass of an attached model, from its outermost call to its return.

    Recomputation under gradient checkpointing re-enters the frame of its forward, so that it sees
    the prefix that the forward saw, whatever is bound by then. It knows the module that was called by
    name only: a pass that Ctrl-C cut off stays until the next one, and must not keep the model alive.
    """

    name: str
    bound: Bound | None
    batch: int
    text_positions_BQ: Tensor | None
    decoder_slots_BQ: Tensor | None = None  # where the text is an encoder's, and a decoder follows
    text_slots_BQ: Tensor | None = None  # by which distances count; None: by positions
    table_offset: int = 0  # positions that a text is moved up by which the model places by itself
    text_offsets: tuple[int, ...] = (0,)  # the same, where a language model inside places the text
    called: set[str] = field(default_factory=set)
    observer: Callable[[AttentionCall], None] | None = None
    mask_windows: MaskWindows = field(default_factory=dict)
    absent: frozenset[str] = frozenset()  # sites of an encoder whose output the call was given
    biases: Mapping[str, Bias | None] = field(default_factory=dict)
    segments: Sequence[Any] = ()  # of `segments.Segment`, each with a frame of its own
    _made: dict[tuple[int, object], tuple[Tensor | None, Any]] = field(default_factory=dict)

    def site(self, name: str) -> SiteTensors | None:
        """What shares the text's softmax at the named site, if anything is bound there."""
        return None if self.bound is None else self.bound.joint(name)

    def own(self, name: str) -> list[SiteTensors]:
        """What has a softmax of its own at the named site."""
        return [] if self.bound is None else self.bound.own(name)

    def note(self, call: AttentionCall) -> None:
        """Count a site as called, and show the call to who observes."""
        self.called.add(call.name)
        if self.observer is not None:
            self.observer(call)

    def once(self, source: Tensor | None, tag: object, make: Callable[[], T]) -> T:
        """What `make` gives, made once a frame and tag, and tensor (if any) that all layers share."""
        if torch.compiler.is_compiling():  # which shares what is computed twice by itself
            return make()
        known = self._made.get((id(source), tag))
        if known is None or known[0] is not source:
            known = self._made[(id(source), tag)] = (source, make())
        made: T = known[1]
        return made

    def widened(
        self, mask: Tensor, site: SiteTensors, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The mask (B or 1, any, Q, K) with P columns for the prefix in front, made once a frame.

        Where the site has a bias, a boolean mask becomes one of `dtype` that is added to the scores.
        """

        def make() -> Tensor:
            added = dtype if mask.dtype == torch.bool else mask.dtype
            return join_columns(self.scored(site, mask.shape[2], mask.device, added), mask)

        return self.once(mask, ("widened", site.window, site.length_R, site.bias_RP, dtype), make)

    def scored(
        self, site: SiteTensors, queries: int, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """`columns`, or where the site has a bias, what is added to their scores, (B, 1, any, P)."""
        seen = self.columns(site, queries, device)
        return seen if site.bias_RP is None else self.with_bias(seen, site, dtype)

    def with_bias(self, seen: Tensor, site: SiteTensors, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of columns (B or 1, 1, any, P) of which some are seen."""
        assert site.bias_RP is not None
        return biased(seen, self._per_row(site.bias_RP.to(seen.device))[:, None, None], dtype)

    def strengths(
        self, site: SiteTensors | None, keys: int, device: torch.device
    ) -> list[Strength]:
        """The strengths of what a call attends to.

        Args:
            site: What stands in front of the call's own keys.
            keys: Number of those.
            device: Where to make them.
        """
        dials = () if self.bound is None else self.bound.dials
        width = 0 if site is None else site.key_RHPD.shape[2]
        if not dials or not (width or any(any(dial.copied_R) for dial in dials)):
            return []

        def make() -> list[Strength]:
            return [self._strength(dial, width, keys, device) for dial in dials]

        return self.once(None, ("strengths", width, keys, device), make)

    def _strength(self, dial: Dial, width: int, keys: int, device: torch.device) -> Strength:
        """A dial's strengths and columns, of those of a prefix and the call's own."""
        column_J = torch.arange(width + keys, device=device)
        first_R, end_R = torch.tensor(dial.columns_R, device=device).T[..., None]
        copied_R = torch.tensor(dial.copied_R, device=device)[:, None]
        inside_RJ = (column_J >= first_R) & (column_J < end_R) & (column_J < width)
        behind_RJ = (column_J >= first_R + width) & (column_J < end_R + width)
        columns_RJ = torch.where(copied_R, behind_RJ, inside_RJ)
        found = dial.value_R.to(device), columns_RJ
        if not self.rows_are_chosen:
            found = self._per_row(found[0]), self._per_row(found[1])
        return Strength(found[0][:, None, None, None], found[1][:, None, None])

    def without(
        self, mask: Tensor | None, like: Tensor, strengths: Sequence[Strength], absent: Absent
    ) -> Tensor | None:
        """A mask (B or 1, any, Q, J) without the virtual tokens of some strengths, made once a frame.

        Args:
            mask: The mask, or None where all is seen.
            like: Queries (B, any, Q, any), for their number.
            strengths: What a call's strengths are.
            absent: Whose virtual tokens are away.
        """
        hidden = absent_columns(strengths, absent)
        if hidden is None:
            return mask

        def make() -> Tensor:
            if mask is not None:
                return without_columns(mask, hidden)
            return (~hidden).expand(-1, -1, like.shape[2], -1)

        tag = ("without", absent, hidden.shape[-1], like.shape[2])
        return self.once(mask, tag, make)

    def widened_bias(self, name: str, bias: Tensor, site: SiteTensors, queries: int) -> Tensor:
        """A learned bias (B or 1, H, Q, K) with the prefix's columns in front, made once a frame.

        Raises:
            UnsupportedModel: It is not known how the module's biases are made.
        """
        if name not in self.biases:
            raise UnsupportedModel(
                f"{name} passes a position_bias to attention, and how it is made is not known, so a "
                "prefix has no place in it"
            )
        made = self.biases[name]

        def make() -> Tensor:
            if made is None:
                prefix = bias.new_zeros(*bias.shape[:3], site.key_RHPD.shape[2])
            else:
                slot_BQ = self._slots(queries, of_decoder=made.of_decoder)
                prefix = made.columns(self.places(site, bias.device), slot_BQ, bias.dtype)
            rows = max(prefix.shape[0], bias.shape[0])
            both = [part.expand(rows, -1, -1, -1) for part in (prefix, bias)]
            return torch.cat(both, dim=-1)

        return self.once(bias, ("bias", made, site.length_R), make)

    def _slots(self, queries: int, *, of_decoder: bool = False) -> Tensor:
        """How far behind a stack's text's first token the last so many of its tokens stand."""
        own = self.text_slots_BQ
        found = self.text_positions_BQ if own is None else own
        if of_decoder and self.decoder_slots_BQ is not None:
            found = self.decoder_slots_BQ
        assert found is not None
        return found[:, -queries:]

    def joint_mask(
        self, mask: Tensor | None, site: SiteTensors, queries: int, like: Tensor
    ) -> Tensor | None:
        """`widened`, or the prefix's columns before a call without a mask; to be added to scores.

        It has the dtype and device of `like` and is finite: a row of -inf alone would give no number.
        None where everything is seen.
        """

        def make() -> Tensor:
            if mask is None:
                seen = self.scored(site, queries, like.device, like.dtype)
                own = seen.new_ones((seen.shape[0], 1, queries, like.shape[2]), dtype=torch.bool)
                both = join_columns(seen, own)
            else:
                both = self.widened(mask, site, like.dtype)
            if both.dtype == torch.bool:
                return as_additive(both, like.dtype)
            return both.to(like.dtype).clamp(min=torch.finfo(like.dtype).min)

        if mask is None and self.filled(site, like.device) is None:
            return None
        tag = ("joint", site.window, site.length_R, like.shape[2], like.dtype)
        return self.once(mask, tag, make)

    def places(self, site: SiteTensors, device: torch.device) -> Tensor:
        """Where virtual tokens stand before the text's position 0: int64 (B or 1, P).

        Virtual token j of a row of length L stands at j - L; at and after 0 there are columns that
        nobody sees.
        """
        assert self.bound is not None
        width = site.key_RHPD.shape[2]
        if self.bound.rows is None:
            return (torch.arange(width, device=device) - width)[None]
        return self._per_row(virtual_places(width, torch.tensor(site.length_R, device=device)))

    def columns(self, site: SiteTensors, queries: int, device: torch.device) -> Tensor:
        """Which virtual tokens each query sees: boolean (B or 1, 1, Q or 1, P)."""
        bound = self.bound
        assert bound is not None
        window, width = site.window, site.key_RHPD.shape[2]
        if window is None and bound.rows is None and site.kept_P is None:
            return torch.ones(1, 1, 1, width, dtype=torch.bool, device=device)
        length_R = torch.tensor(site.length_R, device=device)
        seen_R1QP = filled_columns(width, length_R)
        if site.kept_P is not None:
            seen_R1QP = seen_R1QP & torch.tensor(site.kept_P, device=device)
        if window is None:
            return self._per_row(seen_R1QP)
        if self.text_positions_BQ is None:
            raise UnsupportedModel(
                "a windowed prefix needs the positions of the text; pass position_ids or a 2-D "
                "attention_mask"
            )
        place_BP = self._per_row(virtual_places(width, length_R))
        # Layers that reuse the keys of others may be asked for the last queries only (gemma4).
        near_B1QP = within_window(self._slots(queries).to(device), place_BP, window)
        free_R111 = ~torch.tensor(site.windowed_R, device=device)[:, None, None, None]
        return self._per_row(seen_R1QP) & (near_B1QP | self._per_row(free_R111))

    def _per_row(self, tensor_R: Tensor) -> Tensor:
        """Repeat each row's entry for the rows of the batch that it serves (i serves i // k)."""
        rows = tensor_R.shape[0]
        chosen = None if self.bound is None else self.bound.row_of_B
        if chosen is not None:
            device = tensor_R.device
            index = self.once(None, ("chosen", device), lambda: torch.tensor(chosen, device=device))
            return tensor_R.index_select(0, index)
        if rows == 1 or rows == self.batch:
            return tensor_R
        return tensor_R.repeat_interleave(self.batch // rows, dim=0)

    def with_prefix(self, site: SiteTensors, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, H, P + K, D) and values (B, H, P + K, E), the prefix's in front."""
        key_BHPD, value_BHPE = self.alone(site, key, value)
        return torch.cat([key_BHPD, key], dim=2), torch.cat([value_BHPE, value], dim=2)

    def alone(self, site: SiteTensors, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix's keys (B, H, P, D) and values (B, H, P, E), on the call's device, in its dtype."""
        key_RHPD, value_RHPE = site.like(key, value)
        batch = key.shape[0]
        key_BHPD = self._per_row(key_RHPD).expand(batch, -1, -1, -1)
        return key_BHPD, self._per_row(value_RHPE).expand(batch, -1, -1, -1)

    def filled(self, site: SiteTensors, device: torch.device) -> Tensor | None:
        """Which columns hold a virtual token: boolean (R, 1, 1, P), or None where all do."""
        assert self.bound is not None
        width = site.key_RHPD.shape[2]
        if self.bound.rows is None or all(length == width for length in site.length_R):
            return None

        def make() -> Tensor:
            return filled_columns(width, torch.tensor(site.length_R, device=device))

        return self.once(None, ("filled", site.length_R, width, device), make)

    @property
    def rows_are_chosen(self) -> bool:
        """Whether each row of the batch says which prefix serves it."""
        return self.bound is not None and self.bound.row_of_B is not None

    def groups(self, site: SiteTensors, device: torch.device) -> Groups:
        """Which rows each of the site's prefixes serves."""
        assert self.bound is not None
        prefixes, heads = site.key_RHPD.shape[:2]
        rows = self.bound.row_of_B
        if rows is None:
            rows = tuple(row * prefixes // self.batch for row in range(self.batch))

        def make() -> Groups:
            return Groups.of(rows, prefixes, heads, device)

        return self.once(None, ("groups", prefixes, heads, device), make)


@dataclass(frozen=True)
class AttentionCall:
    """What an observer sees of one call, before any prefix joins."""

    name: str
    key_BHKD: Tensor
    value_BHKE: Tensor
    window: int | None
    queries: int
