"""Whether a prefix fits a backbone: its geometry, and the weights that it was made on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from foreword.errors import MismatchError, Notice
from foreword.mixture import is_mixture
from foreword.prefix import Prefix, Site


class OtherWeights(Notice):
    """A prefix meets other weights of the same geometry than it was made for."""


def check_geometry(prefix: Prefix, sites: Sequence[Site], backbone: str) -> None:
    """Check whether each of the prefix's sites is one of the backbone's, with its geometry.

    The backbone may have more sites than the prefix.

    Raises:
        MismatchError: One is not; the message names the first.
    """
    by_label = {site.label: site for site in sites}
    for own in prefix.sites:
        site = by_label.get(own.label)
        if site is None:
            raise MismatchError(
                f"the prefix has {len(prefix.sites)} sites, {backbone!r} has {len(sites)} and no "
                f"{own.label}; it was made on {prefix.meta.backbone!r} ({prefix.meta.family})"
            )
        if own.geometry != site.geometry:
            raise MismatchError(
                f"site {own.label} of the prefix has (stack, layer, key/value heads, key dimension, "
                f"value dimension, window) = {own.geometry}; {backbone!r} has {site.geometry}. "
                f"The prefix was made on {prefix.meta.backbone!r} ({prefix.meta.family})"
            )


def refuse_mixture(prefix: Prefix) -> None:
    """Check that a prefix is one that a forward pass can attend to as a whole.

    Raises:
        MismatchError: It stands for a mixture of its pieces.
    """
    if is_mixture(prefix):
        raise MismatchError(
            f"this prefix stands for a mixture: what its {len(prefix.meta.pieces)} pieces predict is "
            "mixed, each in a forward pass of its own, and a single pass cannot do that. Give it to "
            "foreword.generate, foreword.evaluate or an engine, or attach one of prefix.split()"
        )


def check_range(prefix: Prefix, dtype: torch.dtype, backbone: str) -> None:
    """Check that the dtype that a model computes in holds every number of a prefix.

    Raises:
        MismatchError: It would make infinity of one, and the model's output would be no number.
    """
    if dtype != torch.float16 or prefix.dtype == dtype:
        return
    largest = max(float(tensor.abs().max()) for tensor in (*prefix.keys, *prefix.values))
    most = torch.finfo(dtype).max
    if largest > most:
        raise MismatchError(
            f"the prefix has numbers up to {largest:.3g}, and float16, which {backbone!r} computes in, "
            f"ends at {most:.0f}; load the backbone in bfloat16 or float32"
        )


def check_weights(
    prefix: Prefix,
    fingerprint: str,
    backbone: str,
    strict: bool,
    *,
    whole: bool,
    warn: bool = True,
) -> None:
    """Check whether the prefix was made on these weights.

    Raises:
        MismatchError: It was not, and is strict about it or not on all of the backbone's sites.

    Warns:
        OtherWeights: It was not.
    """
    made_on = prefix.meta.fingerprint
    if not made_on or made_on == fingerprint:
        return
    if not whole:
        # Every site of a smaller model may look like one of a larger one's.
        raise MismatchError(
            f"the prefix has {len(prefix.sites)} sites, fewer than {backbone!r}, and was made on "
            f"{prefix.meta.backbone!r} with weights {made_on[:12]}; here they are {fingerprint[:12]}, "
            "so its layers may not be the same ones. Use the backbone that it was made on, or drop "
            "its claim: prefix.with_meta(fingerprint='')"
        )
    message = (
        f"the prefix was made on {prefix.meta.backbone!r} with weights {made_on[:12]}; {backbone!r} "
        f"has the same geometry but weights {fingerprint[:12]} (another revision, or quantised), so "
        "its quality may differ"
    )
    if strict:
        raise MismatchError(message + "; drop --strict (strict=True) to use it all the same")
    if warn:
        warnings.warn(message, OtherWeights, stacklevel=3)
