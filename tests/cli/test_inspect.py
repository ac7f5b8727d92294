"""`foreword inspect --attention`: figures, picture and refusals through `main`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import foreword
from foreword.cli.main import main
from foreword.evaluate.attention import attention_to
from foreword.store import PrefixStore

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def prefix(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> foreword.Prefix:
    """A prefix called food in the store, made on a tiny model folder."""
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    backbone = foreword.load("tiny-model", dtype="float32")
    made = backbone.capture("<s>Name it.").with_meta(
        recipe={"prompt": "{mr} ->", "target": "{ref}"}
    )
    PrefixStore().save("food", made)
    return made


def test_the_picture_and_its_figures(
    prefix: foreword.Prefix, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["inspect", "food", "--attention", "name[Zizzi]", "--dtype", "float32"]
    assert main(asked) == 0
    out, err = capfd.readouterr()
    assert (tmp_path / "food-attention.png").read_bytes().startswith(PNG)
    assert "picture in food-attention.png" in err
    backbone = foreword.load("tiny-model", dtype="float32", attention="eager")
    found = attention_to(backbone, prefix, "name[Zizzi]")
    assert f": {found.mean:.3f}\n" in out
    assert "most at: " + ", ".join(f"{s} {m:.3f}" for s, m in found.top(5)) in out

    assert main([*asked, "--output", "deep/a.png", "--json"]) == 0
    assert (tmp_path / "deep/a.png").read_bytes().startswith(PNG)
    printed = json.loads(capfd.readouterr().out)
    assert printed["mean"] == pytest.approx(found.mean)
    assert printed["sites"]["decoder.2"] == pytest.approx(found.heads[2])
    assert printed["tokens"] == pytest.approx(found.tokens)


def test_pieces_are_named_with_their_strengths(
    prefix: foreword.Prefix, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "food"]) == 0
    assert "\npieces" not in capfd.readouterr().out
    both = foreword.concat(prefix[:4], prefix[4:].strength(0.5), names=["role", ""])
    PrefixStore().save("both", both)
    assert main(["inspect", "both"]) == 0
    said = " ".join(capfd.readouterr().out.split())
    rest = prefix.length - 4
    assert f"pieces role (4 x 1), no name ({rest} x 0.5): all in front of the text, each at" in said


def test_options_of_the_picture_need_it(
    prefix: foreword.Prefix, capfd: pytest.CaptureFixture[str]
) -> None:
    for option in (["--output", "a.png"], ["--dtype", "float32"], ["--strict"]):
        assert main(["inspect", "food", *option]) == 1
        assert 'give --attention "input" too' in " ".join(capfd.readouterr().err.split())
    assert not Path("a.png").exists()


def test_a_picture_that_cannot_be_written_is_one_clear_error(
    prefix: foreword.Prefix, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    code = main(["inspect", "food", "--attention", "x", "--output", "file/a.png"])
    assert (code, "cannot write file/a.png" in capfd.readouterr().err) == (1, True)
