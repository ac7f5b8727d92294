"""`foreword map`, on a tiny backbone: what Python compares, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import foreword
from foreword.cli.main import main
from foreword.similarity import Similarity, similarity
from foreword.store import PrefixStore
from tests.conftest import MEMORY

SETTINGS = foreword.TrainSettings(prompt="{mr} ->", target=" {ref}", length=4, steps=2)
NAMES = ("a", "b", "c")
F32 = ("--dtype", "float32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny-model, and a store with the prefixes a, b and c."""
    from tests.conftest import byte_tokenizer, tiny_model

    place = tmp_path_factory.mktemp("map")
    tiny_model().save_pretrained(place / "tiny-model")
    byte_tokenizer().save_pretrained(place / "tiny-model")
    store = PrefixStore(place / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        backbone = foreword.load("tiny-model", dtype="float32")
        for number, name in enumerate(NAMES):
            rows = MEMORY[4 * number : 4 * number + 4]
            store.save(name, foreword.train(backbone, rows, SETTINGS).prefix)
    return place


@pytest.fixture
def place(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOREWORD_STORE", str(trained / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> object:
    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["map", *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def of_python() -> Similarity:
    backbone, store = foreword.load("tiny-model", dtype="float32"), PrefixStore()
    return similarity({name: foreword.with_start(backbone, store.load(name)) for name in NAMES})


def test_the_matrix(place: Path, call) -> None:
    code, out, err = call(*F32)
    assert code == 0, err
    wanted = of_python()
    rows = [line.replace("│", " ").split() for line in out.splitlines() if line.startswith("│")]
    assert rows == [
        [name, *(f"{number:.3f}" for number in row)]
        for name, row in zip(NAMES, wanted.matrix, strict=True)
    ]
    assert "cosine similarity of what was learned, token by token" in out


def test_json_and_a_picture(place: Path, tmp_path: Path, call) -> None:
    for suffix, begins in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        path = tmp_path / f"map.{suffix}"
        code, out, err = call("--json", "--image", str(path), *F32)
        assert code == 0, err
        assert json.loads(out) == {
            **json.loads(json.dumps(of_python().as_json())),
            "nearest": None,
        }
        assert path.read_bytes().startswith(begins)
        first = path.read_bytes()
        assert call("--json", "--image", str(path), *F32)[0] == 0
        assert path.read_bytes() == first
    text = (tmp_path / "map.svg").read_text()
    assert all(f">{name}<" in text for name in NAMES)


def test_the_nearest_to_one(place: Path, call) -> None:
    code, out, err = call("a", "b", "--to", "c", *F32)
    assert code == 0, err
    rows = [line.replace("│", " ").split() for line in out.splitlines() if line.startswith("│")]
    assert rows == [[name, f"{number:.3f}"] for name, number in of_python().nearest("c")]


def test_training_starts_from_the_nearest(composable: Path, call) -> None:
    code, out, err = call("--to", "c", "--json", *F32)
    assert code == 0, err
    nearest = json.loads(out)["nearest"][0][0]
    words = ["train", "rows.jsonl", "--backbone", "tiny-model", "--init", nearest, "--name", "on"]
    (composable / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MEMORY))
    templates = ["--prompt", "{mr} ->", "--target", " {ref}"]
    assert main([*words, *templates, "--steps", "2", *F32]) == 0
    store, backbone = PrefixStore(), foreword.load("tiny-model", dtype="float32")
    begun, on = store.load(nearest), foreword.with_start(backbone, store.load("on"))
    assert on.meta.parents[0] == begun.digest
    assert on.start is not None
    for start, key, end in zip(on.start.keys, begun.keys, on.keys, strict=True):
        assert torch.equal(start, key)
        assert not torch.equal(start, end)


def test_raw_needs_no_backbone(place: Path, call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreword.cli.options.load", lambda *_, **__: pytest.fail("it was loaded"))
    code, out, err = call("--raw", "--json", "--pooling", "mean")
    assert code == 0, err
    every = {name: PrefixStore().load(name) for name in NAMES}
    wanted = similarity(every, raw=True, pooling="mean").as_json()
    assert json.loads(out) == {**json.loads(json.dumps(wanted)), "nearest": None}


def test_who_is_left_out(
    place: Path, tmp_path: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PrefixStore(tmp_path / "other")
    for name in NAMES:
        store.save(name, PrefixStore().load(name))
    store.save("else", PrefixStore().load("a").with_meta(fingerprint="f" * 64))
    store.save("captured", PrefixStore().load("a").with_meta(recipe={}))
    (store.folder / "broken.safetensors").write_bytes(b"1234")
    monkeypatch.setenv("FOREWORD_STORE", str(store.folder))
    code, out, err = call("--json", *F32)
    assert code == 0, err
    found = json.loads(out)
    assert found["names"] == [*NAMES]
    assert [*sorted(found["left_out"])] == ["broken", "captured", "else"]
    assert "its recipe does not say how it was trained" in found["left_out"]["captured"]
    assert "nor by foreword map --raw" in found["left_out"]["captured"]
    assert "interpolate" not in found["left_out"]["captured"]
    assert "same fingerprint" in found["left_out"]["else"]
    code, out, err = call("--to", "else", *F32)
    assert code == 1
    for raw in ([], ["--raw"]):
        code, out, err = call("--json", *raw, *F32)
        found = json.loads(out)
        assert found["left_out"]["else"].endswith("train both on the same weights")
        assert ("captured" in found["names"]) == bool(raw)


def test_what_is_refused(place: Path, call) -> None:
    for arguments, message in (
        (["a", "nope"], "no prefix is called 'nope'"),
        (["a", "b", "--to", "nope"], "no prefix is called 'nope'"),
        (["a"], "compared two by two; found 1"),
        (["--image", "map.pdf"], "a picture's file ends in .png or .svg; found 'map.pdf'"),
    ):
        code, _, err = call(*arguments, *F32)
        assert (code, message in " ".join(err.split())) == (1, True), err
