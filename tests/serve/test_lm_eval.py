"""EleutherAI's lm-eval as it is, in a process of its own without a network, against the server.

What it measures is compared with the model itself, which has a prefix's text in its context.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import foreword
from foreword.engine import Engine, Limits
from foreword.serve.residency import Residency
from tests.conftest import byte_tokenizer, tiny_model
from tests.serve.behind import Behind
from tests.serve.server import running

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None,
        reason="lm-eval is not installed: pip install 'foreword[lm-eval]'",
    ),
    pytest.mark.engines(
        "embedded",
        reason="it refuses log-probabilities of prompts under a prefix, which are asked for",
    ),
]

TEXT = "text of one"
"""What the prefix `one` was made from."""

CHOICES = [
    {"question": "Zizzi serves", "choices": ["Thai food", "fish", "crème brûlée"], "right": 1},
    {"question": "Aromi is", "choices": ["near", "far away"], "right": 0},
    {"question": "so long " * 40 + "that its begin is cut off", "choices": ["a", "b"], "right": 0},
]
PROMPTS = [f"There are {number}" for number in range(40)]
MOST = 12
"""Tokens that are generated."""

RUN = """
import json
import sys

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

folder, *asked = json.load(sys.stdin)
tasks = TaskManager(include_path=folder, include_defaults=False)
found = [
    simple_evaluate("local-completions", task_manager=tasks, bootstrap_iters=0, **one)["samples"]
    for one in asked
]
with open(f"{folder}/found.json", "w") as file:
    json.dump(found, file, default=str)
"""
"""The command `lm_eval run`, for several models and without a look at the thousands of tasks that
lm-eval brings."""


@dataclass(frozen=True)
class Oracle:
    """The model, asked directly.

    Attributes:
        context: Token ids in front of every prompt.
    """

    context: tuple[int, ...]
    model: Any = field(default_factory=tiny_model)
    tokenizer: Any = field(default_factory=byte_tokenizer)

    @property
    def room(self) -> int:
        """Tokens that fit behind the context."""
        return self.model.config.max_position_embeddings - len(self.context)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def logprobs(self, ids: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of what follows each token, of shape (tokens, vocabulary)."""
        logits = self.model(torch.tensor([[*self.context, *ids]])).logits[0, len(self.context) :]
        return torch.log_softmax(logits.float(), dim=-1)

    def loglikelihood(self, before: str, text: str) -> tuple[float, bool]:
        """Of a text after another (BOS if that is empty), and whether each token is the likeliest."""
        spaces = len(before) - len(before.rstrip())
        before, text = before[: len(before) - spaces], before[len(before) - spaces :] + text
        ids = [*(self.ids(before) or [self.tokenizer.bos_token_id]), *self.ids(text)]
        count = len(self.ids(text))
        told = self.logprobs(ids[-(self.room - 1) :])[-count - 1 : -1]
        target = torch.tensor(ids[-count:])
        return float(told.gather(1, target[:, None]).sum()), bool((told.argmax(1) == target).all())

    def generate(self, prompt: str, stop: str | None = None, most: int = MOST) -> str:
        """The likeliest token, again and again."""
        made: list[int] = []
        while len(made) < most and (not made or made[-1] != self.tokenizer.eos_token_id):
            made.append(int(self.logprobs([*self.ids(prompt), *made])[-1].argmax()))
        text: str = self.tokenizer.decode(made, skip_special_tokens=True)
        return text if stop is None else text.split(stop)[0]


