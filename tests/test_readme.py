"""What the README says is true: its Python runs, its tree is the tree, its verbs exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import foreword
from foreword.cli.main import VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.backbone
def test_the_python_runs_in_at_most_fifteen_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = block("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("steps=40", "steps=2"), "README.md", "exec"), {})
    prefix = foreword.load_prefix(tmp_path / "restaurants.safetensors")
    assert prefix.meta.training["steps"] == 2
    assert "name[Zizzi], area[riverside] ->" in capsys.readouterr().out


def test_every_verb_that_is_shown_exists() -> None:
    shown = set(re.findall(r"^\$ foreword (\w+)", README, re.MULTILINE))
    assert shown
    assert shown <= {verb.__name__.rstrip("_") for verb in VERBS}


def test_linked_files_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_contributing_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 60
