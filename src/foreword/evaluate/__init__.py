"""Evaluation: metrics, the runner, and the matcher of the E2E demo."""

from foreword.evaluate.run import Evaluation, Metrics, evaluate

__all__ = ["Evaluation", "Metrics", "evaluate"]
