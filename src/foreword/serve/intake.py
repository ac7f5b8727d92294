"""`Intake`: prefix files on their way into the store, each checked before it gets its name."""

from __future__ import annotations

import os
import shutil
from typing import Any, BinaryIO

from foreword import format as prefix_file
from foreword.backbone.served import Served
from foreword.described import Described
from foreword.engine.threads import give_up_pool
from foreword.errors import FormatError, StoreError
from foreword.files import reason, refusing
from foreword.serve.catalogue import check_servable
from foreword.serve.registry import Registry

PART = 2**20
"""Bytes that are copied at once."""


class Intake:
    """Takes prefix files into the store of a server.

    Args:
        backbone: What they must fit.
        registry: Prefixes by name, and their store.
        router: Name of the router that is served, if one is.
    """

    def __init__(self, backbone: Served, registry: Registry, router: str | None = None) -> None:
        self.backbone = backbone
        self.registry = registry
        self.router = router

    def take(self, name: str, source: BinaryIO, *, overwrite: bool) -> dict[str, Any]:
        """Copy a file into the store, and tell what it is once it is found to be a prefix that fits.

        Its header is checked before anything is copied: it may be of any size. What counts is the
        copy, which nobody else has: the source may change meanwhile.

        Raises:
            FormatError: It is not a prefix file.
            MismatchError: The backbone cannot serve it.
            NameTaken: There is one of this name, and `overwrite` is not set.
            StoreError: The name is the backbone's or the router's, or the disk refuses.
        """
        if name in (self.backbone.name, self.router):
            whose = "backbone" if name == self.backbone.name else "router"
            raise StoreError(f"{name!r} is the {whose}'s name; choose another")
        store = self.registry.store
        check_servable(self.backbone, prefix_file.read_outline(source), warn=False)
        try:
            with store.writing(name, overwrite=overwrite) as file:
                with refusing(store.path(name)):
                    shutil.copyfileobj(source, file, PART)
                prefix = prefix_file.read(file)
                check_servable(self.backbone, prefix)
        finally:
            give_up_pool()
        return self.described(name, prefix)

    def take_from(self, name: str, path: str, *, overwrite: bool) -> dict[str, Any]:
        """The same with a file of the server's disk."""
        if not os.path.isfile(path):  # a pipe would be waited for
            raise FormatError(f"cannot read {path}: there is no such file")
        try:
            source = open(path, "rb")  # noqa: SIM115
        except (OSError, ValueError) as error:
            raise FormatError(f"cannot read {path}: {reason(error)}") from error
        with source:
            try:
                return self.take(name, source, overwrite=overwrite)
            except FormatError as error:
                raise type(error)(f"{path}: {error}") from error

    def described(self, name: str, prefix: Described) -> dict[str, Any]:
        """What a prefix is, for those who manage the store."""
        return {
            "name": name,
            "digest": prefix.digest,
            "length": prefix.length,
            "parameters": prefix.parameters,
            "bytes": prefix.nbytes,
            "pinned": name in self.registry.pinned,
            "resident": self.registry.holds(name),
            "backbone": prefix.meta.backbone,
            "recipe": dict(prefix.meta.recipe),
        }
