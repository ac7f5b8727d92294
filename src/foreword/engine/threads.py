"""The threads that a CPU's products run on.

OpenMP keeps a pool of them for every thread of Python that ran a parallel loop. GNU's, which torch for
Linux comes with, lets idle ones sleep at once as soon as all pools together have more threads than the
machine has cores, and waking them costs more than a small product: a step of one row took 50 ms
instead of 34 beside the pool of the thread that had loaded the backbone (benchmarks/LOG.md).
"""

from __future__ import annotations

import ctypes
import sys

_SOFT = 1  # omp_pause_soft (OpenMP 5.0, section 3.2.44): the pool comes back when it is needed


def give_up_pool() -> bool:
    """End the idle threads of the calling thread's pool; whether there was a way to."""
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).omp_pause_resource_all(_SOFT) == 0)
    except (OSError, AttributeError):  # torch without OpenMP, or with an older one
        return False
