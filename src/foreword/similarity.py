"""How alike prefixes are in what they learned, which is nearest to one, and their places in a plane.

Shapes: N prefixes, H key/value heads, P prefix length, D dimension of a key or a value, X numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from foreword.arguments import did_you_mean, expect, shown
from foreword.arithmetic.agreement import check_agreement
from foreword.errors import PrefixError
from foreword.prefix import Prefix, check_prefix

Pooling = Literal["tokens", "mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@dataclass(frozen=True)
class Similarity:
    """How alike prefixes are, two by two.

    Attributes:
        names: Their names.
        matrix: By prefix, and by prefix, a number from -1 to 1; 1 on the diagonal, symmetric.
        pooling: ``tokens``: virtual tokens were compared one by one; ``mean``: their means.
        raw: Whether keys and values were compared as they are, and not what was learned.
        left_out: By name of a prefix that cannot be compared with the others, why not.
    """

    names: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...] = field(repr=False)
    pooling: Pooling
    raw: bool
    left_out: Mapping[str, str] = field(default_factory=dict)

    def nearest(self, name: str) -> list[tuple[str, float]]:
        """The other prefixes and how alike they are, the nearest one first.

        Raises:
            PrefixError: There is no prefix of this name among them.
        """
        if name not in self.names:
            why = self.left_out.get(name) if isinstance(name, str) else None
            said = f"it was left out: {why}" if why else f"they are {', '.join(self.names)}"
            near = "" if why else did_you_mean(str(name), self.names)
            raise PrefixError(f"no prefix called {name!a} was compared; {said}{near}")
        row = self.matrix[self.names.index(name)]
        others = [pair for pair in zip(self.names, row, strict=True) if pair[0] != name]
        return sorted(others, key=lambda pair: -pair[1])

    def places(self) -> tuple[tuple[tuple[float, float], ...], float]:
        """A place (x, y) for each prefix, and the share of what tells them apart that a plane can show.

        Classical multidimensional scaling (Torgerson, 1952) of the distances sqrt(2 - 2 s), which are
        those of unit vectors of these cosines; so the same as their two principal components.
        """
        matrix_NN = torch.tensor(self.matrix, dtype=torch.float64)
        count = len(matrix_NN)
        centring_NN = torch.eye(count, dtype=torch.float64) - 1 / count
        values_N, vectors_NN = torch.linalg.eigh(centring_NN @ matrix_NN @ centring_NN)
        values_N = values_N.clamp(min=0).flip(0)
        places_NN = vectors_NN.flip(1) * values_N.sqrt()
        # An eigenvector and its negative are the same: the largest entry is made positive.
        largest_N = places_NN.gather(0, places_NN.abs().argmax(dim=0, keepdim=True))[0]
        places_NN = places_NN * torch.where(largest_N < 0, -1.0, 1.0)
        two_N2 = torch.zeros(count, 2, dtype=torch.float64)
        two_N2[:, : min(count, 2)] = places_NN[:, :2]
        total = float(values_N.sum())
        share = float(values_N[:2].sum()) / total if total > 1e-12 else 1.0
        return tuple((x, y) for x, y in two_N2.tolist()), share

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values, with the places."""
        places, share = self.places()
        return {**asdict(self), "places": places, "places_share": share}


