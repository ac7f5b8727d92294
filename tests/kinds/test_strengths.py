"""Strengths on encoders and encoder-decoders: their ends, no jump, and the formula at every stack."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from foreword.prefix import Prefix
from tests.kinds import checks
from tests.kinds.checks import EXACT, MOVED, Case, distance
from tests.kinds.families import Family
from tests.kinds.test_oracle import EVERY

STRENGTHS = (-0.4, 0.5, 1.6)


def under(case: Case, prefix: Prefix | None) -> Tensor:
    with case.backbone.attached(prefix):
        return case.run(case.source, case.target)


@pytest.mark.parametrize("family", EVERY)
def test_it_goes_from_the_frozen_model_to_the_prefix_without_a_jump(family: Family) -> None:
    case = checks.case(family)
    _, prefix = checks.whole(case)
    plain, whole = under(case, None), under(case, prefix)
    assert distance(plain, whole) > MOVED
    assert torch.equal(under(case, prefix.strength(0.0)), plain)
    assert torch.equal(under(case, prefix.strength(1.0)), whole)
    assert distance(under(case, prefix.strength(1e-6)), plain) <= EXACT
    assert distance(under(case, prefix.strength(1 - 1e-6)), whole) <= EXACT
    half = under(case, prefix.strength(0.5))
    assert min(distance(half, plain), distance(half, whole)) > MOVED


@pytest.mark.parametrize("family", EVERY)
def test_at_every_stack_attention_gives_what_the_formula_gives(family: Family) -> None:
    """Where one call alone has the prefix, what it attends with is the same at every strength."""
    case = checks.case(family)
    _, prefix = checks.whole(case)
    first = {site.stack: site for site in reversed(prefix.sites)}
    for site in first.values():
        only = prefix.only([site.label])
        outs: list[Tensor] = []

        def keep(
            _: nn.Module, __: object, out: tuple[Tensor, ...], kept: list[Tensor] = outs
        ) -> None:
            kept.append(out[0])

        module = case.model.get_submodule(site.name)
        module = getattr(module, "dense", module)  # ALBERT's has a norm behind its projection
        hook = module.register_forward_hook(keep)
        for one in (None, only, *map(only.strength, STRENGTHS)):
            under(case, one)
        hook.remove()
        text, joint, *found = outs
        assert distance(joint, text) > MOVED
        for strength, out in zip(STRENGTHS, found, strict=True):
            assert distance(out, text + strength * (joint - text)) <= EXACT


@pytest.mark.parametrize("family", EVERY)
def test_a_batch_of_strengths_and_none_is_its_rows(family: Family) -> None:
    case = checks.case(family)
    _, prefix = checks.whole(case)
    mixed = [prefix.strength(0.4), None, prefix.strength(-0.3), prefix, prefix.strength(0.0)]
    with case.backbone.attached(mixed):
        together = case.run(case.source.repeat(5, 1), case.target.repeat(5, 1))
    for one, found in zip(mixed, together, strict=True):
        assert distance(found[None], under(case, one)) <= EXACT
