"""A prefix in words: its policies, its parameters spelled out, the size of its tensors."""

from __future__ import annotations

from collections import Counter

from foreword.prefix import Prefix, PrefixMeta, rms

POSITIONS = {
    "free": "free: the prefix takes no positions, text starts at 0",
    "offset": "offset: the prefix lies at 0..P-1, text starts at P",
}
WINDOWS = {
    "visible": "visible: sliding windows never drop the prefix",
    "windowed": "windowed: sliding windows drop the prefix as they drop text",
}
SOFTMAX = {
    "joint": "joint: one softmax over prefix and text",
    "own": "own: the prefix has a softmax of its own, and its result is added",
}
COMBINATION = {
    "attention": "all in front of the text, each at its strength",
    "logits": "a mixture of what each of them predicts, by their weights",
    "control": "the first for all requests, of the others those that a request selects",
}
SHOWN = 12
"""Labels of a head, or pieces, that are named."""
BOS = {
    "prefix": "prefix: it carries the BOS, inputs add none",
    "input": "input: inputs add their own BOS",
    "none": "none: this tokenizer adds none",
}


def formula(prefix: Prefix) -> str:
    """The number of parameters, spelled out, and its share of the backbone."""
    kinds = Counter((s.kv_heads, s.key_dim, s.value_dim) for s in prefix.sites)
    terms = [
        f"{prefix.length} x {count} sites x {heads} key/value heads x ({key} + {value})"
        for (heads, key, value), count in kinds.items()
    ]
    if prefix.head is not None:
        terms.append(f"a head of {len(prefix.head.labels)} x ({prefix.head.width} + 1)")
    total = f"{prefix.parameters:,} = {' + '.join(terms)}"
    whole = prefix.meta.training.get("backbone_parameters")
    if not isinstance(whole, int) or whole < 1:
        return total
    return f"{total}; {100 * prefix.parameters / whole:.3f}% of the backbone's {whole:,}"


def head_words(prefix: Prefix) -> str:
    """What the prefix's head labels, and how."""
    head = prefix.head
    if head is None:
        return "none: it writes text"
    how = "" if head.pooling is None else f", from the {head.pooling} of a row's hidden states"
    shown = ", ".join(head.labels[:SHOWN]) + (", ..." if len(head.labels) > SHOWN else "")
    if head.measures:
        read = "pairs of texts" if head.pair else "texts"
        return f"{head.task}: a number for {read}, around {head.mean:g} ± {head.deviation:g}{how}"
    what = f"{head.task} pairs of texts" if head.pair else head.task
    return f"{what}: {len(head.labels)} labels ({shown}){how}"


def piece_words(meta: PrefixMeta) -> str:
    """The prefix's pieces and what they are together."""
    if not meta.pieces:
        return "none: a plain prefix at full strength"
    named = [
        f"{piece.name or 'no name'} ({piece.length} x {piece.strength:g})"
        for piece in meta.pieces[:SHOWN]
    ]
    rest = ", ..." if len(meta.pieces) > SHOWN else ""
    return f"{', '.join(named)}{rest}: {COMBINATION[meta.combination]}"


def norms(prefix: Prefix) -> list[dict[str, float]]:
    """Root mean square of each site's keys and values."""
    pairs = zip(prefix.keys, prefix.values, strict=True)
    return [{"key": rms(key), "value": rms(value)} for key, value in pairs]
