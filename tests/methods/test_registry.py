"""Methods by name, from other packages too, and sized to a budget."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from foreword.backbone import Backbone
from foreword.errors import DataError, TrainingError
from foreword.methods.added import Added, AddedStart, Parameters
from foreword.methods.base import Method, Rows
from foreword.methods.registry import OWN, Known, known_method, least, method_names, within
from foreword.objectives.encode import InFront
from foreword.objectives.settings import DataSettings
from foreword.train.fit import fit
from foreword.train.settings import LoopSettings
from tests.conftest import MEMORY
from tests.methods.by_hand import LOOP, TEXT
from tests.tasks.models import ROWS as LABELLED
from tests.tasks.models import tiny_encoder

DATA = DataSettings(**TEXT)


@dataclass(frozen=True)
class ShiftSettings(DataSettings):
    """A method of another package: how many of the last layers get a learned shift."""

    layers_shifted: int = 1


class Shift(Method[ShiftSettings, Added]):
    """A vector that is added to what layers give."""

    name = "shift"
    settings = ShiftSettings

    def start(self, backbone: Backbone, settings: ShiftSettings, rows: Rows) -> ShiftStart:
        return ShiftStart(backbone, settings)


class ShiftStart(AddedStart[ShiftSettings]):
    def __init__(self, backbone: Backbone, settings: ShiftSettings) -> None:
        self.backbone, self.settings = backbone, settings
        self.in_front = InFront(backbone.bos)
        self.digest = "shift"
        self.numbers = settings.layers_shifted * backbone.width

    @contextmanager
    def added(self) -> Iterator[tuple[Backbone, Parameters]]:
        model: Any = self.backbone.model.model  # type: ignore[union-attr]
        layers = model.layers[-self.settings.layers_shifted :]
        shifts = {
            str(i): nn.Parameter(torch.zeros(self.backbone.width)) for i in range(len(layers))
        }
        hooks = [
            layer.register_forward_hook(lambda _, __, out, shift=shift: out + shift)
            for layer, shift in zip(layers, shifts.values(), strict=True)
        ]
        try:
            yield self.backbone, shifts
        finally:
            for hook in hooks:
                hook.remove()


SHIFT = Known(Shift(), "layers_shifted")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a package with an entry point where Python finds it; the value is what that names."""

    def install(value: str, name: str = "shift") -> None:
        info = tmp_path / "shifting-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shifting\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[foreword.methods]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    yield install
    sys.path_importer_cache.clear()


def test_a_method_of_another_package_is_trained(installed: Any, tiny: Backbone) -> None:
    installed("tests.methods.test_registry:SHIFT")
    assert method_names() == [*OWN, "shift"]
    known = known_method("shift")
    settings, trained = within("shift", known, tiny, known.made(DATA), MEMORY, 70)
    assert (settings.layers_shifted, trained) == (2, 64)
    found = fit(tiny, MEMORY, known.method, settings, LOOP)
    losses = [one["loss"] for one in found.history]
    assert losses[-1] < losses[0]
    assert found.training["trained_parameters"] == 64


@pytest.mark.parametrize(
    ("value", "name", "said"),
    [
        (
            "tests.methods.test_registry:absent",
            "shift",
            "'shift' of the package shifting cannot be",
        ),
        (
            "tests.methods.test_registry:DATA",
            "shift",
            "is a DataSettings; the entry point must name",
        ),
    ],
)
def test_a_package_that_brings_none_is_told_of(
    installed: Any, value: str, name: str, said: str
) -> None:
    installed(value, name)
    with pytest.raises(TrainingError, match=said):
        known_method(name)
    assert known_method("lora") is OWN["lora"]


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(
        TrainingError, match="no method 'lorra'; those known are prefix, prompt-tuning"
    ):
        known_method("lorra")


def test_a_word_may_have_settings_of_the_method(tiny: Backbone) -> None:
    known = known_method("lora+targets=attention+rslora=true")
    settings, trained = within("x", known, tiny, known.made(DATA), MEMORY, 3000)
    assert (settings.targets, settings.rslora) == ("attention", True)
    assert settings.rank > 1
    assert trained <= 3000
    assert known.named(settings) == f"LoRA, attention, rank {settings.rank}, rslora=True"
    fixed = known_method("prefix+length=2")
    settings, trained = within("x", fixed, tiny, fixed.made(DATA), MEMORY, 3000)
    assert settings.length == 2
    too_long = known_method("prefix+length=64")
    with pytest.raises(TrainingError, match=r"trains here is 9,216 numbers, more than the budget"):
        within("prefix+length=64", too_long, tiny, too_long.made(DATA), MEMORY, 3000)


