"""The documented options are those of the program."""

from __future__ import annotations

import pytest

from foreword.cli.main import VERBS
from tests.cli.reference import help_of, shown

NAMES = [verb.__name__.rstrip("_") for verb in VERBS]


def test_every_verb_is_documented() -> None:
    assert set(shown()) == {"COMMAND", *NAMES}


@pytest.mark.parametrize(
    "verb", ["COMMAND", "train", "generate", "evaluate", "inspect", "serve", "demo"]
)
def test_the_documented_help_is_the_programs(verb: str) -> None:
    assert shown()[verb] == help_of(verb)
