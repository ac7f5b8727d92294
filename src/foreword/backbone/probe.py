"""The probe: what a model's attention calls are, and proof that switching them changed nothing.

Geometry is measured, never read from config key names. The probe runs three short rows: a full one,
one with left padding, and the first again with another last token.

Shapes: B = 3 rows, T = 8 tokens.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foreword.attention.attachment import Attachment, Known
from foreword.attention.call import IMPLEMENTATIONS
from foreword.attention.frame import AttentionCall
from foreword.attention.guards import kernels_of
from foreword.backbone.kinds import DECODER, ENCODER, ENCODER_DECODER, Kind, kind_of
from foreword.backbone.kinds.base import Inputs, with_positions
from foreword.errors import ForewordError, UnsupportedModel, first_line
from foreword.prefix import Positions, Site
from foreword.weights.placement import input_device

TOKENS = 8
PADDED = 3
SHIFT = 5
EXACT = 1e-5
"""Largest difference allowed, relative to the largest logit, in the logits before and after."""

ROUGH, ROUNDED = 1e-3, 2**-4
"""The same where only one of the two calls has a mask, so that kernels may round otherwise; and that in
lower precision than float32."""

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
        kind: What kind of transformer it is.
        sites: The attention calls, in order.
        positions: The position policy that makes a captured text exact: ``offset`` where absolute
            positions are added to the embeddings, else ``free``.
        absolute_limit: Size of the table of absolute positions, where there is one.
        places_text: Whether the model is told where its text stands (a decoder, and an encoder whose
            positions are rotary): else that is an affair of its own.
    """

    kind: Kind
    sites: tuple[Site, ...]
    positions: Positions
    absolute_limit: int | None
    places_text: bool

    def tell(self, attachment: Attachment) -> None:
        """Let an attachment know."""
        attachment.know(self.sites, self.absolute_limit, places_text=self.places_text)


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
        kind, inputs, before = _first_run(model)
        bare = _run(model, _bare(inputs))
        attachment = Attachment(model)
        attachment.known = Known(places_text=kind is DECODER)
        try:
            measured = _measure(attachment, kind, inputs, before)
            rough = ROUGH if model.dtype == torch.float32 else ROUNDED
            with attachment.observing(lambda _: None):  # by the model's own kernels
                _check_unmoved(model, bare, _run(model, _bare(inputs)), rough)
        except BaseException:
            attachment.remove()
            raise
    measured.tell(attachment)
    return attachment, measured


def _first_run(model: PreTrainedModel) -> tuple[Kind, Inputs, Tensor]:
    """The model's kind, the probe's inputs for that, and what the model gives.

    By the config it is an encoder-decoder; by what its tokens see, a decoder or an encoder.

    Raises:
        UnsupportedModel: It does not run on a few tokens.
    """
    inputs = _probe_inputs(model, DECODER)
    if getattr(model.config, "is_encoder_decoder", False):
        kind: Kind = ENCODER_DECODER
    else:
        logits_BTV = _run(model, inputs)
        kind = _kind(model, inputs, logits_BTV)
        if kind is DECODER:
            return kind, inputs, logits_BTV
    inputs = _probe_inputs(model, kind)
    return kind, inputs, _run(model, inputs)


def _kind(model: PreTrainedModel, inputs: Inputs, logits_BTV: Tensor) -> Kind:
    if logits_BTV.shape[:2] != inputs["attention_mask"].shape:  # a head that gives one for each row
        return kind_of(model.config)
    allowed = EXACT if model.dtype == torch.float32 else 2**-6
    return DECODER if _sees_nothing_later(logits_BTV, inputs, allowed) else ENCODER


def _run(model: PreTrainedModel, inputs: Inputs) -> Tensor:
    """The first of what the model gives, float32: logits or hidden states of each token, or row."""
    try:
        with torch.no_grad():
            return _logits(model(**inputs))
    except ForewordError:
        raise
    except Exception as error:  # whatever a modelling file meets without pixels, sound or a config
        raise UnsupportedModel(
            f"family {family_of(model)!r} ({type(model).__name__}) does not run on a few tokens: "
            f"{first_line(error)}. A prefix joins models that read text alone, too; of one that needs "
            "images or sound give the language model inside"
        ) from error


def _sees_nothing_later(logits_BTV: Tensor, inputs: Inputs, allowed: float) -> bool:
    """Rows 0 and 2 differ in their last token only: nothing before it differs."""
    largest = max(1.0, float(logits_BTV[inputs["attention_mask"].bool()].abs().max()))
    return float((logits_BTV[0, :-1] - logits_BTV[2, :-1]).abs().max()) / largest <= allowed


