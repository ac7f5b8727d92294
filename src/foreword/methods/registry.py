"""The methods by name: those that come with Foreword, and those that other packages bring.

A package registers a method under the entry point group ``foreword.methods``: by its name, a `Known`.
A name may be followed by settings of the method: ``lora+targets=attention+rslora=true``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any

from foreword.arguments import did_you_mean
from foreword.backbone import Backbone
from foreword.backbone.kinds import KindName
from foreword.errors import DataError, TrainingError, first_line
from foreword.methods.adapter import AdapterMethod
from foreword.methods.base import Method, Rows, Start, Traits
from foreword.methods.full import FullMethod
from foreword.methods.ia3 import IA3Method
from foreword.methods.lora import LoraMethod
from foreword.methods.prefix.method import PrefixMethod
from foreword.methods.prompt import PromptMethod, PTuningMethod
from foreword.objectives.settings import DataSettings

GROUP = "foreword.methods"
"""The entry point group of methods from other packages."""


LARGEST = 2**24
"""A size that nothing is asked for by, were it to train no more than a smaller one."""

OF_THE_LOSS = {"kl"}
"""Settings beside those of the task that every method may be compared under."""


@dataclass(frozen=True)
class Known:
    """A method that can be asked for by name.

    Attributes:
        method: The method.
        size: The setting that counts something and makes what is trained larger; None: there is none.
        fixed: Settings that it is known under, where they are not the defaults.
        label: What it is, with fields of its settings in braces.
        rates: By optimiser the learning rate that a search begins with.
        traits: What can be done with what it leaves; None: nobody says.
        traits_on: The same on kinds of backbones where that is another.
        unbounded: Whether it is compared however much it trains, as what others are measured by.
    """

    method: Method[Any, Any]
    size: str | None = None
    fixed: Mapping[str, Any] | None = None
    label: str = ""
    rates: Mapping[str, float] = field(default_factory=lambda: {"soap": 0.003, "adamw": 0.001})
    traits: Traits | None = None
    traits_on: Mapping[KindName, Traits] = field(default_factory=dict)
    unbounded: bool = False

    def traits_for(self, backbone: Backbone) -> Traits | None:
        """What can be done with what it leaves on a backbone; None: nobody says."""
        return self.traits_on.get(backbone.kind, self.traits)

    @property
    def settings(self) -> type[DataSettings]:
        """What the method's settings are."""
        return self.method.settings

    def named(self, settings: Any) -> str:
        """What it is under some settings."""
        return self.label.format(**settings.as_json()) if self.label else self.method.name

    def made(self, data: DataSettings, **fields: Any) -> Any:
        """The method's settings on the rows that the data settings read.

        Raises:
            TrainingError: It has no such setting, or one is out of range.
        """
        self._check(fields)
        return self.settings(**{**data.as_json(), **(self.fixed or {}), **fields})

    def fixing(self, **fields: Any) -> Known:
        """The same with more settings that are its own; what is fixed is not sized.

        Raises:
            TrainingError: It has no such setting.
        """
        self._check(fields)
        said = [
            f"{name}={value}" for name, value in fields.items() if f"{{{name}}}" not in self.label
        ]
        more = "".join(f", {words}" for words in said).replace("{", "{{").replace("}", "}}")
        return replace(
            self,
            fixed={**(self.fixed or {}), **fields},
            size=None if self.size in fields else self.size,
            label=f"{self.label or self.method.name}{more}",
        )

    def _check(self, fields: Mapping[str, Any]) -> None:
        shared = set(DataSettings.__dataclass_fields__) - OF_THE_LOSS
        own = set(self.settings.__dataclass_fields__) - shared
        for name in fields:
            if name not in own:
                raise TrainingError(
                    f"{self.method.name} has no setting {name!r}; its own are "
                    f"{', '.join(sorted(own))}{did_you_mean(name, own)}"
                )


_PREFIXES = Traits(shares_batch=True, merges=False, composes=True, switches_off=True)
_PROMPTS = Traits(shares_batch=True, merges=False, composes=False, switches_off=True)
_IN_FRONT = Traits(shares_batch=False, merges=False, composes=False, switches_off=True)
_ENCODERS: Mapping[KindName, Traits] = {"encoder": _IN_FRONT, "encoder-decoder": _IN_FRONT}
_MERGED = Traits(shares_batch=False, merges=True, composes=True, switches_off=True)
_BETWEEN = Traits(shares_batch=False, merges=False, composes=True, switches_off=True)
_WHOLE = Traits(shares_batch=False, merges=True, composes=True, switches_off=False)

