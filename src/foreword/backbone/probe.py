"""The probe: what a model's attention calls are, and proof that switching them changed nothing.

Geometry is measured, never read from config key names. The probe runs three short rows: a full one,
one with left padding, and the first again with another last token.

Shapes: B = 3 rows, T = 8 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foreword.backbone.attachment import Attachment, kernels_of
from foreword.backbone.placement import input_device
from foreword.backbone.signature import parameters_of
from foreword.errors import UnsupportedModel
from foreword.frame import AttentionCall
from foreword.prefix import Positions, Site

TOKENS = 8
PADDED = 3
SHIFT = 5
EXACT = 1e-5
"""Largest difference allowed, relative to the largest logit, in the logits before and after."""

REFUSED = {
    "deepseek_v32": "its sparse attention mask is skipped under any implementation but its own",
    "glm_moe_dsa": "its sparse attention mask is skipped under any implementation but its own",
    "llama4": "it has a vision tower; load its language model alone, with AutoModelForCausalLM",
    "mamba": "it has no attention",
    "mamba2": "it has no attention",
    "rwkv": "it has no attention",
}
"""Families that a probe of eight tokens would not catch, and why each cannot carry a prefix."""


@dataclass(frozen=True)
class Measured:
    """What the probe found.

    Attributes:
        sites: The attention calls, in order.
        positions: The position policy that makes a captured text exact: ``offset`` where absolute
            positions are added to the embeddings, else ``free``.
        absolute_limit: Size of the table of absolute positions, where there is one.
    """

    sites: tuple[Site, ...]
    positions: Positions
    absolute_limit: int | None


def family_of(model: PreTrainedModel) -> str:
    """The model type that transformers knows the model by, such as ``llama``."""
    return str(model.config.model_type)


def attach_proven(model: PreTrainedModel) -> tuple[Attachment, Measured]:
    """Attach, and prove that without a prefix the model still gives the same logits.

    Raises:
        UnsupportedModel: The family is refused by name, and the model is as it was before.
    """
    _refuse_by_name(model)
    kernels_of(model)
    with evaluating(model):
        inputs = _probe_inputs(model)
        with torch.no_grad():
            before = _logits(model(**inputs))
        attachment = Attachment(model)
        try:
            measured = _measure(attachment, inputs, before)
        except BaseException:
            attachment.remove()
            raise
    attachment.absolute_limit = measured.absolute_limit
    return attachment, measured


def _refuse_by_name(model: PreTrainedModel) -> None:
    family = family_of(model)
    if family in REFUSED:
        raise UnsupportedModel(
            f"family {family!r} ({type(model).__name__}) cannot carry a prefix: {REFUSED[family]}"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"family {family!r} ({type(model).__name__}) is an encoder-decoder; "
            "only decoder-only language models are supported for now"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode; every module gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _probe_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    table = model.get_input_embeddings()
    device = input_device(model)
    vocabulary = int(table.weight.shape[0])
    ids_T = (torch.arange(TOKENS) * 7919 + 11) % vocabulary
    ids_BT = ids_T.repeat(3, 1)
    ids_BT[2, -1] = (ids_T[-1] + 1) % vocabulary
    mask_BT = torch.ones(3, TOKENS, dtype=torch.long)
    mask_BT[1, :PADDED] = 0
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
    if "position_ids" in parameters_of(type(model)):
        inputs["position_ids"] = positions_BT
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _logits(output: object) -> Tensor:
    first = output[0]  # type: ignore[index]
    assert isinstance(first, Tensor)
    return first.float()


def _measure(attachment: Attachment, inputs: dict[str, Tensor], before: Tensor) -> Measured:
    model = attachment.model
    family = family_of(model)
    calls: list[AttentionCall] = []
    with torch.no_grad(), attachment.observing(calls.append):
        after = _logits(model(**inputs))
    if not calls:
        raise UnsupportedModel(
            f"family {family!r} ({type(model).__name__}) does not call attention through "
            "transformers' AttentionInterface, so a prefix has no place to join"
        )
    seen = inputs["attention_mask"].bool()
    largest = max(1.0, float(before[seen].abs().max()))
    moved = float((after - before)[seen].abs().max()) / largest
    if not moved <= EXACT:
        raise UnsupportedModel(
            f"family {family!r} ({type(model).__name__}) changes its logits by {moved:.1e} of the "
            f"largest (allowed: {EXACT:.0e}) when its attention goes through Foreword without a "
            "prefix, so it is refused"
        )
    _refuse_unless_causal(family, after, largest, EXACT if model.dtype == torch.float32 else 2**-6)
    positions = _positions(attachment, inputs, calls[0])
    limit = getattr(model.config, "max_position_embeddings", None)
    return Measured(_sites(calls), positions, limit if positions == "offset" else None)


def _refuse_unless_causal(family: str, logits_BTV: Tensor, largest: float, allowed: float) -> None:
    """Rows 0 and 2 differ in their last token only: nothing before it may differ."""
    spread = float((logits_BTV[0, :-1] - logits_BTV[2, :-1]).abs().max()) / largest
    if spread > allowed:
        raise UnsupportedModel(
            f"family {family!r} lets tokens see later ones; only causal decoders are supported "
            "for now"
        )


def _positions(
    attachment: Attachment, inputs: dict[str, Tensor], first: AttentionCall
) -> Positions:
    """Absolute positions reach the first site's values; rotary ones reach only its keys."""
    if "position_ids" not in inputs:
        return "free"
    shifted = {**inputs, "position_ids": inputs["position_ids"] + SHIFT}
    again = attachment.recorded(**shifted)[0]
    same = torch.equal(first.value_BHKE, again.value_BHKE)
    return "free" if same else "offset"


def _sites(calls: Sequence[AttentionCall]) -> tuple[Site, ...]:
    first_calls = {call.name: call for call in reversed(calls)}
    ordered = [call for call in calls if first_calls[call.name] is call]
    return tuple(
        Site(
            name=call.name,
            stack="decoder",
            layer=layer,
            kv_heads=int(call.key_BHKD.shape[1]),
            key_dim=int(call.key_BHKD.shape[-1]),
            value_dim=int(call.value_BHKE.shape[-1]),
            window=call.window,
        )
        for layer, call in enumerate(ordered)
    )
