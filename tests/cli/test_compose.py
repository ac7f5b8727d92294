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
    code, _, err = call("compose", "0.5*shown", "--name", "made", "--data", "rows.jsonl", *F32)
    assert code == 0, err
    live = compose("0.5*shown", {"shown": shown}.__getitem__)
    assert PrefixStore().load("made").digest == live.digest


def test_a_value_that_training_did_not_see_is_a_warning(composable: Path, call) -> None:
    whole = PrefixStore().load("e2e")
    pieces = (Piece("", 1), Piece("mood=good", 2), Piece("mood=bad", 1))
    PrefixStore().save("task", whole.with_meta(pieces=pieces, combination="control"))
    code, _, err = call("compose", "task[mood=bad]", "--name", "bad")
    assert (code, "warning" in err) == (0, False)
    code, _, err = call("compose", "task[mood=odd]", "--name", "odd")
    assert code == 0
    assert "warning: task was trained for mood = 'good', 'bad', and not for 'odd'" in err
    assert [PrefixStore().load(name).length for name in ("bad", "odd")] == [2, 1]


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
