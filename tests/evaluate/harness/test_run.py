"""A prefix on tasks of lm-eval, beside the frozen model."""

from __future__ import annotations

import copy
import json
import logging
import random
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

import foreword
from foreword.errors import DataError, MismatchError, UnsupportedModel
from foreword.evaluate.harness import Tasks, evaluate_tasks, tasks_named
from foreword.evaluate.harness.quiet import hushed, seeded
from foreword.evaluate.scores import scores_of
from tests.conftest import byte_tokenizer
from tests.evaluate.harness.written import CHOICE, PAGE, ROWS, WRITE, written

TEXT = "Before all of it there was this text."


def folder_of_tasks(folder: Path) -> Path:
    for name, about in {"choice": CHOICE, "write": WRITE, "page": PAGE}.items():
        written(folder, name, about)
    return folder


def test_tasks_are_scored_beside_the_frozen_model(
    tiny: foreword.Backbone, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prefix = tiny.capture(TEXT)
    told: list[tuple[str, int, int]] = []
    folder = str(folder_of_tasks(tmp_path))
    found = evaluate_tasks(
        tiny, prefix, folder, batch_size=3, progress=lambda *one: told.append(one)
    )
    assert capfd.readouterr() == ("", "")
    assert found.rows == dict.fromkeys(("choice", "write", "page"), len(ROWS))
    for who, context in ((found.prefix, tiny.tokens(TEXT)), (found.base, [])):
        check_choices(tiny, who.results["choice"]["acc,none"], context)
        assert who.cut == 0
    with hushed():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        own = simple_evaluate(
            HFLM(tiny.model, tokenizer=copy.deepcopy(tiny.tokenizer), batch_size=3),
            tasks=["choice", "write", "page"],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            bootstrap_iters=100,
        )
    assert found.base is not None
    assert found.base.results == own["results"]
    assert found.prefix.results != found.base.results
    parts = [(what, total) for what, done, total in told if done == 0]
    scoring, generating = sum(len(row["choices"]) for row in ROWS), len(ROWS)
    assert parts[:3] == [
        ("with the prefix, scoring", scoring),
        ("with the prefix, scoring", len(ROWS)),
        ("with the prefix, generating", generating),
    ]
    assert [what for what, _ in parts[3:]] == [
        what.replace("with the prefix", "frozen model") for what, _ in parts[:3]
    ]
    assert [what for what, done, total in told if done == total] == [what for what, _ in parts]
    plain = found.as_json()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["prefix"]["samples"]["write"][0]["arguments"][0][0] == ROWS[0]["ask"]
    assert plain["digest"] == prefix.digest


def check_choices(backbone: foreword.Backbone, accuracy: float, before: list[int]) -> None:
    """The share of rows whose right choice is the likeliest, worked out by hand."""
    hits = 0
    for row in ROWS:
        values = []
        for choice in row["choices"]:
            given, text = (backbone.tokens(one) for one in (row["ask"], f" {choice}"))
            ids = [*before, *given, *text]
            told = torch.log_softmax(backbone.model(torch.tensor([ids])).logits[0], dim=-1)
            target = torch.tensor(text)[:, None]
            values.append(float(told[-len(text) - 1 : -1].gather(1, target).sum()))
        hits += values.index(max(values)) == row["right"]
    assert accuracy == pytest.approx(hits / len(ROWS))


def test_examples_are_the_same_for_both_and_at_every_time(
    tiny: foreword.Backbone, tmp_path: Path
) -> None:
    """Each run draws them from a generator that the task keeps."""
    shots = {"num_fewshot": 1, "fewshot_split": "test"}
    path = written(tmp_path, "shown", CHOICE, **shots)
    tasks, prefix = tasks_named(str(path)), tiny.capture(TEXT)
    first, second = (evaluate_tasks(tiny, prefix, tasks) for _ in range(2))
    assert first.base is not None
    asked_for = [
        [one["arguments"] for one in figures.samples["shown"]]
        for figures in (first.prefix, first.base, second.prefix)
    ]
    assert asked_for[0] == asked_for[1] == asked_for[2]
    assert first.shots == {"shown": 1}


def test_requests_are_turns_of_a_chat(tiny: foreword.Backbone, tmp_path: Path) -> None:
    shots = {"num_fewshot": 1, "fewshot_split": "test"}
    path = written(tmp_path, "turns", WRITE, **shots)
    prefix = tiny.capture(TEXT)
    found = evaluate_tasks(tiny, prefix, str(path), chat=True)
    assert found.chat
    with hushed():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        own = simple_evaluate(
            HFLM(tiny.model, tokenizer=copy.deepcopy(tiny.tokenizer)),
            tasks=["turns"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            bootstrap_iters=100,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    assert found.base is not None
    assert found.base.results == own["results"]
    asked = found.prefix.samples["turns"][0]["arguments"][0][0]
    assert asked == own["samples"]["turns"][0]["arguments"][0][0]
    turns = tiny.tokenizer.apply_chat_template(
        [{"role": "user", "content": ROWS[0]["ask"]}], tokenize=False, add_generation_prompt=True
    )
    assert asked.endswith(turns)
    assert len(asked) > len(turns)  # an example is a turn before it
    tiny.tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"'tiny' has no chat template; leave chat \(--chat\) out"):
        evaluate_tasks(tiny, prefix, str(path), chat=True)


def test_both_have_the_room_that_the_prefix_leaves(tiny: foreword.Backbone, tmp_path: Path) -> None:
    path = written(tmp_path, "long", CHOICE, description="so long " * 28)
    found = evaluate_tasks(tiny, tiny.capture("x" * 30), str(path), limit=2)
    assert found.base is not None
    assert found.rows == {"long": 2}
    assert found.prefix.cut == found.base.cut == 5
    path = written(tmp_path, "long-write", WRITE, description="so long " * 28)
    found = evaluate_tasks(tiny, tiny.capture("x" * 30), str(path), base=False)
    assert (found.prefix.cut, found.base) == (len(ROWS), None)
    path = written(tmp_path, "whole", CHOICE, doc_to_choice=["a" * 300, "b"])
    with pytest.raises(
        DataError, match="a text of 301 tokens is to be scored whole, and the context"
    ):
        evaluate_tasks(tiny, tiny.capture("x"), str(path))
    path = written(tmp_path, "most", WRITE, generation_kwargs={"max_gen_toks": 256})
    with pytest.raises(DataError, match=r"lm-eval could not run .*256.* must be less than"):
        evaluate_tasks(tiny, tiny.capture("x"), str(path))


def test_the_backbone_is_as_it_was(tiny: foreword.Backbone, tmp_path: Path) -> None:
    tiny.model.train()
    tiny.tokenizer.pad_token = None
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    drawn, level = torch.random.get_rng_state(), logging.getLogger("lm_eval").level
    evaluate_tasks(tiny, tiny.capture(TEXT), str(written(tmp_path, "one", WRITE)), limit=1)
    assert tiny.model.training
    assert tiny.tokenizer.pad_token is None
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert logging.getLogger("lm_eval").level == level


def test_metrics_without_a_formula_have_an_error_by_bootstrap(
    tiny: foreword.Backbone, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """lm-eval starts a process per core for it, and says so on standard output."""
    path = written(tmp_path, "f1", CHOICE, metric_list=[{"metric": "f1"}, {"metric": "acc"}])
    rows = [{**row, "choices": row["choices"][:2]} for row in ROWS]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    found = evaluate_tasks(tiny, tiny.capture(TEXT), str(path), base=False)
    figures = {metric: figure for _, metric, figure in found.prefix.figures()}
    assert set(figures) == {"f1", "acc"}
    assert all(figure.error is not None for figure in figures.values())
    assert capfd.readouterr() == ("", "")


def test_what_one_attached_prefix_cannot_be_is_refused(tiny: foreword.Backbone) -> None:
    one, other = tiny.capture("one"), tiny.capture("other")
    nothing = Tasks("none", {"tasks": {}, "groups": {}})
    with pytest.raises(
        DataError, match="a mixture of logits is 2 passes; put the prefixes together"
    ):
        evaluate_tasks(tiny, foreword.Mixture(((0.5, one), (0.5, other))), nothing)
    with pytest.raises(DataError, match="the frozen model alone"):
        evaluate_tasks(tiny, foreword.Mixture(((0.0, one),)), nothing)
    head = foreword.train(
        tiny,
        [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}],
        foreword.TrainSettings(steps=1),
    ).prefix
    with pytest.raises(MismatchError, match="this prefix carries a head for 'classify'"):
        evaluate_tasks(tiny, head, nothing)
    with pytest.raises(DataError, match="limit must be"):
        evaluate_tasks(tiny, one, nothing, limit=0)
    tiny.tokenizer = None
    with pytest.raises(DataError, match="a task of lm-eval needs a tokenizer; 'tiny' has none"):
        evaluate_tasks(tiny, one, nothing)


def test_attributes_are_chosen_first(tiny: foreword.Backbone, tmp_path: Path) -> None:
    rows = [{"text": " good", "kind": "a"}, {"text": " bad", "kind": "b"}]
    settings = foreword.TrainSettings(
        prompt="x", target="{text}", attributes="kind", length=2, attribute_length=2, steps=1
    )
    prefix = foreword.train(tiny, rows, settings).prefix
    path = str(written(tmp_path, "one", CHOICE))
    with pytest.raises(DataError, match=r"the attributes 'kind', .* prefix.select"):
        evaluate_tasks(tiny, prefix, path)
    assert evaluate_tasks(tiny, prefix.select(kind="a"), path, base=False, limit=1).rows == {
        "one": 1
    }


def test_an_encoder_is_refused() -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    model = BertModel(BertConfig(vocab_size=258, num_attention_heads=4, **sizes)).eval()
    bert = foreword.Backbone(model, byte_tokenizer(), name="bert")
    with pytest.raises(
        UnsupportedModel, match="a task of lm-eval needs a decoder or encoder-decoder"
    ):
        evaluate_tasks(bert, bert.capture("one"), Tasks("none", {"tasks": {}, "groups": {}}))


def test_seeds_are_given_back() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    with seeded(0, 1234, torch.device("cpu")):
        first = drawn()
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[2])
    with seeded(0, 1234, torch.device("cpu")):
        assert drawn() == first


def test_what_documents_hold_is_plain_in_json(tiny: foreword.Backbone, tmp_path: Path) -> None:
    prefix = tiny.capture(TEXT)
    path = str(written(tmp_path, "one", CHOICE))
    found = evaluate_tasks(tiny, prefix, path, base=False, limit=1)
    documents = {"one": [{"at": date(2026, 1, 2), "kinds": {3}, "mean": np.float32(0.5)}]}
    kept = replace(found, prefix=replace(found.prefix, samples=documents)).as_json()
    assert kept["prefix"]["samples"]["one"] == [{"at": "2026-01-02", "kinds": [3], "mean": 0.5}]
    with pytest.raises(DataError, match="of tasks of lm-eval, and a card shows those of a set"):
        scores_of(kept, prefix)


def test_a_prefix_may_leave_no_room(tiny: foreword.Backbone) -> None:
    nothing = Tasks("none", {"tasks": {}, "groups": {}})
    with pytest.raises(DataError, match="the prefix leaves 1 tokens of the context"):
        evaluate_tasks(tiny, tiny.capture("x" * 255), nothing)
