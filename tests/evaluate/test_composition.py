"""The report of a composition: the figures are those that `evaluate` and `train` give one by one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import foreword
from foreword.card import card
from foreword.compose import compose, operands
from foreword.errors import DataError, PrefixError, TrainingError
from foreword.evaluate.composition import (
    SeenInTraining,
    compose_report,
    joint_settings,
    with_report,
)
from foreword.evaluate.reported import CompositionReport, recipe_of, report_of
from foreword.prefix import Prefix
from tests.conftest import MEMORY, byte_tokenizer, tiny_model

SETTINGS = foreword.TrainSettings(
    prompt="{mr} ->", target=" {ref}", length=4, steps=2, init_text="Say what it is."
)
HEADED = foreword.TrainSettings(prompt="{mr}", target="{food}", task="classify", length=3, steps=2)
OPTIONS = foreword.GenerateOptions(max_new_tokens=3)
HELD_OUT = MEMORY[8:10]
NAMES = ("nll", "perplexity", "token_accuracy", "bleu", "chrf", "rouge_l", "exact_match")


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def stored(backbone: foreword.Backbone) -> dict[str, Prefix]:
    """Prefixes a and b, which started alike."""
    return {
        name: foreword.train(backbone, rows, SETTINGS).prefix
        for name, rows in (("a", MEMORY[:4]), ("b", MEMORY[4:8]))
    }


@pytest.fixture(scope="module")
def whole(backbone: foreword.Backbone, stored: dict[str, Prefix]) -> CompositionReport:
    """The report of a - 0.5*b with a jointly trained prefix."""
    load = stored.__getitem__
    made, parts = compose("a - 0.5*b", load), operands("a - 0.5*b", load)
    told: list[CompositionReport] = []
    report = compose_report(
        backbone,
        made,
        parts,
        HELD_OUT,
        name="mine",
        train_rows=MEMORY[:6],
        options=OPTIONS,
        so_far=told.append,
    )
    assert told == [dataclasses.replace(report, models=report.models[:-1], joint=None)]
    return report


def figures(backbone: foreword.Backbone, prefix: Prefix, *, base: bool = False) -> dict[str, float]:
    found = foreword.evaluate(backbone, prefix, HELD_OUT, options=OPTIONS)
    chosen = found.base if base else found.prefix
    return {name: getattr(chosen, name) for name in NAMES}


def test_every_figure_is_that_of_evaluate(
    backbone: foreword.Backbone, stored: dict[str, Prefix], whole: CompositionReport
) -> None:
    made = compose("a - 0.5*b", stored.__getitem__)
    joint = foreword.train(
        backbone, MEMORY[:6], dataclasses.replace(SETTINGS, task="causal")
    ).prefix
    wanted = [
        ("base", "frozen model", "", figures(backbone, made, base=True)),
        ("part", "a", stored["a"].digest, figures(backbone, stored["a"])),
        ("part", "b", stored["b"].digest, figures(backbone, stored["b"])),
        ("composition", "mine", made.digest, figures(backbone, made)),
        ("joint", "trained jointly", "", figures(backbone, joint)),
    ]
    assert [(m.role, m.name, m.digest, m.figures) for m in whole.models] == wanted
    assert (whole.rows, whole.inputs, whole.data, whole.task) == (2, 2, "rows", "text")
    assert whole.joint == {"data": joint.meta.training["data"], "rows": 6, "steps": 2}
    assert [name for _, name, _ in whole.figures] == list(NAMES)


def test_without_rows_there_is_no_upper_bound(
    backbone: foreword.Backbone, stored: dict[str, Prefix]
) -> None:
    load = stored.__getitem__
    report = compose_report(
        backbone, compose("a[:2]", load), operands("a[:2]", load), HELD_OUT, options=OPTIONS
    )
    assert report.joint is None
    assert "no upper bound" in report.about
    assert [model.role for model in report.models] == ["base", "part", "composition"]
    part, made = report.models[1:]
    assert part.figures == made.figures


def test_a_mixture_is_reported_as_the_mixture_that_it_is(
    backbone: foreword.Backbone, stored: dict[str, Prefix]
) -> None:
    load = stored.__getitem__
    made = compose("1.5*a - 0.5*b", load, mode="logits")
    parts = operands("1.5*a - 0.5*b", load)
    report = compose_report(backbone, made, parts, HELD_OUT, options=OPTIONS)
    mixture = foreword.Mixture(((1.5, stored["a"]), (-0.5, stored["b"])))
    found = foreword.evaluate(backbone, mixture, HELD_OUT, options=OPTIONS, base=False)
    assert report.models[-1].figures["nll"] == found.prefix.nll


def test_prefixes_with_heads(backbone: foreword.Backbone) -> None:
    rows = [{**row, "food": row["mr"].split("[")[2].rstrip("]")} for row in MEMORY]
    stored = {
        name: foreword.train(backbone, own, HEADED).prefix
        for name, own in (("a", rows[:6]), ("b", rows[6:]))
    }
    load = stored.__getitem__
    made = compose("a + b", load)
    with pytest.warns(SeenInTraining, match="3 of 12 inputs"):
        report = compose_report(backbone, made, operands("a + b", load), rows, train_rows=rows[:3])
    assert report.task == "classify"
    by_hand = foreword.evaluate(backbone, made, rows)
    for model, found in ((report.models[0], by_hand.base), (report.models[3], by_hand.prefix)):
        assert model.figures == {k: v for k, v in found.items() if k != "seconds"}
    assert report.models[4].role == "joint"
    assert report_of(with_report(made, report)) == report


def test_the_file_has_the_report_and_the_digest_covers_it(
    tmp_path: Path, stored: dict[str, Prefix], whole: CompositionReport
) -> None:
    made = compose("a - 0.5*b", stored.__getitem__)
    reported = with_report(made, whole)
    assert reported.digest != made.digest
    foreword.save_prefix(reported, tmp_path / "made.safetensors")
    loaded = foreword.load_prefix(tmp_path / "made.safetensors")
    assert loaded.digest == reported.digest
    assert report_of(loaded) == whole
    assert recipe_of(loaded) == made.meta.recipe
    assert all(torch.equal(a, b) for a, b in zip(loaded.tensors, made.tensors, strict=True))
    other = dataclasses.replace(whole, rows=3)
    assert with_report(made, other).digest != reported.digest
    assert with_report(reported, other).digest == with_report(made, other).digest


def test_what_is_made_of_a_reported_composition_has_no_report(
    stored: dict[str, Prefix], whole: CompositionReport
) -> None:
    reported = with_report(compose("a - 0.5*b", stored.__getitem__), whole)
    assert report_of(reported) == whole
    assert report_of(reported[:2]) is None
    assert report_of(0.5 * reported) is None
    assert recipe_of(stored["a"]) == stored["a"].meta.recipe


@pytest.mark.parametrize("change", ["strength", "to", "moved"])
def test_a_report_is_not_that_of_what_a_composition_was_changed_to(
    tmp_path: Path,
    backbone: foreword.Backbone,
    stored: dict[str, Prefix],
    whole: CompositionReport,
    change: str,
) -> None:
    reported = with_report(compose("a - 0.5*b", stored.__getitem__), whole)
    other = {
        "strength": lambda: reported.strength(0.5),
        "to": lambda: reported.to(torch.bfloat16),
        "moved": lambda: backbone.moved(reported, "offset"),
    }[change]()
    assert "report" in other.meta.recipe["composition"]
    foreword.save_prefix(other, tmp_path / "other.safetensors")
    loaded = foreword.load_prefix(tmp_path / "other.safetensors")
    assert report_of(other) is report_of(loaded) is None
    assert recipe_of(loaded) == recipe_of(reported)
    text = card(loaded, "me/other")
    assert "Beside its parts" not in text
    assert '"report"' not in text


def test_a_report_on_a_reported_composition_is_on_that_composition(
    backbone: foreword.Backbone, stored: dict[str, Prefix], whole: CompositionReport
) -> None:
    made = compose("a - 0.5*b", stored.__getitem__)
    report = compose_report(
        backbone, with_report(made, whole), {"a": stored["a"]}, HELD_OUT, options=OPTIONS
    )
    assert report.models[-1].digest == made.digest
    assert report_of(with_report(made, report)) == report


def test_the_joint_prefix_of_a_selection_has_no_attributes(
    backbone: foreword.Backbone, stored: dict[str, Prefix]
) -> None:
    rows = [{**row, "mood": ("good", "bad")[i % 2]} for i, row in enumerate(MEMORY[:4])]
    settings = dataclasses.replace(SETTINGS, attributes="mood", attribute_length=2, steps=1)
    control = foreword.train(backbone, rows, settings).prefix
    load = {**stored, "c": control}.__getitem__
    made = compose("c[mood=good] + a", load, mode="concat")
    assert made.meta.recipe["attributes"] == "mood"
    joint = joint_settings(made, steps=1)
    assert (joint.attributes, joint.attribute_length, joint.length) == (None, None, 10)
    report = compose_report(
        backbone,
        made,
        {"a": stored["a"]},
        HELD_OUT,
        train_rows=MEMORY[:4],
        settings=joint,
        options=OPTIONS,
    )
    assert report.models[-1].role == "joint"


def test_the_card_has_the_report(stored: dict[str, Prefix], whole: CompositionReport) -> None:
    models = (dataclasses.replace(whole.models[0], name="x | `y`"), *whole.models[1:])
    reported = with_report(
        compose("a - 0.5*b", stored.__getitem__), dataclasses.replace(whole, models=models)
    )
    text = card(reported, "me/mine")
    line = next(line for line in text.splitlines() if line.startswith("| `mine` |"))
    cells = [form.format(whole.models[3].figures[name]) for _, name, form in whole.figures]
    assert line == f"| `mine` | {' | '.join(cells)} |"
    assert "| `x / \\u0060y\\u0060` |" in text
    assert "The joint prefix took 2 steps on 6 rows." in text
    assert '"report"' not in text
    assert "Beside its parts" not in card(stored["a"], "me/mine")


@pytest.mark.parametrize(
    "change",
    [
        {"models": []},
        {"models": [{}]},
        {"models": [7]},
        {"models": [{"role": "boss", "name": "a", "digest": "", "figures": {}}]},
        {"models": [{"role": "part", "name": 3, "digest": "", "figures": {}}]},
        {"models": [{"role": "part", "name": "a", "digest": "", "figures": {"nll": "1"}}]},
        {"models": [{"role": "part", "name": "a", "digest": "", "figures": None}]},
        {"rows": 2.5},
        {"inputs": True},
        {"data": None},
        {"task": ["text"]},
        {"task": "cook"},
        {"joint": {"steps": "2", "rows": 6}},
        {"joint": []},
        {"tokenisation": {"bleu": "none"}},
        {"tokenisation": 3},
    ],
)
def test_what_is_no_report_is_not_shown(
    stored: dict[str, Prefix], whole: CompositionReport, change: dict[str, object]
) -> None:
    made = with_report(compose("a - 0.5*b", stored.__getitem__), whole)
    record = made.meta.recipe["composition"]
    broken = {**record, "report": {**record["report"], **change}}
    odd = made.with_meta(recipe={**made.meta.recipe, "composition": broken})
    assert report_of(odd) is None
    assert recipe_of(odd)["composition"] == broken
    assert report_of(made.with_meta(recipe={"composition": {"report": "fine"}})) is None
    assert report_of(made.with_meta(recipe={"composition": "sum"})) is None


def test_inputs_that_were_trained_on_are_a_warning(
    backbone: foreword.Backbone, stored: dict[str, Prefix]
) -> None:
    load = stored.__getitem__
    made, parts = compose("a + b", load), operands("a + b", load)
    settings = joint_settings(made, steps=1)
    with pytest.warns(SeenInTraining, match="1 of 2 inputs of the report"):
        compose_report(
            backbone,
            made,
            parts,
            HELD_OUT,
            train_rows=HELD_OUT[:1],
            settings=settings,
            options=OPTIONS,
        )


def test_the_joint_training_is_that_of_the_first_part(stored: dict[str, Prefix]) -> None:
    made = compose("a + b", stored.__getitem__, mode="concat")
    plain = dataclasses.replace(SETTINGS, length=8, task="causal")
    assert joint_settings(made) == plain
    assert joint_settings(made, epochs=2.0, steps=None, lr=0.5) == dataclasses.replace(
        plain, steps=None, epochs=2.0, lr=0.5
    )
    recipe = {**made.meta.recipe, "init": "formal", "init_text": None, "early_stop": 3}
    assert joint_settings(made.with_meta(recipe=recipe)) == dataclasses.replace(
        plain, init_text=None
    )
    with pytest.raises(TrainingError, match="no setting 'step'"):
        joint_settings(made, step=1)
    with pytest.raises(TrainingError, match="lr must be above 0"):
        joint_settings(made, lr=-1.0)
    with pytest.raises(TrainingError, match="recipe does not say how to train"):
        joint_settings(made.with_meta(recipe={"prompt": "{"}))


def test_what_is_refused(
    backbone: foreword.Backbone, stored: dict[str, Prefix], whole: CompositionReport
) -> None:
    made = compose("a + b", stored.__getitem__)
    with pytest.raises(DataError, match="needs the parts"):
        compose_report(backbone, made, {}, HELD_OUT)
    with pytest.raises(DataError, match="parts must be prefixes by name"):
        compose_report(backbone, made, [made], HELD_OUT)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="give its rows too"):
        compose_report(backbone, made, stored, HELD_OUT, settings=SETTINGS)
    with pytest.raises(PrefixError, match="was not composed of others"):
        with_report(stored["a"], whole)
    with pytest.raises(PrefixError, match=f"on another prefix than .* {made.digest[:12]}"):
        with_report(made, whole)
