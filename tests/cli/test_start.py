"""A start costs what a verb needs: help, lists and refusals import nothing large, load no backbone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import foreword
from foreword.cli.main import main
from foreword.store import PrefixStore

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.safetensors"))[0]
LARGE = {
    *("torch", "transformers", "accelerate", "huggingface_hub", "datasets", "pyarrow", "peft"),
    *("scipy", "sklearn", "pandas", "nltk", "sacrebleu", "matplotlib", "torchao", "jinja2"),
}
REPORT = """
import sys
from foreword.cli.main import main
code = main(sys.argv[1:])
names = sorted({name.partition(".")[0] for name in sys.modules} & set(%r))
print("code", code, "large", *names, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["list"], 0),
        (["list", "--json"], 0),
        (["remove", "food"], 0),
        (["remove", "fod"], 1),
        (["trian"], 2),
        (["train", "no.jsonl", "--name", "x"], 1),
        (["train", "rows", "--name", "x"], 1),
        (["train", "rows.jsonl", "--name", "food"], 1),
        (["train", "rows.jsonl", "--name", "x", "--length", "0"], 1),
        (["train", "rows.jsonl", "--name", "x", "--early-stop", "2"], 1),
        (["train", "rows.jsonl", "--name", "x", "--prompt", "{b}", "--target", "{a}"], 1),
        (["train", "rows.jsonl", "--name", "x", "--backbone", "./minilm"], 1),
        (["train", "rows.jsonl", "--name", "x", "--task", "tag"], 1),
        (["train", "whole.jsonl", "--name", "x", "--backbone", "./minilm"], 1),
        (["demo", "--backbone", "/no/such"], 1),
        (["serve", "--backbone", "~/x"], 1),
        (["generate", "food", "x", "--backbone", "../x"], 1),
        (["generate", "fod", "x"], 1),
        (["generate", "food", "--input", "no.txt"], 1),
        (["generate", "food", "--input", "no.jsonl"], 1),
        (["generate", "food", "x", "--engine", "vllm", "--strict"], 1),
        (["generate", "food", "x", "--engine", "vllm", "--num-beams", "2"], 1),
        (["generate", "food", "x", "--engine", "vllm", "--", "--enforce-eager"], 1),
        (["predict", "fod", "x"], 1),
        (["predict", "food", "x"], 1),
        (["generate", "labels", "x"], 1),
        (["evaluate", "food", "no.jsonl"], 1),
        (["inspect", "fod"], 1),
        (["export", "fod", "there", "--to", "peft"], 1),
        (["push", "fod", "me/fod"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_these_import_nothing_large(tmp_path: Path, arguments: list[str], code: int) -> None:
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(GOLDEN, store / "food.safetensors")
    shutil.copy(GOLDEN.with_name("v3.safetensors"), store / "labels.safetensors")
    (tmp_path / "rows.jsonl").write_text('{"a": "1"}\n')
    (tmp_path / "whole.jsonl").write_text(
        '{"text": "a", "label": "1"}\n{"text": "b", "label": "2"}\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", REPORT % sorted(LARGE), *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "FOREWORD_STORE": str(store)},
    )
    assert done.stderr.splitlines()[-1] == f"code {code} large", done.stderr


def test_importing_the_package_imports_nothing_large() -> None:
    code = f"import sys, foreword; assert not set(sys.modules) & {LARGE}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def place(tiny: foreword.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows and a store with a prefix called food; loading a backbone fails the test."""
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    recipe = {"prompt": "{mr} from {town} ->", "target": " {ref}"}
    PrefixStore().save("food", tiny.capture("<s>abc").with_meta(recipe=recipe))
    Path("rows.jsonl").write_text(json.dumps({"mr": "a", "ref": "b"}) + "\n")
    Path("lists.jsonl").write_text(json.dumps({"mr": ["a", "b"], "ref": "c"}) + "\n")
    monkeypatch.setattr("foreword.cli.options.load", lambda *_, **__: pytest.fail("loaded"))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train no.jsonl --name x", "no.jsonl: there is no such file; check the path"),
        ("train row.jsonl --name x", "there is no such file; did you mean rows.jsonl?"),
        ("train rows --name x", "did you mean rows.jsonl? A data set of the Hub is owner/name"),
        ("train rows.jsonl --name food", "a prefix called 'food' is already in"),
        ("train rows.jsonl --name x --eval no.csv", "no.csv: there is no such file"),
        ("train rows.jsonl --name x --early-stop 1", "early_stop needs evaluation data"),
        ("train rows.jsonl --name x --init fod", "init 'fod' is neither one of text, demonstrat"),
        ("train rows.jsonl --name x --init no.safetensors", "cannot read no.safetensors"),
        ("train rows.jsonl --name x --init food --length 9", "'food', has length"),
        ("train rows.jsonl --name x --lr -1", "lr must be above 0"),
        ("train rows.jsonl --name x --prompt {a} --target {ref}", "row 1 has no column 'a'"),
        (
            "train lists.jsonl --name x --prompt {mr} --target {ref}",
            "row 1: column 'mr': found a list",
        ),
        (
            "train rows.jsonl --name x",
            "row 1 has no columns that any task reads by itself; its columns are: mr, ref. Expected "
            "messages (to write text); text, label (to classify or to measure); text, labels (for "
            "several labels each); tokens, tags (to tag words); question, context, answers (to find "
            "answers). Rename them, or name them with templates, as in --prompt '{mr}' --target '{ref}'",
        ),
        (
            "train rows.jsonl --name x --task tag",
            "row 1 has no columns that task 'tag' reads by itself; its columns are: mr, ref. Expected "
            "tokens, tags (to tag words).",
        ),
        ("generate food --input no.txt", "cannot read inputs from no.txt"),
        (
            "generate food --input rows.jsonl",
            "input 1: template '{mr} from {town} ->' names column",
        ),
        ("generate food a", "names the columns mr, town; give them as a JSON object"),
        ("generate food a --batch-size 0", "batch_size must be at least 1"),
        ("predict food a", "this prefix has no head"),
        ("demo --backbone /no/such", "'/no/such': there is no such folder; check the path"),
        ("generate food a --backbone ./minilm", "'./minilm': there is no such folder; check the"),
        ("evaluate food row.jsonl", "did you mean rows.jsonl?"),
        ("evaluate food rows.jsonl", "row 1 has no column 'town'"),
    ],
)
def test_these_are_refused_before_a_backbone_is_loaded(
    place: Path, capfd: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert main(arguments.split()) in (1, 2)
    out, err = capfd.readouterr()
    assert message in " ".join((out + err).split())


def test_a_listed_prefix_is_described_by_its_header(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prefix = PrefixStore().load("food")
    assert main(["list"]) == 0
    out = capfd.readouterr().out
    for shown in (str(prefix.length), f"{prefix.parameters:,}", prefix.digest[:12]):
        assert shown in out
    found = PrefixStore().outline("food")
    assert (found.length, found.parameters, found.digest, found.meta) == (
        *(prefix.length, prefix.parameters, prefix.digest),
        prefix.meta,
    )
