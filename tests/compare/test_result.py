"""What was measured, there and back through JSON."""

from __future__ import annotations

import json

import pytest

from foreword.compare.result import Comparison
from foreword.errors import DataError
from tests.compare.example import EXAMPLE, FULL, LORA, PREFIX


def test_json_holds_all_of_it() -> None:
    text = json.dumps(EXAMPLE.as_json(), allow_nan=False)
    assert Comparison.of_json(text) == EXAMPLE


def test_figures_are_means_over_seeds() -> None:
    assert PREFIX.figure("bleu") == (pytest.approx(37.0), pytest.approx(1.0))
    assert LORA.forgot("text") == (pytest.approx(0.02), pytest.approx(0.0))
    assert FULL.figure("bleu") is None
    assert PREFIX.figure("rouge_l") is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', json.dumps({**EXAMPLE.as_json(), "sides": [{}]})]
)
def test_what_is_no_comparison_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="compare anew"):
        Comparison.of_json(text)
