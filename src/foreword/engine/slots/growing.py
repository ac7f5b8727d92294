"""A tensor whose first dimension changes while it is in use.

On Linux a CPU's has address space for the most that it may come to from the start. The system gives a
page where something is written first, and has back those of what is cut off: nothing is copied. What
was asked of C's allocator instead stays with the process, up to 32 MiB in one piece. On other devices
and systems a new tensor takes the place of the old.

Shapes: S entries.
"""

from __future__ import annotations

import math
import mmap
import sys
from contextlib import suppress

import torch
from torch import Tensor

NONE_LEFT = (RuntimeError, MemoryError, OSError)
"""What torch's allocators raise (torch.OutOfMemoryError among them), Python's, and the system."""


class Growing:
    """A tensor (S, ...) of zeros, at first of no entry.

    Args:
        shape: Of one entry.
        dtype: Of the numbers.
        device: Where they are.
        most: Entries that it will hardly have more of.

    Attributes:
        tensor: The entries that it has now.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, most: int
    ) -> None:
        self.tensor = torch.zeros(0, *shape, dtype=dtype, device=device)
        self.most = most
        self._whole = self.tensor
        self._pages: mmap.mmap | None = None

    def resize(self, size: int, kept: int) -> None:
        """Have so many entries, of which the first `kept` are as they were.

        Raises:
            RuntimeError, MemoryError, OSError: There is no memory; nothing has changed.
        """
        held = len(self.tensor)
        if size > len(self._whole) or (self._pages is None and size != held):
            whole, pages = self._made(size)
            held = min(held, kept)
            whole[:held] = self.tensor[:held]
            self._whole, self._pages = whole, pages
        elif size < held and self._pages is not None:
            first = size * self._bytes
            first += -first % mmap.PAGESIZE
            if first < len(self._pages):
                self._pages.madvise(mmap.MADV_DONTNEED, first)
        # A page that is read before it is written is mapped twice, and the second time all threads wait.
        self._whole[held:size] = 0
        self.tensor = self._whole[:size]

    def _made(self, size: int) -> tuple[Tensor, mmap.mmap | None]:
        """A tensor of zeros with as many entries at least, and its pages, if it has its own."""
        if sys.platform != "linux" or self.tensor.device.type != "cpu" or not self._bytes:
            return self.tensor.new_zeros(size, *self.tensor.shape[1:]), None
        with suppress(*NONE_LEFT):
            return self._mapped(max(size, self.most))
        return self._mapped(size)

    def _mapped(self, size: int) -> tuple[Tensor, mmap.mmap]:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        pages = mmap.mmap(-1, size * self._bytes, flags=flags)
        numbers = torch.frombuffer(pages, dtype=self.tensor.dtype)
        return numbers.view(size, *self.tensor.shape[1:]), pages

    @property
    def _bytes(self) -> int:
        """Size of one entry."""
        return math.prod(self.tensor.shape[1:]) * self.tensor.element_size()
