"""The rule that recommends a method."""

from __future__ import annotations

from dataclasses import replace

from foreword.compare.result import Metric, Seed, Side
from foreword.compare.verdict import verdict
from tests.compare.example import FROZEN, FULL, LORA, PREFIX

BLEU = Metric("bleu", "BLEU", higher=True)


def with_figures(side: Side, *values: float, forgot: float = 0.0) -> Side:
    seeds = tuple(
        Seed(seed, held=1.0, figures={"bleu": value, "nll": -value}, forgotten={"text": forgot})
        for seed, value in enumerate(values)
    )
    return replace(side, seeds=seeds, interior=True)


def test_what_is_clearly_ahead_is_recommended_whatever_it_is() -> None:
    lora, prefix = with_figures(LORA, 40, 41, 42), with_figures(PREFIX, 35, 36, 37)
    (said,) = verdict((prefix, lora), BLEU)
    assert said == "Use LoRA, all linear layers, rank 2: it is ahead with BLEU 41.0 (± 1.0)."


def test_of_equals_the_one_that_serves_many_tasks_at_once() -> None:
    lora, prefix = with_figures(LORA, 40, 41, 42), with_figures(PREFIX, 39.5, 40.5, 41.5)
    (said,) = verdict((lora, prefix), BLEU)
    assert said.startswith("Use prefix tuning, 16 virtual tokens, with BLEU 40.5 (± 1.0): LoRA")
    assert "its rows share a batch" in said
    assert "the best mean has LoRA, all linear layers, rank 2, BLEU 41.0" in said


def test_a_little_beyond_the_spread_is_no_longer_equal() -> None:
    lora, prefix = with_figures(LORA, 40, 41, 42), with_figures(PREFIX, 38.9, 39.9, 40.9)
    assert verdict((lora, prefix), BLEU)[0].startswith("Use LoRA")


def test_one_seed_has_no_spread_so_that_nothing_is_equal() -> None:
    lora, prefix = with_figures(LORA, 40.1), with_figures(PREFIX, 40)
    assert verdict((prefix, lora), BLEU)[0].endswith("it is ahead with BLEU 40.1.")


def test_where_the_figure_is_the_same_for_all_the_loss_decides() -> None:
    def lost(side: Side, *losses: float) -> Side:
        made = with_figures(side, *(0.0 for _ in losses))
        seeds = tuple(
            replace(seed, figures={**seed.figures, "nll": loss})
            for seed, loss in zip(made.seeds, losses, strict=True)
        )
        return replace(made, seeds=seeds)

    said = verdict((lost(PREFIX, 1.5, 1.6, 1.7), lost(LORA, 1.0, 1.1, 1.2)), BLEU)
    assert said[0] == "BLEU is the same for all that was trained, so NLL decides."
    assert said[1].startswith("Use LoRA, all linear layers, rank 2: it is ahead with NLL 1.100")


def test_who_is_ahead_by_loss_is_named_too() -> None:
    def lost(side: Side, loss: float) -> Side:
        seeds = (replace(seed, figures={**seed.figures, "nll": loss}) for seed in side.seeds)
        return replace(side, seeds=tuple(seeds))

    prefix, lora = with_figures(PREFIX, 40, 41, 42), with_figures(LORA, 35, 36, 37)
    said = verdict((lost(prefix, 1.5), lost(lora, 1.4)), BLEU)
    assert said[0].startswith("Use prefix tuning")
    assert said[1] == (
        "By NLL LoRA, all linear layers, rank 2 is ahead, with NLL 1.400 (± 0.000); prefix tuning, 16 "
        "virtual tokens has NLL 1.500 (± 0.000)."
    )
    assert len(verdict((lost(prefix, 1.4), lost(lora, 1.5)), BLEU)) == 1


def test_less_may_be_better() -> None:
    lora, prefix = with_figures(LORA, 40, 41, 42), with_figures(PREFIX, 35, 36, 37)
    lower = Metric("bleu", "error", higher=False)
    assert verdict((lora, prefix), lower)[0].startswith("Use prefix tuning")


def test_what_is_not_trained_is_named_where_it_is_as_good() -> None:
    prefix = with_figures(PREFIX, 35, 36, 37)
    said = verdict((prefix, with_figures(FROZEN, 36.5)), BLEU)
    assert any("nothing needs to be trained" in sentence for sentence in said)
    said = verdict((prefix, with_figures(FROZEN, 20)), BLEU)
    assert not any("nothing needs" in sentence for sentence in said)


def test_forgetting_is_said_where_another_forgets_much_less() -> None:
    prefix, lora = with_figures(PREFIX, 40, 41, 42, forgot=0.2), with_figures(LORA, 30, 31, 32)
    said = verdict((prefix, lora), BLEU)
    assert any("rises by 0.200 nats" in sentence for sentence in said)
    assert said[-1].endswith("on a decoder, prefix+kl=1 keeps it nearer.")
    kept = replace(prefix, name="prefix+kl=1", settings={"kl": 1})
    assert verdict((kept, lora), BLEU)[-1].endswith("that decides.")
    same = replace(lora, label=prefix.label)  # of two forms of one method it can be
    assert any("rises by 0.200 nats" in sentence for sentence in verdict((prefix, same), BLEU))
    calm = verdict((with_figures(PREFIX, 40, 41, 42, forgot=0.04), lora), BLEU)
    assert not any("forgets" in sentence for sentence in calm)


def test_what_failed_and_what_was_not_searched_to_the_end_is_said() -> None:
    edge = replace(with_figures(LORA, 40, 41, 42), interior=False)
    said = verdict((edge, FULL), BLEU)
    assert any("may be better than it looks" in sentence for sentence in said)
    assert said[-1] == "full fine-tuning failed: out of memory <at 2 GB> & more."
    assert verdict((FULL,), BLEU)[0] == "No method was trained to an end, so none is recommended."
