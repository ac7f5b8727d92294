"""What the figures recommend, by a rule that can be read.

1. Of all that is trained the best mean of the deciding figure on test rows leads. Where that figure is
   the same for all, as a BLEU of 0 is, the NLL decides.
2. Whatever lies within the larger of both standard deviations over seeds is as good. Without a spread,
   as of one seed, nothing is.
3. Of those that are as good the one that costs least is recommended: one that serves many tasks in one
   batch, else one that can be merged, else the fewest bytes stored.
4. Where another is ahead by NLL, that is said.
5. What is not trained is named where it is as good as the best: then nothing needs to be trained.
"""

from __future__ import annotations

from foreword.compare.result import Metric, Side

BY_LOSS = Metric("nll", "NLL", higher=False, form="{:.3f}")
"""What decides where the task's own figure cannot."""


def verdict(sides: tuple[Side, ...], metric: Metric) -> tuple[str, ...]:
    """The recommendation, sentence by sentence.

    Args:
        sides: All methods.
        metric: The figure that decides.
    """
    able = [side for side in sides if side.figure(metric.name) is not None]
    trained = [side for side in able if side.trained]
    failed = [side for side in sides if side.failed is not None]
    said = []
    if len(trained) > 1 and len({side.figure(metric.name) for side in trained}) == 1:
        said.append(f"{metric.label} is the same for all that was trained, so NLL decides.")
        metric = BY_LOSS
    if not trained:
        said.append("No method was trained to an end, so none is recommended.")
    else:
        lead = max(trained, key=lambda side: _worth(side, metric))
        equals = [side for side in trained if _as_good(side, lead, metric)]
        chosen = min(equals, key=_cost)
        said.append(_reason(chosen, lead, equals, metric))
        said += [
            f"{side.label} has {_shown(side, metric)} without any training: as good, so that nothing "
            "needs to be trained."
            for side in able
            if not side.trained and _as_good(side, lead, metric)
        ]
        said += [*_by_loss(trained, chosen, metric), *_remarks(trained, chosen)]
    said += [f"{side.label} failed: {side.failed}." for side in failed]
    return tuple(said)


def _worth(side: Side, metric: Metric) -> float:
    """The mean of the deciding figure, so that more is better."""
    found = side.figure(metric.name)
    assert found is not None
    return found[0] if metric.higher else -found[0]


def _as_good(side: Side, lead: Side, metric: Metric) -> bool:
    """Whether a side lies within the larger spread of the best, or beyond it."""
    spreads = [found[1] for one in (side, lead) if (found := one.figure(metric.name)) is not None]
    return side is lead or _worth(lead, metric) - _worth(side, metric) <= max(spreads)


def _cost(side: Side) -> tuple[bool, bool, int]:
    """What is least where a side costs least to have."""
    traits = side.traits
    return (
        traits is None or not traits.shares_batch,
        traits is None or not traits.merges,
        side.stored_bytes,
    )


def _shown(side: Side, metric: Metric) -> str:
    """The deciding figure and its spread."""
    found = side.figure(metric.name)
    assert found is not None
    mean, spread = (metric.form.format(value) for value in found)
    return (
        f"{metric.label} {mean} (± {spread})" if len(side.seeds) > 1 else f"{metric.label} {mean}"
    )


def _reason(chosen: Side, lead: Side, equals: list[Side], metric: Metric) -> str:
    """Which method to use, and why."""
    if len(equals) == 1:
        return f"Use {chosen.label}: it is ahead with {_shown(chosen, metric)}."
    others = " and ".join(side.label for side in equals if side is not chosen)
    why = "its rows share a batch with those of other tasks"
    if chosen.traits is None or not chosen.traits.shares_batch:
        merges = chosen.traits is not None and chosen.traits.merges
        why = "it can be merged into the weights" if merges else "it is the smallest on the disk"
    ahead = "" if chosen is lead else f" (the best mean has {lead.label}, {_shown(lead, metric)})"
    return (
        f"Use {chosen.label}, with {_shown(chosen, metric)}: {others} cannot be told from it by these "
        f"seeds{ahead}, and {why}."
    )


def _by_loss(trained: list[Side], chosen: Side, metric: Metric) -> list[str]:
    """Who is ahead by NLL, where that is another, beyond the spread of the seeds."""
    able = [side for side in trained if side.figure(BY_LOSS.name) is not None]
    if metric.name == BY_LOSS.name or chosen not in able:
        return []
    lead = max(able, key=lambda side: _worth(side, BY_LOSS))
    if _as_good(chosen, lead, BY_LOSS):
        return []
    return [
        f"By NLL {lead.label} is ahead, with {_shown(lead, BY_LOSS)}; {chosen.label} has "
        f"{_shown(chosen, BY_LOSS)}."
    ]


def _remarks(trained: list[Side], chosen: Side) -> list[str]:
    """What must be said beside the recommendation."""
    said = [
        f"The best rate of {side.label} lies at the end of those that were tried, so it may be better "
        "than it looks."
        for side in trained
        if not side.interior
    ]
    own, best = _forgot(chosen), min(trained, key=_forgot)
    least, its = best.label, _forgot(best)
    if own > 0.05 and its < own / 2:
        kept = "kl" in chosen.settings
        try_it = "" if kept else f"; on a decoder, {chosen.name}+kl=1 keeps it nearer"
        said.append(
            f"{chosen.label[:1].upper()}{chosen.label[1:]} forgets more than {least}: the NLL of "
            f"neutral text rises by {own:.3f} nats (of {least} by {its:.3f}). Where the model "
            f"must stay what it was beside this task, that decides{try_it}."
        )
    return said


def _forgot(side: Side) -> float:
    """By how much the NLL of the neutral set rises that suffers most; 0 where none was measured."""
    names = {name for seed in side.seeds for name in seed.forgotten}
    return max(
        (found[0] for name in names if (found := side.forgot(name)) is not None), default=0.0
    )
