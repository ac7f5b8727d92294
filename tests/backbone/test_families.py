"""The oracle: a text's own keys and values as a prefix give the logits of the text in context."""

from __future__ import annotations

import json

import pytest
import transformers
from transformers import AutoConfig

from foreword.prefix import WindowPolicy
from tests.kinds.families import FAMILIES as KINDS
from tests.oracle import checks
from tests.oracle.families import BY_NAME, FAMILIES, STANDARD, WINDOW, Family
from tests.oracle.table import JSON, PAGE, Result, measure, policies, verdicts

CASES = [(family.title, windows) for family in FAMILIES for windows in policies(family)]

UNGROUPED = {"gpt2", "opt", "gpt_neox", "gpt_bigcode", "biogpt", "deepseek_v3"}
"""Families whose config has no key/value heads of its own (deepseek_v3 expands latents)."""


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def result(request: pytest.FixtureRequest) -> Result:
    title, windows = request.param
    if not BY_NAME[title].available:
        pytest.skip(f"transformers {transformers.__version__} has no {title}")
    return measure(title, windows)


def test_prefix_gives_the_logits_and_gradients_of_text_in_context(result: Result) -> None:
    assert {k: e for k, e in result.errors.items() if not e <= checks.EXACT} == {}


def test_every_deliberate_mistake_is_seen(result: Result) -> None:
    assert len(result.controls) == (3 if result.family.positionless else 4)
    assert {k: m for k, m in result.controls.items() if not m > checks.MOVED} == {}


def test_windows_are_measured_at_their_sites(result: Result) -> None:
    assert max(checks.ROWS) > 2 * WINDOW
    family = result.family
    if family.window is None or family.masks == "single":
        assert set(result.site_windows) == {family.window}
        return
    config = AutoConfig.for_model(family.name, **family.config)
    kinds = config.attention_layers if family.masks == "own" else config.layer_types
    whole = {"full_attention", "global"}
    assert result.site_windows == tuple(None if kind in whole else WINDOW for kind in kinds)


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "gpt2", "gpt_oss"])
def test_offset_policy_is_exact_too(name: str) -> None:
    assert checks.forward_error(checks.case(BY_NAME[name]), "left", "offset") <= checks.EXACT


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "cohere2"])
def test_eager_kernels_of_sdpa_families_are_exact_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.oracle.checks.attention_of", lambda _: "eager")
    case = checks.case(BY_NAME[name])
    assert case.model.config._attn_implementation == "eager"
    assert checks.forward_error(case, "left") <= checks.EXACT
    assert checks.gradient_error(case) <= checks.EXACT


@pytest.mark.parametrize("windows", ["visible", "windowed"])
def test_window_policies_differ_where_text_is_longer_than_the_window(
    windows: WindowPolicy,
) -> None:
    """The oracle would pass for both policies if its text were too short to tell them apart."""
    right = checks.case(BY_NAME["mistral"], windows)
    wrong = right.prefix().with_meta(windows="windowed" if windows == "visible" else "visible")
    found = checks.forward(right, wrong, "left")
    assert checks.difference(found, right.references()) > checks.MOVED


def test_absolute_positions_are_not_exact_under_the_free_policy() -> None:
    """Why gpt2 and its like store `offset`: a captured text has its positions in its values."""
    case = checks.case(BY_NAME["gpt2"])
    offset = case.prefix("offset")
    found = checks.forward(case, offset.with_meta(positions="free"), "left")
    assert checks.difference(found, case.references()) > checks.MOVED


@pytest.mark.parametrize("family", STANDARD, ids=lambda family: family.title)
def test_heads_are_grouped_where_possible(family: Family) -> None:
    grouped = family.config.get("num_key_value_heads", 4) < 4
    assert grouped or family.name in UNGROUPED


def test_the_published_table_is_what_the_oracle_finds() -> None:
    missing = {family.name for family in KINDS if not family.available}
    published = json.loads(JSON.read_text())["families"]
    assert [row for row in published if row["family"] not in missing] == verdicts()
    page = PAGE.read_text()
    for family in FAMILIES:
        found = [measure(family.title, windows) for windows in policies(family)]
        rows = [line for line in page.splitlines() if line.startswith(f"| {family.title} | ")]
        assert len(rows) == len(found)
        for row, result in zip(rows, found, strict=True):
            facts = (family.title, result.verdict, result.sites, result.positions)
            assert row.startswith("".join(f"| {fact} " for fact in facts) + "|")
