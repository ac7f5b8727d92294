"""Tiny tasks of lm-eval: their rows and YAML files are written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROWS = [
    {"ask": "Zizzi serves", "choices": ["Thai food", "fish", "crème brûlée"], "right": 1},
    {"ask": "Aromi is", "choices": ["near", "far away"], "right": 0},
    {"ask": "Cotto opens at", "choices": ["noon", "night", "9"], "right": 0},
    {"ask": "The tables of Strada stand", "choices": ["inside", "by the river"], "right": 1},
]
MOST = 6
"""Tokens that are generated."""

CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "ask",
    "doc_to_choice": "choices",
    "doc_to_target": "right",
    "metric_list": [{"metric": "acc"}],
}
WRITE: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "ask",
    "doc_to_target": "{{choices[right]}}",
    "generation_kwargs": {"until": ["q"], "max_gen_toks": MOST, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}
PAGE: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "ask",
    "metric_list": [{"metric": "byte_perplexity"}],
}


def written(folder: Path, name: str, about: dict[str, Any], **changes: Any) -> Path:
    """A task's YAML file, with its rows beside it."""
    rows = folder / "rows.json"
    rows.write_text(json.dumps(ROWS), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        **about,
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task), encoding="utf-8")
    return path
