"""`generate` under a mixture: every step against the formula, for every way of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tokenizers import decoders
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import foreword
from foreword import mixing
from foreword.attention.attachment import attachment_of
from foreword.data import Task, left_padded
from foreword.data.collate import right_padded
from foreword.errors import DataError, MismatchError
from foreword.generate import GenerateOptions, generate, generate_ids
from foreword.mixing import Mixing, encoder_under, processors, rows_under
from foreword.mixture import Mixture
from foreword.prefix import Prefix
from foreword.prompts import task_of
from tests.conftest import byte_tokenizer, tiny_model
from tests.kinds.families import ENCODER_DECODERS
from tests.kinds.families import Family as OtherFamily
from tests.mixed_passes import formula, said
from tests.oracle.families import FAMILIES, attention_of
from tests.oracle.family import Family
from tests.test_generate import INPUTS, PLAIN

SHORT = GenerateOptions(max_new_tokens=10)


@pytest.fixture
def prefixes(tiny: foreword.Backbone) -> list[Prefix]:
    texts = ("one text", "another, longer text in front")
    return [tiny.capture(text).with_meta(recipe=PLAIN.as_json()) for text in texts]


@pytest.fixture
def mixture(prefixes: list[Prefix]) -> Mixture:
    return Mixture(((1.3, prefixes[0]), (-0.6, prefixes[1])))


def options(**changes: Any) -> GenerateOptions:
    return GenerateOptions(**{"max_new_tokens": 10, **changes})


def ids(backbone: foreword.Backbone, text: str) -> list[int]:
    return list(backbone.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Token ids and log-probabilities of each step of `generate`."""
    found: list[tuple[Tensor, Tensor]] = []
    call = Mixing.__call__

    def watched(self: Mixing, input_ids: Tensor, scores: Tensor) -> Tensor:
        mixed = call(self, input_ids, scores)
        found.append((input_ids.clone(), mixed.clone()))
        return mixed

    monkeypatch.setattr(Mixing, "__call__", watched)
    return found


def largest_error(
    backbone: foreword.Backbone,
    mixture: Mixture,
    prompts: Sequence[Sequence[int]],
    steps: Sequence[tuple[Tensor, Tensor]],
) -> float:
    """How far any row of any step is from the formula, of log-probabilities above -20."""
    widest, worst = max(map(len, prompts)), 0.0
    for written, mixed in steps:
        size = len(written) // len(prompts)
        for row, (tokens, found) in enumerate(zip(written.tolist(), mixed.double(), strict=True)):
            prompt = prompts[row // size]
            if backbone.kind == "decoder":
                expected = formula(backbone, mixture, [*prompt, *tokens[widest:]])[-1]
            else:
                expected = formula(backbone, mixture, prompt, tokens)[-1]
            worst = max(worst, float((found - expected)[expected > -20].abs().max()))
    return worst


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_beams": 4, "num_return_sequences": 3},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 0},
        {"do_sample": True, "num_beams": 3, "temperature": 2.0},
    ],
    ids=["greedy", "beams", "drawn", "drawn beams"],
)
def test_every_step_is_the_formulas(
    spelled: foreword.Backbone,
    mixture: Mixture,
    steps: list[tuple[Tensor, Tensor]],
    changes: dict[str, Any],
) -> None:
    """Rows are padded, beams change places, and each branch goes on with a cache of its own."""
    prompts = [ids(spelled, text) for text in INPUTS]
    generate_ids(spelled, prompts, mixture, options(**changes))
    assert len(steps) == 10
    expanded = max(changes.get("num_beams", 1), changes.get("num_return_sequences", 1))
    assert {tuple(mixed.shape) for _, mixed in steps} == {(4 * expanded, 258)}
    ordered = sorted(prompts, key=len)
    assert largest_error(spelled, mixture, ordered, steps) < 1e-4
    for _, mixed in steps:
        torch.testing.assert_close(mixed.exp().sum(dim=-1), torch.ones(4 * expanded))


