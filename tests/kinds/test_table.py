"""The page of families says what the oracle finds of encoders and encoder-decoders."""

from __future__ import annotations

import pytest

from tests.kinds.families import FAMILIES, Family
from tests.kinds.table import measure
from tests.oracle.table import PAGE


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_page_has_the_family(family: Family) -> None:
    if not family.available:
        pytest.skip(f"this transformers cannot run {family.name}")
    result = measure(family.name)
    sites = ", ".join(f"{count} {stack}" for stack, count in result.sites.items())
    row = f"| {family.name} | {family.kind} | {result.verdict} | {sites} | "
    assert result.verdict == "exact"
    assert sum(line.startswith(row) for line in PAGE.read_text().splitlines()) == 1
    assert f"{family.name}: {family.note}." in PAGE.read_text() or not family.note
