"""On a GPU: what the CPU gives. Nothing here runs where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import foreword
from foreword.attention.merge import cascade_attention
from foreword.engine import Engine, Limits, Request, Sampling, Weighted
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.lone import alone, generated
from tests.engine.mixed import below_best

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CLOSE = 1e-4
TEXT = tuple(range(40, 75))


def backbone(device: str = "cuda", attention: str = "sdpa") -> foreword.Backbone:
    model = tiny_model(attn_implementation=attention).to(device)
    return foreword.Backbone(model, byte_tokenizer(), name="tiny")


def logits(of: foreword.Backbone, prefix: foreword.Prefix | None, *rows: tuple[int, ...]) -> Tensor:
    ids = torch.tensor(rows, device=of.device)
    with of.attached(prefix), torch.no_grad():
        found: Tensor = of.model(input_ids=ids, use_cache=False).logits
    return found.cpu()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_captured_prefix_is_its_text(attention: str) -> None:
    gpu = backbone(attention=attention)
    whole = logits(gpu, None, TEXT)[:, 20:]
    prefix = gpu.capture(TEXT[:20])
    found = logits(gpu, prefix, TEXT[20:])
    torch.testing.assert_close(found, whole, rtol=0, atol=CLOSE)
    assert float((logits(gpu, None, TEXT[20:]) - whole).abs().max()) > 100 * CLOSE
    cpu = logits(backbone("cpu", attention), prefix, TEXT[20:])
    torch.testing.assert_close(found, cpu, rtol=0, atol=10 * CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_prefix_for_many_rows_is_what_it_is_for_each(dtype: torch.dtype) -> None:
    gpu = backbone()
    gpu.model.to(dtype)
    prefix = gpu.capture(tuple(range(30, 180)))
    rows = [tuple(range(first, first + 9)) for first in range(50, 66)]
    together = logits(gpu, prefix, *rows).float()
    alone_ = torch.cat([logits(gpu, prefix, row) for row in rows]).float()
    allowed = CLOSE if dtype == torch.float32 else 2**-4 * float(alone_.abs().max())
    torch.testing.assert_close(together, alone_, rtol=0, atol=allowed)


def test_merged_attention_is_joined_attention() -> None:
    generator = torch.Generator("cuda").manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    query, key, value = made(6, 4, 3, 16), made(6, 2, 5, 16), made(6, 2, 5, 16)
    prefix_key, prefix_value = made(2, 2, 70, 16), made(2, 2, 70, 16)
    found = cascade_attention(query, key, value, None, prefix_key, prefix_value)
    joined_key, joined_value = (
        torch.cat([prefix.repeat_interleave(3, 0), own], dim=2).repeat_interleave(2, 1)
        for prefix, own in ((prefix_key, key), (prefix_value, value))
    )
    expected = torch.nn.functional.scaled_dot_product_attention(query, joined_key, joined_value)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("copied", [128, 0])
def test_every_request_of_a_mixed_batch_is_answered_as_alone(copied: int) -> None:
    gpu = backbone()
    prefixes = [None, gpu.capture(TEXT[:7]), gpu.capture(TEXT[7:30])]
    requests = [
        Request(
            tuple(range(60 + index, 65 + 3 * index)),
            Sampling(max_tokens=6 + index, temperature=0, ignore_eos=True),
            () if (prefix := prefixes[index % 3]) is None else (Weighted(prefix),),
        )
        for index in range(9)
    ]
    with Engine(gpu, Limits(rows=4, prompt_tokens=16, copied=copied)) as engine:
        assert engine.runner.is_flat
        answers = engine.generate(requests)
    for request, answer in zip(requests, answers, strict=True):
        if answer.tokens != generated(gpu, request):
            assert alone(gpu, request, answer.tokens) < CLOSE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_strength_is_what_it_is_on_the_cpu(attention: str) -> None:
    gpu, cpu = backbone(attention=attention), backbone("cpu", attention)
    prefix = gpu.capture(TEXT[:20])
    plain, whole = logits(gpu, None, TEXT[20:]), logits(gpu, prefix, TEXT[20:])
    assert torch.equal(logits(gpu, prefix.strength(0.0), TEXT[20:]), plain)
    assert torch.equal(logits(gpu, prefix.strength(1.0), TEXT[20:]), whole)
    for strength in (0.5, -0.3, 1.5):
        found = logits(gpu, prefix.strength(strength), TEXT[20:])
        expected = logits(cpu, prefix.strength(strength), TEXT[20:])
        torch.testing.assert_close(found, expected, rtol=0, atol=10 * CLOSE)
        assert min(float((found - end).abs().max()) for end in (plain, whole)) > 100 * CLOSE


@pytest.mark.parametrize("copied", [128, 0])
def test_mixtures_and_strengths_of_one_batch_are_those_of_the_formula(copied: int) -> None:
    gpu = backbone()
    one, two = gpu.capture(TEXT[:7]), gpu.capture(TEXT[7:30])
    kinds = [
        (Weighted(one, 1.3), Weighted(two, -0.6)),
        (Weighted(two, strength=0.4),),
        (Weighted(one, 0.8, strength=0.4), Weighted(two, -0.5, strength=1.5)),
        (),
    ]
    greedy = Sampling(max_tokens=8, temperature=0, ignore_eos=True)
    requests = [
        Request(tuple(range(60 + i, 65 + 3 * i)), greedy, kinds[i % len(kinds)]) for i in range(8)
    ]
    with Engine(gpu, Limits(rows=8, prompt_tokens=16, copied=copied)) as engine:
        answers = engine.generate(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert below_best(gpu, request, answer.tokens) < CLOSE


@pytest.mark.parametrize("optimizer", ["soap", "adamw"])
def test_training_ends_where_it_ends_on_the_cpu(
    optimizer: str, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    settings = foreword.TrainSettings(
        prompt="{mr} ->", target=" {ref}", length=4, steps=12, batch_size=4, optimizer=optimizer
    )
    runs = [foreword.train(backbone(device), rows, settings) for device in ("cuda", "cpu")]
    for of_gpu, of_cpu in zip(runs[0].prefix.keys, runs[1].prefix.keys, strict=True):
        torch.testing.assert_close(of_gpu.cpu(), of_cpu.cpu(), rtol=0, atol=1e-2)
    path = tmp_path / "p.safetensors"
    foreword.save_prefix(runs[0].prefix, path)
    assert foreword.load_prefix(path).digest == runs[0].prefix.digest
