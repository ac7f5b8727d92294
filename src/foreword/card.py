"""The model card of a prefix: the README of its repository on the Hub.

What a prefix file says is data from anywhere. None of it reaches the card but as a code span that
nothing in it can end, as a number, or as a name that was checked letter by letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from foreword.describe import BOS, POSITIONS, SOFTMAX, WINDOWS, formula, piece_words
from foreword.errors import HubError
from foreword.evaluate.scores import Scores
from foreword.prefix import Prefix, check_prefix
from foreword.weights import embedded

REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
"""A repository on the Hub: OWNER/NAME."""
MOST = 2000
"""Longest value that the card shows, in characters."""

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_METRICS = {
    "nll": "loss",
    "bleu": "bleu",
    "chrf": "chrf",
    "rouge_l": "rouge",
    "accuracy": "accuracy",
    "f1": "f1",
    "micro_f1": "f1",
    "exact_match": "exact_match",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mse": "mse",
}
"""Figures that the Hub has a name for."""
_PIPELINES: dict[str | None, str] = {
    None: "text-generation",
    "classify": "text-classification",
    "tag": "token-classification",
    "answer": "question-answering",
    "regress": "text-classification",
    "multilabel": "text-classification",
}
"""What the Hub calls the tasks of heads, and of a prefix without one."""


def card(
    prefix: Prefix, repo_id: str, *, license: str | None = None, scores: Scores | None = None
) -> str:
    """The card: YAML between dashes, then Markdown.

    Args:
        prefix: The prefix.
        repo_id: Its repository, ``OWNER/NAME``.
        license: Its licence as the Hub spells it, such as ``apache-2.0``; left out if unknown.
        scores: Figures to show, see `foreword.evaluate.scores`.

    Raises:
        HubError: The repository's or the licence's name is ill-formed.
    """
    check_prefix(prefix)
    name = checked_repo(repo_id).split("/")[1]
    is_known = isinstance(license, str) and _LICENSE.fullmatch(license)
    if license is not None and not is_known:
        raise HubError(
            f"{license!r} is not a licence as the Hub spells them; expected one such as apache-2.0, "
            "mit or cc-by-4.0"
        )
    metadata = ModelCardData(
        library_name="foreword",
        base_model=base_model(prefix),
        base_model_relation="adapter" if base_model(prefix) else None,
        license=license,
        pipeline_tag=_pipeline(prefix),
        tags=["foreword", "prefix-tuning"],
        model_name=name if scores else None,
        eval_results=_results(scores, _pipeline(prefix)) if scores else None,
    )
    parts = (
        f"---\n{metadata.to_yaml()}\n---\n",
        f"# {name}\n",
        _about(prefix),
        _use(prefix, repo_id, name),
        _listed("What it is", _facts(prefix)),
        _listed("How it was made", _settings(prefix.meta.recipe)),
        _listed("Training", _settings(prefix.meta.training)),
        _figures(scores) if scores else "",
        _listed("Digests", _digests(prefix)),
    )
    return "\n".join(part for part in parts if part)


def _pipeline(prefix: Prefix) -> str:
    return _PIPELINES[None if prefix.head is None else prefix.head.task]


def checked_repo(repo_id: str) -> str:
    """The name of a repository, once it is seen to be one.

    Raises:
        HubError: It is not ``OWNER/NAME``.
    """
    if (
        not isinstance(repo_id, str)
        or not REPO.fullmatch(repo_id)
        or "--" in repo_id
        or ".." in repo_id
    ):
        raise HubError(
            f"{repo_id!r} is not a repository on the Hub; expected OWNER/NAME of letters, digits, "
            "'-', '_' and '.'"
        )
    return repo_id


def base_model(prefix: Prefix) -> str | None:
    """The backbone's name on the Hub, or None where it is a folder of somebody's machine."""
    name = prefix.meta.backbone
    if name == embedded.NAME:
        return embedded.ORIGIN
    return name if REPO.fullmatch(name) and not Path(name).exists() else None


def code(value: Any) -> str:
    """A value as one Markdown code span, whatever it holds; text as it stands, others as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shown = text if len(text) <= MOST else text[: MOST - 1] + "…"
    flat = "".join(c if c.isprintable() and c != "`" else _escaped(c) for c in shown)
    return f"`{flat.strip() or '(empty)'}`"


def _escaped(character: str) -> str:
    """As JSON writes it; a backtick would end the span, the others could hide or turn text."""
    return "".join(f"\\u{unit:04x}" for unit in _units(character))


def _units(character: str) -> Iterator[int]:
    point = ord(character)
    if point < 0x10000:
        yield point
    else:
        yield 0xD800 + ((point - 0x10000) >> 10)
        yield 0xDC00 + ((point - 0x10000) & 0x3FF)


