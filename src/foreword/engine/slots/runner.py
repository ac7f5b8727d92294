"""Forward passes of the engine: several rows, each with its own prefix, place and length.

The transformers model runs as it is. It is given new tokens, their positions, a mask over the slots'
columns and the slot cache; the prefixes join at its attention calls.

Shapes: B rows, Q new tokens of the longest row, K columns, V vocabulary, N wanted positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foreword.attention.attachment import Attachment
from foreword.attention.bound import Bound, Columns, dials, effective
from foreword.attention.frame import Frame
from foreword.attention.masks import as_additive
from foreword.attention.segments import Segment
from foreword.attention.signature import parameters_of
from foreword.backbone import Backbone
from foreword.backbone.output_layer import head_sees
from foreword.described import Described
from foreword.engine.slots.bank import IDENTITY, Bank
from foreword.engine.slots.cache import SlotCache
from foreword.engine.slots.shelf import Slot
from foreword.engine.slots.steps import Flat, Padded, Rows
from foreword.errors import UnsupportedModel, first_line
from foreword.fallbacks import note_fallback
from foreword.prefix import Prefix

KINDS = ("full_attention", "sliding_attention")
"""Kinds of layers whose masks are known."""

PROBE = (5, 7, 11, 13, 17)
"""Tokens that the proof runs on."""

PROVEN = 4
"""Rows of the proof."""

TWO = 2
"""Tokens of a pass at least. A CPU's product with a single row sums in another order than those with
more, whose rows are all alike, so in bfloat16 a request alone would round otherwise than beside others
(benchmarks/LOG.md)."""

ROOMS = (32, 64)
"""Rooms of its slots: rows on two shelves are proven as well."""

NONE = Bound((), None, (0,), IDENTITY)
"""What a pass over flattened tokens is bound to: its segments have the prefixes."""

EXACT, ROUNDED = 1e-4, 2**-4
"""Largest difference allowed in the proof, relative to the largest logit, in float32 and else."""


COPIED = 128
"""Longest prefix that is copied to its rows' slots. All rows share one copy of a longer one: no memory
per row, but several more operations in every layer of a step (benchmarks/LOG.md)."""


@dataclass(frozen=True)
class Front:
    """What stands in front of a row's tokens: a prefix that its slot holds a copy of, or a shared one.

    Attributes:
        copied: Columns of the copy in the slot.
        offset: Positions that a copied prefix moves the tokens up by.
        shared: The prefix that is not copied.
        strengths: Those that are not 1, and of which of its virtual tokens.
    """

    copied: int = 0
    offset: int = 0
    shared: Prefix | None = None
    strengths: tuple[Columns, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of a pass.

    Attributes:
        slot: Where its keys and values are.
        computed: Tokens that it has there.
        tokens: New tokens.
        front: What stands in front of it.
        wanted: How many of the last new tokens' logits are asked for.
    """

    slot: Slot
    computed: int
    tokens: tuple[int, ...]
    front: Front = Front()
    wanted: int = 1

    @property
    def start(self) -> int:
        """Column of its first new token."""
        return self.front.copied + self.computed

    @property
    def position(self) -> int:
        """Position of its first new token, before what a shared prefix adds."""
        return self.front.offset + self.computed


