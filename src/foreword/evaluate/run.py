"""`evaluate`: a prefix on a task's rows, with the frozen model beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import torch

from foreword.arguments import check_count, expect
from foreword.attention.selected import Selection, bind_selected
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.data import Collator, Encoded, Report, Task, rows_of
from foreword.data.chat import answers, asked
from foreword.data.collate import padding_of
from foreword.data.given import Data, name_of
from foreword.data.references import one_each
from foreword.data.selecting import chosen_by, selecting, selections_of, tell_of_none
from foreword.data.template import MESSAGES
from foreword.data.written import written_for
from foreword.errors import DataError
from foreword.evaluate import metrics
from foreword.evaluate.labels import Figure, LabelEvaluation, evaluate_labels
from foreword.evaluate.metrics import Tokenisation
from foreword.evaluate.mixed import mixed_scores, on
from foreword.generate import generate_ids
from foreword.mixing import check_branches, encoder_under, leading
from foreword.mixture import Mixture, opened, plain_or_mixed
from foreword.objectives.supervised import score
from foreword.options import BATCH, GenerateOptions
from foreword.prefix import Prefix, check_prefix
from foreword.progress import Progress, Watch, unseen, unwatched
from foreword.prompts import task_of

FIGURES: tuple[Figure, ...] = (
    ("NLL per target token", "nll", "{:.4f}"),
    ("perplexity", "perplexity", "{:.3f}"),
    ("token accuracy %", "token_accuracy", "{:.1f}"),
    ("BLEU", "bleu", "{:.1f}"),
    ("chrF", "chrf", "{:.1f}"),
    ("ROUGE-L", "rouge_l", "{:.1f}"),
    ("exact match %", "exact_match", "{:.1f}"),
    ("seconds", "seconds", "{:.1f}"),
)
"""The fields of `Metrics` as tables show them: label, field, format."""


def figures_under(tokenisation: Tokenisation) -> tuple[Figure, ...]:
    """`FIGURES`, where a label says what counts as a word if that is not the usual."""
    said = {}
    if tokenisation.bleu != "13a":
        said["bleu"] = f" ({tokenisation.bleu})"
    if tokenisation.rouge_l != "ascii":
        said["rouge_l"] = f" ({tokenisation.rouge_l})"
    return tuple((label + said.get(name, ""), name, form) for label, name, form in FIGURES)


@dataclass(frozen=True)
class Metrics:
    """Figures of one model on one set.

    Attributes:
        nll: Mean negative log-likelihood per target token, in nats, end of sequence included.
        perplexity: exp(nll).
        token_accuracy: Share of target tokens that are the likeliest given those before, 0 to 100.
        bleu: Corpus BLEU of greedy outputs over all references, 0 to 100.
        chrf: Corpus chrF2, 0 to 100.
        rouge_l: Mean ROUGE-L F1, 0 to 100.
        exact_match: Share of outputs equal to a reference, 0 to 100.
        seconds: Wall time of scoring and generating.
    """

    nll: float
    perplexity: float
    token_accuracy: float
    bleu: float
    chrf: float
    rouge_l: float
    exact_match: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Prefix and frozen model on one set.

    Attributes:
        prefix: Figures with the prefix.
        base: Figures of the frozen model alone, or None where it was left out.
        rows: Rows scored.
        inputs: Distinct inputs; rows with equal prompts are references of one input.
        targets: Target tokens scored.
        truncation: What encoding cut.
        prompts: Per input its prompt text or last user message.
        outputs: Per input the greedy output with the prefix.
        base_outputs: Per input the frozen model's.
        references: Per input its references.
        backbone: Name of the backbone that was evaluated.
        same_weights: Whether its weights are those that the prefix was made on.
        data: Where the rows were read, or empty for rows given as they are.
        digest: Content digest of the prefix.
        tokenisation: What counts as a word in BLEU and ROUGE-L, by the references' script.
    """

    prefix: Metrics
    base: Metrics | None
    rows: int
    inputs: int
    targets: int
    truncation: Report
    prompts: list[str] = field(repr=False)
    outputs: list[str] = field(repr=False)
    base_outputs: list[str] = field(repr=False)
    references: list[list[str]] = field(repr=False)
    backbone: str = ""
    same_weights: bool = True
    data: str = ""
    digest: str = ""
    tokenisation: Tokenisation = field(default_factory=Tokenisation)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The fields of `Metrics` as tables show them."""
        return figures_under(self.tokenisation)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Set:
    """Rows grouped by input.

    Attributes:
        rows: Those whose NLL is taken.
        firsts: Per input the first row that has it.
        references: Per input its targets, as a model would write them.
        kept: Special tokens that belong to targets.
    """

    rows: list[Mapping[str, Any]]
    firsts: list[Mapping[str, Any]]
    references: list[list[str]]
    kept: frozenset[int]


def evaluate(
    backbone: Backbone,
    prefix: Prefix | Mixture,
    data: Data,
    *,
    options: GenerateOptions | None = None,
    base: bool = True,
    limit: int | None = None,
    task: Task | None = None,
    strict: bool = False,
    scored_references: int | None = None,
    progress: Progress = unseen,
) -> Evaluation | LabelEvaluation:
    """Score a prefix on a task's rows: one with a head by its labels, any other by its text.

    A `Mixture` is scored by its text.

    See `evaluate_text` and `evaluate_labels`, which this calls, for what the arguments mean. Of the
    options a head uses `batch_size` alone, its templates are its own, and its rows have one label each.
    """
    if not isinstance(prefix, Mixture):
        check_prefix(prefix)
    if isinstance(prefix, Mixture) or prefix.head is None:
        return evaluate_text(
            backbone,
            prefix,
            data,
            options=options,
            base=base,
            limit=limit,
            task=task,
            strict=strict,
            scored_references=scored_references,
            progress=progress,
        )
    if task is not None:
        raise DataError("a prefix with a head is evaluated under its own templates; leave task out")
    if options is not None:
        expect("options", options, GenerateOptions, "GenerateOptions", DataError)
    size = BATCH if options is None else options.batch_size
    return evaluate_labels(
        backbone,
        prefix,
        data,
        base=base,
        limit=limit,
        batch_size=size,
        strict=strict,
        progress=progress,
    )


def evaluate_text(
    backbone: Backbone,
    prefix: Prefix | Mixture,
    data: Data,
    *,
    options: GenerateOptions | None = None,
    base: bool = True,
    limit: int | None = None,
    task: Task | None = None,
    strict: bool = False,
    scored_references: int | None = None,
    progress: Progress = unseen,
) -> Evaluation:
    """Score and generate on a task's rows.

    Rows with the same prompt are taken as references of one input: each is scored, text is
    generated once. So are the entries of a list in a target column; the target template is filled for
    each. Under a prefix that was trained with attributes each row selects the values that it has, and
    only rows with the same ones are of one input.

    Args:
        backbone: The backbone, left as it was found.
        prefix: The prefix, whose recipe has the templates; or a mixture, whose log-probabilities of
            each token are those of its branches, mixed and normalised.
        data: Rows, or where to read them.
        options: How to generate; greedy with up to 128 new tokens by default.
        base: Whether the frozen model is evaluated too.
        limit: Only the first so many distinct inputs.
        task: Templates, if not the prefix's own.
        strict: Refuse a backbone with other weights than the prefix was made on.
        scored_references: References of each input whose NLL is taken, the first ones; all by default.
            The figures of outputs have all references.
        progress: Told how far it is.

    Raises:
        DataError: Rows or columns are wrong.
        MismatchError: The prefix does not fit the backbone.

    Warns:
        UnseenValue: A row has a value of an attribute that the prefix was not trained for, or no row has
            any value.
    """
    check_backbone(backbone)
    digest = prefix.digest if isinstance(prefix, Prefix | Mixture) else ""
    prefix = opened(prefix)
    if not isinstance(prefix, Mixture):
        check_prefix(prefix)
    mixture = prefix if isinstance(prefix, Mixture) else Mixture(((1.0, prefix),))
    rows = rows_of(data)
    if limit is not None:
        check_count("limit", limit, DataError)
    if scored_references is not None:
        check_count("scored_references", scored_references, DataError)
    if isinstance(prefix, Mixture):
        check_branches(backbone, prefix, strict=strict)
    else:
        backbone.check(prefix, strict=strict)
    lead = mixture.prefix or mixture.parts[0][1]
    task = task_of(lead) if task is None else task
    expect("task", task, Task, "a Task of templates", DataError)
    rows = one_each(rows, task)
    if isinstance(prefix, Prefix):
        tell_of_none(prefix, rows)
    if task.chat:
        rows = [_to_last_answer(row) for row in rows]
    options = GenerateOptions() if options is None else options
    expect("options", options, GenerateOptions, "GenerateOptions", DataError)
    grouped = _grouped(backbone, lead, rows, task, limit, scored_references)
    carried = plain_or_mixed(mixture)
    inputs = backbone, carried or lead, task, grouped, options
    outputs, ours, report, targets = _measure(carried, *inputs, progress)
    base_outputs: list[str] = []
    theirs = None
    if base:
        base_outputs, theirs, _, _ = _measure(None, *inputs, progress)
    return Evaluation(
        prefix=ours,
        base=theirs,
        rows=len(grouped.rows),
        inputs=len(grouped.firsts),
        targets=targets,
        truncation=report,
        prompts=[input_text(row, task) for row in grouped.firsts],
        outputs=outputs,
        base_outputs=base_outputs,
        references=grouped.references,
        backbone=backbone.name,
        same_weights=all(
            one.meta.fingerprint in ("", backbone.fingerprint) for _, one in mixture.parts
        ),
        data=name_of(data),
        digest=digest,
        tokenisation=metrics.tokenisation(grouped.references),
    )


def input_text(row: Mapping[str, Any], task: Task) -> str:
    """What identifies a row's input: its prompt, or its conversation before the last answer."""
    if not task.chat:
        return task.pair(row)[0]
    turns = asked(row[MESSAGES])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _to_last_answer(row: Mapping[str, Any]) -> Mapping[str, Any]:
    turns = row[MESSAGES]
    return {**row, MESSAGES: turns[: answers(turns)[-1] + 1]}


