"""`foreword inspect`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from foreword.cli.console import out, table
from foreword.cli.options import StoreOptions
from foreword.prefix import Prefix, rms

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
BOS = {
    "prefix": "prefix: it carries the BOS, inputs add none",
    "input": "input: inputs add their own BOS",
    "none": "none: this tokenizer adds none",
}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """How to show it."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print everything as JSON."""


def inspect(
    name: str,
    /,
    *,
    arguments: InspectArguments = InspectArguments(),
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Show a prefix: geometry, parameters, policies, recipe, digests, norms per layer.

    Parameters
    ----------
    name
        Name of the prefix in the store.
    """
    place = store.open()
    prefix = place.load(name)
    if arguments.as_json:
        described = {**prefix.describe(), "digest": prefix.digest, "norms": norms(prefix)}
        out.print(json.dumps(described, ensure_ascii=False, indent=1), markup=False)
        return
    for label, value in _facts(prefix):
        out.print(f"{label:<14}{value}", markup=False)
    out.print(
        f"{'file':<14}{place.path(name)} ({place.path(name).stat().st_size:,} bytes)", markup=False
    )
    made = table("RMS per site", "site", "key", "value", "window")
    for site, entry in zip(prefix.sites, norms(prefix), strict=True):
        window = "" if site.window is None else str(site.window)
        made.add_row(site.label, f"{entry['key']:.3f}", f"{entry['value']:.3f}", window)
    out.print(made)


def _facts(prefix: Prefix) -> list[tuple[str, str]]:
    meta = prefix.meta
    return [
        ("backbone", f"{meta.backbone} ({meta.family}), weights {meta.fingerprint[:16]}"),
        ("tokenizer", meta.tokenizer[:16] or "unknown"),
        ("digest", prefix.digest),
        ("length", f"{prefix.length} virtual tokens, {str(prefix.dtype).removeprefix('torch.')}"),
        ("parameters", formula(prefix)),
        ("positions", POSITIONS[meta.positions]),
        ("windows", WINDOWS[meta.windows]),
        ("softmax", SOFTMAX[meta.softmax]),
        ("BOS", BOS[meta.bos]),
        ("parents", ", ".join(meta.parents) or "none"),
        ("recipe", _settings(meta.recipe)),
        ("training", _settings(meta.training)),
    ]


def formula(prefix: Prefix) -> str:
    """The number of parameters, spelled out, and its share of the backbone."""
    kinds = Counter((s.kv_heads, s.key_dim, s.value_dim) for s in prefix.sites)
    terms = [
        f"{prefix.length} x {count} sites x {heads} key/value heads x ({key} + {value})"
        for (heads, key, value), count in kinds.items()
    ]
    total = f"{prefix.parameters:,} = {' + '.join(terms)}"
    whole = prefix.meta.training.get("backbone_parameters")
    if not isinstance(whole, int) or whole < 1:
        return total
    return f"{total}; {100 * prefix.parameters / whole:.3f}% of the backbone's {whole:,}"


def norms(prefix: Prefix) -> list[dict[str, float]]:
    """Root mean square of each site's keys and values."""
    pairs = zip(prefix.keys, prefix.values, strict=True)
    return [{"key": rms(key), "value": rms(value)} for key, value in pairs]


def _settings(fields: Mapping[str, Any]) -> str:
    shown = [f"{name}={value!r}" for name, value in fields.items() if value is not None]
    return ", ".join(shown) or "none"
