"""The oracle of encoders and encoder-decoders: the text's own keys and values, split off.

One pass over a whole text gives every attention call's keys and values. Those of the first P tokens
become a prefix, and the model runs over the rest alone, whose tokens stay where they were: then the
rest's outputs must be those that they had in the whole text.

Shapes: B rows, T tokens, P prefix length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

import foreword
from foreword.attention.bias import LearnedBias
from foreword.attention.bound import bind
from foreword.attention.frame import AttentionCall
from foreword.prefix import Prefix
from tests.kinds.families import VOCABULARY, Family

LENGTH, TEXT, OUTPUT = 5, 17, 13
EXACT, MOVED = 1e-5, 1e-3


@dataclass(frozen=True)
class Case:
    """A family's model, texts, and what a whole pass gave."""

    family: Family
    backbone: foreword.Backbone
    source: Tensor
    target: Tensor

    @property
    def model(self) -> PreTrainedModel:
        """The model."""
        return self.backbone.model

    @property
    def is_encoder(self) -> bool:
        """Whether there is no decoder."""
        return self.backbone.kind == "encoder"

    def run(self, source: Tensor, target: Tensor, **more: Any) -> Tensor:
        """Output (B, T, any) for source and target tokens."""
        inputs = {"input_ids": source, **more}
        if not self.is_encoder:
            inputs |= {"decoder_input_ids": target, "use_cache": False}
        with torch.no_grad():
            found: Tensor = self.model(**inputs)[0]
        return found


def case(family: Family, attention: str | None = None) -> Case:
    """A family's model and texts of two rows."""
    generator = torch.Generator().manual_seed(1)

    def text(size: int) -> Tensor:
        return torch.randint(3, VOCABULARY, (1, size), generator=generator)

    model = family.build(attention)
    return Case(family, foreword.Backbone(model), text(TEXT), text(OUTPUT))


def whole(case: Case) -> tuple[Tensor, Prefix]:
    """The outputs of a whole pass, and the prefix of its first P tokens at every site."""
    calls: list[AttentionCall] = []
    with case.backbone.attached(None) as attachment, attachment.observing(calls.append):
        out = case.run(case.source, case.target)
    by_name = {call.name: call for call in reversed(calls)}
    sites = case.backbone.sites
    keys = tuple(by_name[s.name].key_BHKD[0, :, :LENGTH].contiguous() for s in sites)
    values = tuple(by_name[s.name].value_BHKE[0, :, :LENGTH].contiguous() for s in sites)
    return out, Prefix(sites, keys, values, case.backbone.meta())


