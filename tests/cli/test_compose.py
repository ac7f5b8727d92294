"""`foreword compose`, on a tiny backbone: what is in the store afterwards is what Python composes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import foreword
from foreword.compose import compose
from foreword.description import Piece
from foreword.prefix import Prefix
from foreword.store import PrefixStore
from tests.cli.conftest import SETTINGS
from tests.conftest import MEMORY

F32 = ("--dtype", "float32")


def of_python(
    expression: str, mode: str = "sum", backbone: foreword.Backbone | None = None
) -> Prefix:
    return compose(expression, PrefixStore().load, mode=mode, backbone=backbone)  # type: ignore[arg-type]


@pytest.fixture
def control(composable: Path) -> Prefix:
    """A prefix with a mood, in the store as task, and rows.jsonl."""
    pieces = (Piece("", 1), Piece("mood=good", 2), Piece("mood=bad", 1))
    whole = PrefixStore().load("e2e").with_meta(pieces=pieces, combination="control")
    PrefixStore().save("task", whole)
    (composable / "rows.jsonl").write_text(json.dumps(MEMORY[0]))
    return whole


def test_a_sum(composable: Path, call) -> None:
    text = "0.7*formal + e2e - toxic-1"
    code, out, err = call("compose", text, "--name", "nice", *F32)
    assert code == 0, err
    store, backbone = PrefixStore(), foreword.load("tiny-model", dtype="float32")
    assert store.load("nice").digest == of_python(text, backbone=backbone).digest
    first, *rows = [line.replace("│", " ").split() for line in out.splitlines() if line.strip()]
    assert " ".join(first) == "nice: sum, 4 virtual tokens, 576 parameters, on tiny-model"
    digests = {name: store.load(name).digest[:12] for name in ("formal", "e2e", "toxic-1")}
    assert [line for line in rows if line[-1] in digests.values()] == [
        ["formal", "0.7", digests["formal"]],
        ["e2e", "1", digests["e2e"]],
        ["toxic-1", "-1", digests["toxic-1"]],
    ]
    assert f"saved to {store.path('nice')}" in err
    assert call("generate", "nice", "name[Zizzi]", *F32, "--max-new-tokens", "3")[0] == 0


def test_an_expression_may_begin_with_a_minus(composable: Path, call) -> None:
    code, _, err = call("compose", "-e2e", "--name", "not", *F32)
    assert code == 0, err
    wanted = of_python("-e2e", backbone=foreword.load("tiny-model", dtype="float32"))
    assert PrefixStore().load("not").digest == wanted.digest


@pytest.mark.parametrize(
    ("text", "mode"),
    [("0.5*e2e + formal[:2]", "concat"), ("1.5*e2e - 0.5*formal", "logits"), ("e2e[1:3]", "sum")],
)
def test_modes_that_need_no_backbone_load_none(
    composable: Path, call, monkeypatch: pytest.MonkeyPatch, text: str, mode: str
) -> None:
    monkeypatch.setattr("foreword.cli.options.load", lambda *_, **__: pytest.fail("it was loaded"))
    code, out, err = call("compose", text, "--mode", mode, "--name", "made")
    assert code == 0, err
    assert out.startswith(f"made: {mode}, ")
    assert PrefixStore().load("made").digest == of_python(text, mode).digest


@pytest.mark.parametrize(("strength", "frozen"), [(1.0, False), (0.5, False), (1.0, True)])
def test_an_expression_writes_as_the_live_mixture(
    composable: Path, call, strength: float, frozen: bool
) -> None:
    """Its prefixes may lie at other positions, which one file could not say, and one may count 0."""
    store, backbone = PrefixStore(), foreword.load("tiny-model", dtype="float32")
    task = foreword.Task("Other {name}:", " {ref}")
    e2e = backbone.moved(store.load("e2e"), "offset").with_meta(recipe=task.as_json())
    store.save("moved", e2e)
    weights, names = (0.0, 0.7, -0.4), ("formal", "moved", "e2e")
    mixture = foreword.Mixture(
        tuple((w * strength, store.load(n)) for w, n in zip(weights, names, strict=True))
    )
    options = foreword.GenerateOptions(max_new_tokens=6)
    words = ("generate", "0*formal + 0.7*moved - 0.4*e2e", "Zizzi", *F32, "--max-new-tokens", "6")
    code, out, err = call(*words, "--strength", str(strength), *(["--no-prefix"] if frozen else []))
    assert code == 0, err
    given = None if frozen else mixture
    (wanted,) = foreword.generate(backbone, ["Zizzi"], given, options, task=task)
    assert out == wanted[0] + "\n"
    (composable / "rows.jsonl").write_text(json.dumps({"name": "Zizzi", "ref": "good"}))
    scored = ("evaluate", "0*formal + 0.7*moved - 0.4*e2e", "rows.jsonl", *F32, "--json")
    code, out, err = call(
        *scored, "--strength", str(strength), "--max-new-tokens", "6", "--no-base"
    )
    assert code == 0, err
    found = foreword.evaluate(backbone, mixture, "rows.jsonl", options=options, base=False)
    assert json.loads(out)["prefix"]["nll"] == found.prefix.nll


def test_a_cascade(composable: Path, call) -> None:
    text = "e2e + 0.5*formal"
    code, out, err = call("compose", text, "--mode", "cascade", "--name", "made")
    assert code == 0, err
    assert out.startswith("made: cascade, 8 virtual tokens, 1,152 parameters")
    made = PrefixStore().load("made")
    backbone = foreword.load("tiny-model", dtype="float32")
    assert made.digest == of_python(text, "cascade", backbone).digest
    assert made.meta.pieces == (Piece("e2e", 4), Piece("formal", 4, 0.5))


def test_training_rows_for_what_started_from_demonstrations(composable: Path, call) -> None:
    (composable / "rows.jsonl").write_text("\n".join(map(json.dumps, MEMORY)))
    backbone = foreword.load("tiny-model", dtype="float32")
    settings = dataclasses.replace(SETTINGS, init="demonstrations", init_text=None, length=60)
    shown = foreword.train(backbone, "rows.jsonl", settings).prefix
    PrefixStore().save("shown", shown)
    code, _, err = call("compose", "0.5*shown", "--name", "made", *F32)
    assert code == 1
    assert "error: shown: this prefix started from demonstrations" in err
    assert "rows: give them to foreword compose or foreword map (--data)\n" in err
    code, _, err = call("compose", "0.5*shown", "--name", "made", "--data", "rows.jsonl", *F32)
    assert code == 0, err
    live = compose("0.5*shown", {"shown": shown}.__getitem__)
    assert PrefixStore().load("made").digest == live.digest


def test_a_value_that_training_did_not_see_is_a_warning(control: Prefix, call) -> None:
    code, _, err = call("compose", "task[mood=bad]", "--name", "bad")
    assert (code, "warning" in err) == (0, False)
    code, _, err = call("compose", "task[mood=odd]", "--name", "odd")
    assert code == 0
    assert "warning: task was trained for mood = 'good', 'bad', and not for 'odd'" in err
    assert [PrefixStore().load(name).length for name in ("bad", "odd")] == [2, 1]


@pytest.mark.parametrize("rest", ["", " - 0.5*formal"])
def test_a_value_that_training_did_not_see_is_said_where_texts_are_made_and_scored(
    control: Prefix, call, rest: str
) -> None:
    backbone, shared = foreword.load("tiny-model", dtype="float32"), control.select({})
    wanted: Prefix | foreword.Mixture = shared
    if rest:
        wanted = foreword.Mixture(((1.0, shared), (-0.5, PrefixStore().load("formal"))))
    options = foreword.GenerateOptions(max_new_tokens=4)
    flags = (*F32, "--max-new-tokens", "4")
    ((text,),) = foreword.generate(backbone, ["Zizzi"], wanted, options)
    nll = foreword.evaluate(backbone, wanted, "rows.jsonl", options=options, base=False).prefix.nll
    for value, odd in (("good", False), ("odd", True)):
        expression = f"task[mood={value}]{rest}"
        code, out, err = call("generate", expression, "Zizzi", *flags)
        assert code == 0
        assert out == f"{text}\n" or not odd
        assert ("trained for mood = 'good', 'bad', and not for 'odd'" in err) == odd
        code, out, err = call("evaluate", expression, "rows.jsonl", *flags, "--no-base", "--json")
        assert (code, json.loads(out)["prefix"]["nll"] == nll) == (0, odd)
        assert ("trained for mood = 'good', 'bad', and not for 'odd'" in err) == odd


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
@pytest.mark.parametrize("name", ["e2e", "e2e[:2]", "(e2e)", "task[mood=bad]"])
def test_a_mode_is_for_several_prefixes(
    control: Prefix, call, monkeypatch: pytest.MonkeyPatch, verb: str, name: str
) -> None:
    words = (verb, name, "rows.jsonl" if verb == "evaluate" else "Zizzi", *F32)
    assert call(*words, "--max-new-tokens", "2")[0] == 0
    monkeypatch.setattr("foreword.cli.options.load", lambda *_, **__: pytest.fail("it was loaded"))
    for mode in ("sum", "logits"):
        code, _, err = call(*words, "--mode", mode)
        assert code == 1
        assert f"--mode {mode} puts several prefixes together, and {name!r} is one alone" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compose", "0.5*captured"], "no start is needed by foreword compose --mode concat"),
        (["generate", "0.5*captured", "x", "--mode", "sum"], "No start is needed by"),
        (["compose", "e2e + late"], "or compose them in another mode: --mode concat"),
        (["compose", "e2e + offset", "--mode", "concat"], "train both under one position policy"),
        (["compose", "offset + offset[:2]", "--mode", "concat"], "behind one another with --mode"),
        (["compose", "offset[1:]"], "Cut the end off (prefix[:8])"),
        (["compose", "e2e + long", "--mode", "sum"], "or put them side by side (--mode concat)"),
        (
            ["train", "rows.jsonl", "--init", "task"],
            "save a part of it, with foreword compose 'task[",
        ),
        (["train", "rows.jsonl", "--init", "half"], "training starts from one at full strength"),
        (["compose", "e2e[a=b]"], "trained with attributes has (foreword train --attributes)"),
    ],
)
def test_errors_say_what_to_do_on_the_command_line(
    control: Prefix, call, words: list[str], said: str
) -> None:
    store, backbone = PrefixStore(), foreword.load("tiny-model", dtype="float32")
    e2e = store.load("e2e")
    store.save("captured", e2e.with_meta(recipe={}))
    store.save("offset", backbone.moved(e2e, "offset"))
    for name, changes in (("late", {"init_text": "Other words."}), ("long", {"length": 6})):
        settings = dataclasses.replace(SETTINGS, **changes)
        store.save(name, foreword.train(backbone, MEMORY[:4], settings).prefix)
    store.save("half", e2e.strength(0.5))
    named = ["--name", "made"] if words[0] != "generate" else []
    if words[0] == "train":
        named += ["--backbone", "tiny-model", "--prompt", "{mr} ->", "--target", " {ref}"]
    code, _, err = call(*words, *named, *F32)
    assert code == 1
    shown = " ".join(err.split())
    assert said.lower() in shown.lower()
    for python in (
        "interpolate",
        "dataclasses",
        "foreword.",
        "backbone.",
        "with_meta",
        "Settings",
        "prefix.",
    ):
        assert python not in shown


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "e2e + formal", "x"],
        ["inspect", "0.5*e2e"],
        ["export", "e2e - formal", "there", "--to", "peft"],
        ["push", "e2e[:2]", "me/e2e"],
        ["remove", "e2e + formal"],
        ["map", "e2e", "2*formal"],
        ["map", "--to", "e2e + formal"],
        ["route", "--with", "r.safetensors", "--fit", "e2e + formal=rows.jsonl"],
        ["train", "rows.jsonl", "--name", "e2e + formal"],
    ],
    ids=lambda words: words[0],
)
def test_where_a_name_alone_is_taken_an_expression_is_told_from_a_wrong_name(
    control: Prefix, call, words: list[str]
) -> None:
    code, _, err = call(*words)
    assert code == 1
    assert (
        "Expressions of prefixes are not taken here; save what it stands for, with foreword" in err
    )
    code, _, err = call("inspect", "../e2e")
    assert (code, "not a name" in err, "Expressions" in err) == (1, True, False)


def test_taken_names(composable: Path, call) -> None:
    before = PrefixStore().load("e2e").digest
    code, _, err = call("compose", "0.5*formal", "--mode", "concat", "--name", "e2e")
    assert (code, "already in" in err) == (1, True)
    assert PrefixStore().load("e2e").digest == before
    again = ("compose", "0.5*e2e", "--mode", "concat", "--name", "e2e", "--overwrite")
    assert call(*again)[0] == 0
    assert PrefixStore().load("e2e").meta.parents == (before,)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["e2e +", "--name", "n"], 1, "the expression is wrong in column 6"),
        (["e2e + nope", "--name", "n"], 1, "no prefix is called 'nope'"),
        (["e2e-formal", "--name", "n"], 1, "a minus has spaces on both sides"),
        (["e2e[:9]", "--name", "n"], 1, "e2e[:9]: e2e has 4 virtual tokens"),
        (["e2e + formal[:2]", "--name", "n", *F32], 1, "e2e and formal[:2]: a sum needs"),
        (["e2e[x=y]", "--name", "n"], 1, "e2e has no attributes to select by"),
        (["e2e + formal", "--name", "../n", "--mode", "concat"], 1, "is not a name for a prefix"),
        (["e2e + formal", "--name", "n", "--mode", "product"], 2, "sum"),
        (
            ["2*e2e", "--name", "n", "--mode", "logits", "--data", "x"],
            1,
            "--data is for --mode sum",
        ),
        (["e2e + formal"], 2, "--name"),
        (["--name", "n"], 2, "EXPRESSION"),
        (["e2e", "+", "formal", "--name", "n"], 2, "+"),
    ],
)
def test_refusals(composable: Path, call, arguments: list[str], code: int, message: str) -> None:
    found, _, err = call("compose", *arguments)
    assert found == code
    assert message in err
    assert sorted(PrefixStore()) == ["e2e", "formal", "toxic-1"]


def test_a_wrong_expression_is_refused_before_anything_large_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from foreword.cli.main import main\n"
        "assert main(['compose', 'a + b', '--name', 'n', '--store', sys.argv[1]]) == 1\n"
        "assert main(['compose', 'a b', '--name', 'n', '--store', sys.argv[1]]) == 1\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
