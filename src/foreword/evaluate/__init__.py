"""Evaluation: metrics, the runner, and the matcher of the E2E demo."""

from foreword.evaluate.labels import LabelEvaluation, evaluate_labels, figures_of
from foreword.evaluate.run import FIGURES, Evaluation, Metrics, evaluate, evaluate_text

__all__ = [
    "FIGURES",
    "Evaluation",
    "LabelEvaluation",
    "Metrics",
    "evaluate",
    "evaluate_labels",
    "evaluate_text",
    "figures_of",
]