@contextmanager
def moved_up(case: Case, stacks: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Let a text's tokens stand P further on in these stacks; what to call the model with besides."""
    if case.family.positions == "distance" or stacks == ("cross",):
        yield {}
        return
    if case.family.positions == "rotary":
        yield {"position_ids": torch.arange(LENGTH, TEXT)[None]}
        return
    tables = {
        name: module
        for name, module in case.model.named_modules()
        if isinstance(module, nn.Embedding)
        and ("position_embeddings" in name or "embed_positions" in name)
        and (case.is_encoder or any(f".{stack}." in f".{name}" for stack in stacks))
    }
    assert tables
    before = {name: table.weight.data for name, table in tables.items()}
    for table in tables.values():
        table.weight.data = table.weight.data.roll(-LENGTH, dims=0)
    try:
        yield {}
    finally:
        for name, table in tables.items():
            table.weight.data = before[name]


def split_error(case: Case, stacks: Sequence[str], prefix: Prefix | None = None) -> float:
    """How far the outputs of the rest are from what they were, with a prefix in these stacks.

    The rest of the source is what an encoder and cross-attention see, that of the target what a
    decoder sees; where cross-attention alone has the prefix, it is given the encoder's output.
    """
    out, all_of_it = whole(case)
    prefix = all_of_it if prefix is None else prefix
    kept = [site.label for site in prefix.sites if site.stack in stacks]
    of_source = "encoder" in stacks
    source = case.source[:, LENGTH:] if of_source else case.source
    first = LENGTH if "decoder" in stacks or case.is_encoder else 0
    target = case.target[:, first:]
    more: dict[str, Any] = {}
    if stacks == ("cross",):
        with torch.no_grad():
            hidden = case.model.get_encoder()(input_ids=case.source)[0]
        more["encoder_outputs"] = BaseModelOutput(hidden[:, LENGTH:])
    with moved_up(case, stacks) as where, case.backbone.attached(prefix.only(kept)):
        found = case.run(source, target, **where, **more)
    return distance(found, out[:, first:])


def shortened(prefix: Prefix, length: int) -> Prefix:
    """The last so many virtual tokens."""
    return Prefix(
        prefix.sites,
        tuple(key[:, -length:].contiguous() for key in prefix.keys),
        tuple(value[:, -length:].contiguous() for value in prefix.values),
        prefix.meta,
    )


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to max(1, the largest output)."""
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def gradients(case: Case) -> list[Tensor]:
    """The gradient of each of the prefix's tensors."""
    _, prefix = whole(case)
    tensors = [t.clone().requires_grad_() for t in (*prefix.keys, *prefix.values)]
    half = len(prefix.sites)
    live = Prefix(prefix.sites, tuple(tensors[:half]), tuple(tensors[half:]), prefix.meta)
    inputs = {"input_ids": case.source}
    if not case.is_encoder:
        inputs["decoder_input_ids"] = case.target
    with case.backbone.attached(None) as attachment:
        with attachment.using(bind(live, case.backbone.sites, live=True)):
            out = case.model(**inputs)[0]
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
        return list(torch.autograd.grad((out * weights).sum(), tensors))


def rows_error(case: Case, side: str = "right") -> float:
    """A batch of rows of unequal length with a prefix, none, and a shorter one, against each alone."""
    _, prefix = whole(case)
    short = shortened(prefix, 3)
    prefixes = [prefix, None, short]
    sizes = (TEXT, TEXT - 4, TEXT - 7)
    ids = torch.zeros(3, TEXT, dtype=torch.long)
    mask = torch.zeros(3, TEXT, dtype=torch.long)
    places = []
    for row, size in enumerate(sizes):
        place = slice(0, size) if side == "right" else slice(TEXT - size, TEXT)
        ids[row, place], mask[row, place] = case.source[0, :size], 1
        places.append(place)
    target = case.target.repeat(3, 1)
    with case.backbone.attached(prefixes):
        together = case.run(ids, target, attention_mask=mask)
    worst = 0.0
    for row, (one, place) in enumerate(zip(prefixes, places, strict=True)):
        with case.backbone.attached(one):
            alone = case.run(ids[row : row + 1, place], case.target)
        found = together[row : row + 1]
        worst = max(worst, distance(found[:, place] if case.is_encoder else found, alone))
    return worst


def controls(case: Case) -> dict[str, float]:
    """How far deliberate mistakes move the outputs."""
    stacks = tuple(dict.fromkeys(site.stack for site in case.backbone.sites))
    _, prefix = whole(case)
    found = {
        "swapped keys and values": split_error(
            case, stacks, Prefix(prefix.sites, prefix.values, prefix.keys, prefix.meta)
        ),
        "one column dropped": split_error(case, stacks, shortened(prefix, LENGTH - 1)),
    }
    for stack in stacks if len(stacks) > 1 else ():
        rest = [site.label for site in prefix.sites if site.stack != stack]
        found[f"no {stack}"] = split_error(case, stacks, prefix.only(rest))
    if case.family.biased:
        own = LearnedBias.columns

        def zero(self: LearnedBias, *args: Any) -> Tensor:
            return torch.zeros_like(own(self, *args))

        LearnedBias.columns = zero  # type: ignore[method-assign, assignment]
        try:
            found["no bias"] = split_error(case, stacks)
        finally:
            LearnedBias.columns = own  # type: ignore[method-assign]
    return found


def written_scores(
    model: PreTrainedModel,
    source: Tensor,
    mask: Tensor | None = None,
    *,
    beams: int = 1,
    use_cache: bool = True,
) -> Tensor:
    """Scores of nine tokens that `generate` writes for each row: (B, 9, V), or (B, beams) of beams."""
    generate: Any = model.generate
    found = generate(
        source,
        attention_mask=mask,
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=9,
        do_sample=False,
        eos_token_id=None,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_scores=True,
    )
    told: Tensor = torch.stack(found.scores, dim=1) if beams == 1 else found.sequences_scores
    rows: Tensor = told.unflatten(0, (len(source), -1))
    return rows
