"""Which dtype a machine computes fast, and why."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def fast_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype for a frozen backbone on `device`, and the reason in a few words.

    bfloat16 where the machine multiplies matrices in it (a GPU, AVX512-BF16, AMX), else float32.
    Prefix parameters and optimiser state are float32 whatever this says.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "the GPU computes in it"
        return torch.float32, "the GPU has no bfloat16"
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return torch.bfloat16, "the CPU has AMX"
        if torch.cpu._is_avx512_bf16_supported():
            return torch.bfloat16, "the CPU has AVX512-BF16"
        return torch.float32, "the CPU has neither AVX512-BF16 nor AMX"
    return torch.float32, f"the default for {device.type}"
