"""A whole comparison on a tiny backbone, its figures against the library used by hand."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword
from foreword.compare import trials
from foreword.compare.plan import Asked, Plan
from foreword.compare.quality import NEUTRAL, Judge, frozen_one, neutral_rows
from foreword.compare.result import Comparison
from foreword.compare.run import compare, compare_one
from foreword.compare.split import split
from foreword.errors import DataError, TrainingError
from foreword.evaluate.run import scored
from foreword.methods.registry import OWN
from foreword.objectives.encode import encode
from foreword.objectives.settings import DataSettings
from foreword.train.fit import fit
from foreword.train.settings import LoopSettings
from foreword.train.trainer import LearnerTrainer
from tests.conftest import byte_tokenizer, tiny_model
from tests.methods.test_prompt_kinds import pair
from tests.tasks.models import tiny_encoder

TEXT = DataSettings(prompt="{mr} ->", target=" {ref}")
ROWS: list[Any] = [
    {"mr": f"name[{name}], food[{food}]", "ref": f"{name} serves {food} food."}
    for name in ("Zizzi", "Aromi", "Fitzbillies", "Cotto", "Bibimbap", "Wildwood")
    for food in ("Thai", "Greek", "fish", "Indian", "French")
]
ASKED = Asked(("prefix", "lora", "frozen", "in-context"), 3000, steps=3, seeds=2, max_new_tokens=4)


def backbone() -> foreword.Backbone:
    return foreword.Backbone(
        tiny_model(max_position_embeddings=1400), byte_tokenizer(), name="tiny"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def found(folder: Path) -> Comparison:
    plans: list[Plan] = []
    made = compare(
        backbone(),
        ROWS,
        TEXT,
        ASKED,
        folder=folder,
        command="foreword compare x",
        planned=plans.append,
    )
    assert [plan.steps for plan in plans] == [3]
    return made


def side(found: Comparison, name: str) -> Any:
    return next(one for one in found.sides if one.name == name)


def test_every_side_has_its_figures(found: Comparison) -> None:
    assert [one.name for one in found.sides] == list(ASKED.methods)
    assert all(one.failed is None for one in found.sides)
    for name in ("prefix", "lora"):
        one = side(found, name)
        assert 1500 < one.trained <= 3000
        assert [seed.seed for seed in one.seeds] == [0, 1]
        assert {tried.optimizer for tried in one.search} == {"soap", "adamw"}
        assert set(one.seeds[0].forgotten) == set(NEUTRAL)
        assert one.stored_bytes > 4 * one.trained
        assert set(one.latency.decode) == {1, 32}
    assert side(found, "lora").merged is not None
    assert side(found, "prefix").merged is None
    assert len(side(found, "frozen").seeds) == 1
    assert len(side(found, "in-context").seeds) == 2
    assert json.loads(json.dumps(found.as_json()))["sides"]


def test_its_figures_are_those_of_the_library_used_by_hand(found: Comparison) -> None:
    """The first seed at the chosen rate, trained and evaluated without any of this."""
    one = side(found, "prefix")
    model = backbone()
    made = split(ROWS, dataclasses.replace(TEXT, task="causal"))
    settings = foreword.TrainSettings(
        **{**one.settings, "optimizer": one.optimizer, "lr": one.rate, "steps": 3}
    )
    prefix = foreword.train(model, made.train, settings).prefix
    for rows, expected in (
        (made.held, one.seeds[0].held),
        (made.test, one.seeds[0].figures["nll"]),
    ):
        options = foreword.GenerateOptions(max_new_tokens=4)
        evaluated = foreword.evaluate(model, prefix, rows, options=options)
        assert isinstance(evaluated, foreword.Evaluation)
        assert evaluated.prefix.nll == pytest.approx(expected, rel=1e-5)
    assert evaluated.base is not None
    assert evaluated.base.nll == pytest.approx(
        side(found, "frozen").seeds[0].figures["nll"], rel=1e-5
    )
    assert evaluated.prefix.chrf == pytest.approx(one.seeds[0].figures["chrf"], abs=1e-6)


def test_what_is_forgotten_is_the_nll_of_neutral_text_by_hand(found: Comparison) -> None:
    one = side(found, "lora")
    model = backbone()
    known = OWN["lora"]
    settings = known.settings(**one.settings)
    loop = LoopSettings(optimizer=one.optimizer, lr=one.rate, steps=3)
    made = split(ROWS, dataclasses.replace(TEXT, task="causal"))
    fitted = fit(model, made.train, known.method, settings, loop)
    rows = [row for row in neutral_rows("instructions") if sum(map(len, row.values())) < 200]

    def nll(changed: Any) -> float:
        total, count = 0.0, 0
        for row in rows:
            prompt = f"{row['instruction']}\n{row['input']}\n"
            begin = changed.tokenizer(prompt)["input_ids"]
            end = changed.tokenizer(row["output"], add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*begin, *end, changed.tokenizer.eos_token_id]])
            with torch.no_grad():
                logits = changed.model(ids).logits[0, len(begin) - 1 : -1]
            losses = torch.nn.functional.cross_entropy(
                logits, ids[0, len(begin) :], reduction="sum"
            )
            total, count = total + float(losses), count + len(end) + 1
        return total / count

    with fitted.start.applied(fitted.value) as applied:
        after = nll(applied.backbone)
    like = model.capture("x").with_meta(recipe=settings.as_json())
    judge = Judge(model, settings, like)
    with fitted.start.applied(fitted.value) as applied:
        measured = judge._nll(applied, rows, NEUTRAL["instructions"])
    assert measured == pytest.approx(after, rel=1e-4)
    before = judge._nll(frozen_one(model), rows, NEUTRAL["instructions"])
    assert before == pytest.approx(nll(model), rel=1e-4)


def test_what_was_measured_is_not_measured_again(
    found: Comparison, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "fit", lambda *_, **__: pytest.fail("it was trained again"))
    told: list[str] = []
    again = compare(
        backbone(), ROWS, TEXT, ASKED, folder=folder, command="foreword compare x", tell=told.append
    )
    assert again == found
    assert told == []


def test_a_comparison_that_was_killed_goes_on(found: Comparison, tmp_path: Path) -> None:
    """Whatever stops it, at most the run under way is lost."""

    class Killed(BaseException):
        pass

    told: list[str] = []

    def kill(what: str) -> None:
        told.append(what)
        if len(told) == 7:
            raise Killed

    asked = dataclasses.replace(ASKED, methods=("prefix",))
    with pytest.raises(Killed):
        compare(backbone(), ROWS, TEXT, asked, folder=tmp_path, tell=kill)
    rest: list[str] = []
    again = compare(backbone(), ROWS, TEXT, asked, folder=tmp_path, tell=rest.append)
    assert not set(told[:-1]) & set(rest)
    assert rest[0] == told[-1]
    for mine, theirs in zip(again.sides[0].seeds, side(found, "prefix").seeds, strict=True):
        assert (mine.held, mine.figures) == (theirs.held, theirs.figures)


def test_a_run_is_made_again_by_its_command(found: Comparison, tmp_path: Path) -> None:
    seed = side(found, "lora").seeds[1]
    assert seed.command.startswith("foreword compare x --only 'lora ")
    run = seed.command.partition("--only ")[2].strip("'")
    again = compare_one(backbone(), ROWS, TEXT, ASKED, run, folder=tmp_path)
    assert (again.held, again.figures) == (seed.held, seed.figures)
    # Beside no other method: what the frozen model makes of neutral text is measured without this one.
    assert again.forgotten == seed.forgotten
    assert any(seed.forgotten.values())
    with pytest.raises(TrainingError, match="is no run that is trained; expected"):
        compare_one(backbone(), ROWS, TEXT, ASKED, "lora", folder=tmp_path)
    timed = dataclasses.replace(ASKED, steps=None)
    with pytest.raises(TrainingError, match="needs its number of steps"):
        compare_one(backbone(), ROWS, TEXT, timed, run, folder=tmp_path)


def test_a_method_that_fails_is_told_of_and_the_rest_goes_on(tmp_path: Path) -> None:
    asked = Asked(
        ("adapter", "prompt-tuning", "full"), budget=50, steps=1, seeds=1, max_new_tokens=2
    )
    made = compare(backbone(), ROWS, TEXT, asked, folder=tmp_path)
    assert "more than the budget of 50" in str(made.sides[0].failed)
    assert made.sides[1].failed is None
    assert any("times the budget of 50" in said for said in made.unequal)


def test_labels_are_compared_too(tmp_path: Path) -> None:
    rows = [
        {"text": f"{word} {number}", "label": label}
        for number in range(20)
        for word, label in (("good", "yes"), ("bad", "no"))
    ]
    asked = Asked(("prefix", "lora", "frozen"), steps=2, seeds=1)
    made = compare(tiny_encoder(), rows, DataSettings(), asked, folder=tmp_path)
    assert made.metric.name == "accuracy"
    prefix, lora, frozen = made.sides
    assert "needs a head" in str(frozen.failed)
    for one in (prefix, lora):
        assert one.failed is None
        assert 0 <= one.seeds[0].figures["accuracy"] <= 100
        assert one.seeds[0].forgotten == {}


def test_prompts_on_an_encoder_are_compared_too(tmp_path: Path) -> None:
    """More virtual tokens than a prefix has, and texts that fill what is left of the context."""
    long = " ".join(["and on"] * 24)
    rows = [
        {"text": f"{word} {number} {long}", "label": label}
        for number in range(20)
        for word, label in (("good", "yes"), ("bad", "no"))
    ]
    asked = Asked(("prompt-tuning",), 3000, steps=1, seeds=1)
    (prompt,) = compare(tiny_encoder(), rows, DataSettings(), asked, folder=tmp_path).sides
    assert prompt.failed is None
    assert prompt.settings["length"] == 64  # half of the context, below the budget
    assert prompt.trained == 64 * 32 + 66
    assert prompt.memory_bytes == tiny_encoder().weight_bytes + 100 * 4 * prompt.trained
    assert 0 <= prompt.seeds[0].figures["accuracy"] <= 100
    assert prompt.traits == OWN["prompt-tuning"].traits_for(tiny_encoder())
    assert prompt.latency is not None
    assert set(prompt.latency.prefill) == {1, 32}


def test_prompts_on_an_encoder_decoder_are_compared_too(tmp_path: Path) -> None:
    """Figures and what is forgotten against the library used by hand."""
    asked = Asked(("prompt-tuning",), 3000, steps=2, seeds=1, max_new_tokens=4)
    (prompt,) = compare(pair("bart"), ROWS, TEXT, asked, folder=tmp_path).sides
    assert prompt.failed is None
    assert prompt.trained is not None
    assert prompt.trained <= 3000
    assert prompt.optimizer is not None
    assert prompt.rate is not None
    known, backbone = OWN["prompt-tuning"], pair("bart")
    loop = LoopSettings(optimizer=prompt.optimizer, lr=prompt.rate, steps=2)
    parts = split(ROWS, dataclasses.replace(TEXT, task="seq2seq"))
    settings = known.settings(**prompt.settings)
    fitted = fit(backbone, parts.train, known.method, settings, loop)
    encoded = encode(backbone, parts.test, settings, fitted.start.in_front)[0]
    with fitted.start.applied(fitted.value) as applied:
        nll = scored(applied.backbone, None, encoded, 4)[0]
    assert nll == pytest.approx(prompt.seeds[0].figures["nll"], rel=1e-5)
    assert any(prompt.seeds[0].forgotten.values())


def plan_of(model: foreword.Backbone, asked: Asked, folder: Path) -> Plan:
    """What a comparison of the rows would do, which is stopped before it begins."""
    plans: list[Plan] = []

    class Enough(Exception):
        pass

    def stop(plan: Plan) -> None:
        plans.append(plan)
        raise Enough

    with pytest.raises(Enough):
        compare(model, ROWS, TEXT, asked, folder=folder, planned=stop)
    (plan,) = plans
    return plan


def test_time_decides_the_steps(tmp_path: Path) -> None:
    few, many = (
        plan_of(
            backbone(), Asked(("prefix",), minutes=minutes, seeds=1, max_new_tokens=2), tmp_path
        )
        for minutes in (0.001, 10_000.0)
    )
    assert few.steps == many.steps == 10  # the least, and three passes over 14 rows
    assert "more than the 0.001 allowed" in str(few)
    assert "allowed" not in str(many)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"methods": ("lorra",)}, "there is no method 'lorra'"),
        ({"methods": ("lora", "lora")}, "each once"),
        ({"minutes": 0.0}, "minutes must be above 0"),
        ({"seeds": 0}, "seeds must be"),
        ({"budget": 0}, "budget must be"),
        ({"rows": 0}, "rows must be"),
        ({"methods": ("frozen+length=3",)}, "there is no method 'frozen\\+length=3'"),
    ],
)
def test_what_is_asked_is_checked(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        Asked(**fields)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Give more rows"):
        compare(backbone(), ROWS[:20], TEXT, ASKED, folder=tmp_path)


def test_without_a_budget_every_method_can_take_part(tmp_path: Path) -> None:
    """A LoRA of rank 1 on all linear layers may have more numbers than a prefix of 16."""
    model = foreword.Backbone(
        tiny_model(head_dim=2, max_position_embeddings=1400), byte_tokenizer()
    )
    asked = Asked(("prefix", "lora", "frozen"), steps=1, seeds=1, max_new_tokens=2)
    assert plan_of(model, asked, tmp_path).trainings == 2 * 8


@pytest.mark.parametrize("kept", ["held", "test"])
def test_a_label_that_no_row_to_train_on_has_counts_as_wrong(tmp_path: Path, kept: str) -> None:
    rows: list[Any] = [
        {"text": f"{word} {number}", "label": label}
        for number in range(20)
        for word, label in (("good", "yes"), ("bad", "no"))
    ]
    text = DataSettings(task="classify", prompt="{text}", target="{label}")
    chosen = getattr(split(rows, text), kept)[0]["text"]
    rows = [{**row, "label": "rare"} if row["text"] == chosen else row for row in rows]
    asked = Asked(("lora",), steps=1, seeds=1)
    made = compare(tiny_encoder(), rows, DataSettings(), asked, folder=tmp_path)
    assert made.sides[0].failed is None
    assert made.sides[0].seeds[0].figures["accuracy"] <= (100 if kept == "held" else 87.5)
    (said,) = [said for said in made.unequal if "no row to train on has" in said]
    assert said.endswith("they count as wrong: 'rare' (1)")


def test_tags_that_spell_no_entities_are_compared_by_words(tmp_path: Path) -> None:
    rows = [{"tokens": [f"{n}", "runs"], "tags": ["NOUN", "VERB"]} for n in range(30)]
    asked = Asked(("lora",), steps=1, seeds=1)
    made = compare(tiny_encoder(), rows, DataSettings(), asked, folder=tmp_path)
    assert made.metric.name == "accuracy"
    assert made.verdict[0].startswith("Use LoRA")


def test_what_no_method_could_keep_is_refused_at_once(tmp_path: Path) -> None:
    rows = [{"text": f"{n}", "label": "ab"[n % 2]} for n in range(30)]
    asked = Asked(("lora",), steps=1, seeds=1)
    with pytest.raises(TrainingError, match="takes a decoder"):
        compare(tiny_encoder(), rows, DataSettings(kl=1.0), asked, folder=tmp_path)


def test_whatever_a_method_raises_fails_it_alone_and_is_told_before_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: Any) -> None:
        raise ValueError("of a library")

    monkeypatch.setattr(type(OWN["ia3"].method), "start", raises)
    told: list[str] = []
    asked = Asked(("ia3", "lora+rank=0", "frozen"), steps=1, seeds=1, max_new_tokens=2)
    made = compare(backbone(), ROWS, TEXT, asked, folder=tmp_path, tell=told.append)
    assert [one.failed for one in made.sides] == [
        "ValueError: of a library",
        "rank must be at least 1; found 0",
        None,
    ]
    assert told[:2] == [f"{one.name} fails: {one.failed}" for one in made.sides[:2]]


def test_ctrl_c_is_heard_while_a_step_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[None] = []

    def stop(*_: Any, **__: Any) -> None:
        stopped.append(None)
        raise KeyboardInterrupt

    monkeypatch.setattr(LearnerTrainer, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        compare(backbone(), ROWS, TEXT, ASKED, folder=tmp_path)
    assert len(stopped) == 1


@pytest.mark.parametrize(
    "run", ["frozen soap 0.1 seed 0", "lora soap 1.2.3 seed 0", "lora soap e seed 0"]
)
def test_what_is_no_run_is_refused(run: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is no run"):
        compare_one(backbone(), ROWS, TEXT, ASKED, run, folder=tmp_path)


def test_a_command_is_quoted_whatever_the_method_says(tmp_path: Path) -> None:
    method = "prefix+init_text=it's\n$HOME"
    text = dataclasses.replace(TEXT, seed=4_000_000_000)
    asked = Asked((method,), steps=1, seeds=1, max_new_tokens=2)
    made = compare(backbone(), ROWS, text, asked, folder=tmp_path, command="foreword compare x")
    seed = made.sides[0].seeds[0]
    *rest, run = shlex.split(seed.command)
    assert rest == ["foreword", "compare", "x", "--only"]
    assert run.startswith(method)
    assert compare_one(backbone(), ROWS, text, asked, run, folder=tmp_path).held == seed.held


def test_steps_that_were_given_are_not_called_too_many_for_the_minutes(tmp_path: Path) -> None:
    asked = Asked(("prefix",), steps=5, minutes=0.001, seeds=1, max_new_tokens=2)
    assert "allowed" not in str(plan_of(backbone(), asked, tmp_path))
