"""A mask with a hole in the text: windows and learned distances count its slots, as transformers does.

Windowed prefixes were dropped by positions, which leave hidden tokens out: off by up to 0.2.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import foreword
from foreword.backbone import Backbone
from tests.kinds.families import FAMILIES as KINDS
from tests.oracle.checks import EXACT, difference
from tests.oracle.families import BY_NAME, VOCABULARY, attention_of

P, T, HOLE = 5, 16, slice(4, 7)


def tokens(count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (1, count), generator=generator)


def holed() -> Tensor:
    mask = torch.ones(1, T, dtype=torch.long)
    mask[:, HOLE] = 0
    return mask


def counted(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def in_context(model: PreTrainedModel, text: Tensor, row: Tensor) -> Tensor:
    """Logits (T, V) of the row behind the text, by the model alone."""
    mask = torch.cat([torch.ones_like(text), holed()], dim=1)
    with torch.no_grad():
        found: Tensor = model(
            torch.cat([text, row], dim=1), attention_mask=mask, position_ids=counted(mask)
        ).logits
    return found[0, P:]


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_neo", "qwen2"])
def test_a_window_counts_the_hole(family: str, padding: int) -> None:
    spec = BY_NAME[family]
    model = spec.build(attention_of(spec), 0)
    text, row = tokens(P), tokens(T, seed=2)
    expected = in_context(model, text, row)
    prefix = Backbone(model).capture(text[0].tolist()).with_meta(windows="windowed")
    ids = torch.nn.functional.pad(row, (padding, 0))
    mask = torch.nn.functional.pad(holed(), (padding, 0))
    foreword.attach(model, prefix)
    with torch.no_grad():
        found = model(ids, attention_mask=mask).logits[0, padding:]
        short = slice(0, padding + T // 2)
        out = model(ids[:, short], attention_mask=mask[:, short])
        step = model(
            ids[:, short.stop :], attention_mask=mask, past_key_values=out.past_key_values
        ).logits[0]
    real = holed()[0].bool()
    assert difference([found[real]], [expected[real]]) <= EXACT
    assert difference([step], [expected[T // 2 :]]) <= EXACT


@pytest.mark.parametrize("family", ["t5", "mpnet"])
def test_learned_distances_count_the_hole(family: str) -> None:
    """In an encoder of one layer a text's keys do not know what follows, so a prefix is the text."""
    spec = next(kind for kind in KINDS if kind.name == family)
    one = {"num_layers": 1, "num_decoder_layers": 1, "num_hidden_layers": 1}
    config = {**spec.config, **{name: one[name] for name in one if name in spec.config}}
    model = dataclasses.replace(spec, config=config).build()
    backbone = Backbone(model)
    encoder = model.get_encoder() if family == "t5" else model
    text, row = tokens(P), tokens(T, seed=2)
    whole = torch.cat([text, row], dim=1)
    mask = torch.cat([torch.ones_like(text), holed()], dim=1)
    given: dict[str, Tensor] = {"input_ids": whole, "attention_mask": mask}
    own = {"input_ids": row, "attention_mask": holed()}
    if family == "mpnet":  # its table of positions is another matter: all tokens stand at one place
        given["position_ids"], own["position_ids"] = torch.ones_like(whole), torch.ones_like(row)
    with torch.no_grad():
        expected = encoder(**given)[0][0, P:]
        prefix = backbone.capture(text[0].tolist())
        if family == "mpnet":
            prefix = captured_at_one_place(backbone, text)
        with backbone.attached(prefix):
            found = encoder(**own)[0][0]
    real = holed()[0].bool()
    assert difference([found[real]], [expected[real]]) <= EXACT


def captured_at_one_place(backbone: Backbone, text: Tensor) -> foreword.Prefix:
    """The text's keys and values where every token has the same position."""
    with backbone.attached(None) as attachment:
        (call,) = attachment.recorded(input_ids=text, position_ids=torch.ones_like(text))
    return foreword.Prefix(
        backbone.sites, (call.key_BHKD[0],), (call.value_BHKE[0],), backbone.meta()
    )
