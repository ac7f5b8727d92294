"""Options that several verbs share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from foreword.cli.console import quiet_libraries
from foreword.description import PrefixMeta
from foreword.errors import BackboneError
from foreword.reach import check_path, is_out_of_reach
from foreword.store import PrefixStore
from foreword.weights import embedded

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.prefix import Prefix


def load(name: str, **how: Any) -> Backbone:
    """A backbone, as `foreword.load` gives it; nothing large is imported before.

    Raises:
        BackboneError: It is no folder, the Hub does not answer, and there is no copy of it.
    """
    check_reach(name, how.get("revision"))
    from foreword.backbone import load as load_backbone

    quiet_libraries()
    return load_backbone(name, **how)


def check_reach(name: str, revision: str | None) -> None:
    """Check that a backbone is a folder, is in the Hub's cache, or that the Hub answers.

    Raises:
        BackboneError: None of them.
    """
    is_local = name == embedded.NAME or os.path.exists(name)
    if not is_local and is_out_of_reach(name, revision):
        raise BackboneError(
            f"cannot load backbone {name!r}: there is no such folder, the Hub does not answer, and its "
            "cache has no copy. Check the name, and the network"
        )


def folder_of(name: str) -> str:
    """What vLLM loads a backbone from: its name, or the folder of the embedded one."""
    return str(embedded.obtain()) if name == embedded.NAME else name


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Where prefixes live."""

    store: Annotated[Path | None, Parameter(env_var="FOREWORD_STORE")] = None
    """Folder of the prefixes; default: "prefixes" in the user's data folder."""

    def open(self) -> PrefixStore:
        """The store."""
        return PrefixStore(self.store)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """Which backbone, and how it is loaded."""

    backbone: str | None = None
    """Embedded name, model folder or Hub name; default: the one that the prefix was made on, or
    smollm2-135m-instruct for a new one."""

    revision: str | None = None
    """Revision on the Hub."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the backbone computes in; auto: what this machine does fast. Prefixes train in float32."""

    quantize: Literal["int8"] | None = None
    """Weights of linear layers rounded to 8 bits after loading, by torchao (the extra "quantize")."""

    device: str | None = None
    """Where it runs, such as cpu or cuda; default: a GPU if there is one."""

    attention: Literal["sdpa", "eager"] | None = None
    """Attention kernel; default: what the family supports."""

    def __post_init__(self) -> None:
        if self.backbone is not None:
            check_path(self.backbone)

    def named(self, meta: PrefixMeta | None = None) -> tuple[str, str | None]:
        """The backbone's name and revision; by default those of a prefix's own."""
        if self.backbone is not None or meta is None:
            return self.backbone or embedded.NAME, self.revision
        check_path(
            meta.backbone, "the prefix was made on it. Say where it is now: --backbone FOLDER"
        )
        return meta.backbone, self.revision or meta.revision

    def load(self, prefix: Prefix | None = None) -> Backbone:
        """The backbone; by default the prefix's own."""
        name, revision = self.named(None if prefix is None else prefix.meta)
        return load(
            name,
            dtype=self.dtype,
            quantize=self.quantize,
            device=self.device,
            attention=self.attention,
            revision=revision,
        )
