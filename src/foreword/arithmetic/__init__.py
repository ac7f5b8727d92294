"""Arithmetic of prefixes: sums of what was learned, interpolation, slices, strengths, side by side."""

from foreword.arithmetic.mixin import Arithmetic
from foreword.arithmetic.side_by_side import concat

__all__ = ["Arithmetic", "concat"]
