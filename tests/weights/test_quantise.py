"""8-bit backbones, against the same model with its weights replaced by what the 8 bits stand for."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foreword
from foreword.attention.bound import bind
from foreword.backbone import OtherWeights, describe_dtype
from foreword.errors import BackboneError
from foreword.weights.fingerprint import weights_fingerprint
from foreword.weights.int8_linear import FEW, Int8Linear
from foreword.weights.stored import is_quantised, resident_bytes
from tests.conftest import byte_tokenizer, tiny_model

TEXT = "name[Zizzi], food[Thai]"
IDS = torch.tensor([[40, 41, 42, 43, 44, 45, 46, 47]])


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A tiny model's folder, with and without a shared output layer."""
    return written(tmp_path / "model", tie_word_embeddings=request.param)


@pytest.fixture
def int8(tmp_path: Path) -> foreword.Backbone:
    return loaded(written(tmp_path / "model"))


def written(place: Path, **changes: object) -> str:
    tiny_model(**changes).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return str(place)


def loaded(folder: str, **options: Any) -> foreword.Backbone:
    return foreword.load(folder, **{"dtype": "float32", "quantize": "int8", **options})


def twin(backbone: foreword.Backbone) -> foreword.Backbone:
    """The same backbone with plain weights of the values that the 8 bits stand for, by hand."""
    model = copy.deepcopy(backbone.model)
    for module in model.modules():
        if isinstance(module, Int8Linear):
            numbers, scale = module.weight.qdata, module.weight.scale
            module.__class__ = nn.Linear
            wide = numbers.to(torch.float32) * scale.to(torch.float32)
            module.weight = nn.Parameter(wide.to(backbone.dtype), requires_grad=False)
    assert not any(is_quantised(p) for p in model.parameters())
    del model.hf_quantizer
    model.config.quantization_config = None
    return foreword.Backbone(model, backbone.tokenizer, name="twin")


def gradients(backbone: foreword.Backbone, prefix: foreword.Prefix) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the gradient of each site's keys and values, of one pass with the prefix."""
    keys, values = (
        tuple(tensor.detach().float().clone().requires_grad_() for tensor in tensors)
        for tensors in (prefix.keys, prefix.values)
    )
    trained = foreword.Prefix(prefix.sites, keys, values, prefix.meta)
    with backbone.attached(None) as attachment:
        with attachment.using(bind(trained, backbone.sites, live=True)):
            logits = backbone.model(IDS).logits
        torch.nn.functional.cross_entropy(logits[0, :-1].float(), IDS[0, 1:]).backward()
    return logits.detach(), [tensor.grad for tensor in (*keys, *values) if tensor.grad is not None]


def apart(one: Tensor, two: Tensor) -> float:
    """Largest difference, relative to the largest number."""
    return float((one - two).abs().max() / two.abs().max())


# -- what is rounded -------------------------------------------------------------------------------


def test_linear_layers_are_rounded_and_embeddings_are_not(folder: str) -> None:
    backbone, plain = loaded(folder), foreword.load(folder, dtype="float32")
    names = {n for n, m in backbone.model.named_modules() if is_quantised_module(m)}
    linear = {n for n, m in plain.model.named_modules() if isinstance(m, nn.Linear)}
    assert names == linear - {"lm_head"}
    assert len(names) == 3 * 7
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert (backbone.quantization, plain.quantization) == ("int8", None)
    for name in names:
        rounded, exact = (b.model.get_submodule(name).weight for b in (backbone, plain))
        step = exact.abs().amax(dim=1, keepdim=True) / 127
        wide = rounded.qdata.float() * rounded.scale
        assert float(((wide - exact).abs() / step).max()) <= 0.51, "within half a step of 8 bits"


