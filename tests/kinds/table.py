"""What the oracle finds of encoders and encoder-decoders, for the families' table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tests.kinds import checks
from tests.kinds.families import BY_NAME, FAMILIES, Family


@dataclass(frozen=True)
class Result:
    """What the oracle finds for one family."""

    family: Family
    sites: dict[str, int]
    errors: dict[str, float]
    controls: dict[str, float]

    @property
    def verdict(self) -> str:
        """``exact`` if every error is small and every deliberate mistake is seen."""
        small = all(error <= checks.EXACT for error in self.errors.values())
        seen = all(moved > checks.MOVED for moved in self.controls.values())
        return "exact" if small and seen else "NOT EXACT"


@cache
def measure(name: str) -> Result:
    """Run the oracle on one family."""
    case = checks.case(BY_NAME[name])
    stacks = [site.stack for site in case.backbone.sites]
    splits: tuple[tuple[str, ...], ...] = (("encoder",),)
    if not case.is_encoder:
        splits = (("encoder", "cross", "decoder"), ("encoder", "cross"), ("decoder",), ("cross",))
    errors = {" and ".join(split): checks.split_error(case, split) for split in splits}
    return Result(
        family=case.family,
        sites={stack: stacks.count(stack) for stack in dict.fromkeys(stacks)},
        errors={**errors, "rows": checks.rows_error(case)},
        controls=checks.controls(case),
    )


def verdicts() -> list[dict[str, str]]:
    """What is published about each family that the installed transformers can run."""
    return [
        {
            "family": family.name,
            "kind": family.kind,
            "positions": "free",
            "kernel": family.kernels[0],
            "windows": "visible" if family.window else "no window",
            "verdict": measure(family.name).verdict,
        }
        for family in FAMILIES
        if family.available
    ]


def lines() -> list[str]:
    """The documentation's part."""
    made = [
        "## Encoders and encoder-decoders",
        "",
        "A tiny random model runs over a whole text (17 tokens; a decoder's is 13). The keys and "
        "values of the first 5 tokens, from that same pass, become a prefix; the rest runs alone, its "
        "tokens where they were. *Error* is the largest difference in the rest's outputs: with the "
        "prefix at all sites, and at each kind of site by itself where that has a meaning (an "
        "encoder's together with cross-attention to it); and of a batch whose rows have a prefix, "
        "none, and a shorter one, against each alone. *Smallest control*: keys and values swapped, "
        "one column dropped, one stack left out, no bias by distance (T5, MPNet). The tests also hold "
        "that every tensor gets a gradient, that files give back the prefix, and that generation with "
        "and without a cache is the same.",
        "",
        "| family | kind | verdict | sites | error | smallest control |",
        "|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        result = measure(family.name)
        sites = ", ".join(f"{count} {stack}" for stack, count in result.sites.items())
        made.append(
            f"| {family.name} | {family.kind} | {result.verdict} | {sites} | "
            f"{max(result.errors.values()):.0e} | {min(result.controls.values()):.0e} |"
        )
    notes = [f"- {family.name}: {family.note}." for family in FAMILIES if family.note]
    return [*made, "", *notes, ""]
