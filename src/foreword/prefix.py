"""`Prefix`: learned keys and values as a frozen value, and where they belong.

Shapes: H key/value heads, P prefix length (virtual tokens), D key dimension, E value dimension.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from foreword.arguments import check_fields, check_text, expect, shown
from foreword.errors import PrefixError
from foreword.head import Head

Positions = Literal["free", "offset"]
WindowPolicy = Literal["visible", "windowed"]
Bos = Literal["prefix", "input", "none"]
Softmax = Literal["joint", "own"]

POSITIONS: tuple[Positions, ...] = ("free", "offset")
WINDOWS: tuple[WindowPolicy, ...] = ("visible", "windowed")
BOS: tuple[Bos, ...] = ("prefix", "input", "none")
SOFTMAX: tuple[Softmax, ...] = ("joint", "own")
_POLICIES: dict[str, tuple[str, ...]] = {
    "positions": POSITIONS,
    "windows": WINDOWS,
    "bos": BOS,
    "softmax": SOFTMAX,
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_DEPTH = 64
"""How deep lists and objects may nest in a recipe or in what training measured."""


@dataclass(frozen=True)
class Site:
    """One attention call of a backbone, as the probe measured it.

    Attributes:
        name: The module's name in the model, such as ``model.layers.0.self_attn``.
        stack: Which part of the model it belongs to: ``decoder``, ``encoder`` or ``cross``.
        layer: Running number within its stack, from 0, in call order.
        kv_heads: Number of key/value heads in the call.
        key_dim: Dimension of one key.
        value_dim: Dimension of one value.
        window: Tokens that a query sees, itself included, or None without a limit.

    Raises:
        PrefixError: A field is of another type.
    """

    name: str
    stack: str
    layer: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, PrefixError)

    @property
    def label(self) -> str:
        """The site's name in files: ``decoder.0``."""
        return f"{self.stack}.{self.layer}"

    @property
    def geometry(self) -> tuple[str, int, int, int, int, int | None]:
        """What two backbones must share for a prefix to fit both; names of modules may differ."""
        return (
            self.stack,
            self.layer,
            self.kv_heads,
            self.key_dim,
            self.value_dim,
            self.window,
        )


@dataclass(frozen=True)
class PrefixMeta:
    """What a prefix needs to know about itself to be used as it was trained.

    Attributes:
        backbone: Name or path that the backbone was loaded by.
        family: The backbone's model type, such as ``llama``.
        revision: Hub revision of the backbone, if known.
        fingerprint: Digest of a sample of the backbone's weights.
        tokenizer: Digest of the tokenizer's behaviour, or empty without one.
        positions: ``free``: the prefix takes no positions and text starts at 0;
            ``offset``: the prefix lies at 0..P-1 and text starts at P.
        windows: ``visible``: a sliding window never drops the prefix; ``windowed``: it does, as it
            would drop text.
        bos: ``prefix``: the prefix carries the BOS and inputs add none; ``input``: inputs add their
            own; ``none``: this tokenizer adds none.
        softmax: ``joint``: queries share one softmax between prefix and text; ``own``: the prefix has
            a softmax of its own, and what it gives is added to the text's (Zhang et al., 2023).
        recipe: How the prefix was made and how its inputs are built (templates, initialisation,
            settings): JSON values, kept as a copy in JSON's own types.
        training: What training measured, JSON values, with the digest of the data under ``data``.
        parents: Content digests of prefixes that this one was made from.

    Raises:
        PrefixError: A field is of another type, or a policy is unknown.
    """

    backbone: str = ""
    family: str = ""
    revision: str | None = None
    fingerprint: str = ""
    tokenizer: str = ""
    positions: Positions = "free"
    windows: WindowPolicy = "visible"
    bos: Bos = "none"
    softmax: Softmax = "joint"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, PrefixError)
        for parent in self.parents:
            check_text("a digest among parents", parent, PrefixError)
        for name, allowed in _POLICIES.items():
            found = getattr(self, name)
            if found not in allowed:
                raise PrefixError(
                    f"{name} policy {reprlib.repr(found)} is unknown; use one of {allowed}"
                )
        for name in ("recipe", "training"):
            object.__setattr__(self, name, plain_json(getattr(self, name)))

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values.

        A joint softmax is left out: digests are older than any other, and stay what they were.
        """
        fields = dataclasses.asdict(self)
        if self.softmax == "joint":
            del fields["softmax"]
        return fields


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values for the sites of a backbone, all or some. A value: nothing changes it in place.

    Attributes:
        sites: The sites, in call order.
        keys: Per site a tensor (H, P, D) of float32, bfloat16 or float16, rotary already applied.
        values: Per site a tensor (H, P, E) of the same dtype.
        meta: See `PrefixMeta`.
        head: What turns hidden states into labels, of the same dtype; None where text is written.

    Raises:
        PrefixError: A tensor's shape, dtype or contents do not fit its site.

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

    @property
    def length(self) -> int:
        """Prefix length P, in virtual tokens."""
        return int(self.keys[0].shape[1]) if self.keys[0].dim() == 3 else 0

    @property
    def dtype(self) -> torch.dtype:
        """The tensors' common dtype."""
        return self.keys[0].dtype

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
        what they were before there were any.
        """
        described: dict[str, Any] = {
            "sites": [dataclasses.asdict(site) for site in self.sites],
            "length": self.length,
            "dtype": str(self.dtype).removeprefix("torch."),
            "meta": self.meta.as_json(),
        }
        if self.head is not None:
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
                if not bool(torch.isfinite(tensor).all()):
                    return f"{site.label}.{kind}"
        if self.head is not None:
            for kind, tensor in zip(("weight", "bias"), self.head.tensors, strict=True):
                if not bool(torch.isfinite(tensor).all()):
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


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        PrefixError: A value is not JSON, NaN and infinity included.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise PrefixError(f"the prefix's meta must hold JSON values only: {error}") from error


def plain_json(value: Any) -> Any:
    """A copy in JSON's own types (tuples become lists), so that a round trip changes nothing.

    Raises:
        PrefixError: The value is not JSON, or nests deeper than `MAX_DEPTH`.
    """
    plain = json.loads(canonical_json(value))
    if nesting(plain) > MAX_DEPTH:
        raise PrefixError(f"the prefix's meta nests deeper than {MAX_DEPTH} levels")
    return plain


def nesting(value: Any) -> int:
    """How many levels of lists and objects a JSON value has; found without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        inside = (item.values() if isinstance(item, dict) else item for item in level)
        level = list(itertools.chain.from_iterable(inside))
    return depth


def rms(tensor: Tensor) -> float:
    """Root mean square of all the tensor's numbers."""
    return float(tensor.float().pow(2).mean().sqrt())


def tensor_bytes(tensor: Tensor) -> bytes:
    """The tensor's contents in row-major order, little-endian."""
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return bytes(raw.numpy().tobytes())
