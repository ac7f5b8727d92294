"""The methods by name: those that come with Foreword, and those that other packages bring.

A package registers a method under the entry point group ``foreword.methods``: by its name, a `Known`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any

from foreword.backbone import Backbone
from foreword.errors import TrainingError, first_line
from foreword.methods.adapter import AdapterMethod, AdapterSettings
from foreword.methods.base import Method, Rows
from foreword.methods.full import FullMethod, FullSettings
from foreword.methods.ia3 import IA3Method, IA3Settings
from foreword.methods.lora import LoraMethod, LoraSettings
from foreword.methods.prefix.method import PrefixMethod
from foreword.methods.prefix.settings import PrefixSettings
from foreword.methods.prompt import PromptMethod, PromptSettings, PTuningMethod, PTuningSettings
from foreword.objectives.settings import DataSettings

GROUP = "foreword.methods"
"""The entry point group of methods from other packages."""


@dataclass(frozen=True)
class Known:
    """A method that can be asked for by name.

    Attributes:
        method: The method.
        settings: Its settings, a `DataSettings`.
        size: The setting that counts something and makes what is trained larger; None: there is none.
        fixed: Settings that it is known under, where they are not the defaults.
    """

    method: Method[Any, Any]
    settings: type[DataSettings]
    size: str | None = None
    fixed: Mapping[str, Any] | None = None

    def made(self, data: DataSettings, **fields: Any) -> Any:
        """The method's settings on the rows that the data settings read."""
        return self.settings(**{**data.as_json(), **(self.fixed or {}), **fields})


OWN: Mapping[str, Known] = {
    "prefix": Known(PrefixMethod(), PrefixSettings, "length"),
    "prompt-tuning": Known(PromptMethod(), PromptSettings, "length"),
    "p-tuning": Known(PTuningMethod(), PTuningSettings, "width"),
    "p-tuning-v2": Known(PrefixMethod(), PrefixSettings, "length", {"init": "noise"}),
    "lora": Known(LoraMethod(), LoraSettings, "rank"),
    "adapter": Known(AdapterMethod(), AdapterSettings, "width"),
    "ia3": Known(IA3Method(), IA3Settings),
    "full": Known(FullMethod(), FullSettings),
}
"""What comes with Foreword. P-tuning v2 (Liu et al. 2021, arXiv 2110.07602) is prefix tuning of random
keys and values, without a reparameterisation."""


def known_methods() -> dict[str, Known]:
    """All methods by name, Foreword's own first.

    Raises:
        TrainingError: A package's entry point cannot be read, gives no `Known`, or takes a name of ours.
    """
    found = dict(OWN)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        whose = f"the method {point.name!r} of the package {point.dist and point.dist.name}"
        try:
            known = point.load()
        except Exception as error:  # another package's code may raise anything
            raise TrainingError(
                f"{whose} cannot be read: {first_line(error)}. Repair or uninstall the package"
            ) from error
        if point.name in found:
            raise TrainingError(
                f"{whose} has a name that is taken; the package must choose another"
            )
        if not isinstance(known, Known):
            raise TrainingError(
                f"{whose} is a {type(known).__name__}; the entry point must name a "
                "foreword.methods.registry.Known"
            )
        found[point.name] = known
    return found


def known_method(name: str) -> Known:
    """A method by its name.

    Raises:
        TrainingError: There is none of that name.
    """
    methods = known_methods()
    if name not in methods:
        raise TrainingError(f"there is no method {name!r}; those known are {', '.join(methods)}")
    return methods[name]


def within(
    known: Known, backbone: Backbone, settings: Any, rows: Rows, budget: int
) -> tuple[Any, int]:
    """The settings whose method trains as many numbers as a budget allows, and how many these are.

    Args:
        known: The method.
        backbone: The backbone.
        settings: Its settings, with the task decided; of what sizes it there is the largest that fits.
        rows: Training rows, of which a head has its labels.
        budget: Most numbers that are trained.

    Raises:
        TrainingError: The least that the method trains is more.
    """
    if known.size is None:
        return settings, known.method.start(backbone, settings, rows).trained

    def sized(size: int) -> tuple[Any, int]:
        made = replace(settings, **{name: size})
        return made, known.method.start(backbone, made, rows).trained

    name, low = known.size, 1
    one, two = (sized(size)[1] for size in (1, 2))
    if budget < one:
        raise TrainingError(
            f"the least that {known.method.name} trains here is {one:,} numbers ({name} 1), more than "
            f"the budget of {budget:,}; allow it more, or leave it out"
        )
    high = 1 + (budget - one) // (two - one)  # what fits if each step adds as much as the first
    found, trained = sized(high)
    if trained <= budget:
        return found, trained
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sized(middle)[1] <= budget else (low, middle)
    return sized(low)
