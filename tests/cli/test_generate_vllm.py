"""`foreword generate --engine vllm`: what it gives vLLM, and what it refuses. No vLLM is needed."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword.cli.main import main
from foreword.engine.vllm.batch import Batch
from foreword.generate import Generated
from foreword.options import GenerateOptions
from foreword.store import PrefixStore

FOUND = importlib.util.find_spec


@pytest.fixture
def store(tiny: foreword.Backbone, tiny_folder: Path, tmp_path: Path) -> PrefixStore:
    made = PrefixStore(tmp_path / "store")
    prefix = tiny.capture("<s>abc").with_meta(backbone=str(tiny_folder))
    made.save("food", prefix.with_meta(recipe={"prompt": "{mr} ->", "target": " {ref}"}))
    made.save("gated", prefix.with_meta(softmax="own"))
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Batch, Any, GenerateOptions, bool]]:
    """What vLLM is asked; it answers each input with its number, and ends every other."""
    found: list[tuple[Batch, Any, GenerateOptions, bool]] = []

    def generated(
        self: Batch,
        inputs: Sequence[Any],
        options: GenerateOptions,
        *,
        frozen: bool,
        progress: bool,
    ) -> list[list[Generated]]:
        assert not progress  # standard error is no terminal
        found.append((self, inputs, options, frozen))
        os.write(1, b"what a library's process says\n")
        return [[Generated(str(i), "length" if i % 2 else "stop")] for i, _ in enumerate(inputs)]

    monkeypatch.setattr(Batch, "generated", generated)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name == "vllm" else FOUND(name)
    )
    return found


def test_all_inputs_go_to_vllm_at_once_and_are_shown_in_order(
    store: PrefixStore,
    tiny_folder: Path,
    asked: list[tuple[Batch, Any, GenerateOptions, bool]],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    rows = [{"mr": f"{number}"} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["generate", "food", "--store", str(store.folder), "--engine", "vllm"]
    options = ["--max-new-tokens", "3", "--dtype", "bfloat16", "--revision", "r1", "--json"]
    flags = ["--max-model-len", "128", "-tp", "2"]
    assert main([*command, "--input", str(tmp_path / "rows.jsonl"), *options, "--", *flags]) == 0
    ((batch, inputs, given, frozen),) = asked
    assert (batch.source, batch.store.folder) == (str(tiny_folder), store.folder)
    assert (batch.flags, batch.revision, batch.dtype) == (tuple(flags), "r1", "bfloat16")
    assert inputs == [("food", row) for row in rows]
    assert given == GenerateOptions(max_new_tokens=3)
    assert not frozen
    out, err = capfd.readouterr()
    assert "what a library's process says" in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["input"] for line in lines] == rows
    assert lines[1] == {"input": rows[1], "outputs": ["1"], "finish": ["length"]}


@pytest.mark.parametrize(
    ("words", "text", "flags"),
    [
        (["a text"], "a text", ()),
        (["a text", "--", "--enforce-eager"], "a text", ("--enforce-eager",)),
        (["--", "a text", "--enforce-eager"], "a text", ("--enforce-eager",)),
        (["-1"], "-1", ()),
    ],
)
def test_a_text_and_vllms_flags_are_told_apart(
    store: PrefixStore,
    asked: list[tuple[Batch, Any, GenerateOptions, bool]],
    words: list[str],
    text: str,
    flags: tuple[str, ...],
) -> None:
    folder = str(store.folder)
    command = ["generate", "--store", folder, "--engine", "vllm", "--no-prefix", "food"]
    assert main([*command, *words]) == 0
    ((batch, inputs, _, frozen),) = asked
    assert (inputs, batch.flags, frozen) == ([("food", text)], flags, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["food", "a", "--device", "cpu"], "--device is for Foreword's own engine"),
        (["food", "a", "--attention", "sdpa"], "give --attention-backend after --"),
        (["food", "a", "--quantize", "int8"], "give --quantization after --"),
        (["food", "a", "--strict"], "leave it out: vLLM has the weights"),
        (["food", "a", "--batch-size", "8"], "(--batch-size) is for Foreword's own engine"),
        (["food", "a", "--num-beams", "2"], "(--num-beams) is for Foreword's own engine"),
        (["food", "a", "--no-repeat-ngram-size", "2"], "(--no-repeat-ngram-size)"),
        (["food", "a", "--repetition-penalty", "1.2"], "would count the placeholders"),
        (["food", "two", "words"], "'words' stands where one text was expected"),
        (["food", "a", "--strength", "0.5"], "vLLM's attention knows of no strength but 1"),
        (["food", "a", "--strength", "0"], "--no-prefix is the frozen model on both"),
        (
            ["food + gated", "a"],
            "no mixtures of logits. A sum is another thing, and can be saved: fo",
        ),
        (["food[:2]", "a"], 'save it, foreword compose "food[:2]" --name NAME'),
        (["2*food", "a", "--mode", "sum"], '"2*food" --mode sum --name NAME'),
        (["food + gated", "a", "--mode", "cascade"], "save it, foreword compose"),
        (["0.5*food + gated", "a", "--mode", "concat"], "no strengths, which weights are here"),
        (["food + gated", "a", "--strength", "2"], "--strength 2 is for Foreword's own engine"),
        (["food", "a", "--mode", "sum"], "'food' is one alone; leave it out"),
        (["gated", "a"], "softmax of its own"),
        (["food", "a", "--", "--enforce-eager"], "needs vLLM 0.32, which is not installed"),
    ],
)
def test_these_are_refused_before_anything_is_read(
    store: PrefixStore,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    """Without vLLM; a prefix that it cannot serve is one that only an installed vLLM asks about."""
    is_there = arguments[0] == "gated"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if is_there and name == "vllm" else None
    )
    monkeypatch.setattr(Batch, "generated", lambda *_, **__: pytest.fail("asked"))
    name, *others = arguments
    command = ["generate", name, "--store", str(store.folder), "--engine", "vllm", *others]
    assert main(command) == 1
    assert said in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "--", "--enforce-eager"], "'--enforce-eager' is one of vLLM's flags"),
        (["two", "words"], "'words' stands where one text was expected"),
    ],
)
def test_the_embedded_engine_takes_no_flags_of_vllms(
    store: PrefixStore, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["generate", "food", "--store", str(store.folder), *words]) == 1
    assert said in capfd.readouterr().err
