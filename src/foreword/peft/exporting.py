"""From a `Prefix` to a folder that PEFT loads."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from foreword.arguments import path_of
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.errors import FormatError, Notice, PrefixError, StoreError
from foreword.files import write_folder
from foreword.peft import config as config_file
from foreword.peft import tensors as tensor_file
from foreword.peft.cached import check_reached
from foreword.peft.config import PeftConfig
from foreword.peft.refusals import check_expressible
from foreword.prefix import Prefix, check_prefix

REPLACEABLE = {config_file.NAME, tensor_file.NAME, tensor_file.PICKLE, "README.md"}
"""What a folder may hold that an export replaces: what PEFT itself puts there."""


class NotInPeft(Notice):
    """A prefix was exported, but its users must take care of something that the files cannot say."""


def export_peft(
    prefix: Prefix,
    backbone: Backbone,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a prefix as a checkpoint that `PeftModel.from_pretrained` loads and gives our logits.

    A prefix of a decoder under position policy ``free`` is moved to ``offset`` first (see
    `Backbone.moved`; use a backbone in float32). One that was imported from PEFT gets its own config and
    header back; else it becomes a PREFIX_TUNING checkpoint in float32, of an encoder one for feature
    extraction. Of an encoder-decoder only prefixes of the decoder's self-attention can be exported, and
    where PEFT shares keys and values between layers (an even number of them) only one that does too.

    The config names the backbone as Foreword does. `AutoPeftModel` loads what is a folder or a name on
    the Hub; for the embedded backbone, which is neither, load its folder and give it to
    `PeftModel.from_pretrained`, or set ``base_model_name_or_path``.

    Args:
        prefix: The prefix.
        backbone: The backbone that it was made on.
        folder: The folder; written aside, then renamed.
        overwrite: Replace the checkpoint that the folder holds.

    Returns:
        The folder.

    Raises:
        PrefixError: PEFT cannot express the prefix; the message says why. Or it holds NaN.
        MismatchError: The prefix does not fit the backbone.
        UnsupportedModel: The backbone is one where PEFT's prefix means something else.
        StoreError: The folder is taken, or cannot be written.

    Warns:
        NotInPeft: The prefix carries the BOS, so inputs must not add it.

    Examples:
        >>> foreword.export_peft(prefix, backbone, "my-adapter")  # doctest: +SKIP
    """
    check_prefix(prefix)
    check_backbone(backbone)
    place = path_of("folder", folder, StoreError)
    broken = prefix.first_not_finite()
    if broken is not None:
        raise PrefixError(f"{broken} holds NaN or infinity; such a prefix is not exported")
    check_expressible(prefix, backbone)
    backbone.check(prefix)
    check_reached(backbone, prefix)
    moved = backbone.moved(prefix, "offset") if backbone.kind == "decoder" else prefix
    config = None if backbone.kind == "encoder-decoder" else _own_config(prefix)
    if config is None:
        config = config_file.fresh(moved, backbone.kind)
        moved = moved.to(torch.float32)
    embeddings_PW = tensor_file.packed(moved.keys, moved.values, config)
    files = {
        config_file.NAME: config.encode(),
        tensor_file.NAME: _encoded(embeddings_PW, config, prefix),
    }
    made = write_folder(place, files, replaceable=REPLACEABLE if overwrite else set())
    if prefix.meta.bos == "prefix":
        warnings.warn(
            "this prefix carries the BOS, which PEFT's files cannot say: tokenize inputs with "
            "add_special_tokens=False, or they have it twice",
            NotInPeft,
            stacklevel=2,
        )
    return made


def _own_config(prefix: Prefix) -> PeftConfig | None:
    """The config that the prefix was imported with, if it still describes it."""
    origin = prefix.meta.recipe.get("peft")
    raw = origin.get("config") if isinstance(origin, dict) else None
    if not isinstance(raw, dict):
        return None
    try:
        config = config_file.checked(raw)
    except FormatError:
        return None
    site = prefix.sites[0]
    told = (config.length, config.layers, config.heads, config.head_dim)
    return config if told == (prefix.length, len(prefix.sites), *site.geometry[2:4]) else None


def _encoded(embeddings_PW: Tensor, config: PeftConfig, prefix: Prefix) -> bytes:
    """The tensor's file, under the header that it was imported with if that still describes it."""
    origin = prefix.meta.recipe.get("peft")
    header = origin.get("header") if isinstance(origin, dict) else None
    if isinstance(header, str):
        content = tensor_file.encode(embeddings_PW, header)
        try:
            again_PW = tensor_file.decode(content, config)[0]
            if again_PW.dtype == embeddings_PW.dtype and torch.equal(again_PW, embeddings_PW):
                return content
        except FormatError:
            pass  # the prefix is no longer what it was imported as
    return tensor_file.encode(embeddings_PW)