def similarity(
    prefixes: Mapping[str, Prefix],
    *,
    raw: bool = False,
    pooling: Pooling | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Similarity:
    """Cosine similarities of what prefixes learned: of keys and values less those of their start.

    Each site's keys, and its values, are one vector, scaled to length 1, so that no layer rules because
    its numbers are larger. The cosine of two prefixes is that of all these vectors put together, which
    is the mean of their cosines. Heads, strengths and names of pieces have no say.

    With ``tokens`` virtual token i is compared with virtual token i. That is right for prefixes that
    started from the same text, and blind to one whose tokens were put into another order, although
    attention would hardly notice. With ``mean`` the order has no say, and lengths may differ: the means
    over virtual tokens are compared, as by Vu et al. (2022, SPoT, arXiv 2110.07904: "cosine similarity
    of average tokens"); but what differs between tokens is lost.

    Args:
        prefixes: By name at least two prefixes of one backbone. Those that do not go with the first are
            left out.
        raw: Compare keys and values as they are, for which no start is needed. What all starts have in
            common makes everything look alike.
        pooling: ``tokens`` or ``mean``; by default ``tokens`` where all have one length.
        left_out: By name why others were left out before.

    Raises:
        PrefixError: There are not two prefixes that can be compared, or the pooling is unknown, or
            ``tokens`` is asked for of prefixes of different lengths.

    Examples:
        >>> found = similarity({"formal": formal, "polite": polite, "e2e": e2e})  # doctest: +SKIP
        >>> found.nearest("formal")  # doctest: +SKIP
        [('polite', 0.81), ('e2e', 0.12)]
    """
    expect("prefixes", prefixes, Mapping, "prefixes by name", PrefixError)
    if pooling is not None and pooling not in POOLINGS:
        raise PrefixError(f"pooling must be one of {', '.join(POOLINGS)}; found {shown(pooling)}")
    without = dict(left_out or {})
    compared = _comparable(prefixes, without, raw=raw)
    lengths = {name: one.length for name, one in compared.items()}
    alike = len(set(lengths.values())) == 1
    if pooling == "tokens" and not alike:
        raise PrefixError(
            f"prefixes of different lengths ({_lengths(lengths)}) cannot be compared token by token; "
            "use pooling 'mean'"
        )
    how: Pooling = pooling or ("tokens" if alike else "mean")
    vectors = {name: _vector(one, raw=raw, pooling=how) for name, one in compared.items()}
    for name, vector in [*vectors.items()]:
        if not bool(vector.any()):
            what = "keys and values are zero" if raw else "it learned nothing: it is its start"
            without[name] = f"{what}, which has no direction"
            del vectors[name]
    if len(vectors) < 2:
        raise PrefixError(_too_few(vectors, without))
    matrix_NX = torch.nn.functional.normalize(torch.stack([*vectors.values()]), dim=1)
    matrix_NN = (matrix_NX @ matrix_NX.T).clamp(-1, 1).fill_diagonal_(1)
    matrix_NN = (matrix_NN + matrix_NN.T) / 2
    rows = tuple(tuple(row) for row in matrix_NN.tolist())
    return Similarity(tuple(vectors), rows, how, raw, without)


def _comparable(
    prefixes: Mapping[str, Prefix], left_out: dict[str, str], *, raw: bool
) -> dict[str, Prefix]:
    """The prefixes that go with the first one; of the others `left_out` says why they do not."""
    found: dict[str, Prefix] = {}
    for name, one in prefixes.items():
        check_prefix(one, f"prefix {name!r}")
        try:
            _check_comparable(one, next(iter(found.values()), one), raw=raw)
        except PrefixError as error:
            left_out[name] = str(error)
        else:
            found[name] = one
    return found


def _check_comparable(prefix: Prefix, first: Prefix, *, raw: bool) -> None:
    if prefix.meta.combination != "attention":
        raise PrefixError(
            f"its pieces are combined as {prefix.meta.combination!r}, so it is no single prefix"
        )
    broken = prefix.first_not_finite()
    if broken is not None:
        raise PrefixError(f"{broken} holds NaN or infinity")
    if prefix.start is None and not raw:
        raise PrefixError(
            "it is not known where it started, so neither what it learned; recompute it with "
            "foreword.with_start(backbone, prefix), or compare keys and values as they are (raw)"
        )
    check_agreement("a comparison", first, prefix)


def _vector(prefix: Prefix, *, raw: bool, pooling: Pooling) -> Tensor:
    """What is compared of a prefix (X,), float64 on the CPU: each site's keys, and values, as units."""
    tensors = (*prefix.keys, *prefix.values)
    starts: Sequence[Tensor | None] = [None] * len(tensors)
    if not raw:
        assert prefix.start is not None
        starts = (*prefix.start.keys, *prefix.start.values)
    pairs = zip(tensors, starts, strict=True)
    return torch.cat([_direction(tensor, start, pooling) for tensor, start in pairs])


def _direction(tensor_HPD: Tensor, start_HPD: Tensor | None, pooling: Pooling) -> Tensor:
    """A site's keys or values less those of its start, as one vector of length 1, or of 0."""
    found_HPD = tensor_HPD.detach().double().cpu()
    if (
        start_HPD is not None
    ):  # rounded as the prefix was, so that what learned nothing is exactly zero
        found_HPD = found_HPD - start_HPD.detach().to(tensor_HPD.dtype).double().cpu()
    if pooling == "mean":
        found_HPD = found_HPD.mean(dim=1)
    return torch.nn.functional.normalize(found_HPD.flatten(), dim=0, eps=1e-300)


def _lengths(lengths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {length}" for name, length in lengths.items())


def _too_few(found: Mapping[str, Tensor], left_out: Mapping[str, str]) -> str:
    """What is said where nothing can be compared."""
    told = "".join(f"; {name} was left out: {why}" for name, why in left_out.items())
    return f"prefixes are compared two by two; found {len(found)} that can be{told}"
