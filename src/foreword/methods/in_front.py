"""Embeddings in front of what an encoder reads, for a block.

An encoder's tokens see what follows them, so that virtual tokens there are no prefix: they run through
the model with the text in every pass (Lester et al. 2021, arXiv 2104.08691, who train T5). They are read
as tokens, under an id that no vocabulary has and for which the table of embeddings gives the learned
ones. So whatever else a model does with its tokens (positions, types, scales, norms) happens to them as
to text in front. What a head looks at begins behind them; the decoder behind an encoder attends to them.

Shapes: B rows, T tokens, P virtual tokens, D size of an embedding, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foreword.attention.signature import parameters_of
from foreword.backbone import Backbone
from foreword.backbone.kinds import KINDS
from foreword.backbone.probe import EXACT, ROUNDED, evaluating
from foreword.errors import BypassError, UnsupportedModel, first_line

VIRTUAL = -(2**30)
"""The id of a virtual token. It is far from the ids that stand for padding, of which -1 is one."""

TOKENS, LENGTH, PADDED = 9, 3, 2
"""Tokens of the text that exactness is shown on, of which so many are in front, and padding behind."""

Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Stacks(NamedTuple):
    """The parts of a model that virtual tokens meet.

    Attributes:
        encoder: What reads the text.
        table: Its table of embeddings.
        decoder: What attends to the encoder's output, if anything does.
    """

    encoder: nn.Module
    table: nn.Module
    decoder: nn.Module | None


def table_of(backbone: Backbone) -> Any:
    """The table of embeddings (V, D) of what reads the input."""
    return _stacks(backbone).table


def _stacks(backbone: Backbone) -> _Stacks:
    model: Any = backbone.model
    if backbone.kind != "encoder-decoder":
        return _Stacks(model.base_model, model.get_input_embeddings(), None)
    encoder = model.get_encoder()
    return _Stacks(encoder, encoder.get_input_embeddings(), model.get_decoder())


@contextmanager
def in_front(backbone: Backbone, embeddings_PD: Tensor) -> Iterator[None]:
    """Put embeddings in front of every text that an encoder reads within a block.

    The model is called as ever. Of an encoder with a head, the last hidden states are those of the text
    alone; the output of an encoder with a decoder behind it is P longer than its input, and so is the
    mask with which the decoder attends to it.

    Args:
        backbone: The backbone, an encoder or encoder-decoder.
        embeddings_PD: The embeddings, of any dtype; gradients go into them.
    """
    encoder, table, decoder = _stacks(backbone)
    front = _Front(embeddings_PD)
    with ExitStack() as stack:
        _look_up(table, front, stack)
        hooks = [encoder.register_forward_pre_hook(front.before_encoder, with_kwargs=True)]
        if decoder is None:
            hooks.append(encoder.register_forward_hook(front.after_encoder))
        else:
            hooks.append(decoder.register_forward_pre_hook(front.before_decoder, with_kwargs=True))
        for hook in hooks:
            stack.callback(hook.remove)
        yield


def _look_up(table: nn.Module, front: _Front, stack: ExitStack) -> None:
    """Let a table know virtual tokens until a stack is unwound; its forward may be another's already.

    Raises:
        BypassError: It knows some.
    """
    forward, own = table.forward, table.__dict__.get("forward")
    if isinstance(own, partial) and isinstance(getattr(own.func, "__self__", None), _Front):
        raise BypassError(
            "embeddings stand in front of this model's input already, and others would not be read; "
            "leave the block that put them there first"
        )

    def restore() -> None:
        table.__dict__.pop("forward")
        if own is not None:
            table.__dict__["forward"] = own

    table.__dict__["forward"] = partial(front.looked_up, forward)
    stack.callback(restore)


class _Front:
    """What is in front of the input, and the hooks that put it there.

    Args:
        embeddings_PD: The embeddings.
    """

    def __init__(self, embeddings_PD: Tensor) -> None:
        self.embeddings_PD = embeddings_PD

    def looked_up(self, own: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
        """What a table gives for ids (..., T), of which the first P may be virtual: (..., T, D)."""
        found = own(ids.clamp(min=0))
        # One row for the batch, and no indices: its gradient is a sum, which is the same in every run.
        more = ids.shape[-1] - len(self.embeddings_PD)
        front_TD = nn.functional.pad(self.embeddings_PD.to(found), (0, 0, 0, more))
        return torch.where((ids == VIRTUAL)[..., None], front_TD, found)

    def before_encoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> Call:
        """The encoder's call with P tokens more."""
        call = _by_name(module, args, kwargs)
        ids_BT, mask_BT = call.get("input_ids"), call.get("attention_mask")
        if ids_BT is None:
            raise UnsupportedModel(
                f"{type(module).__name__} was called without input_ids, and virtual tokens are put "
                "in front of these; call the model with token ids"
            )
        call["input_ids"] = self._after(ids_BT, VIRTUAL)
        if mask_BT is not None:
            call["attention_mask"] = self._after(_two_dimensional(mask_BT), 1)
        if call.get("token_type_ids") is not None:
            call["token_type_ids"] = self._after(call["token_type_ids"], 0)
        if call.get("position_ids") is not None:
            call["position_ids"] = self._placed(call["position_ids"])
        return (), call

    def after_encoder(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The encoder's output, its last hidden states without those of virtual tokens."""
        states_BTD = output[0][:, len(self.embeddings_PD) :]
        if isinstance(output, tuple):
            return (states_BTD, *output[1:])
        output[next(iter(output.keys()))] = states_BTD
        return output

    def before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> Call:
        """The decoder's call, its mask over the encoder's output as long as that."""
        call = _by_name(module, args, kwargs)
        states, mask_BT = call.get("encoder_hidden_states"), call.get("encoder_attention_mask")
        if states is None or mask_BT is None:  # without a mask all of it is attended to
            return (), call
        longer_BT = self._after(_two_dimensional(mask_BT), 1)
        if longer_BT.shape[1] != states.shape[1]:
            raise BypassError(
                f"the encoder's output has {states.shape[1]} tokens, and its mask {mask_BT.shape[1]}; "
                f"expected {len(self.embeddings_PD)} virtual tokens more than the mask. Give input_ids, "
                "not encoder_outputs that were made without the virtual tokens"
            )
        return (), {**call, "encoder_attention_mask": longer_BT}

    def _after(self, tensor_BT: Tensor, value: int) -> Tensor:
        """A tensor of tokens behind P columns of a value."""
        return nn.functional.pad(tensor_BT, (len(self.embeddings_PD), 0), value=value)

    def _placed(self, positions_BT: Tensor) -> Tensor:
        """Positions that begin with P more where a text's first token was, the text behind them."""
        length = len(self.embeddings_PD)
        places_P = torch.arange(length, device=positions_BT.device)
        first_B1 = positions_BT.amin(dim=-1, keepdim=True)
        return torch.cat([first_B1 + places_P, positions_BT + length], dim=-1)


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(parameters_of(type(module)), args, strict=False)), **kwargs}


