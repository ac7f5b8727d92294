"""Prefixes behind one another, as texts are: the first stands before the second.

Shapes: P prefix length.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from foreword.arithmetic.side_by_side import check_one_softmax, check_side_by_side, joined
from foreword.backbone.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.errors import PrefixError
from foreword.prefix import Prefix


def cascade(backbone: Backbone, *prefixes: Prefix, names: Sequence[str] | None = None) -> Prefix:
    """Prefixes behind one another, with their positions shifted so that they do not overlap.

    Under the position policy ``free`` the last prefix stays at -P to -1, and the keys of each earlier
    one are turned back by the lengths of those behind it. Under ``offset`` the first stays at 0 to P-1,
    and the keys of each later one are turned on by the lengths of those before it. The rotations are
    those of `Backbone.moved`, measured and proven on this backbone. Where positions are added to
    embeddings (learned tables, sinusoids) or weigh by distance alone (ALiBi), keys stay as they are.

    What each prefix learned does not change: none has seen the others.

    Args:
        backbone: The backbone that they were made on.
        *prefixes: At least one prefix, without a head, under one position policy.
        names: A name for each prefix, which then is one piece; by default those that pieces have.

    Returns:
        A prefix with one piece for each, at its strength; of one prefix and no names, that one.

    Raises:
        PrefixError: They do not go together, or are longer than the positions that the model has.
        MismatchError: One does not fit the backbone.
        UnsupportedModel: No rotation shifts positions: those of this model depend on the text's length.

    Examples:
        >>> whole = foreword.cascade(backbone, role, task, style)  # doctest: +SKIP
    """
    check_backbone(backbone)
    check_side_by_side("cascade", prefixes)
    check_one_softmax("cascade", prefixes)
    for one in prefixes:
        backbone.check(one, warn=False)
    if len(prefixes) == 1 and names is None:
        return prefixes[0]
    _check_room(backbone, sum(one.length for one in prefixes))
    shifts = shifts_of(backbone, prefixes)
    moved = [backbone.turned(one, by) for one, by in zip(prefixes, shifts, strict=True)]
    return joined("cascade", moved, [one.digest for one in prefixes], names)


def shifts_of(backbone: Backbone, prefixes: Sequence[Prefix]) -> list[int]:
    """By how many positions `cascade` moves each prefix.

    Args:
        backbone: The backbone that they were made on.
        prefixes: At least one, under one position policy.
    """
    lengths = [one.length for one in prefixes]
    if backbone.positions == "offset":
        return [0] * len(prefixes)
    if prefixes[0].meta.positions == "offset":
        return [end - own for end, own in zip(accumulate(lengths), lengths, strict=True)]
    return [end - sum(lengths) for end in accumulate(lengths)]


def _check_room(backbone: Backbone, length: int) -> None:
    """Check that prefixes leave room for text where the model counts its positions."""
    counted = backbone.kind != "decoder" or backbone.positions == "offset"
    if counted and length > backbone.context:
        raise PrefixError(
            f"cascade: {length} virtual tokens in all leave {backbone.context - length} of the "
            f"backbone's {backbone.context} tokens for text; use fewer or shorter prefixes"
        )