def test_greedy_takes_the_likeliest_token_of_the_formula(
    spelled: foreword.Backbone, mixture: Mixture
) -> None:
    found = generate(spelled, INPUTS, mixture, SHORT)
    for text, (one,) in zip(INPUTS, found, strict=True):
        written = ids(spelled, text)
        for _ in range(10):
            written.append(int(formula(spelled, mixture, written)[-1].argmax()))
        assert one == spelled.tokenizer.decode(written[-10:], skip_special_tokens=True).strip()
    plain = [generate(spelled, INPUTS, prefix, SHORT) for _, prefix in mixture.parts]
    assert found not in [*plain, generate(spelled, INPUTS, options=SHORT)]
    assert attachment_of(spelled.model) is None


@pytest.mark.parametrize("changes", [{"num_beams": 4}, {"do_sample": True, "num_beams": 3}])
def test_beams_with_caches_that_follow_them_find_what_they_find_without(
    spelled: foreword.Backbone,
    mixture: Mixture,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    beams = options(num_return_sequences=3, **changes)
    found = generate(spelled, INPUTS, mixture, beams)

    def forget(self: Any, _: Tensor) -> None:
        self.cache = None

    monkeypatch.setattr(mixing._Beside, "_follow", forget)
    assert generate(spelled, INPUTS, mixture, beams) == found
    assert found != generate(spelled, INPUTS, mixture.parts[0][1], beams)
    if "do_sample" not in changes:
        monkeypatch.undo()
        assert [generate(spelled, [text], mixture, beams)[0] for text in INPUTS] == found


def test_drawing_is_by_the_seed(spelled: foreword.Backbone, mixture: Mixture) -> None:
    drawn = {"do_sample": True, "num_return_sequences": 3}
    first = generate(spelled, INPUTS, mixture, options(seed=3, **drawn))
    assert first == generate(spelled, INPUTS, mixture, options(seed=3, **drawn))
    assert first != generate(spelled, INPUTS, mixture, options(seed=4, **drawn))
    greedy = generate(spelled, INPUTS, mixture, SHORT)
    only = options(top_k=1, batch_size=3, **drawn)
    assert generate(spelled, INPUTS, mixture, only) == [texts * 3 for texts in greedy]


def test_penalties_count_after_the_mixing(spelled: foreword.Backbone, mixture: Mixture) -> None:
    """Transformers would penalise the leading branch's logits, before the others join."""
    text, penalty = "aab", 1.7
    (found,) = generate(spelled, text, mixture, options(repetition_penalty=penalty))[0]
    written = ids(spelled, text)
    for _ in range(10):
        scores = formula(spelled, mixture, written)[-1]
        scores[written] *= penalty
        written.append(int(scores.argmax()))
    assert found == spelled.tokenizer.decode(written[-10:], skip_special_tokens=True).strip()
    assert found != generate(spelled, text, mixture, SHORT)[0][0]
    (single,) = generate(spelled, text, mixture, options(no_repeat_ngram_size=1))[0]
    assert len(set(single)) == len(single) == 10


def test_a_mixture_of_one_branch_is_that_branch(
    spelled: foreword.Backbone, prefixes: list[Prefix], steps: list[tuple[Tensor, Tensor]]
) -> None:
    """And takes its path: nothing is mixed."""
    a, b = prefixes
    expected = generate(spelled, INPUTS, a, SHORT)
    for parts in (((1, a), (0, b)), ((0, b), (1, a)), ((0.4, a), (0.6, a))):
        assert generate(spelled, INPUTS, Mixture(parts), SHORT) == expected
    frozen = generate(spelled, INPUTS, options=SHORT, like=a)
    assert generate(spelled, INPUTS, Mixture(((0, a),)), SHORT) == frozen
    assert not steps
    templates = a.with_meta(recipe=Task("Q: {question} A:", " {answer}").as_json())
    asked = generate(spelled, INPUTS, options=SHORT, like=templates)
    assert asked != frozen
    assert generate(spelled, INPUTS, Mixture(((0, templates),)), SHORT) == asked
    assert generate(spelled, INPUTS, Mixture(((0, b), (1, templates))), SHORT) != expected


def test_the_leading_prefix_says_how_texts_begin(
    spelled: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    a, b = prefixes
    asks = a.with_meta(recipe=Task("Q: {question} A:", " {answer}").as_json())
    rows = [f"Q: {text} A:" for text in INPUTS]
    led = generate(spelled, INPUTS, Mixture(((0.7, asks), (0.6, b))), SHORT)
    assert led == generate(spelled, rows, Mixture(((0.7, a), (0.6, b))), SHORT)
    assert led != generate(spelled, INPUTS, Mixture(((0.6, b), (0.7, asks))), SHORT)


def test_a_prefix_that_stands_for_a_mixture_is_mixed(
    spelled: foreword.Backbone, prefixes: list[Prefix], mixture: Mixture
) -> None:
    """And not attended to as a whole."""
    a, b = prefixes
    stands = foreword.concat(a.strength(1.3), b.strength(-0.6), combination="logits")
    assert task_of(stands) == PLAIN
    assert generate(spelled, INPUTS, stands, SHORT) == generate(spelled, INPUTS, mixture, SHORT)


def test_what_attends_in_one_pass_refuses_what_stands_for_a_mixture(
    tiny: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    """It would attend to all pieces at once, without a sign."""
    stands = foreword.concat(*prefixes, combination="logits")
    for attending in (
        lambda: foreword.attach(tiny, stands),
        lambda: foreword.attach(tiny.model, [None, stands]),
        lambda: tiny.attached(stands).__enter__(),
    ):
        with pytest.raises(
            MismatchError, match="stands for a mixture: .* 2 pieces .* prefix.split"
        ):
            attending()
    assert attachment_of(tiny.model) is None


def begun() -> foreword.Backbone:
    """A backbone whose tokenizer begins every text with <s>."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    return foreword.Backbone(tiny_model(), tokenizer, name="tiny")


def test_each_branch_has_the_bos_that_its_prefix_leaves_to_the_input() -> None:
    backbone = begun()
    carries, leaves = backbone.capture("one text"), backbone.capture([9, 8, 7])
    assert (carries.meta.bos, leaves.meta.bos) == ("prefix", "input")
    text = "abc"
    (found,) = generate(backbone, text, Mixture(((1.4, carries), (-0.7, leaves))), SHORT)[0]
    written: list[int] = []
    bare = ids(backbone, text)
    for _ in range(10):
        total = (
            1.4 * said(backbone, carries, [*bare, *written])[-1]
            - 0.7 * said(backbone, leaves, [0, *bare, *written])[-1]
            + 0.3 * said(backbone, None, [0, *bare, *written])[-1]
        )
        written.append(int(total.argmax()))
    assert found == backbone.tokenizer.decode(written, skip_special_tokens=True).strip()
    swapped = Mixture(((-0.7, leaves), (1.4, carries)))
    assert generate(backbone, text, swapped, SHORT) == [[found]]


def test_all_branches_have_room_for_a_prompt() -> None:
    """As much as the longest prefix leaves, and the BOS that another branch has beside it."""
    backbone = begun()
    short, long = backbone.capture([9, 8, 7]), backbone.capture("x" * 30)
    assert long.length == 31
    one, other = Mixture(((0.5, short), (0.7, long))), Mixture(((0.7, long), (0.5, short)))
    assert encoder_under(backbone, one, PLAIN).limit == 256 - 31
    assert encoder_under(backbone, other, PLAIN).limit == 256 - 31
    assert encoder_under(backbone, Mixture(((0.5, long),)), PLAIN).limit == 256 - 31
    assert encoder_under(backbone, None, PLAIN, one).limit == 256 - 31
    assert encoder_under(backbone, short, PLAIN).limit == 256 - 3
    even = backbone.capture("xx")
    assert encoder_under(backbone, Mixture(((0.5, even), (0.4, short))), PLAIN).limit == 256 - 4
    with pytest.warns(foreword.data.encode.Truncated, match="lost .* from its left"):
        found = generate(backbone, "ab" * 150, one, options(max_new_tokens=20))
    assert len(found[0][0]) > 5


def test_rows_are_moved_with_their_labels() -> None:
    backbone = begun()
    carries, leaves = backbone.capture("one text"), backbone.capture([9, 8, 7])
    task = Task("{a}", "{b}")
    for lead, other in ((carries, leaves), (leaves, carries)):
        rows, _ = encoder_under(backbone, lead, task).rows([{"a": "xy", "b": "z"}])
        expected, _ = encoder_under(backbone, other, task).rows([{"a": "xy", "b": "z"}])
        own, moved = rows_under(backbone, rows, Mixture(((0.3, lead), (0.7, other))))
        assert own == rows
        assert moved == expected != rows


def test_prefixes_that_do_not_fit_are_refused(
    tiny: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    smaller = foreword.Backbone(tiny_model(num_hidden_layers=2), byte_tokenizer(), name="smaller")
    with pytest.raises(MismatchError, match="made on 'smaller'"):
        generate(tiny, "x", Mixture(((1, prefixes[0]), (0, smaller.capture("abc")))))
    head = foreword.Head("classify", ("a", "b"), "last", torch.zeros(2, 32), torch.zeros(2))
    with pytest.raises(MismatchError, match="carries a head"):
        generate(tiny, "x", Mixture(((0.5, prefixes[0].to(torch.float32).with_head(head)),)))
    with pytest.raises(DataError, match="options must be"):
        generate(tiny, "x", Mixture(((0.5, prefixes[0]),)), 3)  # type: ignore[arg-type]


# -- every family --------------------------------------------------------------------------------

PROMPTS = ([5, 6, 7, 8, 9, 10, 11], [12, 13, 14])


def run(backbone: foreword.Backbone, mixture: Mixture, given: list[int], beams: int) -> None:
    """A batch of two prompts through transformers' `generate`."""
    decoder = backbone.kind == "decoder"
    inputs = (left_padded if decoder else right_padded)(PROMPTS, 0)
    begin = {} if decoder else {"decoder_input_ids": torch.tensor([given] * 2)}
    own = GenerateOptions(num_beams=beams)
    columns = 7 if decoder else len(given)
    with backbone.inferring(mixture.prefix) as attachment:
        mixed = processors(backbone, attachment, mixture, PROMPTS, 0, columns, own)
        backbone.model.generate(
            **inputs,
            **begin,
            max_new_tokens=5,
            num_beams=beams,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **mixed,
        )


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_every_family_of_decoders_is_mixed_by_the_formula(
    family: Family, beams: int, steps: list[tuple[Tensor, Tensor]]
) -> None:
    backbone = foreword.Backbone(family.build(attention_of(family)))
    one, two = (backbone.capture(list(range(first, first + 4))) for first in (20, 30))
    mixture = Mixture(((1.2, one), (-0.5, two)))
    run(backbone, mixture, [], beams)
    assert len(steps) == 5
    assert largest_error(backbone, mixture, PROMPTS, steps) < 1e-3


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ENCODER_DECODERS, ids=lambda family: family.name)
def test_every_family_of_encoder_decoders_is_mixed_by_the_formula(
    family: OtherFamily, beams: int, steps: list[tuple[Tensor, Tensor]]
) -> None:
    if not family.available:
        pytest.skip("not in this version of transformers")
    backbone = foreword.Backbone(family.build())
    one, two = (backbone.capture(list(range(first, first + 4))) for first in (20, 30))
    mixture = Mixture(((1.2, one), (-0.5, two)))
    run(backbone, mixture, [2], beams)
    assert len(steps) == 5
    assert largest_error(backbone, mixture, PROMPTS, steps) < 1e-3