def _refuse_by_name(model: PreTrainedModel) -> None:
    family = family_of(model)
    if family in REFUSED:
        raise UnsupportedModel(
            f"family {family!r} ({type(model).__name__}) cannot carry a prefix: {REFUSED[family]}"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode; every module gets its own mode back.

    Of blocks that overlap, in several threads, the last one to end gives it back.
    """
    with _MODES:
        held = _evaluated.setdefault(model, [])
        held.append([module for module in model.modules() if module.training])
        model.eval()
    try:
        yield
    finally:
        with _MODES:
            training = held.pop()
            if held:
                held[0] += training
            else:
                for module in training:
                    module.training = True


_MODES = threading.Lock()
_evaluated: weakref.WeakKeyDictionary[nn.Module, list[list[nn.Module]]] = (
    weakref.WeakKeyDictionary()
)
"""By model the modules that each block found in training mode."""


def _probe_inputs(model: PreTrainedModel, kind: Kind) -> Inputs:
    vocabulary = _vocabulary(model)
    device = input_device(model)
    ids_T = (torch.arange(TOKENS) * 7919 + 11) % vocabulary
    ids_BT = ids_T.repeat(3, 1)
    ids_BT[2, -1] = (ids_T[-1] + 1) % vocabulary
    mask_BT = torch.ones(3, TOKENS, dtype=torch.long)
    mask_BT[1, :PADDED] = 0
    return kind.probe(model, ids_BT.to(device), mask_BT.to(device))


def _vocabulary(model: PreTrainedModel) -> int:
    """Number of token ids that the model reads.

    Raises:
        UnsupportedModel: It reads none.
    """
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        table = None
    weight = getattr(table, "weight", None)
    if not isinstance(table, nn.Embedding) and (weight is None or weight.dim() != 2):
        raise UnsupportedModel(
            f"family {family_of(model)!r} ({type(model).__name__}) has no table of token embeddings, so "
            "it reads no text by itself. A prefix joins language models; of a model of several parts "
            "give the language model inside"
        )
    return int(table.weight.shape[0])


def _logits(output: object) -> Tensor:
    first = output[0]  # type: ignore[index]
    assert isinstance(first, Tensor)
    return first.float()


def _measure(attachment: Attachment, kind: Kind, inputs: Inputs, before: Tensor) -> Measured:
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
    seen = kind.seen(inputs)
    if before.shape[:2] != seen.shape:
        seen = torch.ones_like(before, dtype=torch.bool)
    _check_unmoved(model, before[seen], after[seen])
    positions = _positions(attachment, inputs)
    limit = getattr(model.config, "max_position_embeddings", None)
    sites = _sites(calls, [kind.stack(call, inputs) for call in calls])
    if kind is DECODER:
        return Measured(kind, sites, positions, limit if positions == "offset" else None, True)
    placed = with_positions(model, inputs)
    turns = "position_ids" in placed and _positions(attachment, placed) == "free"
    return Measured(kind, sites, "free", None, kind is ENCODER and turns)


def _bare(inputs: Inputs) -> Inputs:
    """The probe's first row as users may give it: token ids alone, nothing said of mask or positions."""
    return {name: ids[:1] for name, ids in inputs.items() if name.endswith("input_ids")}


def _check_unmoved(
    model: PreTrainedModel, before: Tensor, after: Tensor, allowed: float = EXACT
) -> None:
    """Check that a model without a prefix gives what it gave before attention was switched.

    Args:
        model: The model.
        before: What it gave.
        after: What it gives now.
        allowed: Largest difference, relative to the largest number.

    Raises:
        UnsupportedModel: It does not.
    """
    largest = max(1.0, float(before.abs().max()))
    moved = float((after - before).abs().max()) / largest
    if moved <= allowed:
        return
    by_sdpa = model.config._attn_implementation == IMPLEMENTATIONS["sdpa"]
    advice = ". It may do with attn_implementation='eager'" if by_sdpa else ""
    raise UnsupportedModel(
        f"family {family_of(model)!r} ({type(model).__name__}) changes its logits by {moved:.1e} of "
        f"the largest (allowed: {allowed:.0e}) when its attention goes through Foreword without a "
        f"prefix, so it is refused{advice}"
    )


def _positions(attachment: Attachment, inputs: Inputs) -> Positions:
    """Absolute positions reach the first site's values; rotary ones reach only its keys."""
    if "position_ids" not in inputs:
        return "free"
    shifted = {**inputs, "position_ids": inputs["position_ids"] + SHIFT}
    first, again = (attachment.recorded(**each)[0] for each in (inputs, shifted))
    same = torch.equal(first.value_BHKE, again.value_BHKE)
    return "free" if same else "offset"


def _sites(calls: Sequence[AttentionCall], stacks: Sequence[str]) -> tuple[Site, ...]:
    """A site for each module that calls, at its first call; numbered within its stack."""
    found: dict[str, Site] = {}
    counts: Counter[str] = Counter()
    for call, stack in zip(calls, stacks, strict=True):
        if call.name in found:
            continue
        found[call.name] = Site(
            name=call.name,
            stack=stack,
            layer=counts[stack],
            kv_heads=int(call.key_BHKD.shape[1]),
            key_dim=int(call.key_BHKD.shape[-1]),
            value_dim=int(call.value_BHKE.shape[-1]),
            window=call.window,
        )
        counts[stack] += 1
    return tuple(found.values())
