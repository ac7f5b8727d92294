"""A verb with many options shows them under headings, each option under one."""

from __future__ import annotations

import re

import pytest
from cyclopts.help import HelpEntry, HelpPanel

from foreword.cli.headings import HEADINGS, OPTIONS, UnderHeadings
from foreword.cli.main import VERBS, main

MANY = 15
"""Options that one panel may hold."""

NAMES = [verb.__name__.rstrip("_") for verb in VERBS]


def panels(text: str) -> dict[str, list[str]]:
    """By heading the options of a help text."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if title := re.match(r"╭─ (.+?) ─", line):
            found[title[1]] = []
        if option := re.match(r"│[ *]*(--\S+)", line):
            found[[*found][-1]].append(option[1])
    return found


@pytest.mark.parametrize("verb", NAMES)
def test_no_panel_is_long_and_every_option_is_under_one_heading(
    verb: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([verb, "--help"]) == 0
    found = panels(capfd.readouterr().out)
    shown = [option for options in found.values() for option in options]
    assert len(shown) == len(set(shown))
    assert all(len(options) <= MANY for options in found.values())
    if verb in HEADINGS:
        wanted = {heading: names.split() for heading, names in HEADINGS[verb].items()}
        assert {**found, **wanted} == found
        assert OPTIONS not in found


def test_training_begins_with_its_data() -> None:
    assert [*HEADINGS["train"]][:5] == ["Data", "Recipe", "Start", "Loop", "Output"]


def test_an_option_without_a_heading_is_still_shown() -> None:
    entries = [HelpEntry(positive_names=(name,)) for name in ("--new", "--b", "--a")]
    panel = HelpPanel(format="parameter", title=OPTIONS, entries=entries)
    parts = UnderHeadings({"First": "--a --b"}).parts(panel)
    assert [(part.title, [entry.names[0] for entry in part.entries]) for part in parts] == [
        ("First", ["--a", "--b"]),
        (OPTIONS, ["--new"]),
    ]
