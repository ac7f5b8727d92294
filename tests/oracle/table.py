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
from tests.oracle.families import FAMILIES, Family, attention_of

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
    def exact(self) -> bool:
        """Whether every error is small, and every deliberate mistake is seen."""
        small = all(error <= checks.EXACT for error in self.errors.values())
        return small and all(moved > checks.MOVED for moved in self.controls.values())


def policies(family: Family) -> tuple[WindowPolicy, ...]:
    """Window policies that differ for the family."""
    return ("visible", "windowed") if family.window else ("visible",)


@cache
def measure(name: str, windows: WindowPolicy) -> Result:
    """Run the whole oracle on one family."""
    family = next(f for f in FAMILIES if f.name == name)
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
            "generation, cached": checks.generation_error(case, use_cache=True),
            "generation, uncached": checks.generation_error(case, use_cache=False),
            "gradients": checks.gradient_error(case),
            "gradients, checkpointed": checks.gradient_error(case, checkpointing=True),
        },
        controls=checks.negative_controls(case),
    )


def verdicts() -> list[dict[str, str]]:
    """What is published about each family, without figures that vary between machines."""
    found = []
    for family in FAMILIES:
        results = [measure(family.name, windows) for windows in policies(family)]
        found.append(
            {
                "family": family.name,
                "positions": results[0].positions,
                "kernel": attention_of(family),
                "windows": ", ".join(r.windows for r in results) if family.window else "no window",
                "verdict": "exact" if all(r.exact for r in results) else "NOT EXACT",
            }
        )
    return found


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
        "| family | kernel | positions | windows | error | smallest control | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        for windows in policies(family):
            result = measure(family.name, windows)
            lines.append(
                f"| {family.name} | {attention_of(family)} | {result.positions} | "
                f"{windows if family.window else '-'} | {max(result.errors.values()):.0e} | "
                f"{min(result.controls.values()):.0e} | {'exact' if result.exact else 'NOT EXACT'} |"
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
