"""Evaluation: metrics, the runner, and the matcher of the E2E demo."""

from foreword.evaluate.run import FIGURES, Evaluation, Metrics, evaluate

__all__ = ["FIGURES", "Evaluation", "Metrics", "evaluate"]
