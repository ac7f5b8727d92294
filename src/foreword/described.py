"""`Described`: what a prefix says of itself, whether its tensors are at hand or not."""

from __future__ import annotations

from typing import Protocol

from foreword.description import PrefixMeta, Site


class Described(Protocol):
    """A prefix as those see it who need none of its tensors.

    A `Prefix` is one; so is the `Outline` of its file, which is read without PyTorch.
    """

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in call order."""

    @property
    def length(self) -> int:
        """Prefix length P, in virtual tokens."""

    @property
    def meta(self) -> PrefixMeta:
        """See `PrefixMeta`."""

    @property
    def head_task(self) -> str | None:
        """What its head does; None without one."""

    @property
    def parameters(self) -> int:
        """Number of numbers in its tensors."""

    @property
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""

    @property
    def digest(self) -> str:
        """Its digest; of an outline the one that the file claims, which only its tensors can prove."""
