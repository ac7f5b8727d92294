"""`PeftConfig`: what a PEFT checkpoint's adapter_config.json says, checked.

Source: PEFT 0.21.2, `PrefixTuningConfig`, `CartridgeConfig` and their base classes.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from foreword.backbone.kinds import KindName
from foreword.errors import CorruptFile, FormatError, PrefixError
from foreword.header import parsed
from foreword.outline import MAX_COUNT
from foreword.prefix import Prefix, nesting, plain_json
from foreword.weights.own import KEYS_AND_VALUES

NAME = "adapter_config.json"
MAX_SIZE = 2**20
"""Largest config that is read, in bytes."""

MAX_NESTING = 16
SEQ2SEQ = "SEQ_2_SEQ_LM"
TASKS: dict[KindName, str] = {
    "decoder": "CAUSAL_LM",
    "encoder-decoder": SEQ2SEQ,
    "encoder": "FEATURE_EXTRACTION",
}
"""Tasks of checkpoints that are read, by the kind of backbone that they are for."""
COUNTS = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")


def short(value: Any) -> str:
    """A value from a file in a few words, whatever it holds."""
    return reprlib.repr(value)


@dataclass(frozen=True)
class PeftConfig:
    """The config of a PEFT checkpoint that holds a prefix.

    Attributes:
        kind: ``PREFIX_TUNING`` or ``CARTRIDGE``.
        length: Prefix length P, in virtual tokens.
        layers: Number of layers L.
        heads: Key/value heads H; PEFT calls them num_attention_heads.
        head_dim: Dimension D of a key and of a value.
        task: One of `TASKS`.
        raw: The whole config as JSON values, unknown keys included.
    """

    kind: str
    length: int
    layers: int
    heads: int
    head_dim: int
    task: str
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def kind_of_backbone(self) -> KindName:
        """The kind of backbone that it is for; of an encoder-decoder it is the decoder's."""
        return next(kind for kind, task in TASKS.items() if task == self.task)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the one tensor: (P, L * 2 * H * D)."""
        return self.length, self.layers * 2 * self.heads * self.head_dim

    @property
    def slots(self) -> list[int]:
        """Per layer the slot of its keys, of the 2 L that there are; values are in the next one.

        PEFT doubles an encoder-decoder's slots and deals them out by fours, for self-attention and
        cross-attention, of which it then drops the second (`PeftModel.get_prompt`). So layers read
        every other pair, and from an even number of layers on the first half of those twice.
        """
        step = 4 if self.task == SEQ2SEQ else 2
        return [step * layer % (2 * self.layers) for layer in range(self.layers)]

    @property
    def base(self) -> str | None:
        """Name or path of the model that the checkpoint was made on, if the config names one."""
        return self._text("base_model_name_or_path")

    @property
    def revision(self) -> str | None:
        """Hub revision of that model, if the config names one."""
        return self._text("revision")

    def _text(self, name: str) -> str | None:
        value = self.raw.get(name)
        return value if isinstance(value, str) and value else None

    def encode(self) -> bytes:
        """The config's bytes, spelled as PEFT spells them."""
        return json.dumps(self.raw, indent=2, sort_keys=True).encode()


def decode(text: bytes) -> PeftConfig:
    """The config that a file's bytes hold.

    Raises:
        CorruptFile: They are not a JSON object, or a field has the wrong type.
        FormatError: It is a config of something that is not a prefix for a language model.
    """
    return checked(parsed("config", text))


def checked(raw: Mapping[str, Any]) -> PeftConfig:
    """A config's JSON values, each field that matters looked at; see `decode` for the errors."""
    if nesting(raw) > MAX_NESTING:
        raise CorruptFile("its config nests too deeply")
    try:
        raw = plain_json(raw)
    except PrefixError as error:
        raise CorruptFile(f"its config is not JSON: {error}") from error
    kind = raw.get("peft_type")
    if kind not in KEYS_AND_VALUES:
        raise FormatError(
            f"its peft_type is {short(kind)}; only {' and '.join(KEYS_AND_VALUES)} hold keys and "
            "values that can become a prefix"
        )
    _check_task(raw)
    counts = [_count(raw, name) for name in COUNTS]
    length, layers, heads, width = counts
    if width % heads:
        raise CorruptFile(
            f"its token_dim is {width}, expected a multiple of its num_attention_heads, {heads}"
        )
    _check_extras(raw, kind, length)
    return PeftConfig(kind, length, layers, heads, width // heads, raw["task_type"], raw)


def _check_task(raw: Mapping[str, Any]) -> None:
    task = raw.get("task_type")
    if task is None:
        raise FormatError(
            "its task_type is null; PEFT loads such a checkpoint and ignores the prefix without a "
            'word. If it was trained for a causal language model, set "task_type": "CAUSAL_LM" in '
            f"{NAME}"
        )
    if task not in TASKS.values():
        raise FormatError(
            f"its task_type is {short(task)}; only {', '.join(TASKS.values())} can be imported "
            "(classifiers save a head beside the prefix, under another name in each model)"
        )
    expected = _submodules(task)
    modules = raw.get("num_transformer_submodules")
    if modules is not None and (type(modules) is not int or modules != expected):
        raise CorruptFile(
            f"its num_transformer_submodules is {short(modules)}, expected {expected} with {task}"
        )


def _count(raw: Mapping[str, Any], name: str) -> int:
    if name not in raw:
        raise CorruptFile(f"its config has no {name}")
    value = raw[name]
    if not (type(value) is int and 1 <= value < MAX_COUNT):
        raise CorruptFile(
            f"its {name} is {short(value)}, expected a whole number from 1 to {MAX_COUNT - 1}"
        )
    return value


def _check_extras(raw: Mapping[str, Any], kind: str, length: int) -> None:
    """Refuse what would be lost: other trained modules; and a wrong number of frozen tokens."""
    if raw.get("modules_to_save"):
        raise FormatError(
            f"it also trains other modules (modules_to_save: {short(raw['modules_to_save'])}), which "
            "a prefix cannot hold"
        )
    frozen = raw.get("num_frozen_tokens", 0)
    if kind == "CARTRIDGE" and not (type(frozen) is int and 0 <= frozen <= length):
        raise CorruptFile(
            f"its num_frozen_tokens is {short(frozen)}, expected a whole number from 0 to its "
            f"num_virtual_tokens, {length}"
        )


def _submodules(task: str) -> int:
    """How many stacks PEFT counts."""
    return 2 if task == SEQ2SEQ else 1


def fresh(prefix: Prefix, kind: KindName) -> PeftConfig:
    """The config of a prefix that did not come from PEFT; every site has one geometry.

    Keys that only newer releases of PEFT know are left out, so that older ones load it too.
    """
    site = prefix.sites[0]
    width = site.kv_heads * site.key_dim
    task = TASKS[kind]
    raw = {
        "auto_mapping": None,
        "base_model_name_or_path": prefix.meta.backbone or None,
        "encoder_hidden_size": width,
        "inference_mode": True,
        "num_attention_heads": site.kv_heads,
        "num_layers": len(prefix.sites),
        "num_transformer_submodules": _submodules(task),
        "num_virtual_tokens": prefix.length,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "revision": prefix.meta.revision,
        "task_type": task,
        "token_dim": width,
    }
    return checked(raw)
