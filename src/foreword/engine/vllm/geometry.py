"""What a vLLM engine must be for prefixes to be exact in it, and whether a prefix fits one."""

from __future__ import annotations

from dataclasses import dataclass

from foreword.errors import MismatchError, UnsupportedModel
from foreword.outline import Outline


@dataclass(frozen=True)
class Geometry:
    """The attention layers of a model, all alike.

    Attributes:
        layers: Their number.
        kv_heads: Key/value heads of each, over all workers.
        key_dim: Dimension of a key.
        value_dim: Dimension of a value.
        model: The model's name, for messages.
    """

    layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    model: str

    def check(self, outline: Outline) -> None:
        """Check that a prefix has keys and values for each layer, of its geometry.

        Raises:
            MismatchError: It has not; the message names what differs.
        """
        made_on = f"it was made on {outline.meta.backbone!r} ({outline.meta.family})"
        numbers = [site.layer for site in outline.sites]
        if numbers != list(range(self.layers)):
            raise MismatchError(
                f"the prefix has {len(numbers)} sites, decoder.{numbers[0]} to decoder.{numbers[-1]}; "
                f"{self.model!r} has {self.layers} attention layers, and vLLM needs keys and values for "
                f"each of them; {made_on}"
            )
        expected = (self.kv_heads, self.key_dim, self.value_dim)
        for site in outline.sites:
            found = (site.kv_heads, site.key_dim, site.value_dim)
            if found != expected:
                raise MismatchError(
                    f"site {site.label} of the prefix has (key/value heads, key dimension, value "
                    f"dimension) = {found}; {self.model!r} has {expected}; {made_on}"
                )


@dataclass(frozen=True)
class Reach:
    """How long prefixes of position policy ``free`` may be on a running model, which turns their keys.

    Attributes:
        longest: Most virtual tokens; 0 where the model takes none of that policy.
        why: Why it takes none.
    """

    longest: int
    why: str = ""

    def check(self, outline: Outline) -> None:
        """Check that the keys of a prefix can be turned, or need not be.

        Raises:
            MismatchError: They cannot.
        """
        if outline.meta.positions != "free" or outline.length <= self.longest:
            return
        told = f"the prefix has {outline.length} virtual tokens and position policy 'free'"
        if self.longest:
            why = f"vLLM serves at most {self.longest} of that policy on this model"
        else:
            why = f"vLLM serves none of that policy on this model: {self.why}"
        raise MismatchError(
            f"{told}; {why}. Save it under policy 'offset' (Backbone.moved), or train one under it"
        )


@dataclass(frozen=True)
class Setting:
    """What of an engine's configuration decides whether prefixes can be served.

    Attributes:
        version: vLLM's.
        role: Of the connector in the transfer of keys and values.
        on_failure: What is done with a request whose prefix could not be loaded.
        groups: Kinds of key-value cache that the model has.
        plain: Whether the cache is one of full attention, which keeps numbers as they are.
        pipeline: Pipeline parallel ranks.
        context: Ranks that share the tokens of one sequence.
        drafts: Whether another model drafts tokens.
    """

    version: str
    role: str | None
    on_failure: str
    groups: int
    plain: bool
    pipeline: int
    context: int
    drafts: bool

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
            (
                self.groups == 1,
                f"one kind of key-value cache (the model has {self.groups}: sliding "
                "windows or recurrent layers)",
            ),
            (
                self.plain,
                "a plain cache of full attention (no window, no latent attention, no "
                "quantised cache)",
            ),
            (self.pipeline == 1, "no pipeline parallelism"),
            (self.context == 1, "no context parallelism"),
            (not self.drafts, "no speculative decoding"),
        ]
        for met, what in wanted:
            if not met:
                raise UnsupportedModel(f"prefixes on vLLM need {what}")
