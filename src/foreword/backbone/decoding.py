"""Options of transformers' `generate` that a model's own config sets, made neutral.

A `generation_config` says how its authors liked to decode: at least 56 tokens, four beams, no run of
three tokens twice. `generate` applies whatever the call leaves open, so a prefix would be asked under
options that nothing in its training knew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

KEPT = frozenset(
    (
        *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len"),
        *("compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size"),
        "transformers_version",
    )
)
"""Fields that stay the model's: its tokens, which are decided elsewhere, and how fast it decodes."""

NEUTRAL: Mapping[str, Any] = {
    "min_length": 0,
    "early_stopping": False,
    "do_sample": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "return_dict_in_generate": False,
}
"""What changes nothing, of options that must not be None."""


def neutral(model: PreTrainedModel, pad: int) -> dict[str, Any]:
    """Arguments of `generate` under which the model's own config changes no text.

    Words that may not be written (``bad_words_ids``) stay where they are the padding token alone, as in
    Marian: no target holds it, and its logit was never trained.

    Args:
        model: The model; its config is left as it is.
        pad: The padding token.
    """
    own = getattr(model, "generation_config", None)
    if own is None:
        return {}
    known = vars(GenerationConfig()).keys() - KEPT
    wanted = {
        name: NEUTRAL.get(name)
        for name, value in vars(own).items()
        if name in known and not name.startswith("_") and value not in (None, NEUTRAL.get(name))
    }
    if own.bad_words_ids == [[pad]]:
        del wanted["bad_words_ids"]
    return wanted
