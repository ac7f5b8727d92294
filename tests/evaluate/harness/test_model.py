"""`PrefixLM`, compared with text in context and with lm-eval's own model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import foreword
from foreword.evaluate.harness.quiet import hushed
from foreword.progress import unseen
from tests.conftest import byte_tokenizer, tiny_model
from tests.evaluate.harness.written import MOST

TEXT = "Before all of it there was this text."
PAIRS = [
    ("Zizzi serves", " fish"),
    ("Zizzi serves", " f"),  # lm-eval answers requests of one token from another's pass
    ("Zizzi serves", " g"),
    ("Aromi is ", "far away from here"),
    ("A much longer context than the others, so that they are padded. It is", " a"),
    ("", "crème brûlée"),
]


def adding_bos() -> Any:
    """The byte tokenizer, which adds a BOS."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def gpt2() -> GPT2LMHeadModel:
    """A tiny model with a table of positions."""
    torch.manual_seed(1)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 258}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **ends)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model.requires_grad_(False)


BACKBONES = {
    "rotary": lambda: foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny"),
    "adds BOS": lambda: foreword.Backbone(tiny_model(), adding_bos(), name="tiny"),
    "table": lambda: foreword.Backbone(gpt2(), byte_tokenizer(), name="gpt2"),
}


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> foreword.Backbone:
    return BACKBONES[request.param]()


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, place) for place, one in enumerate(arguments)]


def answers(
    backbone: foreword.Backbone, prefix: foreword.Prefix | None, size: int = 4
) -> dict[str, Any]:
    """What the harness's model answers to requests of each kind."""
    with hushed():
        from foreword.evaluate.harness.model import PrefixLM

        bos = None if prefix is None else prefix.meta.bos
        with backbone.inferring(prefix):
            model = PrefixLM(backbone, bos, 200, size, unseen)
            return asked(model)


def asked(model: Any) -> dict[str, Any]:
    how = {"until": ["q"], "max_gen_toks": MOST, "do_sample": False}
    writing = [(context, how) for context, _ in PAIRS if context]
    return {
        "pairs": model.loglikelihood(requests("loglikelihood", PAIRS)),
        "pages": model.loglikelihood_rolling(
            requests("loglikelihood_rolling", [(text,) for _, text in PAIRS])
        ),
        "texts": model.generate_until(requests("generate_until", writing)),
    }


