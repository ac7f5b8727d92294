"""What a PEFT checkpoint cannot express, each with its reason."""

from __future__ import annotations

from foreword.attention.position_table import table_of
from foreword.backbone import Backbone
from foreword.errors import PrefixError
from foreword.peft.cached import sites_of
from foreword.prefix import Prefix, PrefixMeta


def check_expressible(prefix: Prefix, backbone: Backbone) -> None:
    """Check whether a PEFT checkpoint can mean what the prefix means on the backbone.

    Raises:
        PrefixError: It cannot.
    """
    if prefix.head is not None:
        raise PrefixError(
            "this prefix carries a head, which Foreword exports to no PEFT checkpoint; its keys and "
            "values alone go as prefix.with_head(None)"
        )
    check_softmax(prefix.meta)
    _check_strengths(prefix)
    _check_every_layer(prefix, backbone)
    _check_one_geometry(prefix)
    _check_positions(prefix, backbone)
    _check_windows(prefix)


def check_softmax(meta: PrefixMeta) -> None:
    """Refuse prefixes that have a softmax of their own (meta field `softmax`)."""
    if meta.softmax != "joint":
        raise PrefixError(
            f"this prefix has a softmax of its own ({meta.softmax!r}); in PEFT prefix and text share "
            "one, so it cannot be exported"
        )


def _check_strengths(prefix: Prefix) -> None:
    whole = all(piece.strength == 1 for piece in prefix.meta.pieces)
    if not whole or prefix.meta.combination != "attention":
        raise PrefixError(
            "this prefix has pieces at strengths of their own, which PEFT has no word for, so it cannot "
            "be exported. Export each at full strength: prefix.split()"
        )


def _check_every_layer(prefix: Prefix, backbone: Backbone) -> None:
    places = sites_of(backbone)
    labels = {site.label for site in places}
    beyond = [site.label for site in prefix.sites if site.label not in labels]
    if beyond:
        raise PrefixError(
            f"this prefix joins {beyond[0]}; in PEFT only a decoder's self-attention has a prefix, so "
            "it cannot be exported. Train it with sites='decoder' to export it"
        )
    if len(prefix.sites) < len(places):
        raise PrefixError(
            f"this prefix joins {len(prefix.sites)} of the {len(places)} layers; PEFT gives "
            "every layer a prefix, so it cannot be exported"
        )


def _check_one_geometry(prefix: Prefix) -> None:
    first = prefix.sites[0]
    for site in prefix.sites:
        if site.key_dim != site.value_dim:
            raise PrefixError(
                f"{site.label} has keys of dimension {site.key_dim} and values of dimension "
                f"{site.value_dim} (multi-head latent attention); PEFT has one dimension for both, "
                "so this prefix cannot be exported"
            )
        if (site.kv_heads, site.key_dim) != (first.kv_heads, first.key_dim):
            raise PrefixError(
                f"{site.label} has {site.kv_heads} key/value heads of dimension {site.key_dim}, "
                f"{first.label} has {first.kv_heads} of {first.key_dim}; PEFT has one geometry for "
                "all layers, so this prefix cannot be exported"
            )


def _check_positions(prefix: Prefix, backbone: Backbone) -> None:
    table = table_of(backbone.model) is not None
    if prefix.meta.positions == "free" and (backbone.positions == "offset" or table):
        raise PrefixError(
            f"this prefix takes no positions, so its text starts at position 0; in PEFT text starts "
            f"at {prefix.length}, and {backbone.family!r} adds positions to its embeddings, which no "
            "change of the prefix makes up for. Train it with positions='offset' to export it"
        )


def _check_windows(prefix: Prefix) -> None:
    windows = sorted({site.window for site in prefix.sites if site.window is not None})
    if windows and prefix.meta.windows == "visible":
        raise PrefixError(
            f"windows of this backbone (of {windows} tokens) never drop this prefix; in PEFT they "
            "drop it as they drop text. Train it with windows='windowed' to export it"
        )
