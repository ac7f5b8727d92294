"""`foreword route` and `generate --router`, on a tiny backbone: as Python fits, and where inputs go."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import foreword
from foreword.cli.main import main
from foreword.router import Router
from foreword.store import PrefixStore
from tests.conftest import MEMORY, byte_tokenizer, tiny_model

SETTINGS = foreword.TrainSettings(prompt="{mr} ->", target=" {ref}", length=2, steps=1)
NUMBERS = [f"{i} plus {i + 1}" for i in range(8)]
F32 = ("--dtype", "float32")
FIT = ("--fit", "e2e=rows.jsonl", "--fit", "sums=sums.txt")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny-model and rows, and a store below it with the prefixes e2e and sums."""
    tiny_model().save_pretrained(tmp_path / "tiny-model")
    byte_tokenizer().save_pretrained(tmp_path / "tiny-model")
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    backbone = foreword.load("tiny-model", dtype="float32")
    prefix = foreword.train(backbone, MEMORY[:2], SETTINGS).prefix
    PrefixStore().save("e2e", prefix)
    PrefixStore().save("sums", backbone.capture("Add.").to(prefix.dtype))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, MEMORY[:8])))
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, MEMORY[8:])))
    (tmp_path / "sums.txt").write_text("\n".join(NUMBERS))
    return tmp_path


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> object:
    def run(*arguments: str, verb: str = "route") -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([verb, *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def test_fitted_tested_and_asked(place: Path, call) -> None:
    code, out, err = call("--with", "router.safetensors", *FIT, "--test", "e2e=dev.jsonl", *F32)
    assert code == 0, err
    backbone = foreword.load("tiny-model", dtype="float32")
    router = Router.load("router.safetensors")
    wanted = Router.fit(backbone, {"e2e": [row["mr"] for row in MEMORY[:8]], "sums": NUMBERS})
    assert (router.names, router.texts) == (("e2e", "sums"), (8, 8))
    assert bool((router.weight == wanted.weight).all())
    share = wanted.accuracy(backbone, {"e2e": [row["mr"] for row in MEMORY[8:]]})["e2e"]
    rows = [line.replace("│", " ").split() for line in out.splitlines() if line.startswith("│")]
    assert rows == [["e2e", f"{share:.1f}"], ["mean", f"{share:.1f}"]]

    routed = wanted.route(backbone, ["9 plus 9"])[0]
    code, out, err = call("9 plus 9", "--with", "router.safetensors", *F32)
    assert code == 0, err
    assert out == f"{routed.name}  {math.exp(routed.scores[routed.name]):.3f}\n"
    code, out, err = call("9 plus 9", "--with", "router.safetensors", "--json", *F32)
    assert code == 0, err
    assert json.loads(out) == {"name": routed.name, "scores": dict(routed.scores)}
    code, out, err = call("--with", "router.safetensors", "--test", "e2e=dev.jsonl", "--json", *F32)
    assert code == 0, err
    assert json.loads(out) == {"e2e": share}


LINES = ["9 plus 9", "name[Zizzi], food[Thai]", "3 plus 5", "name[The Eagle]"]


def test_each_text_is_written_under_the_prefix_that_it_is_routed_to(place: Path, call) -> None:
    """In the order of the inputs, as each is under that prefix by name."""
    assert call("--with", "router.safetensors", *FIT, *F32)[0] == 0
    (place / "lines.txt").write_text("\n".join(LINES))
    backbone = foreword.load("tiny-model", dtype="float32")
    names = [one.name for one in Router.load("router.safetensors").route(backbone, LINES)]
    assert set(names) == {"e2e", "sums"}
    said = ("--max-new-tokens", "6", *F32)
    routed = ("--router", "router.safetensors", *said)
    for more in ((), ("--strength", "0.5"), ("--no-prefix",)):
        wanted = []
        for name, line in zip(names, LINES, strict=True):
            code, out, err = call(name, line, *said, *more, "--json", verb="generate")
            assert code == 0, err
            own = json.loads(out)
            wanted.append({"input": own.pop("input"), "prefix": name, **own})
        code, out, err = call("--input", "lines.txt", *routed, *more, "--json", verb="generate")
        assert code == 0, err
        assert [json.loads(line) for line in out.splitlines()] == wanted
        counts = ", ".join(f"{name} ({names.count(name)})" for name in ("e2e", "sums"))
        assert f"routed to {counts}" in err
    code, out, err = call(LINES[0], *routed, verb="generate")
    wanted_code, wanted_out, _ = call(names[0], LINES[0], *said, verb="generate")
    assert (code, out) == (wanted_code, wanted_out)


def test_a_json_object_is_routed_by_its_values_and_written_as_it_is(place: Path, call) -> None:
    backbone = foreword.load("tiny-model", dtype="float32")
    recipe = {"method": "prefix", "prompt": "{name} and {food} ->", "target": " {ref}"}
    PrefixStore().save("pairs", PrefixStore().load("sums").with_meta(recipe=recipe))
    rows = [{"name": f"a place {i}", "food": "Thai", "ref": "Go."} for i in range(8)]
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = ("--fit", "pairs=pairs.jsonl", "--fit", "sums=sums.txt")
    assert call("--with", "router.safetensors", *pairs, *F32)[0] == 0
    values = [f"{row['name']}\n{row['food']}" for row in rows]
    wanted = Router.load("router.safetensors").route(backbone, values)
    assert {one.name for one in wanted} == {"pairs"}
    given = [json.dumps({"name": row["name"], "food": row["food"]}) for row in rows]
    (place / "lines.txt").write_text("\n".join(given))
    known = ("--input", "lines.txt", "--json", *F32)
    code, out, err = call("--with", "router.safetensors", *known)
    assert code == 0, err
    assert [json.loads(line)["scores"] for line in out.splitlines()] == [
        dict(one.scores) for one in wanted
    ]
    said = ("--router", "router.safetensors", "--max-new-tokens", "4")
    code, out, err = call(*known, *said, verb="generate")
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [(one["input"], one["prefix"]) for one in found] == [(one, "pairs") for one in given]


def test_what_cannot_be_routed_is_refused(place: Path, call) -> None:
    assert call("--with", "router.safetensors", *FIT, *F32)[0] == 0
    inputs = {"lacks": ["a", "b"], "sums": NUMBERS}
    backbone = foreword.load("tiny-model", dtype="float32")
    Router.fit(backbone, inputs).save("lacks.safetensors")
    weight, bias = torch.zeros(2, backbone.width), torch.zeros(2)
    labels = foreword.Head("classify", ("a", "b"), "mean", weight, bias)
    PrefixStore().save("labels", PrefixStore().load("sums").with_head(labels))
    Router.fit(backbone, {"labels": NUMBERS, "e2e": ["x [y]", "z, [w]"]}).save("labels.safetensors")
    other = foreword.Backbone(tiny_model(seed=5), byte_tokenizer(), name="other")
    Router.fit(other, {"e2e": ["a", "b"], "sums": NUMBERS}).save("other.safetensors")
    known = ("--router", "router.safetensors")
    for arguments, message in (
        (["sums", "1 plus 2", *known], "'sums' stands where the name of a prefix is given"),
        (
            ["sums", *known],
            "leave one of both out. A text that is also a name goes into --input FILE",
        ),
        (["anything", "--input", "sums.txt", *known], "the router chooses the prefix"),
        (["1", "--router", "none"], "cannot read the router none"),
        (["1", "--router", "lacks.safetensors"], "no prefix is called 'lacks'"),
        (["1 plus 2", "--router", "labels.safetensors"], "labels: this prefix carries a head"),
        (["1", "--router", "other.safetensors", "--backbone", "tiny-model"], "fitted on 'other'"),
        (["--input", "rows.jsonl", *known], "input 1: expected a text to route, found a row"),
        (
            ["1", *known, "--mode", "logits"],
            "--mode logits puts several prefixes together, and a rout",
        ),
        (["1", *known, "--engine", "vllm"], "--router is for Foreword's own engine"),
        ([], "name a prefix of the store, or let a router choose it"),
    ):
        code, out, err = call(*arguments, *F32, verb="generate")
        assert (code, out, message in " ".join(err.split())) == (1, "", True), err
    frozen = ("--no-prefix", "--max-new-tokens", "4", *F32)
    by_name = call("labels", "1 plus 2", *frozen, verb="generate")
    routed = call("1 plus 2", "--router", "labels.safetensors", *frozen, verb="generate")
    assert routed[0] == 0, routed[2]
    assert routed[:2] == by_name[:2]


def test_what_is_refused(place: Path, call) -> None:
    (place / "there").write_bytes(b"1")
    for arguments, message in (
        (["--with", "r", "--fit", "e2e=rows.jsonl"], "at least two prefixes"),
        (
            ["--with", "r", *FIT, "--fit", "e2e=rows.jsonl"],
            "each name once; found 'e2e=rows.jsonl'",
        ),
        (["--with", "r", "--fit", "rows.jsonl"], "expected NAME=ROWS"),
        (["--with", "r", "--fit", "nope=rows.jsonl"], "no prefix is called 'nope'"),
        (["--with", "r", "--fit", "sums=rows.jsonl"], "no column 'input'"),
        (["hello", "--with", "r", *FIT], "without --fit and --test"),
        (["--with", "there", *FIT], "there is there already"),
        (["hello", "--with", "none"], "cannot read the router none"),
        (["hello", "--with", "there"], "there is damaged"),
    ):
        code, _, err = call(*arguments, *F32)
        assert (code, message in " ".join(err.split())) == (1, True), err
    assert not (place / "r").exists()
