"""What a vLLM engine must be for prefixes to be exact in it, and whether a prefix fits one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from foreword.described import Described
from foreword.errors import MismatchError, UnsupportedModel

_OWN = "Serve it with Foreword's own engine (foreword serve, foreword.generate)"

SERVED = frozenset({"full", "window", "recurrent"})
"""Kinds of caches under which a prefix is exact: of full attention, of sliding windows, and of recurrent
layers that have one state for each request, which a prefix leaves as it is before any text."""

UNSERVED: Mapping[str, str] = {
    "unmanaged": "sliding windows whose sizes vLLM does not tell layer by layer without its hybrid "
    "cache manager. Leave out --disable-hybrid-kv-cache-manager",
    "shared": "recurrent layers whose states vLLM shares between requests, though no text has been read "
    "where a prefix stands. Start vLLM with --no-enable-prefix-caching (enable_prefix_caching=False)",
    "latent": "latent attention (MLA), of which vLLM keeps compressed latents, while a prefix has keys "
    f"and values. {_OWN}",
    "chunked": "chunked attention, whose borders between chunks the placeholders would move. "
    + _OWN,
    "quantised": "a quantised key-value cache, which rounds keys and values. Use --kv-cache-dtype auto",
    "pooled": "a key-value cache whose entries do not stand for one token each. " + _OWN,
    "uneven": "attention layers whose keys and values differ in shape from layer to layer. " + _OWN,
}
"""By its kind what a model has whose cache cannot hold a prefix exactly, and what to do."""


@dataclass(frozen=True)
class Geometry:
    """The attention layers of a model, alike but for their windows.

    Attributes:
        layers: Their number.
        kv_heads: Key/value heads of each, over all workers.
        key_dim: Dimension of a key.
        value_dim: Dimension of a value.
        model: The model's name, for messages.
        windows: Per layer how many tokens a query sees, itself included, or None for no limit; empty
            where no layer has a limit.
    """

    layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    model: str
    windows: tuple[int | None, ...] = ()

    def size(self, itemsize: int) -> int:
        """Bytes of one token's keys and values, over all workers, with numbers of so many bytes."""
        return self.layers * self.kv_heads * (self.key_dim + self.value_dim) * itemsize

    def check(self, prefix: Described) -> None:
        """Check that a prefix has keys and values for each layer, of its geometry and its window.

        Raises:
            MismatchError: It has not; the message names what differs.
        """
        made_on = f"it was made on {prefix.meta.backbone!r} ({prefix.meta.family})"
        numbers = [site.layer for site in prefix.sites]
        if numbers != list(range(self.layers)):
            raise MismatchError(
                f"the prefix has {len(numbers)} sites, decoder.{numbers[0]} to decoder.{numbers[-1]}; "
                f"{self.model!r} has {self.layers} attention layers, and vLLM needs keys and values for "
                f"each of them; {made_on}"
            )
        expected = (self.kv_heads, self.key_dim, self.value_dim)
        for site in prefix.sites:
            found = (site.kv_heads, site.key_dim, site.value_dim)
            if found != expected:
                raise MismatchError(
                    f"site {site.label} of the prefix has (key/value heads, key dimension, value "
                    f"dimension) = {found}; {self.model!r} has {expected}; {made_on}"
                )
            window = self.windows[site.layer] if self.windows else None
            if site.window != window:
                raise MismatchError(
                    f"site {site.label} of the prefix has {_window(site.window)}; {self.model!r} has "
                    f"{_window(window)} there; {made_on}"
                )


def _window(window: int | None) -> str:
    return "no sliding window" if window is None else f"a sliding window of {window}"


@dataclass(frozen=True)
class Reach:
    """How long prefixes of position policy ``free`` may be on a running model, which turns their keys.

    Attributes:
        longest: Most virtual tokens; 0 where the model takes none of that policy.
        why: Why it takes none.
    """

    longest: int
    why: str = ""

    def check(self, prefix: Described) -> None:
        """Check that the keys of a prefix can be turned, or need not be.

        Raises:
            MismatchError: They cannot.
        """
        if prefix.meta.positions != "free" or prefix.length <= self.longest:
            return
        told = f"the prefix has {prefix.length} virtual tokens and position policy 'free'"
        if self.longest:
            why = f"vLLM serves at most {self.longest} of that policy on this model"
        else:
            why = f"vLLM serves none of that policy on this model: {self.why}"
        raise MismatchError(
            f"{told}; {why}. Save it under policy 'offset' (Backbone.moved), or train one under it"
        )


@dataclass(frozen=True)
class Found:
    """What a worker found in the running model.

    Attributes:
        geometry: The attention layers.
        reach: How long prefixes of position policy ``free`` may be.
    """

    geometry: Geometry
    reach: Reach

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Found:
        """One from its fields, as ``dataclasses.asdict`` gives them and a process sends them."""
        geometry = told["geometry"]
        windows = tuple(geometry["windows"])
        return cls(Geometry(**{**geometry, "windows": windows}), Reach(**told["reach"]))


def least(found: Iterable[Found]) -> Found:
    """What holds for all workers of an engine."""
    return min(found, key=lambda one: one.reach.longest)


@dataclass(frozen=True)
class Setting:
    """What of an engine's configuration decides whether prefixes can be served.

    Attributes:
        version: vLLM's.
        role: Of the connector in the transfer of keys and values.
        on_failure: What is done with a request whose prefix could not be loaded.
        caches: Kinds of key-value caches that the model has: those of `SERVED` and `UNSERVED`, or vLLM's
            word for another.
        pipeline: Pipeline parallel ranks.
        context: Ranks that share the tokens of one sequence.
        drafts: Whether another model drafts tokens.
        experts: Whether answers shall tell the experts that each token was sent to.
    """

    version: str
    role: str | None
    on_failure: str
    caches: tuple[str, ...]
    pipeline: int
    context: int
    drafts: bool
    experts: bool = False

    def check(self, supported: tuple[str, ...]) -> None:
        """Check that prefixes are served exactly under it.

        Args:
            supported: Beginnings of the versions that the connector was tested with.

        Raises:
            UnsupportedModel: They are not; the message names what is in the way.
        """
        release = tuple(self.version.split(".")[:2])
        if release not in [tuple(known.split(".")) for known in supported]:
            raise UnsupportedModel(
                f"Foreword's connector was tested with vLLM {', '.join(supported)}; found "
                f"{self.version}. Install one of those, or a newer Foreword"
            )
        wanted = [
            (self.role == "kv_consumer", f"kv_role='kv_consumer' (found {self.role!r})"),
            (
                self.on_failure == "fail",
                "kv_load_failure_policy='fail': without it placeholders would be run as text",
            ),
            *((kind in SERVED, _needed(kind)) for kind in self.caches),
            ({"full", "window"} & {*self.caches}, "layers of attention; this model has none"),
            (self.pipeline == 1, "no pipeline parallelism"),
            (self.context == 1, "no context parallelism"),
            (not self.drafts, "no speculative decoding"),
            (
                not self.experts,
                "no --enable-return-routed-experts: a prefix's tokens were sent to none",
            ),
        ]
        for met, what in wanted:
            if not met:
                raise UnsupportedModel(f"prefixes on vLLM need {what}")


def _needed(kind: str) -> str:
    """What is needed instead of a cache of a kind."""
    found = UNSERVED.get(kind, f"another kind of cache, vLLM's {kind}. {_OWN}")
    return f"caches that hold a prefix exactly; this model has {found}"
