"""Text of no task, to measure what a model forgot; see LICENSE.md."""
