"""`foreword inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from foreword.cli.console import note, say, show, table, visible, working
from foreword.cli.options import BackboneOptions, StoreOptions
from foreword.errors import DataError

if TYPE_CHECKING:
    from foreword.evaluate.attention import PrefixAttention
    from foreword.prefix import Prefix

TOP = 5
"""Sites that are named as giving the prefix most attention."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """How to show it."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print everything as JSON."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PictureArguments:
    """A picture of the attention that an input gives to the prefix, and where it is measured."""

    attention: str | None = None
    """An input, as for generate: draw how much attention each layer and head gives the prefix, and say
    which sites give most."""

    output: Path | None = None
    """The picture's PNG file; default: NAME-attention.png in the working directory."""

    backbone: str | None = None
    """Embedded name, model folder or Hub name; default: the one that the prefix was made on. It is
    loaded with eager attention."""

    revision: str | None = None
    """Revision on the Hub."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the backbone computes in; auto: what this machine does fast."""

    quantize: Literal["int8"] | None = None
    """Weights of linear layers rounded to 8 bits after loading, by torchao (the extra "quantize")."""

    device: str | None = None
    """Where it runs, such as cpu or cuda; default: a GPU if there is one."""

    strict: bool = False
    """Refuse a backbone with other weights than the prefix was made on, instead of warning."""

    def check(self) -> None:
        """Check that nothing is asked of a picture that is not drawn.

        Raises:
            DataError: An option needs --attention.
        """
        if self.attention is None and self != PictureArguments():
            raise DataError(
                "--output, --backbone, --revision, --dtype, --quantize, --device and --strict are for "
                'the picture; give --attention "input" too'
            )

    def options(self) -> BackboneOptions:
        """How to load the backbone: its weights of attention are seen in eager attention only."""
        return BackboneOptions(
            backbone=self.backbone,
            revision=self.revision,
            dtype=self.dtype,
            quantize=self.quantize,
            device=self.device,
            attention="eager",
        )


def inspect(
    name: str,
    /,
    *,
    arguments: InspectArguments = InspectArguments(),
    picture: PictureArguments = PictureArguments(),
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Show a prefix: geometry, parameters, policies, recipe, digests, norms per layer.

    With --attention, draw how much attention an input gives to it instead.

    Parameters
    ----------
    name
        Name of the prefix in the store.
    """
    picture.check()
    place = store.open()
    _ = place.outline(name)  # a wrong name is refused before anything large is imported
    from foreword.describe import norms

    prefix = place.load(name)
    if picture.attention is not None:
        _draw(name, prefix, picture, as_json=arguments.as_json)
        return
    if arguments.as_json:
        described = {**prefix.describe(), "digest": prefix.digest, "norms": norms(prefix)}
        say(json.dumps(described, ensure_ascii=False, indent=1))
        return
    for label, value in _facts(prefix):
        say(f"{label:<14}{visible(value)}")
    say(f"{'file':<14}{place.path(name)} ({place.path(name).stat().st_size:,} bytes)")
    made = table("RMS per site", "site", "key", "value", "window")
    for site, entry in zip(prefix.sites, norms(prefix), strict=True):
        window = "" if site.window is None else str(site.window)
        made.add_row(site.label, f"{entry['key']:.3f}", f"{entry['value']:.3f}", window)
    show(made)


def _draw(name: str, prefix: Prefix, picture: PictureArguments, *, as_json: bool) -> None:
    from foreword.evaluate.attention import attention_to
    from foreword.evaluate.picture import attention_map

    assert picture.attention is not None
    with working("loading the backbone"):
        loaded = picture.options().load(prefix)
    found = attention_to(loaded, prefix, picture.attention, strict=picture.strict)
    path = picture.output or Path(f"{name}-attention.png")
    attention_map(found, path, title=f"{name}: attention given to the prefix")
    if as_json:
        say(json.dumps(found.as_json(), indent=1))
    else:
        say(_summary(found))
    note(f"picture in {path}")


def _summary(found: PrefixAttention) -> str:
    """The overall mean and the sites that give most."""
    top = ", ".join(f"{site} {mean:.3f}" for site, mean in found.top(TOP))
    return (
        f"attention given to the prefix, mean over {found.inputs} tokens, sites and heads: "
        f"{found.mean:.3f}\nmost at: {top}"
    )


def _facts(prefix: Prefix) -> list[tuple[str, str]]:
    from foreword.describe import BOS, POSITIONS, SOFTMAX, WINDOWS, formula, head_words, piece_words

    meta = prefix.meta
    return [
        ("backbone", f"{meta.backbone} ({meta.family}), weights {meta.fingerprint[:16]}"),
        ("tokenizer", meta.tokenizer[:16] or "unknown"),
        ("digest", prefix.digest),
        ("length", f"{prefix.length} virtual tokens, {str(prefix.dtype).removeprefix('torch.')}"),
        ("parameters", formula(prefix)),
        ("head", head_words(prefix)),
        *([("pieces", piece_words(meta))] if meta.pieces else []),
        ("positions", POSITIONS[meta.positions]),
        ("windows", WINDOWS[meta.windows]),
        ("softmax", SOFTMAX[meta.softmax]),
        ("BOS", BOS[meta.bos]),
        ("parents", ", ".join(meta.parents) or "none"),
        ("recipe", _settings(meta.recipe)),
        ("training", _settings(meta.training)),
    ]


def _settings(fields: Mapping[str, Any]) -> str:
    shown = [f"{name}={value!r}" for name, value in fields.items() if value is not None]
    return ", ".join(shown) or "none"