def _two_dimensional(mask: Any) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise UnsupportedModel(
            "virtual tokens need an attention mask (rows, tokens); found one that is made ready for "
            "the layers. Call the model with a mask of two dimensions, or without one"
        )
    return mask


_PROVEN: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models that text in front was shown to be exact on."""


def prove(backbone: Backbone) -> None:
    """Show once for each model that embeddings of a text in front are that text.

    A text is run whole, and with the embeddings of its first tokens in front of the rest: what the
    model makes of the rest must be the same.

    Raises:
        UnsupportedModel: It is not.
    """
    model = backbone.model
    if model in _PROVEN:
        return
    name = backbone.name or backbone.family
    try:
        with backbone.attached(None), evaluating(model), torch.no_grad():
            moved = _moved(backbone)
    except Exception as error:  # whatever a modelling file does with tokens that it does not know
        raise UnsupportedModel(
            f"no virtual tokens can be put in front of what {name!r} ({backbone.family}) reads: "
            f"{first_line(error)}. Choose another method, such as a prefix"
        ) from error
    if not moved <= (EXACT if backbone.dtype == torch.float32 else ROUNDED):
        raise UnsupportedModel(
            f"embeddings in front of what {name!r} ({backbone.family}) reads move its output by "
            f"{moved:.1e} of the largest from what it makes of the same tokens as text, so virtual "
            "tokens are no text to it. Choose another method, such as a prefix"
        )
    _PROVEN.add(model)


def _moved(backbone: Backbone) -> float:
    """How far a text's output is moved, of its largest number, when its first tokens are embeddings."""
    ids_BT = _words(backbone)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, -PADDED:] = 0
    whole = _output(backbone, ids_BT, mask_BT, ids_BT)
    embeddings_PD = table_of(backbone)(ids_BT[0, :LENGTH])
    with in_front(backbone, embeddings_PD):
        rest = _output(backbone, ids_BT[:, LENGTH:], mask_BT[:, LENGTH:], ids_BT)
    if backbone.kind == "encoder":
        seen = mask_BT[:, LENGTH:].bool()
        whole, rest = whole[:, LENGTH:][seen], rest[seen]
    return float((rest - whole).abs().max()) / max(1.0, float(whole.abs().max()))


def _words(backbone: Backbone) -> Tensor:
    """Tokens (2, `TOKENS`) of two texts that begin alike; no padding, which may have no position.

    It is one of the first four with most models, whatever the config says (MPNet).
    """
    padding = getattr(backbone.model.config, "pad_token_id", None)
    ids_BT = torch.arange(2 * TOKENS, device=backbone.device).view(2, TOKENS) * 7919
    ids_BT = 4 + ids_BT % (backbone.vocabulary - 5)
    ids_BT[1, :LENGTH] = ids_BT[0, :LENGTH]
    return ids_BT if padding is None else ids_BT + (ids_BT >= max(padding, 4))


def _output(backbone: Backbone, ids_BT: Tensor, mask_BT: Tensor, decoded_BT: Tensor) -> Tensor:
    """What a head or an output layer would be given of a text, or gives, float32."""
    model, inputs = backbone.model, {"input_ids": ids_BT, "attention_mask": mask_BT}
    if backbone.kind == "encoder":
        return KINDS[backbone.kind].hidden(model, inputs).float()
    output: Tensor = model(**inputs, decoder_input_ids=decoded_BT, use_cache=False)[0]
    return output.float()
