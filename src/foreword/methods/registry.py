"""The methods by name: those that come with Foreword, and those that other packages bring.

A package registers a method under the entry point group ``foreword.methods``: by its name, a `Known`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any

from foreword.backbone import Backbone
from foreword.errors import TrainingError, first_line
from foreword.methods.adapter import AdapterMethod, AdapterSettings
from foreword.methods.base import Method, Rows, Traits
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
        label: What it is, with fields of its settings in braces.
        rates: By optimiser the learning rate that a search begins with.
        traits: What can be done with what it leaves; None: nobody says.
    """

    method: Method[Any, Any]
    settings: type[DataSettings]
    size: str | None = None
    fixed: Mapping[str, Any] | None = None
    label: str = ""
    rates: Mapping[str, float] = field(default_factory=lambda: {"soap": 0.003, "adamw": 0.001})
    traits: Traits | None = None

    def named(self, settings: Any) -> str:
        """What it is under some settings."""
        return self.label.format(**settings.as_json()) if self.label else self.method.name

    def made(self, data: DataSettings, **fields: Any) -> Any:
        """The method's settings on the rows that the data settings read."""
        return self.settings(**{**data.as_json(), **(self.fixed or {}), **fields})


_PREFIXES = Traits(shares_batch=True, merges=False, composes=True, switches_off=True)
_PROMPTS = Traits(shares_batch=True, merges=False, composes=False, switches_off=True)
_MERGED = Traits(shares_batch=False, merges=True, composes=True, switches_off=True)
_BETWEEN = Traits(shares_batch=False, merges=False, composes=True, switches_off=True)
_WHOLE = Traits(shares_batch=False, merges=True, composes=True, switches_off=False)

OWN: Mapping[str, Known] = {
    "prefix": Known(
        PrefixMethod(),
        PrefixSettings,
        "length",
        label="prefix tuning, {length} virtual tokens",
        rates={"soap": 0.06, "adamw": 0.03},
        traits=_PREFIXES,
    ),
    "prompt-tuning": Known(
        PromptMethod(),
        PromptSettings,
        "length",
        label="prompt tuning, {length} virtual tokens",
        rates={"soap": 0.02, "adamw": 0.02},
        traits=_PROMPTS,
    ),
    "p-tuning": Known(
        PTuningMethod(),
        PTuningSettings,
        "width",
        label="P-tuning, {length} virtual tokens by an MLP of width {width}",
        rates={"soap": 0.002, "adamw": 0.002},
        traits=_PROMPTS,
    ),
    "p-tuning-v2": Known(
        PrefixMethod(),
        PrefixSettings,
        "length",
        {"init": "noise"},
        label="P-tuning v2, {length} virtual tokens",
        rates={"soap": 0.06, "adamw": 0.03},
        traits=_PREFIXES,
    ),
    "lora": Known(
        LoraMethod(),
        LoraSettings,
        "rank",
        label="LoRA, {targets}, rank {rank}",
        rates={"soap": 0.004, "adamw": 0.004},
        traits=_MERGED,
    ),
    "adapter": Known(
        AdapterMethod(),
        AdapterSettings,
        "width",
        label="adapters ({places}), width {width}",
        rates={"soap": 0.004, "adamw": 0.004},
        traits=_BETWEEN,
    ),
    "ia3": Known(
        IA3Method(),
        IA3Settings,
        label="IA3",
        rates={"soap": 0.03, "adamw": 0.03},
        traits=_MERGED,
    ),
    "full": Known(
        FullMethod(),
        FullSettings,
        label="full fine-tuning",
        rates={"soap": 0.0001, "adamw": 0.0001},
        traits=_WHOLE,
    ),
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
