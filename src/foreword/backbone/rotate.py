"""Moving keys between the position policies `free` and `offset`: a rotation that is measured.

A rotary model sees only differences of positions. So the same tokens, run once at 0.. and once at
P.., have the same hidden states, and at each site their keys differ by one fixed rotation: each
pair of dimensions (i, j) turns by an angle of its own. Both the pairing and the angles are read off
the keys. Nothing is taken from config names, so partial and interleaved layouts, a theta per layer
and layers without positions need no case of their own.

Shapes: H key/value heads, P prefix length, N samples (heads times tokens), D key dimension,
R pairs of dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from foreword.errors import UnsupportedModel
from foreword.prefix import rms

TOKENS = 64
"""Length of the text that the rotation is fitted on."""

PROOF = 256
"""Longest test text that a rotation is proven on, in tokens; longer ones only add up rounding."""

EXACT = 1e-4
"""Largest error allowed where the model runs in float32: RMS of the difference over RMS of the keys."""

ROUNDED = 2**-4
"""The same for models in bfloat16 or float16, which round even the sines: 0.03 was measured."""

STRETCHED = {"dynamic", "longrope"}
"""Scalings of rotary positions whose angles depend on the length of the whole text."""

Pairs = tuple[Tensor, Tensor]
"""First and second dimension of each plane, (R,) int64 both."""


@dataclass(frozen=True)
class Rotation:
    """What a shift of all positions does to one site's keys.

    Attributes:
        first_R: First dimension of each plane that turns.
        second_R: Second dimension of each plane.
        angle_R: Angle of each plane in radians, float64.
        residual: What the rotation leaves unexplained, relative to the size of the keys.
    """

    first_R: Tensor
    second_R: Tensor
    angle_R: Tensor
    residual: float

    def turns_planes_of(self, other: Rotation) -> bool:
        """Whether both turn the same planes."""
        same = torch.equal(self.first_R, other.first_R)
        return same and torch.equal(self.second_R, other.second_R)

    def turned(self, key_HPD: Tensor, times: int = 1) -> Tensor:
        """The keys turned `times` times (-1: back), computed in float64, in their own dtype."""
        if not len(self.first_R):
            return key_HPD
        wide_HPD = key_HPD.detach().double().cpu()
        cos_R, sin_R = (times * self.angle_R).cos(), (times * self.angle_R).sin()
        first, second = wide_HPD[..., self.first_R], wide_HPD[..., self.second_R]
        out_HPD = wide_HPD.clone()
        out_HPD[..., self.first_R] = cos_R * first - sin_R * second
        out_HPD[..., self.second_R] = sin_R * first + cos_R * second
        return out_HPD.to(key_HPD)


Run = Callable[[int, Sequence[int]], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
"""From the first token's position and token ids to keys and values (H, P, D) per site."""


def measured(
    run: Run, shift: int, vocabulary: int, family: str, allowed: float
) -> tuple[Rotation, ...]:
    """What a shift of positions does to the keys of each site: fitted on one text, proven on another.

    Args:
        run: Runs a text at positions.
        shift: Number of positions, the length of the prefixes that shall be moved.
        vocabulary: Number of token ids.
        family: The model's family, for messages.
        allowed: Largest RMS of a site's difference, relative to the RMS of its numbers.

    Raises:
        UnsupportedModel: No rotation does it.
    """
    text = _tokens(TOKENS, vocabulary, seed=0)
    (before, values), (after, values_after) = run(0, text), run(shift, text)
    prove(values, values_after, "values", family, allowed)
    rotations = tuple(fitted(*pair, allowed / 10) for pair in zip(before, after, strict=True))
    other = _tokens(min(shift, PROOF), vocabulary, seed=1)
    free, offset = run(-shift, other)[0], run(0, other)[0]
    turned = [rotation.turned(key) for rotation, key in zip(rotations, free, strict=True)]
    prove(turned, offset, "keys", family, allowed)
    return rotations