def _about(prefix: Prefix) -> str:
    base = base_model(prefix)
    made_on = (
        f"[{code(base)}](https://huggingface.co/{base})" if base else code(prefix.meta.backbone)
    )
    return (
        f"A prefix of {prefix.length} virtual tokens for {made_on}: keys and values that the frozen "
        "model attends to in front of its input, in its layers. The model's weights stay as they "
        "are. It was made with Foreword, a prefix-tuning system for transformers.\n"
    )


def _use(prefix: Prefix, repo_id: str, name: str) -> str:
    verb = "generate" if prefix.head is None else "predict"
    text = (
        "## How to use it\n\n"
        f'```console\n$ foreword pull {repo_id}\n$ foreword {verb} {name} "your input"\n```\n\n'
        "```python\nimport foreword\n\n"
        f'prefix = foreword.pull("{repo_id}")\n'
        "backbone = foreword.load(prefix.meta.backbone, revision=prefix.meta.revision)\n"
        f'print(foreword.{verb}(backbone, ["your input"], prefix))\n```\n'
    )
    template = prefix.meta.recipe.get("prompt")
    if not isinstance(template, str):
        return text
    spelled = code(json.dumps(template, ensure_ascii=False))
    if prefix.head is None or not prefix.head.pair:
        return f"{text}\nInputs are put into the template {spelled}.\n"
    second = code(json.dumps(prefix.meta.recipe.get("pair"), ensure_ascii=False))
    return (
        f"{text}\nAn input is a row, or its JSON object, with two texts: the first is made by the "
        f"template {spelled}, the second by {second}.\n"
    )


def _facts(prefix: Prefix) -> Iterator[tuple[str, str]]:
    meta = prefix.meta
    yield "backbone", f"{code(meta.backbone)}, family {code(meta.family)}"
    if meta.revision is not None:
        yield "revision", code(meta.revision)
    dtype = str(prefix.dtype).removeprefix("torch.")
    yield "length", f"{prefix.length} virtual tokens in {dtype}"
    yield "parameters", formula(prefix)
    if prefix.head is not None:
        labels = json.dumps(list(prefix.head.labels), ensure_ascii=False)
        yield "head", f"{code(prefix.head.task)}, labels {code(labels)}"
    if meta.pieces:
        yield "pieces", code(piece_words(meta))
    yield "positions", POSITIONS[meta.positions]
    yield "windows", WINDOWS[meta.windows]
    yield "softmax", SOFTMAX[meta.softmax]
    yield "BOS", BOS[meta.bos]


def _digests(prefix: Prefix) -> Iterator[tuple[str, str]]:
    meta = prefix.meta
    yield "prefix", code(prefix.digest)
    yield "weights of the backbone", code(meta.fingerprint or "unknown")
    yield "tokenizer", code(meta.tokenizer or "unknown")
    if "data" in meta.training:
        yield "training data", code(meta.training["data"])
    for parent in meta.parents:
        yield "made from", code(parent)


def _settings(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every field that is set, as JSON writes it."""
    for name, value in fields.items():
        if value is not None and name != "data":
            yield code(name), code(json.dumps(value, ensure_ascii=False))


def _listed(title: str, entries: Iterator[tuple[str, str]]) -> str:
    lines = [f"- {label}: {value}\n" for label, value in entries]
    return f"## {title}\n\n{''.join(lines) or 'The file does not say.' + chr(10)}"


def _figures(scores: Scores) -> str:
    """A table of numbers; labels and formats are ours."""
    models = [scores.prefix] if scores.base is None else [scores.base, scores.prefix]
    heads = ["with the prefix"] if scores.base is None else ["frozen model", "with the prefix"]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for label, name, form in scores.figures:
        lines.append(f"| {label} | {' | '.join(form.format(m[name]) for m in models)} |")
    rows = f"{scores.inputs} inputs and {scores.rows} rows"
    about = f"On {rows} of {code(_dataset(scores))}.\n" if scores.data else f"On {rows}.\n"
    if not scores.same_weights:
        about += "\nThe backbone had other weights than the prefix was made on.\n"
    return "## Figures\n\n" + about + "\n" + "\n".join(lines) + "\n"


def _dataset(scores: Scores) -> str:
    """The set's name; of a file its name without its folders, which are nobody's business."""
    if scores.data.endswith((".jsonl", ".json", ".csv", ".tsv", ".parquet")):
        return re.split(r"[/\\]", scores.data)[-1]
    return scores.data or "rows"


def _results(scores: Scores, task: str) -> list[EvalResult]:
    """The figures that the Hub knows, for the metadata."""
    shown = re.sub(r"[^A-Za-z0-9_./:-]+", "-", _dataset(scores))[:96].strip("-") or "rows"
    kind = shown.split(":")[0]
    return [
        EvalResult(
            task_type=task,
            dataset_type=kind if REPO.fullmatch(kind) else "rows",
            dataset_name=shown,
            metric_type=kind_of_metric,
            metric_name=label,
            metric_value=round(scores.prefix[name], 4),
        )
        for label, name, _ in scores.figures
        if (kind_of_metric := _METRICS.get(name)) is not None
    ]
