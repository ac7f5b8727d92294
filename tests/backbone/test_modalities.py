"""Models that see or hear: attaching changes nothing of what they give for pixels or sound.

The probe runs text alone. So with pixels, the hook gave Qwen-VL a text's positions in place of its own
three for each token, and the logits were others without a word.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import foreword
from foreword.backbone.measured import attaching
from foreword.errors import UnsupportedModel
from tests.oracle.modalities import BUILDERS, Modal, modal

EXACT = 1e-5
TEXT = torch.tensor([17, 60, 4, 88, 21])
OWN_POSITIONS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
IN_CONTEXT = [name for name in BUILDERS if name not in ("paligemma", "mllama")]
"""In the others a text in front is not what a prefix is: PaliGemma's sees the image behind it, and
Mllama's layers of cross-attention run for it."""

# transformers 5.16 calls a part of its own Mllama by a name that it will drop
pytestmark = pytest.mark.filterwarnings("ignore:`hidden_state` is deprecated:FutureWarning")


def logits(case: Modal, **changes: object) -> Tensor:
    with torch.no_grad():
        found: Tensor = case.model(**{**case.call, **changes}).logits
    return found


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def prefix(model: PreTrainedModel) -> foreword.Prefix:
    return foreword.Backbone(model).capture(TEXT.tolist())


@pytest.mark.parametrize("name", BUILDERS)
def test_without_a_prefix_nothing_changes(name: str) -> None:
    case = modal(name)
    before = logits(case)
    other = logits(case, **{case.sensed: -case.call[case.sensed]})
    assert difference(other, before) > 1e-2, "what it sees changes nothing: the test says nothing"
    text = {name: case.call[name][:, -8:] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        of_text = case.model(**text).logits
    with attaching(case.model):
        assert torch.equal(logits(case), before)
        with torch.no_grad():
            assert torch.equal(case.model(**text).logits, of_text)
    foreword.detach(case.model)
    assert torch.equal(logits(case), before)


@pytest.mark.parametrize("name", BUILDERS)
def test_detached_it_is_as_before(name: str) -> None:
    case = modal(name)
    before = logits(case)
    foreword.attach(case.model, prefix(case.model))
    assert difference(logits(case), before) > 1e-3
    foreword.detach(case.model)
    assert torch.equal(logits(case), before)


@pytest.mark.parametrize("padded", [0, 3])
@pytest.mark.parametrize("positions", ["free", "offset"])
@pytest.mark.parametrize("name", IN_CONTEXT)
def test_with_pixels_a_prefix_is_the_text_in_front(
    name: str, positions: foreword.prefix.Positions, padded: int
) -> None:
    case = modal(name)
    whole = case.behind(TEXT)
    with torch.no_grad():
        expected = case.model(**whole).logits[:, len(TEXT) :]
    bare = logits(case)
    foreword.attach(case.model, foreword.Backbone(case.model).capture(TEXT.tolist(), positions))
    found = logits(padded_left(case, padded))[:, padded:]
    assert difference(bare, expected) > 1e-3
    assert difference(found, expected) <= EXACT


def padded_left(case: Modal, count: int) -> Modal:
    """The same call with padding in front of every row."""
    shorter = case.behind(torch.zeros(count, dtype=torch.long))
    shorter["attention_mask"][:, :count] = 0
    return Modal(case.model, shorter, case.sensed)


@pytest.mark.parametrize("name", OWN_POSITIONS)
def test_each_row_has_its_own_prefix(name: str) -> None:
    """Offsets differ between the rows, and so do the three positions of each token."""
    case = modal(name)
    backbone = foreword.Backbone(case.model)
    offset, free = backbone.capture([9, 8, 7], "offset"), backbone.capture(TEXT.tolist())
    expected = []
    for row, one in enumerate((offset, free)):
        with backbone.attached(one):
            expected.append(logits(case)[row])
    with backbone.attached([offset, free]):
        assert difference(logits(case), torch.stack(expected)) <= EXACT


@pytest.mark.parametrize("name", OWN_POSITIONS)
def test_text_goes_on_behind_an_image(name: str) -> None:
    """Tokens that follow are placed behind the image by the model, and moved by the offset."""
    case = modal(name)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    wanted = case.model.generate(**case.behind(TEXT), **options)[:, len(TEXT) :]
    with attaching(case.model):
        bare = case.model.generate(**case.call, **options)
    foreword.detach(case.model)
    assert torch.equal(case.model.generate(**case.call, **options), bare)
    for positions in ("free", "offset"):
        one = foreword.Backbone(case.model).capture(TEXT.tolist(), positions)
        foreword.attach(case.model, one)
        found = case.model.generate(**case.call, **options)
        assert torch.equal(found, wanted), positions
        foreword.detach(case.model)
    assert not torch.equal(bare, wanted)


@pytest.mark.parametrize("name", OWN_POSITIONS)
def test_an_image_can_be_read_by_itself(name: str) -> None:
    """The tower that reads images has no place for a prefix, so it may be called without a text."""
    case = modal(name)
    grid = case.call["image_grid_thw"]

    def features() -> Tensor:
        with torch.no_grad():
            found = case.model.get_image_features(case.call["pixel_values"], image_grid_thw=grid)
        return torch.cat(list(found.pooler_output))

    before = features()
    foreword.attach(case.model, prefix(case.model))
    assert torch.equal(features(), before)


def test_a_model_that_attaching_would_change_is_refused() -> None:
    """Under SDPA and without padding PaliGemma's text sees what follows it, under a mask it does not."""
    model = modal("paligemma", attention="sdpa").model
    text = TEXT[None]
    with torch.no_grad():
        before = model(input_ids=text).logits
    with pytest.raises(UnsupportedModel, match=r"paligemma.*changes its logits.*eager"):
        foreword.Backbone(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=text).logits, before)
