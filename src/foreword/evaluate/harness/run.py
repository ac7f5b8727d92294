"""`evaluate_tasks`: a prefix on tasks of lm-eval, with the frozen model beside it."""

from __future__ import annotations

from functools import partial
from typing import Any

from foreword.arguments import check_count
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.data.room import Room
from foreword.errors import DataError, ForewordError, first_line
from foreword.evaluate.harness.evaluation import TaskEvaluation, TaskFigures
from foreword.evaluate.harness.quiet import hushed, seeded
from foreword.evaluate.harness.tasks import Tasks, tasks_named
from foreword.mixture import Mixture, opened, plain_or_mixed
from foreword.options import BATCH
from foreword.prefix import Prefix
from foreword.progress import Progress, unseen
from foreword.prompts import refuse_head

DRAWS = 100
"""Samples of a bootstrap, for the standard error of metrics that have no formula for it."""


def evaluate_tasks(
    backbone: Backbone,
    prefix: Prefix | Mixture,
    tasks: str | Tasks,
    *,
    base: bool = True,
    limit: int | None = None,
    batch_size: int = BATCH,
    strict: bool = False,
    chat: bool = False,
    progress: Progress = unseen,
) -> TaskEvaluation:
    """Score a prefix on tasks of lm-eval.

    A task brings its own prompts and metrics; templates that the prefix was trained with are not used.
    Requests are answered as lm-eval's own model of transformers answers them, with its seeds, and with
    softmax in float32.

    Args:
        backbone: A decoder or an encoder-decoder with a tokenizer, left as it was found.
        prefix: The prefix; a mixture of a single branch is what that branch runs under.
        tasks: Names, YAML files or folders, with commas between; see `tasks_named`.
        base: Whether the frozen model is evaluated too. It has the room that the prefix leaves.
        limit: Only the first so many documents of each task.
        batch_size: Requests in one pass.
        strict: Refuse a backbone with other weights than the prefix was made on.
        chat: Give requests as turns of a chat, by the tokenizer's template, with examples as turns
            before them.
        progress: Told how far it is.

    Raises:
        DataError: lm-eval or a task cannot be had, or a task fails; or the prefix is a mixture.
        MismatchError: The prefix does not fit the backbone, or carries a head.
        UnsupportedModel: The backbone is an encoder.

    Examples:
        >>> evaluate_tasks(backbone, prefix, "sentiment.yaml").prefix.results  # doctest: +SKIP
        {'sentiment': {'acc,none': 0.83, 'acc_stderr,none': 0.027}}
    """
    check_backbone(backbone)
    alone = _attachable(prefix)
    if limit is not None:
        check_count("limit", limit, DataError)
    check_count("batch_size", batch_size, DataError)
    backbone.needs("decoder", "encoder-decoder", what="a task of lm-eval")
    if backbone.tokenizer is None:
        raise DataError(f"a task of lm-eval needs a tokenizer; {backbone.name!r} has none")
    if chat and backbone.tokenizer.chat_template is None:
        raise DataError(f"{backbone.name!r} has no chat template; leave chat (--chat) out")
    backbone.check(alone, strict=strict)
    tasks = tasks_named(tasks) if isinstance(tasks, str) else tasks
    room = Room.behind(backbone, alone).context
    if room < 2:
        raise DataError(
            f"the prefix leaves {max(0, room)} tokens of the context; use a shorter one"
        )
    measure = partial(_measured, backbone, tasks, room, limit, batch_size, chat)
    ours, about = measure(alone, partial(_told, progress, "with the prefix"))
    theirs = measure(None, partial(_told, progress, "frozen model"))[0] if base else None
    return TaskEvaluation(
        prefix=ours,
        base=theirs,
        tasks=tasks.spec,
        backbone=backbone.name,
        same_weights=alone.meta.fingerprint in ("", backbone.fingerprint),
        digest=alone.digest,
        **about,
    )


def _told(progress: Progress, who: str, what: str, done: int, total: int) -> None:
    progress(f"{who}, {what}", done, total)


def _attachable(given: Prefix | Mixture) -> Prefix:
    """The one prefix that a pass of the model runs under.

    Raises:
        DataError: There are several, or it is for its parts to be chosen.
        MismatchError: It carries a head.
    """
    prefix = plain_or_mixed(opened(given))
    if isinstance(prefix, Mixture):
        raise DataError(
            f"lm-eval asks one model, and a mixture of logits is {len(prefix.branches)} passes; put the "
            "prefixes together as one: foreword.compose(..., mode='sum') (--mode sum)"
        )
    if prefix is None:
        raise DataError("this mixture is the frozen model alone; give a prefix that counts")
    refuse_head(prefix)
    if prefix.meta.attributes:
        names = ", ".join(map(repr, prefix.meta.attributes))
        raise DataError(
            f"the prefix has values of the attributes {names}, of which no task of lm-eval selects "
            "any; choose: prefix.select(...), or NAME[attribute=value]"
        )
    return prefix


def _measured(
    backbone: Backbone,
    tasks: Tasks,
    room: int,
    limit: int | None,
    batch_size: int,
    chat: bool,
    prefix: Prefix | None,
    progress: Progress,
) -> tuple[TaskFigures, dict[str, Any]]:
    """Figures under a prefix or without one, and what lm-eval says of the tasks."""
    with hushed():
        from lm_eval import __version__, evaluate
        from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

        from foreword.evaluate.harness.model import PrefixLM

        bos = prefix.meta.bos if prefix is not None and backbone.kind == "decoder" else None
        seeds = seeded(DEFAULT_RANDOM_SEED, DEFAULT_OTHER_SEED, backbone.device)
        with backbone.inferring(prefix), seeds:
            model = PrefixLM(backbone, bos, room, batch_size, progress)
            _reset(tasks, DEFAULT_OTHER_SEED)
            try:
                found = evaluate(
                    model,
                    dict(tasks.loaded),
                    limit=limit,
                    bootstrap_iters=DRAWS,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,
                )
            except ForewordError:
                raise
            except Exception as error:  # of lm-eval, or of a task's own code
                said = f"{type(error).__name__}: {first_line(error)}"
                raise DataError(f"lm-eval could not run {tasks.spec!r}: {said}") from error
    about = {
        "rows": {name: each["effective"] for name, each in found["n-samples"].items()},
        "shots": found["n-shot"],
        "versions": found["versions"],
        "lm_eval": __version__,
        "chat": chat,
    }
    return TaskFigures(found["results"], model.cut, found["samples"]), about


def _reset(tasks: Tasks, seed: int) -> None:
    """Let every task draw its examples from the beginning, as lm-eval's own command does."""
    for task in tasks.by_name.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