def unmoved(run: Run, vocabulary: int) -> tuple[Rotation, ...] | None:
    """Rotations that turn nothing, for a model whose keys do not tell where a token stands; else None.

    A text of one token again and again has the same hidden state at every place then (ALiBi weighs
    equal values), and so the same keys and values.

    Args:
        run: Runs a text at positions.
        vocabulary: Number of token ids.
    """
    keys, values = run(0, [vocabulary // 2] * TOKENS)
    for tensor_HPD in (*keys, *values):
        away = rms(tensor_HPD - tensor_HPD[:, :1]) / (rms(tensor_HPD) or 1.0)
        if not away <= (EXACT if tensor_HPD.dtype == torch.float32 else ROUNDED):
            return None
    none_R = torch.arange(0)
    return tuple(Rotation(none_R, none_R, torch.zeros(0, dtype=torch.float64), 0.0) for _ in keys)


def _tokens(count: int, vocabulary: int, seed: int) -> list[int]:
    """Token ids drawn from the whole vocabulary, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(vocabulary, (count,), generator=generator).tolist()
    return ids


def fitted(before_HPD: Tensor, after_HPD: Tensor, allowed: float) -> Rotation:
    """The rotation that leads from one run's keys to the other's, under the layout that fits best.

    Args:
        before_HPD: Keys of some tokens.
        after_HPD: Keys of the same tokens at shifted positions.
        allowed: Keys that differ by no more, relative to their size, count as not moved.
    """
    before_ND, after_ND = (
        keys.detach().double().cpu().flatten(0, 1) for keys in (before_HPD, after_HPD)
    )
    gram_DD = before_ND.T @ after_ND
    size_D = (before_ND**2).sum(0) + (after_ND**2).sum(0)
    apart_D = ((before_ND - after_ND) ** 2).sum(0)
    total = float(size_D.sum()) or 1.0

    def missed(pairs: Pairs) -> float:
        """What a layout leaves: all movement, except in its planes, which turn as they do best."""
        first, second = pairs
        dot_R, cross_R = _dot_and_cross(gram_DD, pairs)
        whole_R = size_D[first] + size_D[second]
        turned = (whole_R - 2 * torch.hypot(dot_R, cross_R)).clamp(min=0).sum()
        still = apart_D.sum() - apart_D[first].sum() - apart_D[second].sum()
        return math.sqrt(max(0.0, float(turned + still) / total))

    candidates = layouts(before_HPD.shape[-1])
    best = min(candidates, key=missed)
    if missed(candidates[0]) <= allowed:
        best = candidates[0]
    dot_R, cross_R = _dot_and_cross(gram_DD, best)
    return Rotation(*best, torch.atan2(cross_R, dot_R), missed(best))


def _dot_and_cross(gram_DD: Tensor, pairs: Pairs) -> Pairs:
    """Per plane the summed dot and cross products of the vectors before and after."""
    first, second = pairs
    dot_R = gram_DD[first, first] + gram_DD[second, second]
    cross_R = gram_DD[first, second] - gram_DD[second, first]
    return dot_R, cross_R


@cache
def layouts(dim: int) -> tuple[Pairs, ...]:
    """Every layout that is tried: none (first), neighbours, and halves of a segment at either end.

    Neighbours need no segment: a plane outside it has angle 0.
    """
    return tuple(_layouts(dim))


def _layouts(dim: int) -> Iterator[Pairs]:
    whole = torch.arange(dim)
    yield whole[:0], whole[:0]
    yield whole[: dim // 2 * 2 : 2], whole[1::2]
    for size in range(4, dim + 1, 2):
        for start in {0, dim - size}:
            half = start + size // 2
            yield whole[start:half], whole[half : start + size]


def refuse_stretched(model: nn.Module, family: str) -> None:
    """Refuse rotary scalings whose angles change with the length of the text.

    Raises:
        UnsupportedModel: A module of the model uses one.
    """
    for name, module in model.named_modules():
        kinds = module.__dict__.get("rope_type")
        for kind in kinds.values() if isinstance(kinds, dict) else (kinds,):
            if kind in STRETCHED:
                raise UnsupportedModel(
                    f"family {family!r} scales its rotary positions by the length of the text "
                    f"({kind!r}, module {name!r}), so no fixed rotation leads from one position "
                    "policy to the other; train or capture the prefix under the policy that you need"
                )


def prove(
    moved: Sequence[Tensor], direct: Sequence[Tensor], what: str, family: str, allowed: float
) -> None:
    """Check that tensors that were moved are those of a run under the other policy.

    Args:
        moved: Per site keys (or values), (H, P, D).
        direct: The same from the run.
        what: ``keys`` or ``values``, for the message.
        family: The model's family, for the message.
        allowed: Largest RMS of a site's difference, relative to the RMS of its numbers.

    Raises:
        UnsupportedModel: One site's are not.
    """
    for layer, (ours, theirs) in enumerate(zip(moved, direct, strict=True)):
        found = rms(ours - theirs) / (rms(theirs) or 1.0)
        if not found <= allowed:
            raise UnsupportedModel(
                f"family {family!r}: no rotation leads from one position policy to the other. At "
                f"decoder.{layer} the {what} of a test text differ by {found:.1e} of their size "
                f"(allowed: {allowed:.0e}); train or capture the prefix under the policy that you "
                "need"
            )
