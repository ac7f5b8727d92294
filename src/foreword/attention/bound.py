"""What a forward pass attends to: `Bound`, made of one prefix or of one per row.

Shapes: R rows, H key/value heads, P length of the longest row, D key or value dimension.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from foreword.attention.strength import MAX_STRENGTHS
from foreword.errors import MismatchError, RowsError, UnsupportedModel
from foreword.prefix import SOFTMAX, Prefix, Site, Softmax

_live = itertools.count()


@dataclass(frozen=True)
class SiteTensors:
    """One site's prefix, ready for the call.

    Attributes:
        key_RHPD: Keys, in any floating dtype; cast to the call's.
        value_RHPE: Values.
        length_R: True prefix length per row, 0 for a row without a prefix here; shorter rows are
            padded on the right with columns that nobody sees.
        window: The window in tokens that drops virtual tokens here, or None where none does.
        windowed_R: Whether it drops the row's prefix.
        kept_RP: Which virtual tokens this pass sees (prefix dropout), of all rows if there is one entry;
            None: all of them.
        bias_RP: Added to the scores of virtual tokens, float32; minus infinity hides one. None: 0.
    """

    key_RHPD: Tensor
    value_RHPE: Tensor
    length_R: tuple[int, ...]
    window: int | None = None
    windowed_R: tuple[bool, ...] = (False,)
    kept_RP: tuple[tuple[bool, ...], ...] | None = None
    bias_RP: Tensor | None = None
    _cast: dict[object, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_seen_by_all(self) -> bool:
        """Whether every query of a row sees the row's whole prefix, as it is."""
        return self.window is None and self.kept_RP is None and self.bias_RP is None

    def like(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (R, H, P, D) and values (R, H, P, E) on the call's device, in its dtype, contiguous.

        What had to be cast is kept for the next call, unless it is in training.
        """
        return self._like("key", self.key_RHPD, key), self._like("value", self.value_RHPE, value)

    def _like(self, name: str, prefix: Tensor, call: Tensor) -> Tensor:
        if prefix.dtype == call.dtype and prefix.device == call.device:
            return prefix.contiguous()
        if prefix.requires_grad or torch.compiler.is_compiling():
            return prefix.to(call).contiguous()
        # A tensor made in inference mode must not meet a pass with gradients later.
        tag = (name, call.dtype, call.device, torch.is_inference_mode_enabled())
        if tag not in self._cast:
            made = prefix.to(call).contiguous()
            if call.dtype == torch.float16 and not bool(made.isfinite().all()):
                raise MismatchError(
                    f"the prefix has numbers up to {float(prefix.abs().max()):.3g}, and float16, which "
                    "the model computes in, ends at 65504; use bfloat16 or float32"
                )
            self._cast[tag] = made
        return self._cast[tag]


@dataclass(frozen=True)
class Part:
    """What the rows of a pass attend to under one softmax.

    Attributes:
        softmax: ``joint``: the text's, which all that a row has under it shares with the text;
            ``own``: one of its own, whose output is added.
        sites: Tensors by module name.
    """

    softmax: Softmax
    sites: Mapping[str, SiteTensors]


@dataclass(frozen=True)
class Dial:
    """A strength of each row, of some of its virtual tokens (see `strength`).

    Attributes:
        value_R: The strengths, float32: one per row of prefixes, or where these are chosen, per row of
            the batch; 1 for a row that has none.
        columns_R: First and end of the virtual tokens, among those of the row's prefix.
        copied_R: Whether these are the first of the call's own keys, a copy of the prefix that the row
            has in its cache, and not in front of them.
    """

    value_R: Tensor
    columns_R: tuple[tuple[int, int], ...]
    copied_R: tuple[bool, ...]

    def chosen(self, row_of_B: Sequence[int]) -> Dial:
        """The dial of each row of a batch, by its row of prefixes."""
        return Dial(
            self.value_R[list(row_of_B)],
            tuple(self.columns_R[row] for row in row_of_B),
            tuple(self.copied_R[row] for row in row_of_B),
        )


@dataclass(frozen=True)
class Bound:
    """What one forward pass attends to: one prefix for all rows, or one (or none) per row.

    Attributes:
        parts: What stands in front of the text; at most one part shares the text's softmax.
        rows: Number of rows R, or None where one prefix serves every row.
        offset_R: Positions that text is moved up by, one per row (or one for all).
        identity: Digest of the prefixes, or a name for one still in training. Caches carry it.
        row_of_B: Which of the R rows of prefixes serves each row of the batch; None: as many rows of
            the batch as of prefixes, or a multiple, in order.
        dials: Strengths of the rows' virtual tokens; what none is of is wholly there.
    """

    parts: tuple[Part, ...]
    rows: int | None
    offset_R: tuple[int, ...]
    identity: str
    row_of_B: tuple[int, ...] | None = None
    dials: tuple[Dial, ...] = ()

    def chosen(self, row_of_B: Sequence[int], identity: str) -> Bound:
        """The same for a batch each of whose rows says which of the R prefixes serves it."""
        return replace(
            self,
            row_of_B=tuple(row_of_B),
            identity=identity,
            dials=tuple(dial.chosen(row_of_B) for dial in self.dials),
        )

    def joint(self, name: str) -> SiteTensors | None:
        """What shares the text's softmax at the named module."""
        for part in self.parts:
            if part.softmax == "joint":
                return part.sites.get(name)
        return None

    def own(self, name: str) -> list[SiteTensors]:
        """What has softmaxes of its own at the named module."""
        apart = [part.sites for part in self.parts if part.softmax == "own"]
        return [sites[name] for sites in apart if name in sites]

    @property
    def tensors(self) -> list[SiteTensors]:
        """All that its parts hold."""
        return [site for part in self.parts for site in part.sites.values()]

    @property
    def is_windowed(self) -> bool:
        """Whether windows drop one of its prefixes as they would drop text."""
        return any(any(site.windowed_R) for site in self.tensors)

    @property
    def batch(self) -> int | None:
        """Rows that the batch must have, or None for any number."""
        return self.rows if self.row_of_B is None else len(self.row_of_B)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Positions that text is moved up by, as `offset_R`, but one per row of the batch if chosen."""
        if self.row_of_B is None:
            return self.offset_R
        return tuple(self.offset_R[row] for row in self.row_of_B)

    @property
    def names(self) -> set[str]:
        """Modules that the prefixes join."""
        return {name for part in self.parts for name in part.sites}


def live_identity() -> str:
    """A name for the present value of a prefix in training, which no other has."""
    return f"live-{next(_live)}"


def bind(
    prefix: Prefix,
    sites: Sequence[Site],
    *,
    live: bool = False,
    identity: str | None = None,
    kept: Sequence[bool] | None = None,
) -> Bound:
    """One prefix for every row of the batch.

    Args:
        prefix: The prefix; each of its sites is one of the backbone's, by label.
        sites: The backbone's sites.
        live: Whether the prefix is in training: its tensors carry gradients, and its identity is
            made up, because hashing it at every step would cost more than the step.
        identity: Name of the prefix's present value where the caller keeps count; else see `live`.
        kept: Which of the P virtual tokens are seen; all by default.

    Raises:
        MismatchError: The backbone has no site of one of the prefix's labels.
    """
    if identity is None:
        identity = live_identity() if live else prefix.digest
    present, strengths = effective(prefix)
    if present is None:
        return Bound((), None, (0,), identity)
    offset = _offset(prefix)
    prefix = present
    windowed = _windowed(prefix)
    tensors = {
        site.name: SiteTensors(
            key[None],
            value[None],
            (prefix.length,),
            site.window if windowed else None,
            (windowed,),
            None if kept is None else (tuple(kept),),
        )
        for site, key, value in zip(_placed(prefix, sites), prefix.keys, prefix.values, strict=True)
    }
    return Bound(
        parts=(Part(prefix.meta.softmax, tensors),),
        rows=None,
        offset_R=(offset,),
        identity=identity,
        dials=dials([strengths]),
    )


def bind_rows(
    prefixes: Sequence[Prefix | None], sites: Sequence[Site], *, identity: str | None = None
) -> Bound:
    """A prefix of its own, or none, for each row; they may be on different sites.

    Args:
        prefixes: One for each row.
        sites: The backbone's sites.
        identity: Name of what is bound where the caller knows one; else made of digests.

    Raises:
        RowsError: No row has a prefix.
        MismatchError: The backbone has no site of one of the prefixes' labels.
    """
    if all(prefix is None for prefix in prefixes):
        raise RowsError("expected a prefix for at least one row; every row has None")
    if identity is None:
        digests = ",".join("" if p is None else p.digest for p in prefixes)
        identity = hashlib.sha256(digests.encode()).hexdigest()
    found = [(None, ()) if p is None else effective(p) for p in prefixes]
    present = [one for one, _ in found]
    parts = (Part(softmax, _rows_at(present, sites, softmax)) for softmax in SOFTMAX)
    whole = zip(prefixes, present, strict=True)
    return Bound(
        parts=tuple(part for part in parts if part.sites),
        rows=len(prefixes),
        offset_R=tuple(0 if p is None or one is None else _offset(p) for p, one in whole),
        identity=identity,
        dials=dials([strengths for _, strengths in found]),
    )


def bound_to(prefix: Prefix | Sequence[Prefix | None], sites: Sequence[Site]) -> Bound:
    """One prefix for all rows, or one (or None) per row."""
    return bind(prefix, sites) if isinstance(prefix, Prefix) else bind_rows(prefix, sites)


Columns = tuple[int, int, float]
"""First and end of some virtual tokens, and their strength."""

_WHOLE: Columns = (0, 0, 1.0)
"""Of a row that has no strength of its own."""


def effective(prefix: Prefix) -> tuple[Prefix | None, tuple[Columns, ...]]:
    """A prefix without its pieces of strength 0, if any is left; and the strengths that are not 1.

    Raises:
        UnsupportedModel: Its pieces do not stand in front of one text together, or too many of them
            have strengths of their own.
    """
    if prefix.meta.combination != "attention":
        raise UnsupportedModel(_APART[prefix.meta.combination])
    pieces = [piece for piece in prefix.meta.pieces if piece.strength]
    if not prefix.meta.pieces:
        return prefix, ()
    strengths, end = [], 0
    for piece in pieces:
        start, end = end, end + piece.length
        if piece.strength != 1.0:
            strengths.append((start, end, piece.strength))
    if len(strengths) > MAX_STRENGTHS:
        raise UnsupportedModel(
            f"the prefix has {len(strengths)} pieces at strengths other than 0 and 1; attention is "
            f"computed for at most {MAX_STRENGTHS}, because each doubles its work. Give more of them "
            "strength 1"
        )
    return _without_silent(prefix), tuple(strengths)


def _without_silent(prefix: Prefix) -> Prefix | None:
    """A prefix without the virtual tokens of its pieces of strength 0, or None if that is all."""
    pieces = prefix.meta.pieces
    if all(piece.strength for piece in pieces):
        return prefix
    heard = [bool(piece.strength) for piece in pieces for _ in range(piece.length)]
    if not any(heard):
        return None
    kept_P = torch.tensor(heard)
    return replace(
        prefix,
        keys=tuple(key[:, kept_P] for key in prefix.keys),
        values=tuple(value[:, kept_P] for value in prefix.values),
        meta=replace(prefix.meta, pieces=tuple(piece for piece in pieces if piece.strength)),
    )


_APART = {
    "logits": (
        "the prefix is a mixture in logits: each of its pieces is a prefix for a row of its own, so it "
        "cannot be attached. Generate, evaluate or serve with it, or attach one of prefix.split()"
    ),
    "control": (
        "the prefix has pieces for values of attributes, of which a request has some: choose them "
        "first, with prefix.select(...)"
    ),
}
"""Why a combination of pieces cannot be in front of one text."""


def dials(
    strengths_R: Sequence[Sequence[Columns]], copied_R: Sequence[bool] | None = None
) -> tuple[Dial, ...]:
    """The strengths of rows, as many as the row with most has.

    Args:
        strengths_R: Per row the strengths that are not 1, and of which virtual tokens.
        copied_R: Whether these are in the row's own keys; by default of none.
    """
    copied = tuple(copied_R or [False] * len(strengths_R))
    found = []
    for row in itertools.zip_longest(*strengths_R, fillvalue=_WHOLE):
        value_R = torch.tensor([value for _, _, value in row], dtype=torch.float32)
        found.append(Dial(value_R, tuple((first, end) for first, end, _ in row), copied))
    return tuple(found)


def _rows_at(
    prefixes: Sequence[Prefix | None], sites: Sequence[Site], softmax: Softmax
) -> dict[str, SiteTensors]:
    """The rows' tensors by module name, of the prefixes with this softmax, where there are any."""
    rows: dict[str, list[tuple[Tensor, Tensor] | None]] = {}
    for row, prefix in enumerate(prefixes):
        if prefix is None or prefix.meta.softmax != softmax:
            continue
        pairs = zip(prefix.keys, prefix.values, strict=True)
        for site, pair in zip(_placed(prefix, sites), pairs, strict=True):
            rows.setdefault(site.name, [None] * len(prefixes))[row] = pair
    windowed = tuple(p is not None and _windowed(p) for p in prefixes)
    windows = {site.name: site.window if any(windowed) else None for site in sites}
    return {name: _site_rows(pairs, windows[name], windowed) for name, pairs in rows.items()}


def _site_rows(
    pairs: Sequence[tuple[Tensor, Tensor] | None], window: int | None, windowed: tuple[bool, ...]
) -> SiteTensors:
    keys = [None if pair is None else pair[0] for pair in pairs]
    values = [None if pair is None else pair[1] for pair in pairs]
    lengths = tuple(0 if key is None else int(key.shape[1]) for key in keys)
    return SiteTensors(_stack(keys), _stack(values), lengths, window, windowed)


def _placed(prefix: Prefix, sites: Sequence[Site]) -> list[Site]:
    """The backbone's site for each of the prefix's, found by label."""
    by_label = {site.label: site for site in sites}
    unknown = [site.label for site in prefix.sites if site.label not in by_label]
    if unknown:
        raise MismatchError(
            f"the prefix has a site {unknown[0]}, which the backbone with its {len(sites)} sites has "
            f"not; it was made on {prefix.meta.backbone!r} ({prefix.meta.family})"
        )
    return [by_label[site.label] for site in prefix.sites]


def _offset(prefix: Prefix) -> int:
    return prefix.length if prefix.meta.positions == "offset" else 0


def _windowed(prefix: Prefix) -> bool:
    return prefix.meta.windows == "windowed"


def _stack(rows: Sequence[Tensor | None]) -> Tensor:
    """Rows (H, P_r, D) of different length as one (R, H, P, D), zeros where a row is shorter."""
    present = [row for row in rows if row is not None]
    heads, _, dim = present[0].shape
    width = max(row.shape[1] for row in present)
    out = present[0].new_zeros(len(rows), heads, width, dim, dtype=torch.float32)
    for index, row in enumerate(rows):
        if row is not None:
            out[index, :, : row.shape[1]] = row
    return out