def _target(row: Mapping[str, Any], task: Task) -> str:
    if not task.chat:
        return task.pair(row)[1]
    return str(row[MESSAGES][-1]["content"])


def _grouped(
    backbone: Backbone,
    prefix: Prefix,
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    limit: int | None = None,
    scored: int | None = None,
) -> _Set:
    groups: dict[tuple[str, Selection], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((input_text(row, task), chosen_by(prefix.meta, row)), []).append(row)
    kept = list(groups.values())[:limit]
    targets = [[_target(row, task) for row in group] for group in kept]
    written = written_for(backbone, prefix, task).keeping(chain.from_iterable(targets))
    return _Set(
        rows=[row for group in kept for row in group[:scored]],
        firsts=[group[0] for group in kept],
        references=[[written.reference(target) for target in group] for group in targets],
        kept=written.kept,
    )


def measured(
    backbone: Backbone,
    prefix: Prefix | None,
    like: Prefix,
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    options: GenerateOptions,
) -> Metrics:
    """Figures of a backbone that carries `prefix`, or of one as it is, by another method changed.

    Args:
        backbone: The backbone.
        prefix: The prefix, or None.
        like: What inputs are encoded for: without a prefix, they begin as they would with this one.
        task: Templates.
        rows: Rows; those with the same prompt are references of one input.
        options: How to generate.
    """
    grouped = _grouped(backbone, like, rows, task)
    return _measure(prefix, backbone, like, task, grouped, options)[1]


def _measure(
    prefix: Prefix | Mixture | None,
    backbone: Backbone,
    like: Prefix | Mixture,
    task: Task,
    grouped: _Set,
    options: GenerateOptions,
    progress: Progress = unseen,
) -> tuple[list[str], Metrics, Report, int]:
    began = time.perf_counter()
    encoder = encoder_under(backbone, prefix, task, like)
    encoded, report = encoder.rows(grouped.rows)
    alone = prefix if isinstance(prefix, Prefix) else None
    if alone is not None:
        encoded, report = selecting(alone.meta, grouped.rows, encoded, report)
    kind = "mixture" if isinstance(prefix, Mixture) else "prefix"
    who = "frozen model" if prefix is None else f"with the {kind}"
    scoring, generating = (
        partial(progress, f"{who}, {what}") for what in ("scoring", "generating")
    )
    nll, accuracy, targets = scored(backbone, prefix, encoded, options.batch_size, scoring)
    sizes = {id(row): one.answer for row, one in zip(grouped.rows, encoded, strict=True)}
    prompts = [
        encoder.prompt(row, options.max_new_tokens, sizes[id(row)]) for row in grouped.firsts
    ]
    written = written_for(backbone, leading(prefix), task, leading(like))
    written = replace(written, kept=grouped.kept)
    chosen = selections_of(alone, grouped.firsts)
    made = generate_ids(backbone, prompts, prefix, options, written, generating, chosen)
    texts = [each[0] for each in made]
    figures = Metrics(
        nll=nll,
        perplexity=math.exp(min(nll, 700.0)),
        token_accuracy=accuracy,
        bleu=metrics.bleu(texts, grouped.references),
        chrf=metrics.chrf(texts, grouped.references),
        rouge_l=metrics.rouge_l(texts, grouped.references),
        exact_match=metrics.exact_match(texts, grouped.references),
        seconds=time.perf_counter() - began,
    )
    return texts, figures, report, targets


@torch.no_grad()
def scored(
    backbone: Backbone,
    prefix: Prefix | Mixture | None,
    rows: Sequence[Encoded],
    size: int,
    watch: Watch = unwatched,
) -> tuple[float, float, int]:
    """NLL per target token, token accuracy (0 to 100) and number of target tokens."""
    collate = Collator(padding_of(backbone.tokenizer, backbone.vocabulary))
    ordered = sorted(rows, key=lambda row: row.size)
    nll, hits, targets = 0.0, 0, 0
    watch(0, len(ordered))
    control = prefix if isinstance(prefix, Prefix) and prefix.meta.attributes else None
    with backbone.inferring(None if control else leading(prefix)) as attachment:
        for first in range(0, len(ordered), size):
            part = ordered[first : first + size]
            if isinstance(prefix, Mixture):
                scores = mixed_scores(backbone, attachment, prefix, part, collate)
            else:
                if control is not None:
                    own = [row.pieces for row in part]
                    attachment.bound = bind_selected(control, backbone.sites, own)
                scores = score(backbone.model, on(backbone, collate(part)))
            nll += float(scores.nll_N.double().sum())
            hits += int(scores.hit_N.sum())
            targets += len(scores.nll_N)
            watch(min(first + size, len(ordered)), len(ordered))
    return nll / targets, 100 * hits / targets, targets
