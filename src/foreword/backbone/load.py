"""Loading a backbone: the embedded one, a local folder, or a name on the Hub."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from foreword.arguments import check_text
from foreword.backbone.backbone import Backbone
from foreword.backbone.complete import check_complete
from foreword.backbone.folder import check_folder, fault_of_tokenizer
from foreword.backbone.kinds import kind_of
from foreword.errors import BackboneError, ForewordError, Notice, first_line
from foreword.reach import check_path, out_of_reach
from foreword.weights import embedded
from foreword.weights.dtype import DTYPES, fast_dtype
from foreword.weights.int8_linear import save_memory
from foreword.weights.quantise import INSTALL, rounding


class UnverifiedFamily(Notice):
    """A backbone's family is not one that the tests verify."""


def load(
    name: str | os.PathLike[str] = embedded.NAME,
    *,
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    device: str | torch.device | None = None,
    attention: str | None = None,
    revision: str | None = None,
) -> Backbone:
    """Load a frozen backbone.

    Args:
        name: ``smollm2-135m-instruct`` (embedded), a local model folder, or a name on the Hub.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: what the machine does fast.
        quantize: ``int8`` rounds the weights of linear layers to 8 bits after loading them, by
            torchao; activations stay in `dtype`. By default weights are as the folder holds them,
            quantised ones included.
        device: Where to put it; a GPU if there is one.
        attention: ``sdpa`` or ``eager``; by default what the family supports.
        revision: Revision on the Hub.

    Returns:
        The backbone in evaluation mode, with no parameter requiring a gradient.

    Raises:
        BackboneError: There is no such backbone, it cannot be read, or its config and its weights are
            not those of one model; an argument is none.
        UnsupportedModel: Its family cannot carry a prefix.

    Warns:
        UnverifiedFamily: The tests do not verify its family.

    Examples:
        >>> backbone = foreword.load("smollm2-135m-instruct")  # doctest: +SKIP
    """
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    for what, word in {"name": name, "attention": attention, "revision": revision}.items():
        if word is not None or what == "name":
            check_text(what, word, BackboneError)
    check_path(name)
    place = _own_device(_device(device))
    chosen = _dtype(dtype, place)
    source = str(embedded.obtain()) if name == embedded.NAME else name
    rounded = rounding(quantize) if quantize is not None else None
    options = {} if attention is None else {"attn_implementation": attention}
    where: dict[str, Any] = {"revision": revision}
    if os.path.isdir(source):
        check_folder(Path(source))
    elif out_of_reach():
        where["local_files_only"] = True
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        config = AutoConfig.from_pretrained(source, **where)
        model, found = kind_of(config).auto.from_pretrained(
            source,
            dtype=chosen,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that `check_complete` can name them
            **where,
            **options,
        )
    except ForewordError:
        raise
    except Exception as error:  # what configs and weights of all kinds make transformers raise
        raise BackboneError(_not_loaded(name, error)) from error
    check_complete(model, found, name)
    if rounded is not None:
        rounded(model)
    save_memory(model)
    model.to(place).eval().requires_grad_(False)
    backbone = Backbone(model, tokenizer, name=name, revision=revision)
    if backbone.family not in {row["family"] for row in verified_families()}:
        warnings.warn(
            f"family {backbone.family!r} is not among those that Foreword's tests verify (foreword "
            "backbones lists them); the probe found nothing wrong, so it goes on",
            UnverifiedFamily,
            stacklevel=2,
        )
    return backbone


def verified_families() -> list[dict[str, str]]:
    """The families' table that the tests make: family, kind, positions, kernel, windows, verdict."""
    text = (resources.files("foreword.backbone") / "verified.json").read_text(encoding="utf-8")
    rows: list[dict[str, str]] = json.loads(text)["families"]
    return rows


def describe_dtype(backbone: Backbone) -> str:
    """One line that says which dtype the backbone runs in, and why."""
    chosen = str(backbone.dtype).removeprefix("torch.")
    fast, reason = fast_dtype(backbone.device)
    why = reason if fast == backbone.dtype else "as asked"
    rounded = f", quantised ({backbone.quantization})" if backbone.quantization else ""
    return (
        f"{backbone.name}: {backbone.parameters / 1e6:.1f} M parameters in {chosen}{rounded} on "
        f"{backbone.device.type} ({why}), {backbone.weight_bytes / 1e6:,.0f} MB of weights; the "
        "prefix trains in float32"
    )


def _device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for, once it is seen to be there; a GPU, if there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except Exception as error:  # of many kinds: unknown words, no driver, no such number
        raise BackboneError(
            f"device {device!r} cannot be used: {first_line(error)}; expected one such as 'cpu' or "
            "'cuda'"
        ) from error
    return place


def _own_device(device: torch.device) -> torch.device:
    """Of several processes on a machine (torchrun), each takes a GPU of its own."""
    local = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(local)) if str(device) == "cuda" and local else device


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return fast_dtype(device)[0]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BackboneError(f"dtype {dtype!r} is unknown; expected auto or one of {sorted(DTYPES)}")
    return DTYPES[dtype]


def _not_loaded(name: str, error: Exception) -> str:
    kind = "folder" if os.path.exists(name) else "local folder or Hub name"
    said = first_line(error)
    if not isinstance(error, OSError | ValueError | ImportError):
        said = f"{type(error).__name__}: {said}"
    said = (fault_of_tokenizer(Path(name)) if os.path.isdir(name) else None) or said
    if "torchao" in said and importlib.util.find_spec("torchao") is None:
        return f"backbone {name!r} is quantised by torchao, which is not installed; run: {INSTALL}"
    return (
        f"cannot load backbone {name!r} (no readable model in that {kind}): {said.rstrip('.')}. "
        f"Expected {embedded.NAME!r} (embedded), a folder with config.json and safetensors, or a "
        "name on the Hub"
    )
