"""From a PEFT checkpoint's folder to a `Prefix`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from foreword.arguments import path_of
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.errors import FormatError, MismatchError, UnsupportedModel
from foreword.files import reason
from foreword.peft import config as config_file
from foreword.peft import tensors as tensor_file
from foreword.peft.cached import check_reached, sites_of
from foreword.peft.config import PeftConfig
from foreword.prefix import Prefix

MAX_TENSORS = 2**33
"""Largest file of tensors that is read, in bytes."""


def read_config(folder: str | os.PathLike[str]) -> PeftConfig:
    """Read a checkpoint's config.

    Raises:
        FormatError: The folder is no PEFT checkpoint of prefix tuning for a language model.
    """
    path = path_of("folder", folder, FormatError) / config_file.NAME
    content = _read(path, config_file.MAX_SIZE)
    try:
        return config_file.decode(content)
    except FormatError as error:
        raise type(error)(f"{path}: {error}") from error


def import_peft(folder: str | os.PathLike[str], backbone: Backbone) -> Prefix:
    """Read a PEFT checkpoint of prefix tuning (PREFIX_TUNING, CARTRIDGE) as a prefix.

    Of an encoder-decoder it is a prefix of the decoder's self-attention alone, which is all that PEFT
    gives such a model, with keys and values shared by layers as PEFT shares them. Of an encoder it is
    one for feature extraction: without a head.

    The prefix keeps the checkpoint's numbers and dtype, lies at positions 0..P-1 and is dropped by
    sliding windows as text is, so that it gives PEFT's logits. The config is kept in the recipe,
    and `export_peft` gives both files back byte for byte. Nothing is unpickled.

    Args:
        folder: Folder with adapter_config.json and adapter_model.safetensors.
        backbone: The model that the checkpoint was trained on.

    Returns:
        A prefix under position policy ``offset``, whose inputs add their own BOS.

    Raises:
        FormatError: A file is missing, damaged, or not of this kind.
        MismatchError: The checkpoint does not fit the backbone.
        UnsupportedModel: PEFT's prefix would not reach the backbone's attention as it is.

    Examples:
        >>> prefix = foreword.import_peft("my-adapter", backbone)  # doctest: +SKIP
    """
    check_backbone(backbone)
    config = read_config(folder)
    backbone.needs(config.kind_of_backbone, what=f"a PEFT checkpoint of task_type {config.task}")
    path = Path(folder) / tensor_file.NAME
    if not path.exists() and (Path(folder) / tensor_file.PICKLE).exists():
        raise FormatError(
            f"{Path(folder) / tensor_file.PICKLE} is a pickle, which can run code when it is read. "
            "Load it with PEFT where you trust it and save it again: "
            "model.save_pretrained(folder, safe_serialization=True)"
        )
    _check_fits(config, backbone, str(folder))
    try:
        embeddings_PW, header = tensor_file.decode(_read(path, MAX_TENSORS), config)
    except FormatError as error:
        raise type(error)(f"{path}: {error}") from error
    keys, values = tensor_file.unpacked(embeddings_PW, config)
    origin: dict[str, Any] = {"config": config.raw}
    if header is not None:
        origin["header"] = header
    windowed = any(site.window is not None for site in sites_of(backbone))
    meta = backbone.meta(
        positions="offset",
        windows="windowed" if windowed else "visible",
        recipe={"peft": origin},
    )
    prefix = Prefix(sites_of(backbone), keys, values, meta)
    with backbone.attached(prefix) as attachment:
        attachment.check_windows(attachment.bound)
    check_reached(backbone, prefix)
    return prefix


def _read(path: Path, limit: int) -> bytes:
    """A regular file's bytes (a link to one will do: the Hub's cache is made of links)."""
    try:
        if not path.exists():
            raise FormatError(
                f"there is no {path}; a PEFT checkpoint has {config_file.NAME} and "
                f"{tensor_file.NAME}"
            )
        if not path.is_file():
            raise FormatError(f"{path} is not a file")
        size = path.stat().st_size
        if size > limit:
            raise FormatError(f"{path} has {size} bytes; at most {limit} are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot read {path}: {reason(error)}") from error


def _check_fits(config: PeftConfig, backbone: Backbone, folder: str) -> None:
    """Check whether each layer of the backbone is one that the config describes."""
    name = backbone.name or backbone.family
    sites = sites_of(backbone)
    made = f"It was made on {config.base!r}" if config.base else "It names no model that it is for"
    if config.layers != len(sites):
        raise MismatchError(
            f"{folder} is a prefix for {config.layers} layers; {name!r} has attention in "
            f"{len(sites)}. {made}"
        )
    shapes = {(site.kv_heads, site.key_dim, site.value_dim) for site in sites}
    if len(shapes) > 1:
        raise UnsupportedModel(
            f"the layers of {name!r} ({backbone.family}) have {len(shapes)} geometries (key/value "
            f"heads, key dimension, value dimension: {sorted(shapes)}). PEFT has one, of which it "
            "cuts away what a layer has no room for and leaves out the layers that need more, so its "
            "checkpoints are not imported there; train the prefix here instead"
        )
    found = (config.heads, config.head_dim, config.head_dim)
    for site in sites:
        if found != (site.kv_heads, site.key_dim, site.value_dim):
            raise MismatchError(
                f"{folder} has {config.heads} key/value heads of dimension {config.head_dim}; "
                f"{name!r} has {site.kv_heads} at {site.label}, of key dimension {site.key_dim} and "
                f"value dimension {site.value_dim}. {made}"
            )
