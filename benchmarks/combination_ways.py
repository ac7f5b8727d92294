"""Ways to put a task's prefix and an attribute's together, each as branches to draw texts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from attributes import SENTIMENT
from combinations import TASKS, Task, Trained
from sampling import Branch
from torch import Tensor

import foreword
from foreword.backbone import Backbone
from foreword.prefix import Prefix

TASK_STRENGTHS = (1.0, 1.25)
ATTRIBUTE_STRENGTHS = (0.25, 0.5, 0.75)
WEIGHTS = (0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Parts:
    """What is put together: prefixes of one seed.

    Attributes:
        trained: Where they come from.
        task: What the text must do.
        attribute: What it must be.
        seed: Of the trainings.
    """

    trained: Trained
    task: Task
    attribute: str
    seed: int

    @property
    def backbone(self) -> Backbone:
        """What they were trained on."""
        return self.trained.backbone

    @cached_property
    def of_task(self) -> Prefix:
        """The task's, from rows of both attributes."""
        return self.trained.of_task(self.task, self.seed)

    @cached_property
    def of_attribute(self) -> Prefix:
        """The attribute's, from rows of no task."""
        return self.trained.of_attribute(self.attribute, self.seed)

    @cached_property
    def of_opposite(self) -> Prefix:
        """The opposite attribute's."""
        return self.trained.of_attribute(SENTIMENT.opposite(self.attribute), self.seed)

    @cached_property
    def plain(self) -> tuple[int, ...]:
        """The prompt that attributes were trained after."""
        return tuple(self.backbone.tokens(SENTIMENT.prompt))

    def touched_up(self, *, distracted: bool = False) -> Prefix:
        """The attribute's, trained on beside the other tasks'."""
        return self.trained.touched_up(self.task, self.attribute, self.seed, distracted=distracted)


Composed = Callable[[Parts], list[Branch]]


@dataclass(frozen=True)
class Way:
    """A way to put them together.

    Attributes:
        composed: What texts are drawn from.
        passes: Forward passes of a token.
        tuned: Of strengths or weights that were chosen on other inputs: by name, what texts are drawn
            from at each.
    """

    composed: Composed | None = None
    passes: int = 1
    tuned: dict[str, Composed] | None = None


def joint(parts: Parts) -> list[Branch]:
    """Trained on rows of the combination: the upper bound."""
    return [Branch(parts.trained.joint(parts.task, parts.attribute, parts.seed))]


def task_alone(parts: Parts) -> list[Branch]:
    """The task's prefix without the attribute's."""
    return [Branch(parts.of_task)]


def attribute_alone(parts: Parts) -> list[Branch]:
    """The attribute's prefix without the task's."""
    return [Branch(parts.of_attribute)]


def concat(parts: Parts) -> list[Branch]:
    """Side by side, at the same positions."""
    return [Branch(foreword.concat(parts.of_attribute, parts.of_task))]


def cascade(parts: Parts) -> list[Branch]:
    """The attribute's before the task's."""
    return [Branch(foreword.cascade(parts.backbone, parts.of_attribute, parts.of_task))]


def cascade_behind(parts: Parts) -> list[Branch]:
    """The task's before the attribute's."""
    return [Branch(foreword.cascade(parts.backbone, parts.of_task, parts.of_attribute))]


def _parts_at(parts: Parts, of_task: float, of_attribute: float) -> tuple[Prefix, Prefix]:
    """The attribute's and the task's, each at a strength."""
    return parts.of_attribute.strength(of_attribute), parts.of_task.strength(of_task)


def cascade_at(*strengths: float) -> Composed:
    """The attribute's before the task's, each at a strength: the task's, then the attribute's."""
    return lambda parts: [Branch(foreword.cascade(parts.backbone, *_parts_at(parts, *strengths)))]


def concat_at(*strengths: float) -> Composed:
    """As `cascade_at`, side by side."""
    return lambda parts: [Branch(foreword.concat(*_parts_at(parts, *strengths)))]


def _at_strengths(made: Callable[..., Composed]) -> dict[str, Composed]:
    """By what they are called, every pair of strengths that is tried."""
    pairs = product(TASK_STRENGTHS, ATTRIBUTE_STRENGTHS)
    return {f"task {t:g}, attribute {a:g}": made(t, a) for t, a in pairs}


def touched_up(parts: Parts) -> list[Branch]:
    """The attribute's, which was trained on before the other tasks', before the task's."""
    return [Branch(foreword.cascade(parts.backbone, parts.touched_up(), parts.of_task))]


