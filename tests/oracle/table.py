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
from tests.oracle import checks
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
        """``exact`` if every error is small and every deliberate mistake is seen."""
        small = all(error <= checks.EXACT for error in self.errors.values())
        seen = all(moved > checks.MOVED for moved in self.controls.values())
        return "exact" if small and seen else "NOT EXACT"


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
        errors={
            "forward, left padding": checks.forward_error(case, "left"),
            "forward, right padding": checks.forward_error(case, "right"),
            "rows with prefixes of their own": checks.rows_error(case),
            "generation, cached": checks.generation_error(case, use_cache=True),
            "generation, uncached": checks.generation_error(case, use_cache=False),
            "gradients": checks.gradient_error(case),
            "gradients, checkpointed": checks.gradient_error(case, checkpointing=True),
        },
        controls=checks.negative_controls(case),
    )


def kernel_of(family: Family) -> str:
    """The attention that the prefix joins: SDPA, the file's eager kernel, or one of its own."""
    return "own" if family in OWN else attention_of(family)


def verdicts() -> list[dict[str, str]]:
    """What is published about each family, without figures that vary between machines."""
    return [_verdict(name) for name in dict.fromkeys(family.name for family in FAMILIES)]


def _verdict(name: str) -> dict[str, str]:
    """One model type, all its variants together."""
    variants = [family for family in FAMILIES if family.name == name]
    found = [measure(family.title, windows) for family in variants for windows in policies(family)]
    windows = ", ".join(dict.fromkeys(result.windows for result in found))
    return {
        "family": name,
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
        "This table is made by the tests (`make pages`); another test fails when it is out of date.",
        "",
        "For each family a tiny random model (float32, every weight matrix scaled by 3, grouped heads "
        "and a head dimension other than hidden / heads where the family allows it) is given a text of "
        f"{checks.LENGTH} tokens in two ways: as the text itself in its context, and as a prefix made "
        "of the text's own keys and values. *Error* is the largest difference between the two, "
        "relative to "
        "max(1, largest logit): over forward passes with left and with right padding, and cached and "
        "uncached generation, of three rows of unequal length, each more than twice the window; and "
        "over the gradient of the NLL in keys and values (against the same tensors given as "
        "`past_key_values`), with and without gradient checkpointing. *Exact* means at most 1e-5. "
        "*Smallest control* is the least that a deliberate mistake moved a logit (position off by one, "
        "keys and values swapped between layers, one column masked, prefix dropped); it must exceed "
        "1e-3, or the family does not count.",
        "",
        "*Positions* is the policy stored by default. `free`: rotary or position-free models. `offset`: "
        "models with learned or sinusoidal absolute positions. Families with sliding windows are "
        "verified under both window policies: `visible` against a reference with an explicit mask, "
        "`windowed` against the text in context.",
        "",
        f"Measured with transformers {transformers.__version__}.",
        "",
        "| family | sites | kernel | positions | windows | error | smallest control | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        for windows in policies(family):
            result = measure(family.title, windows)
            lines.append(
                f"| {family.title} | {result.sites} | {kernel_of(family)} | {result.positions} | "
                f"{windows if family.window else '-'} | {max(result.errors.values()):.0e} | "
                f"{min(result.controls.values()):.0e} | {result.verdict} |"
            )
    lines += ["", "## Refused by name", "", *_refused(), ""]
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
