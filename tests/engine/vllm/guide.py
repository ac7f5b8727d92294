"""What the pages about vLLM show: their commands, their Python, and the Kubernetes file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs/how-to"
ONE = (FOLDER / "vllm.md").read_text(encoding="utf-8")
SEVERAL = (FOLDER / "vllm-cluster.md").read_text(encoding="utf-8")
KUBERNETES = FOLDER / "kubernetes.yaml"

MODEL = "Qwen/Qwen3-0.6B"
"""The model of the examples that are run."""


def blocks(page: str, language: str) -> list[str]:
    """What stands between fences of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str, program: str) -> list[str]:
    """Each command of a program that a page shows, its continued lines and its variables with it."""
    shown = [
        command
        for block in blocks(page, "console")
        for command in re.findall(r"^\$ (.*(?:\n(?!\$ ).+)*)", block, re.MULTILINE)
    ]
    return [one for one in shown if words(one)[:1] == [program]]


def words(command: str) -> list[str]:
    """A command's words, without the variables in front of it."""
    found = shlex.split(command)
    while found and re.fullmatch(r"[A-Z_]+=.*", found[0]):
        del found[0]
    return found


def resources() -> dict[str, dict[str, Any]]:
    """By kind what the Kubernetes file describes; of several of one kind the last one."""
    return {one["kind"]: one for one in all_resources()}


def all_resources() -> list[dict[str, Any]]:
    """All of it, in order."""
    return list(yaml.safe_load_all(KUBERNETES.read_text(encoding="utf-8")))


def container(resource: dict[str, Any]) -> dict[str, Any]:
    """The one container of a Job's or a Deployment's pods."""
    (found,) = resource["spec"]["template"]["spec"]["containers"]
    return dict(found)


def served() -> list[list[str]]:
    """Of each `foreword serve` that is shown, in whatever form, the words behind `foreword`."""
    typed = [words(one)[1:] for page in (ONE, SEVERAL) for one in commands(page, "foreword")]
    return [
        one for one in [*typed, container(resources()["Deployment"])["args"]] if one[0] == "serve"
    ]
