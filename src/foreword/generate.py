"""Text from a backbone under a prefix: batches of prompts, transformers' `generate` beneath."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from foreword.arguments import expect
from foreword.attention.selected import Selection, bind_each
from foreword.backbone import Backbone
from foreword.backbone.decoding import neutral
from foreword.backbone.given import check_backbone
from foreword.backbone.output_layer import head_sees_last
from foreword.data import Task, left_padded
from foreword.data.collate import padding_of, right_padded
from foreword.data.each import of_each
from foreword.data.inputs import Inputs, inputs_of
from foreword.data.selecting import selections_of
from foreword.data.template import as_row
from foreword.data.written import Written, written_for
from foreword.errors import DataError
from foreword.mixing import check_branches, encoder_under, leading, processors
from foreword.mixture import Mixture, opened, plain_or_mixed
from foreword.options import GenerateOptions
from foreword.prefix import Prefix
from foreword.progress import Watch, unwatched
from foreword.prompts import PLAIN, refuse_head, task_of

Finish = Literal["stop", "length"]
"""Why a text ends: the model ended it, or it had all the tokens that it may have."""


@dataclass(frozen=True)
class Generated:
    """A generated text.

    Attributes:
        text: It, without special tokens and outer spaces.
        finish: Why it ends there.
    """

    text: str
    finish: Finish


def generate(
    backbone: Backbone,
    inputs: Inputs,
    prefix: Prefix | Mixture | None = None,
    options: GenerateOptions | None = None,
    *,
    task: Task | None = None,
    like: Prefix | None = None,
    strict: bool = False,
) -> list[list[str]]:
    """Generate texts for inputs.

    Args:
        backbone: The backbone, left as it was found.
        inputs: Texts or rows, one alone, or the `Path` of a file of them; see `as_row` for how a text
            meets the prompt template. Rows may come as in training.
        prefix: The prefix, a `Mixture` of several, or None for the frozen model alone. Of a prefix that
            was trained with attributes, each row selects the values that it has, and a text the shared
            part.
        options: How to generate; greedy by default.
        task: Templates; by default those that the prefix, or a mixture's leading one, was trained with.
        like: Without a prefix, one whose inputs the frozen model is given: its templates, and prompts
            cut where its are.
        strict: Refuse a backbone with other weights than the prefix was made on.

    Returns:
        Per input its texts, ``num_return_sequences`` of them, without special tokens and outer
        spaces.

    Raises:
        DataError: An input does not fit the template or the context.
        MismatchError: The prefix does not fit the backbone, or carries a head.

    Warns:
        UnseenValue: A row has a value of an attribute that the prefix was not trained for.

    Examples:
        >>> foreword.generate(backbone, ["name[Zizzi], food[Thai]"], prefix)  # doctest: +SKIP
        [['Zizzi serves Thai food.']]
    """
    return _texts(generated(backbone, inputs, prefix, options, task=task, like=like, strict=strict))


def generated(
    backbone: Backbone,
    inputs: Inputs,
    prefix: Prefix | Mixture | None = None,
    options: GenerateOptions | None = None,
    *,
    task: Task | None = None,
    like: Prefix | Mixture | None = None,
    strict: bool = False,
) -> list[list[Generated]]:
    """As `generate`, where each text says why it ends."""
    check_backbone(backbone)
    prefix = opened(prefix)
    if isinstance(prefix, Mixture):
        check_branches(backbone, prefix, strict=strict)
        like = like or prefix.parts[0][1]
    prefix = plain_or_mixed(prefix)
    lead = leading(prefix)
    shown = like.prefix or like.parts[0][1] if isinstance(like, Mixture) else like
    if lead is not None:
        refuse_head(lead)
    backbone.needs("decoder", "encoder-decoder", what="generating text")
    options = GenerateOptions() if options is None else options
    expect("options", options, GenerateOptions, "GenerateOptions", DataError)
    if task is None:
        whose = lead or shown
        task = PLAIN if whose is None else task_of(whose)
    expect("task", task, Task, "a Task of templates", DataError)
    encoder = encoder_under(backbone, prefix, task, like)
    rows = of_each(inputs_of(inputs), lambda one: as_row(one, task))
    prompts = of_each(rows, lambda row: encoder.prompt(row, options.max_new_tokens))
    if isinstance(prefix, Prefix):
        backbone.check(prefix, strict=strict)
    written = written_for(backbone, lead, task, shown)
    chosen = selections_of(prefix if isinstance(prefix, Prefix) else None, rows)
    return _generated_ids(backbone, prompts, prefix, options, written, chosen=chosen)


def _texts(made: Sequence[Sequence[Generated]]) -> list[list[str]]:
    return [[one.text for one in each] for each in made]


def generate_ids(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    prefix: Prefix | Mixture | None,
    options: GenerateOptions,
    written: Written | None = None,
    watch: Watch = unwatched,
    chosen: Sequence[Selection] | None = None,
) -> list[list[str]]:
    """Generate texts for prompts given as token ids; see `generate`.

    Args:
        backbone: The backbone.
        prompts: Token ids.
        prefix: The prefix, a mixture of several branches, or None.
        options: How to generate.
        written: How texts begin and end; by default as in the prefix's training.
        watch: Told how far it is after each batch.
        chosen: Under a prefix with control, what each prompt selects of it.
    """
    return _texts(_generated_ids(backbone, prompts, prefix, options, written, watch, chosen))


def _generated_ids(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    prefix: Prefix | Mixture | None,
    options: GenerateOptions,
    written: Written | None = None,
    watch: Watch = unwatched,
    chosen: Sequence[Selection] | None = None,
) -> list[list[Generated]]:
    """As `generate_ids`, where each text says why it ends."""
    tokenizer = backbone.tokenizer
    assert tokenizer is not None
    pad = padding_of(tokenizer, backbone.vocabulary)
    lead = leading(prefix)
    written = written or written_for(backbone, lead, PLAIN if lead is None else task_of(lead))
    arguments = {**neutral(backbone.model, pad), **options.arguments(), **_tokens(written)}
    made: list[list[Generated]] = [[] for _ in prompts]
    continues = backbone.kind == "decoder"  # an encoder-decoder's output begins anew
    pad_batch = left_padded if continues else right_padded
    done = 0
    watch(done, len(prompts))
    under = None if chosen is not None else lead
    with _drawing(options, backbone.device), backbone.inferring(under) as attachment:
        for batch in _batches(prompts, options.batch_size):
            own = [prompts[index] for index in batch]
            inputs = pad_batch(own, pad)
            if chosen is not None and isinstance(prefix, Prefix):
                selected = [chosen[index] for index in batch]
                attachment.bound = bind_each(prefix, backbone.sites, selected)
            moved = {name: tensor.to(backbone.device) for name, tensor in inputs.items()}
            given = inputs["input_ids"].shape[1] if continues else len(written.begin)
            if not continues:
                moved["decoder_input_ids"] = moved["input_ids"].new_tensor(
                    [written.begin] * len(batch)
                )
            if isinstance(prefix, Mixture):
                arguments |= processors(backbone, attachment, prefix, own, pad, given, options)
            with head_sees_last(backbone.model):
                out = backbone.model.generate(**moved, pad_token_id=pad, **arguments)
            for place, ids in enumerate(out[:, given:].tolist()):
                finish: Finish = "stop" if written.is_ended(ids) else "length"
                one = Generated(written.text(ids), finish)
                made[batch[place // options.num_return_sequences]].append(one)
            done += len(batch)
            watch(done, len(prompts))
    return made


_DRAWS = threading.Lock()
"""Held while tokens are drawn: transformers draws them with torch's generator, one for all threads."""


@contextmanager
def _drawing(options: GenerateOptions, device: torch.device) -> Iterator[None]:
    """Draw a block's tokens from the seed; threads that draw wait for each other."""
    if not options.do_sample:
        yield
        return
    with _DRAWS, torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        yield


def _tokens(written: Written) -> dict[str, Any]:
    """What texts begin and end with, as arguments of `generate`."""
    found: dict[str, Any] = {"eos_token_id": sorted(written.ends) or None}
    if written.begin:
        found["decoder_start_token_id"] = written.begin[0]
    if written.stop:
        found |= {"stop_strings": list(written.stop), "tokenizer": written.tokenizer}
    return found


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices in batches of prompts of similar length, so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for first in range(0, len(order), size):
        yield order[first : first + size]