def test_demonstrations_are_sized_from_where_the_first_one_fits(tiny: Backbone) -> None:
    """A prefix of one token has room for none, and whole ones do not fill every length."""
    known = known_method("prefix+init=demonstrations")
    smallest, start = least(known, tiny, known.made(DATA), MEMORY)
    assert smallest.length == 64
    of_a_token = 9_216 // 64
    assert start.trained < 64 * of_a_token
    settings, trained = within("x", known, tiny, known.made(DATA), MEMORY, 120 * of_a_token)
    assert settings.length > 64
    assert start.trained < trained <= 120 * of_a_token
    with pytest.raises(TrainingError, match=r"\(length 64\), more than the budget of 3,000"):
        within("x", known, tiny, known.made(DATA), MEMORY, 3000)
    nothing = [{"mr": "a" * 300, "ref": "b"}]
    with pytest.raises(DataError, match="not one demonstration fits"):
        least(known, tiny, known.made(DATA), nothing)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lora+rslora", "'rslora' is no setting; expected NAME=VALUE"),
        (
            "lora+rnak=4",
            "lora has no setting 'rnak'; its own are alpha, kl, rank.*did you mean 'rank'",
        ),
        ("lora+prompt=x", "lora has no setting 'prompt'"),
        ("full+rank=1", "full has no setting 'rank'; its own are kl"),
        ("lora+rank=1+rank=2", "names 'rank' twice"),
    ],
)
def test_words_with_settings_that_are_none_are_refused(word: str, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        known_method(word)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lora+rank=two", "rank must be a whole number"),
        ("lora+targets=all", "targets must be one of"),
    ],
)
def test_values_of_such_settings_are_checked(word: str, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        known_method(word).made(DATA)


@pytest.mark.parametrize("name", OWN)
def test_a_method_trains_as_many_numbers_as_a_budget_allows(tiny: Backbone, name: str) -> None:
    """The count that sizes it is the one that training then has, and a step more is too much."""
    known, budget = OWN[name], 3000
    settings, trained = within("x", known, tiny, known.made(DATA), MEMORY, budget)
    steps = LoopSettings(optimizer="adamw", lr=0.001, steps=1)
    assert (
        fit(tiny, MEMORY, known.method, settings, steps).training["trained_parameters"] == trained
    )
    if known.size is None:
        return
    assert trained <= budget
    more = {**settings.as_json(), known.size: getattr(settings, known.size) + 1}
    assert known.method.start(tiny, type(settings)(**more), MEMORY).trained > budget


def test_heads_are_counted(tiny: Backbone) -> None:
    encoder = tiny_encoder()
    for name in ("prefix", "lora", "adapter"):
        known = OWN[name]
        settings = known.made(DataSettings(task="classify"))
        loop = LoopSettings(steps=1)
        found = fit(encoder, LABELLED["classify"], known.method, settings, loop)
        assert found.start.trained == found.training["trained_parameters"]


@pytest.mark.parametrize("name", [name for name, known in OWN.items() if known.size])
def test_a_budget_that_is_too_small_is_refused(tiny: Backbone, name: str) -> None:
    known = OWN[name]
    with pytest.raises(
        TrainingError, match=f"{name} trains.*{known.size} 1\\), more than the budget of 20"
    ):
        within(name, known, tiny, known.made(DATA), MEMORY, 20)


def test_a_gated_or_partly_frozen_prefix_is_counted(tiny: Backbone) -> None:
    known = OWN["prefix"]
    changes: list[dict[str, Any]] = [
        {"frozen": 2},
        {"parameterization": "gated"},
        {"parameterization": "mlp", "mlp_width": 8},
        {"layers": "last:1"},
    ]
    for change in changes:
        settings = known.made(DATA, length=4, **change)
        found = fit(tiny, MEMORY, known.method, settings, LoopSettings(steps=1))
        assert found.start.trained == found.training["trained_parameters"]