def distracted(parts: Parts) -> list[Branch]:
    """The same with one that saw rows of no task there."""
    made = parts.touched_up(distracted=True)
    return [Branch(foreword.cascade(parts.backbone, made, parts.of_task))]


def control(parts: Parts) -> list[Branch]:
    """The pieces of a prefix with control."""
    whole = parts.trained.control(parts.task, parts.seed)
    return [Branch(whole.select({"task": parts.task.name, "sentiment": parts.attribute}))]


def halves(parts: Parts) -> list[Branch]:
    """Half of what each learned."""
    return [Branch(0.5 * parts.of_task + 0.5 * parts.of_attribute)]


def whole_sum(parts: Parts) -> list[Branch]:
    """All of what each learned."""
    return [Branch(parts.of_task + parts.of_attribute)]


def difference(weight: float) -> Composed:
    """The task's and a share of what sets the attribute apart from its opposite."""
    return lambda parts: [
        Branch(parts.of_task + weight * parts.of_attribute - weight * parts.of_opposite)
    ]


def analogy(parts: Parts) -> list[Branch]:
    """The task's, and half of what the attribute and its opposite differ by in another task.

    As the attribute is to its opposite there, so it shall be here.
    """
    other = TASKS[(TASKS.index(parts.task) + 1) % len(TASKS)]
    pair = (parts.attribute, SENTIMENT.opposite(parts.attribute))
    has, lacks = (parts.trained.joint(other, one, parts.seed) for one in pair)
    return [Branch(parts.of_task + 0.5 * has - 0.5 * lacks)]


def without(parts: Parts) -> list[Branch]:
    """The task's less half of what the opposite learned."""
    return [Branch(parts.of_task - 0.5 * parts.of_opposite)]


def without_raw(parts: Parts) -> list[Branch]:
    """The task's less half of the opposite's keys and values, as if these had started at zero."""

    def less(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(one - 0.5 * other for one, other in zip(a, b, strict=True))

    task, opposite = parts.of_task, parts.of_opposite
    keys, values = less(task.keys, opposite.keys), less(task.values, opposite.values)
    return [Branch(replace(task, keys=keys, values=values))]


def over_base(parts: Parts) -> list[Branch]:
    """``task * (attribute / base)^0.5``, all after the task's prompt."""
    return [Branch(parts.of_task), Branch(parts.of_attribute, 0.5), Branch(None, -0.5)]


def over_opposite(weight: float) -> Composed:
    """``task * (attribute / opposite)^weight``, all after the task's prompt."""
    return lambda parts: [
        Branch(parts.of_task),
        Branch(parts.of_attribute, weight),
        Branch(parts.of_opposite, -weight),
    ]


def over_opposite_plain(weight: float) -> Composed:
    """The same, where the attributes read the prompt that they were trained after."""
    return lambda parts: [
        Branch(parts.of_task),
        Branch(parts.of_attribute, weight, parts.plain),
        Branch(parts.of_opposite, -weight, parts.plain),
    ]


def asked(parts: Parts) -> list[Branch]:
    """The frozen model; what it is asked for is in its prompt."""
    return [Branch(None)]


ASKED, JOINT = "prompting", "joint training"
WAYS: dict[str, Way] = {
    JOINT: Way(joint),
    "task alone": Way(task_alone),
    "attribute alone": Way(attribute_alone),
    ASKED: Way(asked),
    "concat": Way(concat),
    "cascade": Way(cascade),
    "cascade, attribute behind": Way(cascade_behind),
    "concat, strengths chosen": Way(tuned=_at_strengths(concat_at)),
    "cascade, strengths chosen": Way(tuned=_at_strengths(cascade_at)),
    "sum": Way(whole_sum),
    "sum of halves": Way(halves),
    "task + 0.5 (attribute - opposite)": Way(difference(0.5)),
    "task + w (attribute - opposite)": Way(
        tuned={f"w {weight:g}": difference(weight) for weight in WEIGHTS}
    ),
    "analogy from another task": Way(analogy),
    "task - 0.5 opposite": Way(without),
    "task - 0.5 opposite, start left in": Way(without_raw),
    "logits, over base": Way(over_base, 3),
    "logits, over opposite": Way(over_opposite(0.5), 3),
    "logits, over opposite, w chosen": Way(
        passes=3, tuned={f"w {weight:g}": over_opposite(weight) for weight in WEIGHTS}
    ),
    "logits, over opposite, own prompt": Way(over_opposite_plain(0.5), 3),
    "touch-up": Way(touched_up),
    "touch-up, rows of no task": Way(distracted),
    "control": Way(control),
}
