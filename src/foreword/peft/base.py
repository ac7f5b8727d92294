"""The base model that an exported checkpoint names, and whether PEFT finds it by that name."""

from __future__ import annotations

import os

from foreword.weights import embedded


def hint(base: str | None) -> str | None:
    """What to do where `AutoPeftModel` cannot load the base that a config names; None where it can.

    Whether a name on the Hub is there is not looked up.

    Args:
        base: Its ``base_model_name_or_path``.
    """
    if base is None:
        return (
            "adapter_config.json names no base model, because the backbone has no name: load the base "
            "yourself and give it to PeftModel.from_pretrained, or set base_model_name_or_path there "
            "for AutoPeftModel"
        )
    if base == embedded.NAME:
        return (
            f"adapter_config.json names {base!r} as the base, which only Foreword knows: load "
            f"{embedded.converted_folder()}, the weights that it was made on, and give them to "
            "PeftModel.from_pretrained, or set base_model_name_or_path to that folder for AutoPeftModel "
            f"(the original, {embedded.ORIGIN}, has slightly other weights)"
        )
    if os.path.isdir(base) and not os.path.isabs(base):
        return (
            f"adapter_config.json names the folder {base!r} as the base, so AutoPeftModel finds it from "
            "the present working directory alone; set base_model_name_or_path to where it is elsewhere"
        )
    return None
