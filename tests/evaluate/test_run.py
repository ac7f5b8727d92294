"""`evaluate` against figures computed row by row, and what it makes of rows with one input."""

from __future__ import annotations

import json
import math
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword
from foreword.attention.attachment import attachment_of
from foreword.data import Task
from foreword.data.encode import Truncated
from foreword.errors import DataError, MismatchError
from foreword.evaluate import Evaluation, Metrics, evaluate, metrics
from foreword.evaluate import run as runner
from foreword.generate import GenerateOptions, generate
from foreword.prefix import Prefix
from tests.conftest import tiny_model

TASK = Task("{mr} ->", " {ref}")
OPTIONS = GenerateOptions(max_new_tokens=8, batch_size=5)


@pytest.fixture
def prefix(tiny: foreword.Backbone) -> Prefix:
    """A captured text whose recipe has the templates."""
    return tiny.capture("Restaurants in short: ").with_meta(recipe=TASK.as_json())


@pytest.fixture
def shared(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Four inputs with three, one, two and one references, not beside each other."""
    a, b, c, d = (dict(row) for row in rows[:4])
    more = [{**a, "ref": "Thai food is served."}, {**c, "ref": "Fish!"}, {**a, "ref": "Eat."}]
    return [a, b, more[0], c, d, more[1], more[2]]


def plain(
    backbone: foreword.Backbone, prefix: Prefix | None, rows: list[dict[str, str]]
) -> tuple[float, float, int]:
    """NLL per target token, accuracy and number of target tokens, one row at a time."""
    nll, hits, count = 0.0, 0, 0
    tokenizer = backbone.tokenizer
    for row in rows:
        prompt = tokenizer(f"{row['mr']} ->")["input_ids"]
        target = [*tokenizer(f" {row['ref']}")["input_ids"], tokenizer.eos_token_id]
        with backbone.attached(prefix), torch.no_grad():
            logits = backbone.model(torch.tensor([[*prompt, *target]])).logits[0]
        scores = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
        nll -= float(scores[range(len(target)), target].sum())
        hits += int((scores.argmax(-1) == torch.tensor(target)).sum())
        count += len(target)
    return nll / count, 100 * hits / count, count


def figures(found: Metrics | None) -> dict[str, float]:
    """All but the time."""
    assert found is not None
    return {name: value for name, value in vars(found).items() if name != "seconds"}


def test_figures_equal_those_computed_row_by_row(
    tiny: foreword.Backbone, prefix: Prefix, shared: list[dict[str, str]]
) -> None:
    found = evaluate(tiny, prefix, shared, options=OPTIONS)
    for own, used in ((found.prefix, prefix), (found.base, None)):
        assert own is not None
        nll, accuracy, targets = plain(tiny, used, shared)
        assert own.nll == pytest.approx(nll, rel=1e-6)
        assert own.perplexity == pytest.approx(math.exp(own.nll))
        assert own.token_accuracy == pytest.approx(accuracy)
        assert found.targets == targets
        assert own.seconds > 0
    assert found.prefix.nll != pytest.approx(plain(tiny, None, shared)[0], rel=1e-3)


def test_token_accuracy_counts_what_the_model_says_itself(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    asked = [f"{a}{b}" for a in "aeimquy" for b in string.ascii_letters]
    with tiny.attached(prefix), torch.no_grad():
        logits = tiny.model(torch.tensor(tiny.tokenizer(asked)["input_ids"])).logits[:, -1]
    answers = [tiny.tokenizer.decode([int(one)]) for one in logits.argmax(-1)]
    rows = [
        {"mr": mr, "ref": said}
        for mr, said in zip(asked, answers, strict=True)
        if len(said) == 1 and said.isascii() and said.isprintable() and said.strip()
    ]
    assert len(rows) > 3, "no row says anything that a text can hold"
    found = evaluate(tiny, prefix, rows, task=Task("{mr}", "{ref}"), options=OPTIONS)
    assert found.targets == 2 * len(rows)
    assert 50 <= found.prefix.token_accuracy < 100, "the letter is said, its end is not"
    assert found.prefix.exact_match == 0


def test_rows_with_one_input_are_its_references(
    tiny: foreword.Backbone,
    prefix: Prefix,
    shared: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    own = runner.generate_ids

    def counted(backbone: Any, prompts: Any, *rest: Any) -> Any:
        asked.append(len(prompts))
        return own(backbone, prompts, *rest)

    monkeypatch.setattr(runner, "generate_ids", counted)
    found = evaluate(tiny, prefix, shared, options=OPTIONS)
    assert asked == [4, 4], "once per input, for the prefix and for the frozen model"
    assert (found.rows, found.inputs) == (7, 4)
    assert found.prompts == [f"{row['mr']} ->" for row in (*shared[:2], *shared[3:5])]
    assert found.references == [
        [shared[0]["ref"], "Thai food is served.", "Eat."],
        [shared[1]["ref"]],
        [shared[3]["ref"], "Fish!"],
        [shared[4]["ref"]],
    ]
    rows = [{"mr": prompt.removesuffix(" ->")} for prompt in found.prompts]
    for used, outputs in ((prefix, found.outputs), (None, found.base_outputs)):
        assert [[text] for text in outputs] == generate(tiny, rows, used, OPTIONS, task=TASK)


def test_text_metrics_are_those_of_outputs_and_references(
    tiny: foreword.Backbone, prefix: Prefix, shared: list[dict[str, str]]
) -> None:
    first = evaluate(tiny, prefix, shared, options=OPTIONS)
    said = [
        {"mr": prompt.removesuffix(" ->"), "ref": text}
        for prompt, text in zip(first.prompts[:2], first.outputs[:2], strict=True)
    ]
    found = evaluate(tiny, prefix, [*said, *shared], options=OPTIONS)
    assert found.prefix.exact_match == 50
    for name in ("bleu", "chrf", "rouge_l", "exact_match"):
        metric = getattr(metrics, name)
        assert getattr(found.prefix, name) == metric(found.outputs, found.references)
        assert getattr(found.base, name) == metric(found.base_outputs, found.references)


def test_base_figures_are_those_of_the_frozen_model_alone(
    tiny: foreword.Backbone,
    prefix: Prefix,
    shared: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = evaluate(tiny, prefix, shared, options=OPTIONS)
    attached = type(tiny).attached
    monkeypatch.setattr(type(tiny), "attached", lambda self, _: attached(self, None))
    alone = evaluate(tiny, prefix, shared, options=OPTIONS, base=False)
    assert figures(found.base) == figures(alone.prefix)
    assert found.base_outputs == alone.outputs
    assert figures(found.prefix) != figures(found.base)
    assert (alone.base, alone.base_outputs) == (None, [])


def test_both_models_see_the_same_text(tiny: foreword.Backbone, prefix: Prefix) -> None:
    room = tiny.context - prefix.length - len("ref") - 2
    rows = [{"mr": "m" * room, "ref": "ref"}, {"mr": "m", "ref": "ref"}]
    with pytest.warns(Truncated):
        found = evaluate(tiny, prefix, rows, options=OPTIONS)
    assert (found.truncation.truncated_rows, found.truncation.truncated_tokens) == (1, 3)
    assert found.base is not None
    cut = [{**rows[0], "mr": rows[0]["mr"][3:]}, rows[1]]
    assert found.base.nll == pytest.approx(plain(tiny, None, cut)[0], rel=1e-6)
    assert found.prefix.nll == pytest.approx(plain(tiny, prefix, cut)[0], rel=1e-6)


def test_a_limit_keeps_the_first_inputs_with_all_their_references(
    tiny: foreword.Backbone, prefix: Prefix, shared: list[dict[str, str]]
) -> None:
    found = evaluate(tiny, prefix, shared, options=OPTIONS, base=False, limit=1)
    assert (found.inputs, found.rows) == (1, 3)
    assert found.prefix.nll == pytest.approx(
        plain(tiny, prefix, [shared[0], shared[2], shared[6]])[0], rel=1e-6
    )
    whole = evaluate(tiny, prefix, shared, options=OPTIONS, base=False, limit=99)
    assert (whole.inputs, whole.rows) == (4, 7)
    for limit in (0, -1):
        with pytest.raises(DataError, match=f"limit must be at least 1; found {limit}"):
            evaluate(tiny, prefix, shared, limit=limit)


def test_of_each_input_so_many_references_are_scored_and_all_are_compared_with(
    tiny: foreword.Backbone, prefix: Prefix, shared: list[dict[str, str]]
) -> None:
    whole = evaluate(tiny, prefix, shared, options=OPTIONS)
    found = evaluate(tiny, prefix, shared, options=OPTIONS, scored_references=1)
    assert (found.inputs, found.rows) == (4, 4)
    for own, used, all_of_it in (
        (found.prefix, prefix, whole.prefix),
        (found.base, None, whole.base),
    ):
        assert own is not None
        assert own.nll == pytest.approx(plain(tiny, used, [*shared[:2], *shared[3:5]])[0], rel=1e-6)
        for name in ("bleu", "chrf", "rouge_l", "exact_match"):
            assert getattr(own, name) == getattr(all_of_it, name)
    assert found.references == whole.references
    with pytest.raises(DataError, match="scored_references must be at least 1; found 0"):
        evaluate(tiny, prefix, shared, scored_references=0)


def test_who_asks_is_told_how_far_it_is(
    tiny: foreword.Backbone, prefix: Prefix, shared: list[dict[str, str]]
) -> None:
    told: list[tuple[str, int, int]] = []
    options = replace(OPTIONS, batch_size=3)
    evaluate(tiny, prefix, shared, options=options, progress=lambda *each: told.append(each))
    assert told == [
        (f"{who}, {what}", done, total)
        for who in ("with the prefix", "frozen model")
        for what, total in (("scoring", 7), ("generating", 4))
        for done in (*range(0, total, 3), total)
    ]


def test_the_batch_size_changes_nothing(
    tiny: foreword.Backbone, prefix: Prefix, shared: list[dict[str, str]]
) -> None:
    found = evaluate(tiny, prefix, shared, options=OPTIONS)
    alone = evaluate(tiny, prefix, shared, options=replace(OPTIONS, batch_size=1))
    assert figures(found.prefix) == pytest.approx(figures(alone.prefix), rel=1e-6)
    assert found.outputs == alone.outputs


def chat_rows() -> list[dict[str, Any]]:
    def turns(*contents: str) -> dict[str, Any]:
        roles = ("user", "assistant") * 3
        pairs = zip(roles, contents, strict=False)
        return {"messages": [{"role": role, "content": text} for role, text in pairs]}

    return [
        turns("Hi?", "Hello.", "Why?", "So."),
        turns("Hi?", "Hello.", "Why?", "Because.", "Thanks."),
        turns("Hi?", "Yes."),
    ]


def test_conversations_are_grouped_by_what_is_asked_last(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    chat = prefix.with_meta(recipe={"prompt": None, "target": None})
    found = evaluate(tiny, chat, chat_rows(), options=OPTIONS)
    assert found.prompts == ["user: Hi?\nassistant: Hello.\nuser: Why?", "user: Hi?"]
    assert found.references == [["So.", "Because."], ["Yes."]]
    assert found.targets == sum(map(len, ("Hello.", "So.", "Hello.", "Because.", "Yes."))) + 5
    asked = [{"messages": row["messages"][:-1]} for row in (chat_rows()[0], chat_rows()[2])]
    expected = generate(tiny, asked, chat, OPTIONS)
    assert [[text] for text in found.outputs] == expected


def test_other_weights_are_warned_of_and_recorded(
    tiny: foreword.Backbone, prefix: Prefix, shared: list[dict[str, str]]
) -> None:
    assert evaluate(tiny, prefix, shared, options=OPTIONS, limit=1).same_weights
    other = foreword.Backbone(tiny_model(seed=1), tiny.tokenizer, name="other")
    with pytest.warns(foreword.OtherWeights):
        found = evaluate(other, prefix, shared, options=OPTIONS, limit=1)
    assert (found.backbone, found.same_weights) == ("other", False)
    with pytest.raises(MismatchError, match="--strict"):
        evaluate(other, prefix, shared, options=OPTIONS, limit=1, strict=True)


def test_rows_come_from_a_file_and_figures_go_to_json(
    tiny: foreword.Backbone, prefix: Prefix, shared: list[dict[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, shared)))
    found = evaluate(tiny, prefix, str(path), options=OPTIONS)
    direct = evaluate(tiny, prefix, shared, options=OPTIONS)
    assert isinstance(found, Evaluation)
    assert figures(found.prefix) == figures(direct.prefix)
    written = json.loads(json.dumps(found.as_json()))
    assert written["prefix"]["nll"] == found.prefix.nll
    assert written["truncation"] == {"rows": 7, "truncated_rows": 0, "truncated_tokens": 0}
    assert written["references"] == found.references


def test_the_model_is_left_as_it_was_found(
    tiny: foreword.Backbone, prefix: Prefix, shared: list[dict[str, str]]
) -> None:
    before = (tiny.model.config._attn_implementation, sorted(tiny.model.__dict__))
    evaluate(tiny, prefix, shared, options=OPTIONS)
    assert attachment_of(tiny.model) is None
    assert (tiny.model.config._attn_implementation, sorted(tiny.model.__dict__)) == before


WRONG: list[tuple[list[dict[str, Any]], Task, str]] = [
    ([], TASK, "the data has no rows"),
    ([{"mr": "m", "ref": "r"}, {"mr": "m"}], TASK, "row 2 has no column 'ref'; .* are: mr"),
    ([{"mr": "m", "ref": "r" * 300}], TASK, "row 1: its target has 302 tokens"),
    ([{"mr": "m", "ref": "r"}], Task(), "row 1 has no column 'messages'"),
    ([{"messages": "hello"}], Task(), "row 1: its messages must be a list of turns"),
    ([{"messages": [{"role": "user"}]}], Task(), "row 1: turn 1 of its messages must have role"),
    ([{"messages": chat_rows()[0]["messages"][:1]}], Task(), "row 1: its messages have no assist"),
]


@pytest.mark.parametrize(("rows", "task", "message"), WRONG)
def test_rows_that_cannot_be_scored_are_named(
    tiny: foreword.Backbone,
    prefix: Prefix,
    rows: list[dict[str, Any]],
    task: Task,
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(tiny, prefix, rows, options=OPTIONS, task=task)


def test_a_prefix_of_another_model_is_refused(
    tiny: foreword.Backbone, prefix: Prefix, shared: list[dict[str, str]]
) -> None:
    other = foreword.Backbone(tiny_model(num_hidden_layers=2), tiny.tokenizer)
    with pytest.raises(MismatchError):
        evaluate(other, prefix, shared)
