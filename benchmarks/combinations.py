"""Tasks and attributes whose prefixes are trained alone, and what is trained for their combinations.

Three tasks on sentences from Yelp's reviews (a sentence that has a keyword, begins with given words, or
has a given number of words) and two attributes (positive, negative). A task's prefix learns from rows of
both attributes, an attribute's from rows of no task. Only `Trained.joint` sees rows of a combination
that is measured.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attributes import SENTIMENT, STEPS, splits
from beside import Share, touched_up
from common import Row, kept

import foreword
from foreword.backbone import Backbone
from foreword.prefix import Prefix
from foreword.train import TrainSettings
from foreword.train.begun import with_start

NOUNS = "business chicken customer drinks experience location lunch people place quality restaurant"
KEYWORDS = frozenset([*NOUNS.split(), "rooms", "steak", "store", "time", "visit", "wait", "work"])
"""Nouns that sentences of both attributes have about as often: either has 35% of them at least."""


@dataclass(frozen=True)
class Task:
    """Something that a text must do.

    Attributes:
        name: What.
        prompt: Its template, with a place for what is wanted.
        asked: What the frozen model is asked for, with places for the attribute and what is wanted.
        wanted: What a text is an answer to, or None where it can be none.
        done: Whether a text does it.
    """

    name: str
    prompt: str
    asked: str
    wanted: Callable[[str], str | None]
    done: Callable[[str, str], bool]

    def rows(self, texts: Sequence[str], **columns: str) -> list[Row]:
        """Rows of the texts that can be an answer, with these columns in each."""
        pairs = ((text, self.wanted(text)) for text in texts)
        return [
            {"text": text, "wanted": wanted, "given": self.prompt.format(wanted=wanted), **columns}
            for text, wanted in pairs
            if wanted is not None
        ]


def _keyword(text: str) -> str | None:
    known = [word for word in text.split() if word in KEYWORDS]
    return known[len(text) % len(known)] if known else None


def _opening(text: str) -> str | None:
    words = text.split()
    return " ".join(words[:2]) if len(words) > 4 else None


def _count(text: str) -> str:
    return str(len(text.split()))


ASKED = (
    "Write one {{attribute}} sentence from a customer's review of a local business that {}. "
    "Answer with the sentence alone."
)
TASKS = (
    Task(
        "keyword",
        "Keyword: {wanted}\nReview:",
        ASKED.format('has the word "{wanted}"'),
        _keyword,
        lambda text, wanted: wanted in text.split(),
    ),
    Task(
        "opening",
        "Opening: {wanted}\nReview:",
        ASKED.format('begins with the words "{wanted}"'),
        _opening,
        lambda text, wanted: f"{text} ".startswith(f"{wanted} "),
    ),
    Task(
        "words",
        "Number of words: {wanted}\nReview:",
        ASKED.format("has exactly {wanted} words"),
        _count,
        lambda text, wanted: abs(len(text.split()) - int(wanted)) <= 1,
    ),
)
NAMED = {task.name: task for task in TASKS}


def as_in_rows(text: str) -> str:
    """A written text as rows have it: one line, in lower case, with signs as words of their own."""
    line = text.strip().partition("\n")[0].lower().strip('" ')
    return " ".join(re.sub(r"([.,!?;:()\"])", r" \1 ", line).split())


@dataclass(frozen=True)
class Trained:
    """Prefixes by what they learned, each trained once and kept in a folder.

    Attributes:
        backbone: What they are trained on.
        shared: Folder that holds the data.
        folder: Where they are kept.
        steps: Steps of a prefix.
    """

    backbone: Backbone
    shared: Path
    folder: Path
    steps: int = STEPS

    def of_task(self, task: Task, seed: int) -> Prefix:
        """A task's, from rows of both attributes."""
        texts = [text for one in SENTIMENT.attributes for text in self.texts(one, seed)]
        return self._from_texts(f"task-{task.name}-{seed}", task, texts, seed)

    def of_attribute(self, attribute: str, seed: int) -> Prefix:
        """An attribute's, from rows of no task."""
        rows = [{"text": text} for text in self.texts(attribute, seed)]
        return self._kept(f"{attribute}-{seed}", rows, self.settings(SENTIMENT.prompt, seed))

    def joint(self, task: Task, attribute: str, seed: int) -> Prefix:
        """A combination's, from rows that have both: the upper bound."""
        name = f"joint-{task.name}-{attribute}-{seed}"
        return self._from_texts(name, task, self.texts(attribute, seed), seed)

    def control(self, task: Task, seed: int) -> Prefix:
        """One with a piece for each task and attribute, which saw no attribute of this task's rows.

        The rows of the other tasks say both.
        """
        rows: list[Row] = []
        for attribute in SENTIMENT.attributes:
            for one in TASKS:
                said = {"task": one.name} | ({} if one is task else {"sentiment": attribute})
                rows += one.rows(self.texts(attribute, seed), **said)
        settings = replace(
            self.settings("{given}", seed),
            length=8,
            attributes="task,sentiment",
            attribute_length=8,
            steps=self.steps * 3 // 2,
        )
        return self._kept(f"control-{task.name}-{seed}", rows, settings)

    def touched_up(
        self, task: Task, attribute: str, seed: int, *, distracted: bool = False
    ) -> Prefix:
        """The attribute's after steps before prefixes of the other tasks, half of the rows alone.

        Args:
            task: The task that it did not see.
            attribute: The attribute.
            seed: Of the trainings.
            distracted: Before the other tasks too its rows are those of no task, so that it learns to be
                itself there and not to do them.
        """
        kind = "distracted" if distracted else "touched"

        def made() -> Prefix:
            texts = self.texts(attribute, seed)
            alone = [{"text": text, "given": SENTIMENT.prompt} for text in texts]
            others = [one for one in TASKS if one is not task]
            shares = [
                Share(None, alone, 4),
                *(
                    Share(self.of_task(one, seed), alone if distracted else one.rows(texts), 2)
                    for one in others
                ),
            ]
            alone_so_far = self.of_attribute(attribute, seed)
            return touched_up(self.backbone, alone_so_far, shares, self.steps // 2, seed)

        return kept(self.folder / f"{kind}-{task.name}-{attribute}-{seed}.safetensors", made)

    def texts(self, attribute: str, seed: int) -> list[str]:
        """What prefixes of a seed learn of an attribute."""
        return splits(self.shared, SENTIMENT)[attribute].learned[seed]

    def settings(self, prompt: str, seed: int) -> TrainSettings:
        """The recipe: the defaults, in few steps."""
        return TrainSettings(
            prompt=prompt, target=" {text}", length=16, steps=self.steps, seed=seed
        )

    def _from_texts(self, name: str, task: Task, texts: Sequence[str], seed: int) -> Prefix:
        rows = [{"text": row["text"], "wanted": row["wanted"]} for row in task.rows(texts)]
        random.Random(seed).shuffle(rows)
        return self._kept(name, rows, self.settings(task.prompt, seed))

    def _kept(self, name: str, rows: Sequence[Row], settings: TrainSettings) -> Prefix:
        """The prefix of a name, with the start that sums need, unless it has pieces."""
        prefix = kept(
            self.folder / f"{name}.safetensors",
            lambda: foreword.train(self.backbone, rows, settings).prefix,
        )
        return prefix if settings.attributes else with_start(self.backbone, prefix)


def inputs(shared: Path, task: Task, count: int, *, tuning: bool = False) -> list[str]:
    """What is wanted of texts: of rows that nothing learned from, half of each attribute.

    Args:
        shared: Folder that holds the data.
        task: The task.
        count: How many.
        tuning: Others, which strengths are chosen by.
    """
    found = []
    for split in splits(shared, SENTIMENT).values():
        rows = task.rows(split.held)
        found += (rows[::-1] if tuning else rows)[: count // 2]
    wanted = [row["wanted"] for row in found]
    random.Random(0).shuffle(wanted)
    return wanted