def in_context(backbone: foreword.Backbone, before: list[int]) -> dict[str, Any]:
    """The same of the plain model, which has token ids in front of each request."""
    tokenizer: Any = backbone.tokenizer

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def logprobs(tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(backbone.model(torch.tensor([tokens])).logits[0], dim=-1)

    def scored(context: str, text: str) -> tuple[float, bool]:
        given = [*before, *(ids(context) or [tokenizer.bos_token_id])]
        told = logprobs([*given, *ids(text)])[len(given) - 1 : -1]
        target = torch.tensor(ids(text))
        right = bool((told.argmax(1) == target).all())
        return float(told.gather(1, target[:, None]).sum()), right

    def continued(context: str) -> str:
        made: list[int] = []
        while len(made) < MOST and (not made or made[-1] != tokenizer.eos_token_id):
            made.append(int(logprobs([*before, *ids(context), *made])[-1].argmax()))
        return str(tokenizer.decode(made, skip_special_tokens=True)).split("q")[0]

    moved = (c.rstrip() for c, _ in PAIRS)  # lm-eval scores a context's last spaces with the text
    pairs = [(c, full[0][len(c) :] + full[1]) for c, full in zip(moved, PAIRS, strict=True)]
    return {
        "pairs": [scored(*pair) for pair in pairs],
        "pages": [scored("", text)[0] for _, text in PAIRS],
        "texts": [continued(context) for context, _ in PAIRS if context],
    }


def same(made: dict[str, Any], wanted: dict[str, Any]) -> None:
    for (value, right), expected in zip(made["pairs"], wanted["pairs"], strict=True):
        assert (value, right) == (pytest.approx(expected[0], abs=2e-4), expected[1])
    assert made["pages"] == pytest.approx(wanted["pages"], abs=2e-4)
    assert made["texts"] == wanted["texts"]


def test_a_captured_text_is_the_text_in_the_context(backbone: foreword.Backbone) -> None:
    prefix = backbone.capture(TEXT)
    assert prefix.meta.bos == ("prefix" if backbone.bos == "input" else "none")
    same(answers(backbone, prefix), in_context(backbone, backbone.tokens(TEXT)))


def test_text_gets_a_bos_where_the_prefix_has_none() -> None:
    backbone = BACKBONES["adds BOS"]()
    bare = backbone.capture(backbone.tokens(TEXT)[1:])
    assert bare.meta.bos == "input"
    with hushed(), backbone.inferring(bare):
        from foreword.evaluate.harness.model import PrefixLM

        model = PrefixLM(backbone, "input", 200, 2, unseen)
        assert model.tok_encode("Hi")[0] == backbone.tokenizer.bos_token_id
        assert model.tok_batch_encode(["Hi"])[0][0, 0] == backbone.tokenizer.bos_token_id
        (scored,) = model.loglikelihood(requests("loglikelihood", [("Hi", " you")]))
    tokens = [*backbone.tokens(TEXT)[1:], *backbone.tokens("Hi you")]
    told = torch.log_softmax(backbone.model(torch.tensor([tokens])).logits[0], dim=-1)[-5:-1]
    expected = float(told.gather(1, torch.tensor(tokens[-4:])[:, None]).sum())
    assert scored[0] == pytest.approx(expected, abs=2e-4)


def test_a_batch_is_each_row_alone(backbone: foreword.Backbone) -> None:
    prefix = backbone.capture(TEXT)
    same(answers(backbone, prefix, size=6), answers(backbone, prefix, size=1))


def test_without_a_prefix_it_is_what_lm_eval_measures(backbone: foreword.Backbone) -> None:
    made = answers(backbone, None)
    with hushed():
        from lm_eval.models.huggingface import HFLM

        tokenizer = copy.deepcopy(backbone.tokenizer)
        own = asked(HFLM(backbone.model, tokenizer=tokenizer, max_length=200, batch_size=4))
    assert made == own


@pytest.fixture
def t5() -> foreword.Backbone:
    torch.manual_seed(2)
    sizes = {"d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    ends = {"decoder_start_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    model = T5ForConditionalGeneration(T5Config(vocab_size=258, **sizes, **ends)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return foreword.Backbone(model.requires_grad_(False), byte_tokenizer(), name="t5")


def test_an_encoder_decoder_answers_alike_alone_and_in_batches(t5: foreword.Backbone) -> None:
    prefix = t5.capture(TEXT)
    alone, batch = answers(t5, prefix, size=1), answers(t5, prefix, size=6)
    same(batch, alone)
    assert all(len(t5.tokenizer(text)["input_ids"]) <= 3 * MOST for text in batch["texts"])
    frozen = answers(t5, None)
    assert alone["pairs"] != frozen["pairs"]
    ids, text = (torch.tensor([t5.tokenizer(one)["input_ids"]]) for one in PAIRS[0])
    with t5.inferring(prefix), torch.no_grad():
        loss = t5.model(input_ids=ids, labels=text).loss
    assert alone["pairs"][0][0] == pytest.approx(-float(loss) * text.shape[1], abs=2e-4)


def test_a_quantised_backbone_answers_as_it_scores(tiny_folder: Path) -> None:
    """lm-eval ties a model's weights once more when it is given one."""
    pytest.importorskip("torchao")
    backbone = foreword.load(str(tiny_folder), dtype="float32", quantize="int8")
    same(answers(backbone, backbone.capture(TEXT)), in_context(backbone, backbone.tokens(TEXT)))
    assert backbone.quantization == "int8"