def is_quantised_module(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and is_quantised(module.weight)


def test_the_weights_in_memory_are_counted_as_they_are(folder: str) -> None:
    backbone = loaded(folder, dtype="bfloat16")
    plain = foreword.load(folder, dtype="bfloat16")
    linear = [m for m in backbone.model.modules() if is_quantised_module(m)]
    rounded = sum(m.weight.numel() for m in linear)
    # per row: a scale of four bytes, and torchao's zero point of one
    rows = sum(m.weight.shape[0] for m in linear)
    assert backbone.parameters == plain.parameters
    assert plain.weight_bytes == 2 * plain.parameters
    assert backbone.weight_bytes == 2 * (plain.parameters - rounded) + rounded + 5 * rows
    assert "quantised (int8)" in describe_dtype(backbone)
    assert "quantised" not in describe_dtype(plain)


def test_one_tensor_is_counted_once() -> None:
    one = torch.zeros(3, dtype=torch.bfloat16)
    assert resident_bytes([one, one]) == 6


# -- the same numbers as the weights that the 8 bits stand for -----------------------------------


def test_logits_and_gradients_are_those_of_the_weights_that_the_8_bits_stand_for(
    folder: str,
) -> None:
    backbone = loaded(folder)
    prefix = backbone.capture(TEXT)
    (found, ours), (wanted, theirs) = (gradients(b, prefix) for b in (backbone, twin(backbone)))
    assert apart(found, wanted) <= 1e-5
    assert len(ours) == len(theirs) == 2 * len(backbone.sites)
    for one, two in zip(ours, theirs, strict=True):
        assert apart(one, two) <= 1e-4
    first_key, first_value = ours[0], ours[len(backbone.sites)]
    assert float(first_key.abs().max()) > 0
    assert float(first_value.abs().max()) > 0
    unrounded, exact = gradients(foreword.load(folder, dtype="float32"), prefix)
    assert apart(found, unrounded) > 1e-3, "rounding must show, or the test shows nothing"
    assert apart(ours[0], exact[0]) > 1e-3


def test_bfloat16_differs_by_its_own_rounding_only(folder: str) -> None:
    backbone = loaded(folder, dtype="bfloat16")
    prefix = backbone.capture(TEXT)
    (found, ours), (wanted, theirs) = (gradients(b, prefix) for b in (backbone, twin(backbone)))
    assert apart(found.float(), wanted.float()) <= 0.05
    assert all(apart(one, two) <= 0.2 for one, two in zip(ours, theirs, strict=True))


def test_a_captured_text_gives_what_the_text_in_context_gives(int8: foreword.Backbone) -> None:
    ids = int8.tokens(TEXT)
    whole = torch.cat([torch.tensor([ids]), IDS], dim=1)
    with torch.no_grad():
        wanted = int8.model(whole).logits[:, len(ids) :]
        alone = int8.model(IDS).logits
        with int8.attached(int8.capture(TEXT)):
            found = int8.model(IDS).logits
    assert apart(found, wanted) <= 1e-5
    assert apart(alone, wanted) > 1e-2


def test_rows_with_prefixes_of_their_own_give_what_each_gives_alone(
    int8: foreword.Backbone,
) -> None:
    prefixes = [int8.capture(TEXT), None, int8.capture("food[fish]")]
    with torch.no_grad():
        with int8.attached(prefixes):
            found = int8.model(IDS.repeat(3, 1)).logits
        for row, prefix in enumerate(prefixes):
            with int8.attached(prefix):
                wanted = int8.model(IDS).logits
            assert apart(found[row : row + 1], wanted) <= 1e-5


def test_generation_is_the_twins(int8: foreword.Backbone) -> None:
    options = foreword.GenerateOptions(max_new_tokens=12)
    prefix = int8.capture(TEXT).with_meta(fingerprint="")  # the twin's weights are others
    task = foreword.Task("{mr} ->", " {ref}")
    inputs = [{"mr": "name[Cotto]"}, {"mr": "food[Greek], name[A]"}]
    found = foreword.generate(int8, inputs, prefix, options, task=task)
    assert found == foreword.generate(twin(int8), inputs, prefix, options, task=task)


def test_detach_leaves_the_model_as_it_was_found(int8: foreword.Backbone) -> None:
    before = int8.model(IDS).logits
    kinds = [type(module) for module in int8.model.modules()]
    foreword.attach(int8, int8.capture(TEXT))
    assert not torch.equal(int8.model(IDS).logits, before)
    foreword.detach(int8)
    assert torch.equal(int8.model(IDS).logits, before)
    assert [type(module) for module in int8.model.modules()] == kinds
    assert int8.model.config._attn_implementation == "sdpa"


# -- memory and time -------------------------------------------------------------------------------


def kept_for_backward(backbone: foreword.Backbone) -> set[tuple[int, ...]]:
    """Shapes of the tensors that a pass with gradients keeps."""
    shapes: set[tuple[int, ...]] = set()

    def seen(tensor: Tensor) -> Tensor:
        shapes.add(tuple(tensor.shape))
        return tensor

    embeds = torch.randn(1, 5, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        backbone.model(inputs_embeds=embeds)
    return shapes


def test_no_wide_matrix_is_kept_for_the_backward_pass(int8: foreword.Backbone) -> None:
    wide = {(48, 32), (32, 48)}
    assert not wide & kept_for_backward(int8)
    for module in int8.model.modules():
        if isinstance(module, Int8Linear):
            module.__class__ = nn.Linear
    assert wide & kept_for_backward(int8), "torchao's own way keeps them"


@pytest.mark.parametrize("bias", [False, True])
def test_few_rows_are_multiplied_by_the_8_bits_themselves(tmp_path: Path, bias: bool) -> None:
    sizes = {"intermediate_size": 64, "head_dim": 16, "attention_bias": bias}
    model = loaded(written(tmp_path / "model", **sizes), dtype="bfloat16").model
    linear = model.get_submodule("model.layers.0.self_attn.q_proj")
    if bias:
        torch.nn.init.normal_(linear.bias)
    numbers, scale = linear.weight.qdata.double(), linear.weight.scale.double()
    for shape in ((1, 1), (2, 4), (FEW + 1, 1), (3, 7)):
        input_XI = torch.randn(*shape, 32).to(torch.bfloat16)
        assert linear._few(input_XI) == (shape[0] * shape[1] <= FEW)
        with torch.no_grad():
            found = linear(input_XI)
        wanted = input_XI.double() @ (numbers * scale).T
        wanted = wanted + linear.bias.double() if bias else wanted
        assert found.dtype == torch.bfloat16
        assert apart(found.double(), wanted) <= 2**-7


def test_sizes_that_the_kernel_for_few_rows_would_leave_are_widened(
    int8: foreword.Backbone,
) -> None:
    """32 to 48 features: with sizes off its blocks the kernel read past the end and crashed."""
    linear = int8.model.get_submodule("model.layers.0.self_attn.q_proj")
    assert not linear._few(torch.zeros(1, 32, dtype=torch.bfloat16))


# -- which weights a prefix was made on --------------------------------------------------------


def test_rounding_keeps_the_fingerprint_so_prefixes_go_both_ways(folder: str) -> None:
    plain, int8 = foreword.load(folder), loaded(folder)
    wide = loaded(folder, dtype="bfloat16")
    assert plain.fingerprint == int8.fingerprint == wide.fingerprint
    there, back = plain.capture(TEXT), int8.capture(TEXT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for backbone, prefix in ((int8, there), (plain, back)):
            backbone.check(prefix, strict=True)
            foreword.detach(foreword.attach(backbone.model, prefix, strict=True))


def test_a_change_of_the_rounded_weights_shows(int8: foreword.Backbone) -> None:
    before = weights_fingerprint(int8.model)
    assert weights_fingerprint(copy.deepcopy(int8.model)) == before
    int8.model.get_submodule("model.layers.1.mlp.up_proj").weight.qdata.add_(1)
    assert weights_fingerprint(int8.model) != before


# -- folders ---------------------------------------------------------------------------------------


@pytest.fixture
def rounded_folder(int8: foreword.Backbone, tmp_path: Path) -> str:
    """A folder that holds 8-bit weights."""
    int8.model.save_pretrained(tmp_path / "rounded")
    byte_tokenizer().save_pretrained(tmp_path / "rounded")
    return str(tmp_path / "rounded")


def test_a_folder_of_8_bit_weights_is_loaded_as_it_is(
    rounded_folder: str, int8: foreword.Backbone
) -> None:
    again = foreword.load(rounded_folder, dtype="float32")
    assert torch.equal(again.model(IDS).logits, int8.model(IDS).logits)
    assert again.quantization == "int8"
    assert again.weight_bytes == int8.weight_bytes
    assert sum(isinstance(m, Int8Linear) for m in again.model.modules()) == 3 * 7
    assert again.fingerprint == foreword.load(rounded_folder, dtype="bfloat16").fingerprint
    assert again.fingerprint != int8.fingerprint, "what it was rounded from is not known"
    with pytest.warns(OtherWeights, match="or quantised"):
        again.check(int8.capture(TEXT))
    with pytest.raises(BackboneError, match=r"quantised already \(int8\); load it without"):
        loaded(rounded_folder)


def test_other_methods_are_named_and_not_touched(tmp_path: Path) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    kind = TorchAoConfig(Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    folder = written(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=kind)
    backbone = foreword.Backbone(model, byte_tokenizer())
    assert backbone.quantization == "torchao"
    foreword.weights.int8_linear.save_memory(model)
    assert not any(isinstance(m, Int8Linear) for m in model.modules())


# -- what is refused -------------------------------------------------------------------------------


def test_an_unknown_word_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(BackboneError, match="quantize='int3' is unknown; expected one of int8"):
        loaded("nobody/nothing", quantize="int3")


def test_without_torchao_the_extra_is_named(
    rounded_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import quantization_config

    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(BackboneError, match=r"pip install 'foreword\[quantize\]'"):
        loaded("nobody/nothing")
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setattr(quantization_config, "is_torchao_available", lambda: False)
    with pytest.raises(BackboneError, match=r"is quantised by torchao, .*foreword\[quantize\]"):
        foreword.load(rounded_folder)
