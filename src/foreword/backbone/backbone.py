"""`Backbone`: a loaded frozen model with its tokenizer, and the prefixes that it can carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foreword.arguments import check_count, check_text, expect
from foreword.arithmetic.record import composed
from foreword.attention.attachment import Attachment
from foreword.attention.bound import bound_to
from foreword.attention.signature import parameters_of
from foreword.backbone.context import context_of, looked_up
from foreword.backbone.fit import check_geometry, check_range, check_weights, refuse_mixture
from foreword.backbone.kinds import KindName, with_article
from foreword.backbone.measured import attached, measure
from foreword.backbone.probe import evaluating, family_of
from foreword.backbone.rotate import EXACT, ROUNDED, Rotation, measured, refuse_stretched, unmoved
from foreword.backbone.tokens import check_known, tokenized
from foreword.errors import BackboneError, MismatchError, PrefixError, UnsupportedModel
from foreword.prefix import (
    POSITIONS,
    Bos,
    Positions,
    Prefix,
    PrefixMeta,
    Site,
    check_prefix,
    prefixes_of,
)
from foreword.weights.fingerprint import adds_bos, tokenizer_digest, weights_fingerprint
from foreword.weights.own import joinable, own_modules
from foreword.weights.placement import input_device
from foreword.weights.quantise import quantization_of
from foreword.weights.stored import resident_bytes

TURNS = 256
"""Shifts of positions whose rotations are kept, the last measured ones."""


class Backbone:
    """A frozen transformers model, its tokenizer, and what the probe measured of it.

    Attributes:
        model: The model. Attaching changes neither its class nor its weights. Of a `PeftModel` it is
            the transformers model inside, adapters included.
        tokenizer: Its tokenizer, or None where texts are given as token ids.
        name: Name or path that it was loaded by.
        revision: Hub revision, if known.

    Raises:
        UnsupportedModel: The model's family cannot carry a prefix, or it is a `PeftModel` with virtual
            tokens of its own.

    Examples:
        >>> backbone = foreword.load("smollm2-135m-instruct")  # doctest: +SKIP
        >>> len(backbone.sites)  # doctest: +SKIP
        30
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        name: str = "",
        revision: str | None = None,
    ) -> None:
        check_text("name", name, BackboneError)
        self.model = model = joinable(model)
        self.tokenizer = tokenizer
        self.name = name or str(getattr(model.config, "_name_or_path", ""))
        self.revision = revision
        self._measured = measure(model)
        self._fingerprint: str | None = None
        self._width: int | None = None
        self._context: int | None = None
        self._tokenizer_digest: str | None = None
        self._turns: dict[int, tuple[Rotation, ...]] = {}

    @property
    def family(self) -> str:
        """Transformers' model type, such as ``llama``."""
        return family_of(self.model)

    @property
    def kind(self) -> KindName:
        """``decoder``, ``encoder`` or ``encoder-decoder``."""
        return self._measured.kind.name

    def needs(self, *kinds: KindName, what: str) -> None:
        """Check whether the backbone is of one of some kinds.

        Raises:
            UnsupportedModel: It is of another.
        """
        if self.kind not in kinds:
            name = f"{self.name or self.family!r} ({self.family})"
            raise UnsupportedModel(
                f"{what} needs {with_article(' or '.join(kinds))}; {name} is "
                f"{with_article(self.kind)}"
            )

    @property
    def sites(self) -> tuple[Site, ...]:
        """The attention calls that a prefix joins, in order."""
        return self._measured.sites

    @property
    def positions(self) -> Positions:
        """The position policy under which a captured text is exact."""
        return self._measured.positions

    @property
    def fingerprint(self) -> str:
        """Digest of a sample of the weights; see `foreword.backbone.fingerprint`."""
        if self._fingerprint is None:
            self._fingerprint = weights_fingerprint(self.model)
        return self._fingerprint

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer's behaviour, empty without a tokenizer."""
        if self.tokenizer is not None and self._tokenizer_digest is None:
            self._tokenizer_digest = tokenizer_digest(self.tokenizer)
        return self._tokenizer_digest or ""

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def parameters(self) -> int:
        """Number of parameters of the frozen model, shared ones counted once, adapters' not at all."""
        return sum({id(p): p.numel() for p in self._own_parameters()}.values())

    @property
    def quantization(self) -> str | None:
        """How the weights are quantised, such as ``int8``; None if they are not."""
        return quantization_of(self.model)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the frozen model's weights as they are in memory, scales included."""
        return resident_bytes(self._own_parameters())

    def _own_parameters(self) -> Iterator[Tensor]:
        for _, module in own_modules(self.model):
            yield from (p for p in module._parameters.values() if p is not None)

    @property
    def width(self) -> int:
        """Hidden size D: that of the states that a head looks at, measured once.

        Raises:
            UnsupportedModel: An encoder-decoder carries no head.
        """
        if self._width is None:
            ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            with self.attached(None), evaluating(self.model), torch.no_grad():
                self._width = int(self._measured.kind.hidden(self.model, inputs).shape[-1])
        return self._width

    @property
    def context(self) -> int:
        """Most tokens, prefix and text together, that the model was made for, measured once.

        Where positions are looked up in a table, as many as it holds; where distances alone count (T5),
        2**31; else what the config says.
        """
        if self._context is None:
            kind, table = self._measured.kind, None
            with self.attached(None) as attachment, evaluating(self.model):
                if kind.name != "decoder" or self.positions == "offset":
                    table = looked_up(self.model, kind, self.device)
                self._context = context_of(self.model, attachment, table)
        return self._context

    @property
    def vocabulary(self) -> int:
        """Tokens that the model has embeddings for: ids are below it."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a sequence: those of the generation config, and the tokenizer's."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        end = getattr(self.tokenizer, "eos_token_id", None)
        own = [named] if isinstance(named, int) else named or ()
        return frozenset([*own, *([] if end is None else [end])])

    @property
    def bos(self) -> Bos:
        """BOS policy of a prefix that does not carry the BOS itself."""
        return "input" if self.tokenizer is not None and adds_bos(self.tokenizer) else "none"

    def meta(self, **fields: Any) -> PrefixMeta:
        """Meta of a prefix made on this backbone, under its default policies unless told otherwise."""
        own: dict[str, Any] = {
            "backbone": self.name,
            "family": self.family,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "tokenizer": self.tokenizer_digest,
            "positions": self.positions,
            "bos": self.bos,
        }
        return PrefixMeta(**{**own, **fields})

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text as it stands at the start of an input, BOS included where added.

        Raises:
            PrefixError: The backbone has no tokenizer, or the text has no tokens.
        """
        if self.tokenizer is None:
            raise PrefixError("this backbone has no tokenizer; give token ids instead of text")
        ids: list[int] = list(tokenized(self.tokenizer, text, refusal=PrefixError)["input_ids"])
        if not ids:
            raise PrefixError(f"the text {text!r} has no tokens; give one with at least one")
        check_known(ids, self.vocabulary, self.tokenizer, PrefixError)
        return ids

    def capture(self, text: str | Sequence[int], positions: Positions | None = None) -> Prefix:
        """The prefix that a text itself is: its own keys and values.

        Under ``free`` the text is run at positions -P..-1, so that no rotary layout needs to be
        known; under ``offset`` at 0..P-1. In an encoder a text's keys and values depend on what
        follows it, so there (and in an encoder-decoder, both of whose stacks read the text) the
        prefix is where training starts from, and not what the text is in context.

        Args:
            text: Text, or token ids, of at least one token.
            positions: Position policy; the backbone's own by default.

        Returns:
            A prefix of one virtual token per token, in the model's dtype, exact where the policy
            is the backbone's.

        Raises:
            PrefixError: There is no text, or more than the model's positions are for, or a token that it
                has no embedding for; or the policy is unknown, or none for this model.
        """
        policy = positions or self.positions
        if policy not in POSITIONS:
            raise PrefixError(f"positions must be one of {', '.join(POSITIONS)}; found {policy!r}")
        ids = self.tokens(text) if isinstance(text, str) else self._ids(text)
        if not ids:
            raise PrefixError("expected at least one token to capture; found none")
        if policy == "free" and self.positions == "offset":
            raise PrefixError(
                f"{self.family!r} adds absolute positions to its embeddings, and a text captured under "
                "position policy 'free' would stand before the first; use 'offset'"
            )
        counted = self.kind != "decoder" or self.positions == "offset"
        if counted and len(ids) > self.context:
            raise PrefixError(
                f"a prefix of {len(ids)} leaves {max(0, self.context - len(ids))} of the backbone's "
                f"{self.context} tokens for text; use a shorter one"
            )
        keys, values = self._run_at(-len(ids) if policy == "free" else 0, ids)
        carries = self.kind == "decoder" and self._starts_with_bos(ids)
        bos: Bos = "prefix" if carries else self.bos
        return Prefix(self.sites, keys, values, self.meta(positions=policy, bos=bos))

    def _ids(self, tokens: Any) -> list[int]:
        """Token ids as they were given, once each is seen to be one."""
        expect("text", tokens, Iterable, "text, or token ids", PrefixError)
        given = [token.item() if isinstance(token, Tensor) else token for token in tokens]
        for token in given:
            check_count("a token id", token, PrefixError, least=0)
        ids = [int(token) for token in given]
        check_known(ids, self.vocabulary, self.tokenizer, PrefixError)
        return ids

    def _run_at(
        self, first: int, ids: Sequence[int]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Per site the keys and values (H, P, D) of a text whose first token stands at `first`."""
        input_ids = torch.tensor([ids], device=self.device)
        mask = torch.ones_like(input_ids)
        inputs: dict[str, Any] = self._measured.kind.inputs(self.model, input_ids, mask)
        if self.kind == "decoder":
            position_ids = torch.arange(first, first + len(ids), device=self.device)[None]
            inputs |= {"position_ids": position_ids, "use_cache": False}
        with self.attached(None) as attachment, evaluating(self.model):
            calls = attachment.recorded(**inputs)
        by_name = {call.name: call for call in reversed(calls)}
        keys = tuple(by_name[site.name].key_BHKD[0].contiguous() for site in self.sites)
        values = tuple(by_name[site.name].value_BHKE[0].contiguous() for site in self.sites)
        return keys, values

    def moved(self, prefix: Prefix, positions: Positions) -> Prefix:
        """The same prefix under another position policy: its keys turned by its own length.

        The rotation is measured on this backbone, then proven: the moved keys of a test text must be
        those of a run under the other policy, to 1e-4 of their size in float32 and to 2**-4 in lower
        precision, which rounds the sines as well (so use float32). Values do not change.

        Args:
            prefix: A prefix of this backbone's geometry.
            positions: The policy that it shall have.

        Returns:
            The prefix itself if it has the policy already, else a new one of the same dtype.

        Raises:
            MismatchError: The prefix does not fit this backbone.
            UnsupportedModel: No rotation does it: absolute positions, or rotary positions that are
                scaled by the length of the text.

        Examples:
            >>> backbone.moved(prefix, "offset").meta.positions  # doctest: +SKIP
            'offset'
        """
        check_prefix(prefix)
        if positions not in POSITIONS:
            raise PrefixError(
                f"positions must be one of {', '.join(POSITIONS)}; found {positions!r}"
            )
        if prefix.meta.positions == positions:
            return prefix
        if prefix.meta.combination == "logits":
            raise PrefixError(
                "each piece of a mixture of logits is moved by its own length; move those of "
                "prefix.split(), and mix them again"
            )
        if prefix.meta.combination == "control":
            raise PrefixError(
                "a prefix with pieces for values of attributes is moved by the length of what it "
                "selects; choose first, with prefix.select(...)"
            )
        shifted = self.turned(prefix, prefix.length if positions == "offset" else -prefix.length)
        meta = dataclasses.replace(
            prefix.meta, positions=positions, parents=(*prefix.meta.parents, prefix.digest)
        )
        return dataclasses.replace(shifted, meta=meta)

    def shifted(self, prefix: Prefix, by: int) -> Prefix:
        """The same prefix with the keys that it would have `by` positions later; see `moved`.

        Its start moves along; a file of it does not say by how much, so that from there it cannot be
        recomputed. Where tokens have the same keys at every place, as under ALiBi, nothing changes.

        Raises:
            MismatchError: The prefix does not fit this backbone.
            UnsupportedModel: No rotation does it.
        """
        turned = self.turned(prefix, by)
        if turned is prefix:
            return prefix
        of = [{"prefix": prefix.digest, "by": by}]
        return dataclasses.replace(turned, meta=composed(prefix.meta, "shift", of, None))

    def turned(self, prefix: Prefix, by: int) -> Prefix:
        """As `shifted`, without a record of it."""
        check_geometry(prefix, self.sites, self.name or self.family)
        if not by:
            return prefix
        every = zip(self.sites, self._rotations(abs(by)), strict=True)
        rotations = {site.label: rotation for site, rotation in every}
        times = 1 if by > 0 else -1

        def turned(one: Prefix) -> tuple[Tensor, ...]:
            pairs = zip(one.sites, one.keys, strict=True)
            return tuple(rotations[site.label].turned(key, times) for site, key in pairs)

        start = prefix.start
        if start is not None:
            start = dataclasses.replace(start, keys=turned(start))
        return dataclasses.replace(prefix, keys=turned(prefix), start=start)

    def _rotations(self, shift: int) -> tuple[Rotation, ...]:
        """What a shift of positions does to the keys of each site, measured once per shift."""
        if shift in self._turns:
            return self._turns[shift]
        if self.positions == "offset":
            raise UnsupportedModel(
                f"{self.family!r} adds absolute positions to its embeddings, so a prefix cannot be "
                "moved between position policies; train or capture it under the policy that you need"
            )
        if "position_ids" not in parameters_of(type(self.model)):
            vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
            still = unmoved(self._run_at, vocabulary)
            if still is None:
                raise UnsupportedModel(
                    f"{self.family!r} takes no position_ids, and its keys tell where a token stands, so "
                    "no rotation can be measured between position policies; use a prefix under the "
                    "policy that you need"
                )
            return self._remembered(shift, still)
        refuse_stretched(self.model, self.family)
        allowed = EXACT if self.dtype == torch.float32 else ROUNDED
        vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        rotations = measured(self._run_at, shift, vocabulary, self.family, allowed)
        return self._remembered(shift, rotations)

    def _remembered(self, shift: int, rotations: tuple[Rotation, ...]) -> tuple[Rotation, ...]:
        """The rotations of a shift, kept while there are few."""
        while len(self._turns) >= TURNS:
            del self._turns[next(iter(self._turns))]
        self._turns[shift] = rotations
        return rotations

    def _starts_with_bos(self, ids: Sequence[int]) -> bool:
        return self.bos == "input" and ids[0] == self.tokenizer.bos_token_id  # type: ignore[union-attr]

    @contextmanager
    def attached(self, prefix: Prefix | Sequence[Prefix | None] | None) -> Iterator[Attachment]:
        """Bind the model's forward passes in a block to a prefix, one per row, or none."""
        with attached(self.model) as attachment:
            bound = None
            if prefix is not None:
                for one in prefixes_of(prefix):
                    if one is not None:
                        refuse_mixture(one)
                        check_geometry(one, self.sites, self.name or self.family)
                        check_range(one, self.dtype, self.name or self.family)
                bound = bound_to(prefix, self.sites)
            with attachment.using(bound):
                yield attachment

    @contextmanager
    def inferring(self, prefix: Prefix | None) -> Iterator[Attachment]:
        """As `attached`, with every module in evaluation mode: a model made from a config trains."""
        with evaluating(self.model), self.attached(prefix) as attachment:
            yield attachment

    def check(self, prefix: Prefix, *, strict: bool = False, warn: bool = True) -> None:
        """Check whether the prefix fits this backbone and its tokenizer.

        Args:
            prefix: The prefix.
            strict: Refuse other weights too.
            warn: Warn of other weights.

        Raises:
            MismatchError: Geometry, tokenizer or the width of a head differ; with `strict`, other
                weights too.

        Warns:
            OtherWeights: The geometry fits but the weights are others.
        """
        check_prefix(prefix)
        check_geometry(prefix, self.sites, self.name or self.family)
        check_range(prefix, self.dtype, self.name or self.family)
        if prefix.head is not None and prefix.head.width != self.width:
            raise MismatchError(
                f"the prefix's head is for hidden states of {prefix.head.width}; those of "
                f"{self.name or self.family!r} have {self.width}. It was made on "
                f"{prefix.meta.backbone!r} ({prefix.meta.family})"
            )
        made_with = prefix.meta.tokenizer
        if made_with and self.tokenizer_digest and made_with != self.tokenizer_digest:
            raise MismatchError(
                f"the prefix was made with another tokenizer (digest {made_with[:12]}) than that of "
                f"{self.name!r} ({self.tokenizer_digest[:12]}); use the backbone that it was made "
                f"on: {prefix.meta.backbone!r}"
            )
        whole = len(prefix.sites) == len(self.sites)
        name = self.name or self.family
        check_weights(prefix, self.fingerprint, name, strict, whole=whole, warn=warn)