class Runner:
    """Runs rows on a backbone that is attached for as long as the runner is open.

    Args:
        backbone: The backbone, which nothing else may use meanwhile.
        attachment: Its attachment.
        tokens: Columns of all slots of the cache together.
        example: A prefix of the backbone's, to prove on it that a copied prefix does what it does.
        copied: Longest prefix that is copied to its rows' slots; 0 to share one copy of each.

    Raises:
        UnsupportedModel: The model keeps more than keys and values of its attention calls.
    """

    def __init__(
        self,
        backbone: Backbone,
        attachment: Attachment,
        tokens: int,
        example: Prefix | None = None,
        copied: int = COPIED,
    ) -> None:
        self.backbone = backbone
        self.attachment = attachment
        self.model = backbone.model
        self.device = backbone.device
        config = self.model.config.get_text_config()
        self.kinds = tuple(dict.fromkeys(getattr(config, "layer_types", None) or ()))
        if "position_ids" not in parameters_of(type(self.model)):
            raise self._unsupported("it takes no position_ids")
        if other := [kind for kind in self.kinds if kind not in KINDS]:
            raise self._unsupported(f"it has {other[0]} layers")
        self.cache = SlotCache(int(config.num_hidden_layers), tokens)
        self.bank = Bank(backbone.sites)
        windows = {site.window for site in backbone.sites if site.window is not None}
        self.window = max(windows, default=None)
        self.copied, self.is_flat = 0, False
        with torch.inference_mode(), self._slots() as slots:
            self._prove(slots)
            self.is_flat = self._agree(
                "passes over flattened tokens",
                "rows are padded",
                partial(self._padded_and_flat, slots, example),
            )
            if example is not None and self.window is None:
                copies = partial(self._copied_and_shared, slots, example)
                what = "copies of short prefixes in their rows' slots"
                self.copied = copied if self._agree(what, "they are shared", copies) else 0

    @contextmanager
    def _slots(self) -> Iterator[list[Slot]]:
        """Slots for the proofs, which are given back: twice as many as its rows, on two shelves."""
        slots = [self.cache.take(ROOMS[index % 2]) for index in range(2 * PROVEN)]
        try:
            yield slots
        finally:
            for slot in slots:
                self.cache.give_back(slot)
            self.cache.rest()

    def _prove(self, slots: Sequence[Slot]) -> None:
        """Check that rows of different length give the logits that each gives alone.

        Raises:
            UnsupportedModel: They do not, or the model cannot be run that way.
        """
        rows = [Row(slots[0], 0, PROBE), Row(slots[1], 0, PROBE[2:])]
        try:
            found = self._two_passes(rows)
        except Exception as error:
            raise self._unsupported(first_line(error)) from error
        for row, logits_V in zip(rows, found, strict=True):
            ids = torch.tensor([[*row.tokens, PROBE[0]]], device=self.device)
            with self.attachment.using(None):
                alone_V = self.model(input_ids=ids, use_cache=False).logits[0, -1]
            moved = _distance(logits_V, alone_V)
            if not moved <= self._allowed:
                raise self._unsupported(
                    f"a row's logits move by {moved:.1e} of the largest beside another row"
                )

    def _copied_and_shared(self, slots: Sequence[Slot], example: Prefix) -> list[list[Tensor]]:
        """Logits of a row under a prefix that its slot holds, and of one under the shared prefix."""
        front = self._copy(slots[0], example)
        rows = [Row(slots[0], 0, PROBE, front), Row(slots[1], 0, PROBE, Front(shared=example))]
        return [self._two_passes(rows)]

    def _padded_and_flat(self, slots: Sequence[Slot], example: Prefix | None) -> list[list[Tensor]]:
        """Logits of rows that are padded, and of the same ones in a pass over flattened tokens."""
        found = []
        for self.is_flat, (one, two, three, four) in (
            (False, slots[:PROVEN]),
            (True, slots[PROVEN:]),
        ):
            shared = Front(shared=example)
            rows = [Row(one, 0, PROBE), Row(two, 0, PROBE[2:], shared)]
            self.run(rows)
            more = [Row(row.slot, len(row.tokens), PROBE[:1], row.front) for row in rows]
            late = Row(three, 0, PROBE[:2], shared)
            logits = self.run([more[0], late, more[1], Row(four, 0, PROBE[1:])])
            found.append([logits_1V[0] for logits_1V in logits])
        return [list(pair) for pair in zip(*found, strict=True)]

    def _agree(self, what: str, instead: str, passes: Callable[[], list[list[Tensor]]]) -> bool:
        """Whether a faster way gives what the plain one gives, pair by pair; else that is said."""
        try:
            moved = [_distance(*pair) for pair in passes()]
            if all(each <= self._allowed for each in moved):
                return True
            why = f"logits move by {max(moved):.1e} of the largest"
        except Exception as error:
            why = first_line(error)
        note_fallback(what, f"{why}; {instead}")
        return False

    def _two_passes(self, rows: Sequence[Row]) -> list[Tensor]:
        """Logits (V,) of each row after its tokens and one more."""
        self.run(rows)
        more = [Row(row.slot, len(row.tokens), PROBE[:1], row.front) for row in rows]
        return [logits_1V[0] for logits_1V in self.run(more)]

    @property
    def _allowed(self) -> float:
        return EXACT if self.model.dtype == torch.float32 else ROUNDED

    def _unsupported(self, why: str) -> UnsupportedModel:
        kind = type(self.model).__name__
        return UnsupportedModel(
            f"family {self.backbone.family!r} ({kind}) cannot be served in mixed batches: {why}"
        )

    def place(self, slot: Slot, prefix: Prefix | None, strength: float = 1.0) -> Front:
        """Put a prefix in front of what a slot will hold, at a strength of all of its pieces."""
        if prefix is None:
            return Front()
        present, strengths = effective(prefix.strength(strength))
        if present is None:
            return Front()
        if not self.columns_of(prefix):
            return Front(shared=prefix, strengths=strengths)
        offset = prefix.length if prefix.meta.positions == "offset" else 0
        return replace(self._copy(slot, present), offset=offset, strengths=strengths)

    def columns_of(self, prefix: Described | None) -> int:
        """Columns that a copy of a prefix takes in a slot; 0 if all rows share one."""
        if prefix is None or prefix.length > self.copied or prefix.meta.softmax == "own":
            return 0
        return prefix.length if len(prefix.sites) == len(self.backbone.sites) else 0

    def _copy(self, slot: Slot, prefix: Prefix) -> Front:
        order = {site.label: index for index, site in enumerate(self.backbone.sites)}
        pairs = zip(prefix.sites, prefix.keys, prefix.values, strict=True)
        for site, key_HPD, value_HPE in pairs:
            self.cache.put(order[site.label], slot, key_HPD, value_HPE)
        return Front(prefix.length, prefix.length if prefix.meta.positions == "offset" else 0)

    def run(self, rows: Sequence[Row]) -> list[Tensor]:
        """Logits (wanted, V) of each row, of its last new tokens, in the model's dtype.

        Rows with one new token are computed together, and those with more: in one pass where the
        model can run flattened tokens, else in two.
        """
        self.bank.hold([row.front.shared for row in rows])
        found: list[Tensor] = []
        groups = [group for group in self._groups(rows) if group]
        try:
            if self.is_flat:
                found = self._flat([[rows[index] for index in group] for group in groups])
            else:
                for group in groups:
                    found += self._padded([rows[index] for index in group])
        finally:
            self.cache.at(None)
        placed = dict(zip(itertools.chain(*groups), found, strict=True))
        return [placed[index] for index in range(len(rows))]

    def _groups(self, rows: Sequence[Row]) -> tuple[list[int], list[int]]:
        """Places of the rows with one new token, and of those with more, each shelf by shelf."""
        shelves = {id(shelf): place for place, shelf in enumerate(self.cache.shelves)}

        def where(index: int) -> tuple[int, int]:
            slot = rows[index].slot
            return shelves[id(slot.shelf)], slot.index

        order = sorted(range(len(rows)), key=where)
        one = [index for index in order if len(rows[index].tokens) == 1]
        return one, [index for index in order if len(rows[index].tokens) > 1]

    def _flat(self, groups: Sequence[Sequence[Row]]) -> list[Tensor]:
        """One pass over the tokens of all rows, group after group."""
        every = [rows for group in groups for rows in self._rows(group).by_shelf]
        step = Flat(tuple(every))
        self.cache.at(step)
        flat = [row for group in groups for row in group]
        parts = iter(flat)
        segments: list[Segment] = []
        positions: list[int] = []
        first = 0
        for number, rows in enumerate(every):
            group = list(itertools.islice(parts, len(rows.sizes)))
            bound = self._bound(group)
            shelf = partial(step.part, number)
            segments.append(self._segment(group, rows, bound, first, shelf))
            first += sum(rows.sizes)
            offsets = bound.offsets if len(bound.offsets) > 1 else bound.offsets * len(group)
            for row, offset in zip(group, offsets, strict=True):
                positions += range(row.position + offset, row.position + offset + len(row.tokens))
        ids = [token for row in flat for token in row.tokens]
        wanted = [last for row in flat for last in _wanted(row, len(row.tokens))]
        padding = max(_even(first), TWO) - first
        ids += [0] * padding
        positions += [0] * padding
        wanted += [False] * padding
        if sum(wanted) < TWO:  # the last one is padding
            wanted[-1] = True
        ids_1T = torch.tensor([ids], device=self.device)
        return self._logits(
            flat,
            ids_1T,
            torch.tensor([positions], device=self.device),
            torch.tensor([wanted], device=self.device),
            self._by_kind(ids_1T.new_zeros(1, 1, 1, 1), None),
            segments,
        )

    def _bound(self, group: Sequence[Row]) -> Bound:
        """What rows attend to beside what their slots hold, and at which strengths."""
        bound = self.bank.bound([row.front.shared for row in group])
        strengths = [row.front.strengths for row in group]
        if not (bound.dials or any(strengths)):
            return bound
        return replace(bound, dials=dials(strengths, [row.front.copied > 0 for row in group]))

    def _segment(
        self,
        group: Sequence[Row],
        rows: Rows,
        bound: Bound,
        first: int,
        shelf: Callable[[Tensor], Tensor],
    ) -> Segment:
        """A group's rows on one shelf, whose tokens begin at place `first` of the pass."""
        total = sum(rows.sizes)
        queries = _even(rows.queries)
        tokens: slice | Tensor = slice(first, first + total)
        real = None
        if total < queries * len(group):
            starts = itertools.accumulate(rows.sizes, initial=first)
            at = [
                min(start + query, start + size - 1)
                for start, size in zip(starts, rows.sizes, strict=False)
                for query in range(queries)
            ]
            kept = [row * queries + q for row, size in enumerate(rows.sizes) for q in range(size)]
            tokens, real = (torch.tensor(each, device=self.device) for each in (at, kept))
        frame = Frame("", bound, len(group), self._text_positions(group, queries))
        masks = {
            window: as_additive(rows.visible(window, queries, rows.read), self.model.dtype)
            for window in {site.window for site in self.backbone.sites}
        }
        by_name = {site.name: masks[site.window] for site in self.backbone.sites}
        return Segment(frame, tokens, real, queries, shelf, rows.where, rows.read, by_name)

    def _rows(self, group: Sequence[Row]) -> Rows:
        return Rows(
            tuple(row.slot for row in group),
            tuple(row.start for row in group),
            tuple(len(row.tokens) for row in group),
            self.device,
        )

    def _text_positions(self, group: Sequence[Row], queries: int) -> Tensor:
        first_B = torch.tensor([row.position for row in group], device=self.device)
        return first_B[:, None] + torch.arange(queries, device=self.device)

    def _padded(self, group: Sequence[Row]) -> list[Tensor]:
        """One pass over rows that are padded to the longest."""
        rows = self._rows(group)
        step = Padded(rows.by_shelf)
        self.cache.at(step)
        queries = rows.queries
        ids_BQ = torch.tensor([[*row.tokens, *[0] * (queries - len(row.tokens))] for row in group])
        wanted_BQ = torch.tensor([_wanted(row, queries) for row in group], device=self.device)
        full, windowed = (
            as_additive(rows.visible(window, queries, step.columns), self.model.dtype)
            for window in (None, self.window)
        )
        return self._logits(
            group,
            ids_BQ.to(self.device),
            self._text_positions(group, queries),
            wanted_BQ,
            self._by_kind(full, windowed),
            (),
        )

    def _logits(
        self,
        rows: Sequence[Row],
        ids: Tensor,
        positions: Tensor,
        wanted: Tensor,
        mask: Any,
        segments: Sequence[Segment],
    ) -> list[Tensor]:
        """Logits (wanted, V) of each row, after one pass over token ids (B, Q) or (1, T)."""
        bound = NONE if segments else self._bound(rows)
        with (
            self.attachment.using(bound, segments),
            head_sees(self.model, wanted) as narrowed,
        ):
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            ).logits
        logits_NV = logits[0] if narrowed else logits[wanted]
        sizes = [row.wanted for row in rows]
        return list(logits_NV[: sum(sizes)].split(sizes))

    def _by_kind(self, full: Tensor, windowed: Tensor | None) -> Any:
        """The mask, or one for each kind of layer where the model has several."""
        if windowed is None or self.window is None:
            windowed = full
        if not self.kinds or self.kinds == ("full_attention",):
            return windowed
        return {kind: full if kind == "full_attention" else windowed for kind in self.kinds}


def probed(backbone: Backbone, attachment: Attachment) -> Tensor:
    """What the model gives for a few tokens."""
    with torch.inference_mode(), attachment.using(None):
        ids = torch.tensor([PROBE], device=backbone.device)
        logits: Tensor = backbone.model(input_ids=ids, use_cache=False).logits
    return logits


def _wanted(row: Row, queries: int) -> list[bool]:
    """Of which of the pass's new tokens the row wants logits."""
    size = len(row.tokens)
    return [size - row.wanted <= place < size for place in range(queries)]


def _even(size: int) -> int:
    """A size not much above another: for each that it has not seen, oneDNN makes its kernels anew."""
    step = 1 if size == 1 else 8 if size <= 256 else 32
    return -(-size // step) * step


def _distance(found_V: Tensor, expected_V: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    found_V, expected_V = found_V.float(), expected_V.float()
    largest = max(1.0, float(expected_V.abs().max()))
    return float((found_V - expected_V).abs().max()) / largest