OWN: Mapping[str, Known] = {
    "prefix": Known(
        PrefixMethod(),
        "length",
        label="prefix tuning, {length} virtual tokens",
        rates={"soap": 0.06, "adamw": 0.03},
        traits=_PREFIXES,
    ),
    "prompt-tuning": Known(
        PromptMethod(),
        "length",
        label="prompt tuning, {length} virtual tokens",
        rates={"soap": 0.02, "adamw": 0.02},
        traits=_PROMPTS,
        traits_on=_ENCODERS,
    ),
    "p-tuning": Known(
        PTuningMethod(),
        "width",
        label="P-tuning, {length} virtual tokens by an MLP of width {width}",
        rates={"soap": 0.002, "adamw": 0.002},
        traits=_PROMPTS,
        traits_on=_ENCODERS,
    ),
    "p-tuning-v2": Known(
        PrefixMethod(),
        "length",
        {"init": "noise"},
        label="P-tuning v2, {length} virtual tokens",
        rates={"soap": 0.06, "adamw": 0.03},
        traits=_PREFIXES,
    ),
    "lora": Known(
        LoraMethod(),
        "rank",
        label="LoRA, {targets}, rank {rank}",
        rates={"soap": 0.004, "adamw": 0.004},
        traits=_MERGED,
    ),
    "adapter": Known(
        AdapterMethod(),
        "width",
        label="adapters ({places}), width {width}",
        rates={"soap": 0.004, "adamw": 0.004},
        traits=_BETWEEN,
    ),
    "ia3": Known(
        IA3Method(),
        label="IA3",
        rates={"soap": 0.03, "adamw": 0.03},
        traits=_MERGED,
    ),
    "full": Known(
        FullMethod(),
        label="full fine-tuning",
        rates={"soap": 0.0001, "adamw": 0.0001},
        traits=_WHOLE,
        unbounded=True,
    ),
}
"""What comes with Foreword. P-tuning v2 (Liu et al. 2021, arXiv 2110.07602) is prefix tuning of random
keys and values, without a reparameterisation."""


def method_names() -> list[str]:
    """Names of all methods, Foreword's own first; those of other packages are not loaded."""
    others = sorted({point.name for point in entry_points(group=GROUP)} - set(OWN))
    return [*OWN, *others]


def known_method(word: str) -> Known:
    """A method by its name, with what settings follow it; only the one that is asked for is loaded.

    Args:
        word: Such as ``lora`` or ``lora+targets=attention``.

    Raises:
        TrainingError: There is none of that name, or a package's entry point gives none; or it has no
            such setting.
    """
    name, *settings = word.split("+")
    known = _named(name)
    fields = dict[str, Any]()
    for field_name, value in map(_setting, settings):
        if field_name in fields:
            raise TrainingError(f"{word!r} names {field_name!r} twice; name each setting once")
        fields[field_name] = value
    return known.fixing(**fields) if fields else known


def _setting(said: str) -> tuple[str, Any]:
    """A setting of a word, its value as JSON or as text."""
    name, equals, value = said.partition("=")
    if not equals:
        raise TrainingError(
            f"{said!r} is no setting; expected NAME=VALUE, as in lora+targets=attention"
        )
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _named(name: str) -> Known:
    if name in OWN:
        return OWN[name]
    points = list(entry_points(group=GROUP, name=name))
    if not points:
        raise TrainingError(
            f"there is no method {name!r}; those known are {', '.join(method_names())}"
        )
    whose = f"the method {name!r} of the package {points[0].dist and points[0].dist.name}"
    try:
        known = points[0].load()
    except Exception as error:  # another package's code may raise anything
        raise TrainingError(
            f"{whose} cannot be read: {first_line(error)}. Repair or uninstall the package"
        ) from error
    if not isinstance(known, Known):
        raise TrainingError(
            f"{whose} is a {type(known).__name__}; the entry point must name a "
            "foreword.methods.registry.Known"
        )
    return known


def within(
    name: str, known: Known, backbone: Backbone, settings: Any, rows: Rows, budget: int
) -> tuple[Any, int]:
    """The settings whose method trains as many numbers as a budget allows, and how many these are.

    Args:
        name: What the method is known by.
        known: The method.
        backbone: The backbone.
        settings: Its settings, with the task decided; of what sizes it there is the largest that fits,
            and that leaves text half of the context.
        rows: Training rows, of which a head has its labels.
        budget: Most numbers that are trained.

    Raises:
        TrainingError: The least that the method trains is more.
    """
    if known.size is None:
        trained = known.method.start(backbone, settings, rows).trained
        if trained > budget and not known.unbounded:
            raise TrainingError(_too_much(name, trained, "", budget))
        return settings, trained
    size = known.size
    smallest, first = least(known, backbone, settings, rows)
    low = getattr(smallest, size)
    if first.trained > budget:
        raise TrainingError(_too_much(name, first.trained, f" ({size} {low})", budget))
    most = max(first.in_front.length, backbone.context // 2)

    def sized(count: int) -> tuple[Any, int] | None:
        """Settings of a size and what they train; None where text has less than half of the context."""
        made = replace(settings, **{size: count})
        try:
            start = known.method.start(backbone, made, rows)
        except DataError:  # which has no room for text at all
            return None
        return None if start.in_front.length > most else (made, start.trained)

    best, high = (smallest, first.trained), 2 * low
    while high < LARGEST and (found := sized(high)) is not None and found[1] <= budget:
        best, low, high = found, high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        found = sized(middle)
        if found is not None and found[1] <= budget:
            best, low = found, middle
        else:
            high = middle
    return best


def least(
    known: Known, backbone: Backbone, settings: Any, rows: Rows
) -> tuple[Any, Start[Any, Any]]:
    """The settings of a method's smallest size, and where it starts under them.

    That is 1, or the first of 2, 4, 8 ... under which it starts, as of demonstrations, one of which must
    fit whole.

    Raises:
        ForewordError: It starts under no size.
    """
    if known.size is None:
        return settings, known.method.start(backbone, settings, rows)
    count, refused = 1, None
    while count == 1 or count <= backbone.context // 2:
        made = replace(settings, **{known.size: count})
        try:
            return made, known.method.start(backbone, made, rows)
        except DataError as error:
            count, refused = 2 * count, error
    assert refused is not None
    raise refused


def _too_much(name: str, least: int, size: str, budget: int) -> str:
    return (
        f"the least that {name} trains here is {least:,} numbers{size}, more than the budget of "
        f"{budget:,}; allow it more, or leave it out"
    )
