"""`Prefix`: learned keys and values as a frozen value, and where they belong.

Shapes: H key/value heads, P prefix length (virtual tokens), D key dimension, E value dimension.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from foreword.arguments import check_fields, expect, shown
from foreword.arithmetic.mixin import Arithmetic
from foreword.description import (
    BOS,
    MAX_DEPTH,
    POSITIONS,
    SOFTMAX,
    WINDOWS,
    Bos,
    Piece,
    Positions,
    PrefixMeta,
    Site,
    Softmax,
    WindowPolicy,
    canonical_json,
    nesting,
    plain_json,
)
from foreword.errors import PrefixError
from foreword.head import Head

__all__ = [
    "BOS",
    "DTYPES",
    "MAX_DEPTH",
    "POSITIONS",
    "SOFTMAX",
    "WINDOWS",
    "Bos",
    "Piece",
    "Positions",
    "Prefix",
    "PrefixMeta",
    "Site",
    "Softmax",
    "WindowPolicy",
    "canonical_json",
    "check_prefix",
    "nesting",
    "plain_json",
    "prefixes_of",
    "rms",
    "tensor_bytes",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Prefix(Arithmetic):
    """Keys and values for the sites of a backbone, all or some. A value: nothing changes it in place.

    Attributes:
        sites: The sites, in call order.
        keys: Per site a tensor (H, P, D) of float32, bfloat16 or float16, rotary already applied.
        values: Per site a tensor (H, P, E) of the same dtype.
        meta: See `PrefixMeta`.
        head: What turns hidden states into labels, of the same dtype; None where text is written.
        start: Where training started: a prefix of the same sites and length, which sums of prefixes need
            (see `Arithmetic`). It is in no file, no digest and no size; None where it is not known.

    Raises:
        PrefixError: A tensor's shape, dtype or contents do not fit its site, the pieces of its meta do
            not add up to its length, or its start does not fit it.

    Examples:
        >>> site = Site("attn", "decoder", 0, kv_heads=1, key_dim=2, value_dim=2)
        >>> Prefix((site,), (torch.ones(1, 3, 2),), (torch.ones(1, 3, 2),)).length
        3
    """

    sites: tuple[Site, ...] = field(repr=False)
    keys: tuple[Tensor, ...] = field(repr=False)
    values: tuple[Tensor, ...] = field(repr=False)
    meta: PrefixMeta = field(default_factory=PrefixMeta)
    head: Head | None = None
    start: Prefix | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_parts()
        if not len(self.sites) == len(self.keys) == len(self.values):
            raise PrefixError(
                f"expected one key and one value tensor for each of {len(self.sites)} sites; "
                f"found {len(self.keys)} keys and {len(self.values)} values"
            )
        if self.length < 1:
            raise PrefixError(
                "expected tensors of shape (key/value heads, length, dimension) with length >= 1; "
                f"found {tuple(self.keys[0].shape)}"
            )
        for site, key, value in zip(self.sites, self.keys, self.values, strict=True):
            self._check(f"key of site {site.label}", key, (site.kv_heads, site.key_dim))
            self._check(f"value of site {site.label}", value, (site.kv_heads, site.value_dim))
        self._check_pieces()
        self._check_start()
        if self.head is None:
            return
        if self.head.weight.dtype != self.dtype:
            raise PrefixError(
                f"the head must have the dtype of keys and values, {self.dtype}; found "
                f"{self.head.weight.dtype}"
            )

    def _check_parts(self) -> None:
        """Check that each part is of its type, and that no two sites are one."""
        check_fields(self, PrefixError)
        if not self.sites:
            raise PrefixError("a prefix needs at least one site; found none")
        for site in self.sites:
            expect("a site", site, Site, "a Site", PrefixError)
        for tensor in (*self.keys, *self.values):
            _check_tensor("a key or value", tensor)
        labels = [site.label for site in self.sites]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise PrefixError(f"the prefix names a site twice: {twice}; give each once")

    def _check(self, what: str, tensor: Tensor, heads_dim: tuple[int, int]) -> None:
        heads, dim = heads_dim
        expected = (heads, self.length, dim)
        if tuple(tensor.shape) != expected:
            raise PrefixError(
                f"{what}: expected shape {expected} (key/value heads, length, dimension), "
                f"found {tuple(tensor.shape)}"
            )
        if tensor.dtype != self.dtype or tensor.dtype not in DTYPES:
            raise PrefixError(
                f"{what}: expected the same dtype everywhere, one of float32, bfloat16, float16; "
                f"found {tensor.dtype} beside {self.dtype}"
            )

    def _check_pieces(self) -> None:
        lengths = [piece.length for piece in self.meta.pieces]
        if lengths and sum(lengths) != self.length:
            raise PrefixError(
                f"the pieces of a prefix of {self.length} virtual tokens must add up to that; found "
                f"{' + '.join(map(str, lengths))} = {sum(lengths)}"
            )

    def _check_start(self) -> None:
        if self.start is None:
            return
        wanted = (self.length, [site.geometry for site in self.sites])
        if (self.start.length, [site.geometry for site in self.start.sites]) != wanted:
            raise PrefixError(
                f"the start of a prefix has its sites and its length, {len(self.sites)} and "
                f"{self.length}; found one of {len(self.start.sites)} and {self.start.length}. Leave it "
                "out: start=None"
            )

    @property
    def length(self) -> int:
        """Prefix length P, in virtual tokens."""
        return int(self.keys[0].shape[1]) if self.keys[0].dim() == 3 else 0

    @property
    def dtype(self) -> torch.dtype:
        """The tensors' common dtype."""
        return self.keys[0].dtype

    @property
    def head_task(self) -> str | None:
        """What its head does; None without one."""
        return None if self.head is None else self.head.task

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of its tensors: keys, values, and those of its head."""
        own = () if self.head is None else self.head.tensors
        return (*self.keys, *self.values, *own)

    @property
    def parameters(self) -> int:
        """Number of numbers: the sum over sites of H * P * (D + E), and those of its head."""
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over sites, meta and tensors, as hexadecimal: the prefix's identity."""
        total = hashlib.sha256()
        total.update(canonical_json(self.describe()))
        for tensor in self.tensors:
            total.update(tensor_bytes(tensor))
        return total.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors' contents, as JSON values.

        Without a head there is no word of one, and of a joint softmax none either, so that digests stay
        what they were before there were any. With pieces all is said, that there is no head as well.
        """
        described: dict[str, Any] = {
            "sites": [dataclasses.asdict(site) for site in self.sites],
            "length": self.length,
            "dtype": str(self.dtype).removeprefix("torch."),
            "meta": self.meta.as_json(),
        }
        if self.meta.pieces:
            described["head"] = None if self.head is None else self.head.describe_all()
        elif self.head is not None:
            described["head"] = self.head.describe()
            described["meta"]["softmax"] = self.meta.softmax
        return described

    def first_not_finite(self) -> str | None:
        """Name of the first tensor that holds NaN or infinity, or None.

        Raises:
            PrefixError: Its tensors are on the meta device, so they hold nothing.
        """
        if any(tensor.is_meta for tensor in self.tensors):
            raise PrefixError(
                "the prefix's tensors have no contents (meta device), as those of a file's outline; "
                "load it whole"
            )
        for site, key, value in zip(self.sites, self.keys, self.values, strict=True):
            for kind, tensor in (("key", key), ("value", value)):
                if not _is_finite(tensor):
                    return f"{site.label}.{kind}"
        if self.head is not None:
            for kind, tensor in zip(("weight", "bias"), self.head.tensors, strict=True):
                if not _is_finite(tensor):
                    return f"head.{kind}"
        return None

    def with_meta(self, **changes: Any) -> Prefix:
        """The same tensors under changed meta fields.

        Raises:
            PrefixError: There is no such field, or it cannot be that.
        """
        known = {field.name for field in dataclasses.fields(PrefixMeta)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise PrefixError(
                f"a prefix's meta has no field {unknown[0]!r}; it has {', '.join(sorted(known))}"
            )
        return dataclasses.replace(self, meta=dataclasses.replace(self.meta, **changes))

    def with_head(self, head: Head | None) -> Prefix:
        """The same keys and values with another head, or none."""
        return dataclasses.replace(self, head=head)

    def only(self, labels: Collection[str]) -> Prefix:
        """The same prefix at some of its sites, in its own order.

        Raises:
            PrefixError: It has no site of one of these labels.
        """
        expect("labels", labels, Collection, "several labels of sites", PrefixError)
        labels = list(labels)
        every = [site.label for site in self.sites]
        unknown = [label for label in labels if label not in every]
        if unknown:
            raise PrefixError(
                f"the prefix has no site {unknown[0]!r}; it has {self.sites[0].label} to "
                f"{self.sites[-1].label}"
            )
        kept = [index for index, site in enumerate(self.sites) if site.label in labels]
        return dataclasses.replace(
            self,
            sites=tuple(self.sites[index] for index in kept),
            keys=tuple(self.keys[index] for index in kept),
            values=tuple(self.values[index] for index in kept),
            start=None if self.start is None else self.start.only(labels),
        )

    def to(self, dtype: torch.dtype) -> Prefix:
        """The same prefix with tensors of `dtype`.

        Raises:
            PrefixError: A prefix cannot have it.
        """
        expect("dtype", dtype, torch.dtype, "a torch.dtype, such as torch.float32", PrefixError)
        keys = tuple(key.to(dtype) for key in self.keys)
        values = tuple(value.to(dtype) for value in self.values)
        head = None if self.head is None else self.head.to(dtype)
        return dataclasses.replace(self, keys=keys, values=values, head=head)


def check_prefix(given: object, what: str = "prefix") -> None:
    """Check that what stands for a prefix is one.

    Raises:
        PrefixError: It is not; the message says how to get one.
    """
    remedy = "a Prefix, as foreword.load_prefix, PrefixStore.load and Backbone.capture give it"
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        raise PrefixError(
            f"{what} must be {remedy}; found {shown(given)}. Read a file with "
            f"foreword.load_prefix({path!r}), a name in the store with foreword.PrefixStore().load(...)"
        )
    expect(what, given, Prefix, remedy, PrefixError)


def prefixes_of(given: object) -> tuple[Prefix | None, ...]:
    """One prefix, or one (or None) for each row, as a tuple.

    Raises:
        PrefixError: It is neither; the message says which one is not.
    """
    if isinstance(given, Prefix):
        return (given,)
    if isinstance(given, str | os.PathLike):
        check_prefix(given)
    expected = "a Prefix, or a sequence with one, or None, for each row"
    expect("prefix", given, Sequence, expected, PrefixError)
    assert isinstance(given, Sequence)
    for row, one in enumerate(given, 1):
        if one is not None:
            check_prefix(one, f"the prefix of row {row}")
    return tuple(given)


def _check_tensor(what: str, given: object) -> None:
    """Check that a value is a plain tensor, with all of its numbers in a row."""
    expect(what, given, Tensor, "a torch.Tensor", PrefixError)
    assert isinstance(given, Tensor)
    if given.layout is not torch.strided:
        raise PrefixError(f"{what} must be a dense tensor; found one of {given.layout}")


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; one pass, where `torch.isfinite` writes several tensors."""
    if not tensor.numel():
        return True
    return all(math.isfinite(end) for end in tensor.detach().aminmax())  # NaN would be both


def rms(tensor: Tensor) -> float:
    """Root mean square of all the tensor's numbers."""
    return float(tensor.float().pow(2).mean().sqrt())


def tensor_bytes(tensor: Tensor) -> bytes:
    """The tensor's contents in row-major order, little-endian."""
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return bytes(raw.numpy().tobytes())
