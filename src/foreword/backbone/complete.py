"""Whether the weights of a folder are those of the model that its config describes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from foreword.errors import BackboneError

SHOWN = 3
"""Names that a message shows at most."""

_NUMBERED = re.compile(r"(.*?\.)\d+\.")


def check_complete(model: Any, loading: Mapping[str, Any], name: str) -> None:
    """Check that config and weights belong together.

    A pooler that the folder has no weights for is taken out: each loading would draw others.

    Args:
        model: The model that was loaded.
        loading: What transformers says of the loading (``output_loading_info``), which may have gone
            on with mismatched sizes.
        name: The backbone's name.

    Raises:
        BackboneError: Shapes differ, the model has parameters without weights, or there are weights
            of layers that it does not have.
    """
    _check_shapes(loading["mismatched_keys"], name)
    parameters = {parameter for parameter, _ in model.named_parameters()}
    body = f"{getattr(model, 'base_model_prefix', '')}."
    own, others = (
        {key.removeprefix(body) for key in keys}
        for keys in (parameters, loading["unexpected_keys"])
    )
    _check_layers(own, others, name)
    _without_random_weights(model, parameters.intersection(loading["missing_keys"]), name)


def _check_shapes(mismatched: Iterable[tuple[str, Any, Any]], name: str) -> None:
    for parameter, stored, described in sorted(mismatched, key=lambda found: found[0]):
        raise BackboneError(
            f"the weights of backbone {name!r} are not those of its config: {parameter} has shape "
            f"{tuple(stored)}, by config.json it has {tuple(described)}; both must come from one model"
        )


def _check_layers(parameters: set[str], unexpected: Iterable[str], name: str) -> None:
    """Refuse to run the first layers of a deeper model: its text would be nonsense.

    What an extra layer alone has (the layers that some checkpoints keep to predict several tokens) is
    no such layer.
    """
    known = {_pattern(parameter) for parameter in parameters}
    layers: dict[str, list[str]] = {}
    for key in sorted(unexpected):
        match = _NUMBERED.match(key)
        if match is not None:
            layers.setdefault(match[0], []).append(key)
    for layer, keys in layers.items():
        if known.issuperset(map(_pattern, keys)):
            raise BackboneError(
                f"the weights of backbone {name!r} are not those of its config: they have "
                f"{_listed(keys)}, and by config.json there is no {layer.rstrip('.')}; both must come "
                "from one model"
            )


def _pattern(parameter: str) -> str:
    return re.sub(r"\d+", "#", parameter)


def _without_random_weights(model: Any, missing: Iterable[str], name: str) -> None:
    lacking = sorted(missing)
    if any(key.startswith("pooler.") for key in lacking):
        model.pooler = None
        lacking = [key for key in lacking if not key.startswith("pooler.")]
    if lacking:
        raise BackboneError(
            f"backbone {name!r} has no weights for {len(lacking)} of its parameters "
            f"({_listed(lacking)}), which would be random; give a complete model folder"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
