"""`ServedModel`: what a server must know of a model whose weights vLLM has; none are loaded for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from foreword.backbone.kinds import KindName, kind_of
from foreword.described import Described
from foreword.engine.vllm.geometry import Found, Geometry, Reach
from foreword.engine.vllm.requests import check_served, check_tokenizer
from foreword.engine.vllm.windows import check_room
from foreword.errors import BackboneError, UnsupportedModel, first_line
from foreword.prefix import Bos
from foreword.weights.fingerprint import adds_bos, tokenizer_digest


@dataclass(frozen=True)
class ServedModel:
    """A model that vLLM runs, as servers see a backbone (`foreword.backbone.served.Served`).

    Attributes:
        name: What requests call it.
        tokenizer: Its tokenizer.
        context: Most tokens, prefix and text together: vLLM's ``max_model_len``.
        vocabulary: Rows of its embeddings.
        eos_ids: Tokens that end a sequence.
        geometry: Its attention layers.
        reach: How long prefixes of position policy ``free`` may be; None before vLLM has told.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    context: int
    vocabulary: int
    eos_ids: frozenset[int]
    geometry: Geometry
    reach: Reach | None = None

    @classmethod
    def read(
        cls, source: str, *, name: str = "", revision: str | None = None, context: int | None = None
    ) -> ServedModel:
        """What a model's folder says: its config and its tokenizer.

        Args:
            source: A local folder, or a name on the Hub.
            name: What requests call it; by default the source.
            revision: Revision on the Hub.
            context: vLLM's ``max_model_len``; by default what the config says.

        Raises:
            BackboneError: There is no such model, or no tokenizer with it.
            UnsupportedModel: It is no decoder.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            config = AutoConfig.from_pretrained(source, revision=revision)
        except Exception as error:  # what configs of all kinds make transformers raise
            raise BackboneError(
                f"cannot read the config and the tokenizer of {source!r}: {first_line(error)}. "
                "Expected a model's folder or a name on the Hub"
            ) from error
        if kind_of(config).name != "decoder":
            raise UnsupportedModel(
                f"vLLM serves prefixes of decoders; {source!r} ({config.model_type}) is none"
            )
        text = config.get_text_config(decoder=True)
        return cls(
            name or source,
            tokenizer,
            context or _context(text),
            int(text.vocab_size),
            _ends(source, revision, text, tokenizer),
            _geometry(text, name or source),
        )

    def met(self, found: Found) -> ServedModel:
        """The same, as the workers of an engine found it, whatever its config says."""
        geometry = replace(found.geometry, model=self.name)
        return replace(self, geometry=geometry, reach=found.reach)

    @property
    def kind(self) -> KindName:
        """A decoder: vLLM's connector takes no others."""
        return "decoder"

    @property
    def bos(self) -> Bos:
        """BOS policy of a prefix that does not carry the BOS itself."""
        return "input" if adds_bos(self.tokenizer) else "none"

    @cached_property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer's behaviour."""
        return tokenizer_digest(self.tokenizer)

    def check(self, prefix: Described, *, warn: bool = True) -> None:
        """Check whether vLLM can serve a prefix on this model.

        The weights that it was made on are not compared: vLLM has them. Whether the model's dtype holds
        its numbers is seen by the worker that loads it.

        Args:
            prefix: The prefix, or what its file says of it.
            warn: Has no effect.

        Raises:
            MismatchError: It cannot, or the tokenizer is another; the message names what differs.
        """
        check_served(prefix)
        self.geometry.check(prefix)
        check_room(prefix)
        if self.reach is not None:
            self.reach.check(prefix)
        check_tokenizer(prefix, self.tokenizer_digest, self.name)


def _context(config: PreTrainedConfig) -> int:
    """Most tokens of a text, as vLLM reads it of a config by default."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    return int(next((found for name in names if (found := getattr(config, name, 0))), 2048))


def _geometry(config: PreTrainedConfig, name: str) -> Geometry:
    """The attention layers that a config of plain attention describes."""
    heads = int(config.num_attention_heads)
    kv_heads = getattr(config, "num_key_value_heads", None)
    if getattr(config, "new_decoder_architecture", False):  # Falcon
        kv_heads = config.num_kv_heads
    elif getattr(config, "multi_query", False):
        kv_heads = 1
    kv_heads = kv_heads or heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    windows = windows_in(config)
    return Geometry(len(windows), int(kv_heads), int(dim), int(dim), name, windows)


def windows_in(config: PreTrainedConfig) -> tuple[int | None, ...]:
    """The window of each attention layer that a config describes; None where a query sees all."""
    window = getattr(config, "sliding_window", None)
    everywhere = "full_attention" if window is None else "sliding_attention"
    kinds = getattr(config, "layer_types", None) or [everywhere] * config.num_hidden_layers
    return tuple(
        window if kind == "sliding_attention" else None
        for kind in kinds
        if kind.endswith("attention") and kind != "linear_attention"
    )


def _ends(source: str, revision: str | None, config: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a sequence: those of a config of the model's, and the tokenizer's."""
    try:
        named = GenerationConfig.from_pretrained(source, revision=revision).eos_token_id
    except OSError:  # there is none, and transformers makes one of the config
        named = getattr(config, "eos_token_id", None)
    own = [named] if isinstance(named, int) else named or ()
    end = tokenizer.eos_token_id
    return frozenset([*own, *([] if end is None else [end])])