def written(folder: Path, model: str, oracle: Oracle) -> tuple[dict[str, str], str]:
    """Tasks with their rows as files; the tasks' names by kind, and where generated texts stop."""
    nexts = ((prompt, oracle.generate(prompt, most=1)) for prompt in PROMPTS)
    prompt, letter = next((one, text) for one, text in nexts if text.isascii() and text.isalnum())
    stop = next(char for char in oracle.generate(PROMPTS[0])[1:] if char.isascii())
    ends = [{"prompt": prompt, "end": letter}, {"prompt": prompt, "end": " many"}]
    generating = {"until": [stop], "max_gen_toks": MOST, "do_sample": False}
    tasks: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
        "multiple_choice": (
            "acc",
            CHOICES,
            {"doc_to_text": "question", "doc_to_choice": "choices", "doc_to_target": "right"},
        ),
        "loglikelihood": (
            "acc",
            ends,
            {"doc_to_text": "prompt", "doc_to_target": "end", "target_delimiter": ""},
        ),
        "loglikelihood_rolling": (
            "byte_perplexity",
            [{"page": "A short page, in one piece."}],
            {"doc_to_text": "", "doc_to_target": "page"},
        ),
        "generate_until": (
            "exact_match",
            [{"prompt": prompt} for prompt in PROMPTS[:4]],
            {"doc_to_text": "prompt", "doc_to_target": "x", "generation_kwargs": generating},
        ),
    }
    names = {kind: f"{model}_{kind}" for kind in tasks}
    for kind, (metric, rows, options) in tasks.items():
        data = folder / f"{names[kind]}.json"
        data.write_text(json.dumps(rows), encoding="utf-8")
        task = {
            "task": names[kind],
            "output_type": kind,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "metric_list": [{"metric": metric}],
            **options,
        }
        (folder / f"{names[kind]}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return names, stop


def measured(folder: Path, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What lm-eval noted about each row of each task, for each set of options."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    here = {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([str(folder), *asked]),
        env={**os.environ, **offline, **here},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "API request failed" not in done.stderr
    found: list[dict[str, Any]] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found


def test_lm_eval_measures_what_the_model_says(behind: Behind, tmp_path: Path) -> None:
    backbone, store = foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny"), behind.store
    context = backbone.tokens(TEXT)
    store.save("one", backbone.capture(context))
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    oracles = {"tiny": Oracle(()), "one": Oracle(tuple(context))}
    tasks = {model: written(tmp_path, model, oracle) for model, oracle in oracles.items()}
    ways = {  # the backbone in batches, and the prefix in requests that overlap
        "tiny": ({"tokenizer_backend": "huggingface"}, 3),
        "one": ({"num_concurrent": 3}, 1),
    }
    engine = Engine(backbone, Limits(rows=4, prompt_tokens=32))
    with running(backbone, engine, Residency(store)) as address:
        asked = []
        for model, (how, batch) in ways.items():
            about = {"base_url": f"{address}/v1/completions", "model": model, **how}
            about |= {"tokenizer": str(tmp_path / "tokenizer"), "max_length": oracles[model].room}
            names = list(tasks[model][0].values())
            asked.append({"model_args": about, "tasks": names, "batch_size": batch})
        found = dict(zip(ways, measured(tmp_path, asked), strict=True))
    for model, oracle in oracles.items():
        names, stop = tasks[model]
        compare({kind: found[model][name] for kind, name in names.items()}, oracle, stop)


def compare(found: dict[str, list[dict[str, Any]]], oracle: Oracle, stop: str) -> None:
    """What lm-eval noted, with the model's own numbers and texts."""
    count = 0
    for row in (*found["multiple_choice"], *found["loglikelihood"]):
        for (before, text), ((value, greedy),) in zip(row["arguments"], row["resps"], strict=True):
            expected = oracle.loglikelihood(before, text)
            assert (value, greedy) == (pytest.approx(expected[0], abs=1e-4), expected[1])
            count += 1
    assert count == sum(len(row["choices"]) for row in CHOICES) + 2
    assert [row["resps"][0][0][1] for row in found["loglikelihood"]] == [True, False]
    (row,) = found["loglikelihood_rolling"]
    expected = oracle.loglikelihood("", row["doc"]["page"])
    assert row["resps"][0][0] == pytest.approx(expected[0], abs=1e-4)
    texts = {row["doc"]["prompt"]: row["resps"][0][0] for row in found["generate_until"]}
    assert texts == {prompt: oracle.generate(prompt, stop) for prompt in PROMPTS[:4]}
