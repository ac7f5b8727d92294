"""The families' table: measured here, published in docs/families.md and backbone/verified.json.

`make pages` writes both; a test fails when what they say is no longer what the oracle finds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import transformers

from foreword.prefix import WindowPolicy
from tests.kinds import table as kinds_table
from tests.oracle import checks, hybrid_checks
from tests.oracle.families import BY_NAME, FAMILIES, Family, attention_of
from tests.oracle.own import OWN

ROOT = Path(__file__).parents[2]
JSON = ROOT / "src/foreword/backbone/verified.json"
PAGE = ROOT / "docs/families.md"


@dataclass(frozen=True)
class Result:
    """What the oracle finds for one family under one window policy."""

    family: Family
    windows: WindowPolicy
    positions: str
    sites: int
    site_windows: tuple[int | None, ...]
    errors: dict[str, float]
    controls: dict[str, float]

    @property
    def verdict(self) -> str:
        """``exact`` if every error is small and every deliberate mistake is seen.

        ``attention layers``: the same, for a family with other layers besides.
        """
        small = all(error <= checks.EXACT for error in self.errors.values())
        seen = all(moved > checks.MOVED for moved in self.controls.values())
        right = "attention layers" if self.family.recurrent else "exact"
        return right if small and seen else "NOT EXACT"


def policies(family: Family) -> tuple[WindowPolicy, ...]:
    """Window policies that differ for the family."""
    return ("visible", "windowed") if family.window and not family.chunked else ("visible",)


@cache
def measure(title: str, windows: WindowPolicy) -> Result:
    """Run the whole oracle on one family."""
    family = BY_NAME[title]
    case = checks.case(family, windows)
    sites = case.backbone.sites
    return Result(
        family=family,
        windows=windows,
        positions=case.backbone.positions,
        sites=len(sites),
        site_windows=tuple(site.window for site in sites),
        errors=_hybrid_errors(case) if family.recurrent else _errors(case),
        controls=hybrid_checks.controls(case)
        if family.recurrent
        else checks.negative_controls(case),
    )


def _errors(case: checks.Case) -> dict[str, float]:
    return {
        "forward, left padding": checks.forward_error(case, "left"),
        "forward, right padding": checks.forward_error(case, "right"),
        "rows with prefixes of their own": checks.rows_error(case),
        "generation, cached": checks.generation_error(case, use_cache=True),
        "generation, uncached": checks.generation_error(case, use_cache=False),
        "gradients": checks.gradient_error(case),
        "gradients, checkpointed": checks.gradient_error(case, checkpointing=True),
    }


def _hybrid_errors(case: checks.Case) -> dict[str, float]:
    return {
        "forward, left padding": hybrid_checks.batch_error(case, "left"),
        "forward, right padding": hybrid_checks.batch_error(case, "right"),
        "rows with prefixes of their own": hybrid_checks.own_rows_error(case),
        "generation, cached": hybrid_checks.steps_error(case, use_cache=True),
        "generation, uncached": hybrid_checks.steps_error(case, use_cache=False),
        "gradients": checks.gradient_error(case),
        "gradients, checkpointed": checks.gradient_error(case, checkpointing=True),
    }


def kernel_of(family: Family) -> str:
    """The attention that the prefix joins: SDPA, the file's eager kernel, or one of its own."""
    return "own" if family in OWN else attention_of(family)


def verdicts() -> list[dict[str, str]]:
    """What is published about each family, without figures that vary between machines."""
    decoders = [_verdict(name) for name in dict.fromkeys(family.name for family in FAMILIES)]
    return [*decoders, *kinds_table.verdicts()]


def _verdict(name: str) -> dict[str, str]:
    """One model type, all its variants together."""
    variants = [family for family in FAMILIES if family.name == name]
    found = [measure(family.title, windows) for family in variants for windows in policies(family)]
    windows = ", ".join(dict.fromkeys(result.windows for result in found))
    return {
        "family": name,
        "kind": "decoder",
        "positions": ", ".join(dict.fromkeys(result.positions for result in found)),
        "kernel": ", ".join(dict.fromkeys(kernel_of(family) for family in variants)),
        "windows": windows if any(family.window for family in variants) else "no window",
        "verdict": ", ".join(dict.fromkeys(result.verdict for result in found)),
    }


def page() -> str:
    """The documentation's page."""
    lines = [
        "# Families",
        "",
        "## Decoders",
        "",
        "This table is made by the tests (`make pages`); another test fails when it is out of date.",
        "",
        "For each family a tiny random model (float32, every weight matrix scaled by 3, grouped heads "
        "and a head dimension other than hidden / heads where the family allows it) is given a text of "
        f"{checks.LENGTH} tokens in two ways: as the text itself in its context, and as a prefix made "
        "of the text's own keys and values. *Error* is the largest difference between the two, "
        "relative to max(1, largest logit): over forward passes with left and with right padding, a "
        "batch whose rows have a prefix, none, and a shorter one, and cached and uncached generation, "
        "of three rows of unequal length, each more than twice the window; and over the gradient of "
        "the NLL in keys and values (against the same tensors given as `past_key_values`, or written "
        "into attention by hand where a cache cannot hold them), with and without gradient "
        "checkpointing. *Exact* means at most 1e-5. *Smallest control* is the least that a deliberate "
        "mistake moved a logit (position off by one, keys and values swapped between layers, one "
        "column masked, prefix dropped); it must exceed 1e-3, or the family does not count.",
        "",
        "*Attention layers*: the family has recurrent or convolutional layers besides. A prefix joins "
        "its attention layers only (*sites*), so no prefix is equal to a text in context. There the "
        "reference is each row alone, uncached, with the prefix's tensors written into attention by "
        "hand; the bounds are the same.",
        "",
        "*Sites* is the number of attention calls of the tiny model. *Kernel* `own`: the family does "
        "not call attention through transformers' AttentionInterface, and an adapter joins the prefix "
        "where its module asks its cache for keys. *Positions* is the policy stored by default. "
        "`free`: rotary, ALiBi or position-free models; with ALiBi each virtual token has the bias of "
        "its own distance. `offset`: models with learned or sinusoidal absolute positions. Families "
        "with sliding windows are verified under both window policies: `visible` against a reference "
        "with an explicit mask, `windowed` against the text in context. Chunked attention (llama4) is "
        "cut at the text's own multiples, and every chunk sees the prefix.",
        "",
        f"Measured with transformers {transformers.__version__}.",
        "",
        "| family | verdict | sites | positions | windows | kernel | error | smallest control |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        for windows in policies(family):
            result = measure(family.title, windows)
            lines.append(
                f"| {family.title} | {result.verdict} | {result.sites} | {result.positions} | "
                f"{windows if family.window else '-'} | {kernel_of(family)} | "
                f"{max(result.errors.values()):.0e} | {min(result.controls.values()):.0e} |"
            )
    lines += ["", *kinds_table.lines(), "## Refused by name", "", *_refused(), ""]
    return "\n".join(lines)


def _refused() -> list[str]:
    from tests.backbone.test_refusals import REASONS

    return [f"- **{family}**: {reason}" for family, reason in REASONS.items()]


def main() -> None:
    """Write both files."""
    JSON.write_text(json.dumps({"families": verdicts()}, indent=1) + "\n")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
