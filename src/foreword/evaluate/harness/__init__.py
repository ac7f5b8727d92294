"""EleutherAI's lm-evaluation-harness (lm-eval) on a backbone under a prefix."""

from foreword.evaluate.harness.evaluation import TaskEvaluation, TaskFigures
from foreword.evaluate.harness.run import evaluate_tasks
from foreword.evaluate.harness.tasks import Tasks, tasks_named

__all__ = ["TaskEvaluation", "TaskFigures", "Tasks", "evaluate_tasks", "tasks_named"]
