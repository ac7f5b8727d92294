"""Arguments of another type: each is refused by its name, by the error of its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import foreword
from foreword.arguments import check_text, path_of, shown
from foreword.errors import (
    BackboneError,
    DataError,
    ForewordError,
    FormatError,
    PrefixError,
    StoreError,
    TrainingError,
    UnsupportedModel,
)

SITE = foreword.Site("attn", "decoder", 0, kv_heads=1, key_dim=2, value_dim=2)
ONES = torch.ones(1, 3, 2)
ROWS = [{"mr": "a", "ref": "b"}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"max_new_tokens": float("nan")},
            r"max_new_tokens must be a whole number; found nan \(float",
        ),
        ({"max_new_tokens": "3"}, r"max_new_tokens must be a whole number; found '3' \(str\)"),
        ({"max_new_tokens": None}, "max_new_tokens must be a whole number; found None"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"num_beams": True}, "num_beams must be a whole number; found True"),
        ({"do_sample": "no"}, "do_sample must be True or False; found 'no'"),
        ({"temperature": [1]}, "temperature must be a number"),
        ({"repetition_penalty": 10**400}, "repetition_penalty is too large a number"),
        ({"seed": 2**70}, "seed must be at most"),
        ({"top_k": 2**40}, "top_k must be at most 2147483647"),
    ],
)
def test_options_of_generation(fields: dict[str, Any], message: str) -> None:
    """`max_new_tokens=nan` was taken, and `do_sample="no"` drew at random."""
    with pytest.raises(DataError, match=message):
        foreword.GenerateOptions(**fields)


@pytest.mark.parametrize("fields", [{"temperature": 0.7}, {"top_k": 0}, {"top_p": 0.9}])
def test_options_of_drawing_need_drawing(fields: dict[str, Any]) -> None:
    """They were accepted and did nothing, so the likeliest text came whatever one asked."""
    (name,) = fields
    said = rf"^{name} is for drawing at random, and nothing is drawn .*set do_sample as well"
    with pytest.raises(DataError, match=said):
        foreword.GenerateOptions(**fields)
    with pytest.raises(DataError, match=said):
        foreword.GenerateOptions(**fields, num_beams=3)
    drawn = foreword.GenerateOptions(**fields, do_sample=True)
    assert drawn.arguments()[name] == fields[name]
    assert foreword.GenerateOptions(temperature=1, top_k=50, top_p=1).arguments()["top_k"] is None


def test_whole_numbers_are_taken_where_fractions_are(tiny: foreword.Backbone) -> None:
    """Transformers raised ValueError for a `repetition_penalty` or `temperature` of 2."""
    whole = foreword.GenerateOptions(
        max_new_tokens=3, repetition_penalty=2, temperature=2, do_sample=True
    )
    same = dataclasses.replace(whole, repetition_penalty=2.0, temperature=2.0)
    inputs = ["name[Zizzi]"]
    found = foreword.generate(tiny, inputs, None, whole)
    assert found == foreword.generate(tiny, inputs, None, same)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": "16"}, "length must be a whole number; found '16'"),
        ({"length": float("nan")}, "length must be a whole number; found nan"),
        ({"length": 2**70}, "length must be at most 2147483647"),
        ({"steps": 3.5}, "steps must be a whole number"),
        ({"lr": "high"}, "lr must be a number; found 'high'"),
        ({"layers": 3}, "layers must be text; found 3"),
        ({"prompt": 5}, "prompt must be text"),
        ({"init": None}, "init must be text"),
        ({"init_text": "half \ud800"}, r"init_text has a lone surrogate, '\\ud800' at character 5"),
        (
            {"parameterization": None},
            "parameterization must be one of direct, mlp, gated; found None",
        ),
        ({"gradient_checkpointing": "yes"}, "gradient_checkpointing must be True or False"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, "seed must be at most 4294967295"),
    ],
)
def test_settings_of_training(fields: dict[str, Any], message: str) -> None:
    """Text that no file can hold was found out when the prefix was to be saved."""
    with pytest.raises(TrainingError, match=message):
        foreword.TrainSettings(**{"prompt": "{mr}", "target": "{ref}", **fields})


def test_numbers_of_numpy_become_pythons_own() -> None:
    """They are no JSON, so that the recipe could not be written after training."""
    settings = foreword.TrainSettings(steps=np.int64(3), lr=np.float32(0.5), epochs=2)
    assert (type(settings.steps), type(settings.lr)) == (int, float)
    assert (settings.epochs, type(settings.epochs)) == (2, int), "what was JSON stays as it is"
    foreword.PrefixMeta(recipe=settings.as_json())


MISTAKES: dict[str, tuple[Callable[[], Any], type[ForewordError], str]] = {
    "site": (lambda: dataclasses.replace(SITE, name=None), PrefixError, "name must be text"),
    "site's sizes": (
        lambda: dataclasses.replace(SITE, kv_heads="1"),
        PrefixError,
        "kv_heads must be a whole number; found '1'",
    ),
    "no site": (
        lambda: foreword.Prefix(("attn",), (ONES,), (ONES,)),
        PrefixError,
        "a site must be a Site; found 'attn'",
    ),
    "one site twice": (
        lambda: foreword.Prefix((SITE, SITE), (ONES, ONES), (ONES, ONES)),
        PrefixError,
        "names a site twice: decoder.0",
    ),
    "array": (
        lambda: foreword.Prefix((SITE,), (ONES.numpy(),), (ONES,)),
        PrefixError,
        "a key or value must be a torch.Tensor",
    ),
    "sparse": (
        lambda: foreword.Prefix((SITE,), (ONES.to_sparse(),), (ONES,)),
        PrefixError,
        "must be a dense tensor; found one of torch.sparse_coo",
    ),
    "meta": (
        lambda: foreword.Prefix((SITE,), (ONES,), (ONES,), {}),
        PrefixError,
        "meta must be a PrefixMeta; found {}",
    ),
    "head": (
        lambda: foreword.Prefix((SITE,), (ONES,), (ONES,), head="x"),
        PrefixError,
        "head must be a Head; found 'x'",
    ),
    "head's weight": (
        lambda: foreword.Head("classify", ("a", "b"), "mean", [[1]], torch.ones(2)),
        PrefixError,
        "weight must be a Tensor",
    ),
    "recipe": (lambda: foreword.PrefixMeta(recipe=[1]), PrefixError, "recipe must be a mapping"),
    "backbone's name": (
        lambda: foreword.PrefixMeta(backbone=5),
        PrefixError,
        "backbone must be text",
    ),
    "parents": (
        lambda: foreword.PrefixMeta(parents="abc"),
        PrefixError,
        "parents must be a tuple; found 'abc'",
    ),
    "load": (lambda: foreword.load_prefix(None), FormatError, "path must be a path; found None"),
    "bytes": (lambda: foreword.load_prefix(b"x"), FormatError, "path must be a path"),
    "store": (lambda: foreword.PrefixStore(5), StoreError, "folder must be a path; found 5"),
    "rows": (lambda: foreword.read_rows(5), DataError, "found an int, expected rows"),
    "long source": (lambda: foreword.read_rows("x" * 9999), DataError, "x"),
    "pull": (lambda: foreword.pull(5), ForewordError, "5 is not a repository on the Hub"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_values_and_files(mistake: str) -> None:
    call, kind, message = MISTAKES[mistake]
    with pytest.raises(kind, match=message):
        call()


def test_what_is_saved_is_a_prefix_with_contents(tiny: foreword.Backbone, tmp_path: Any) -> None:
    prefix = tiny.capture("a text")
    empty = dataclasses.replace(prefix, keys=tuple(key.to("meta") for key in prefix.keys))
    for given, message in ((None, "prefix must be a Prefix"), (empty, "no contents")):
        with pytest.raises(PrefixError, match=message):
            foreword.save_prefix(given, tmp_path / "a.safetensors")
    with pytest.raises(StoreError, match="path must be a path; found 5"):
        foreword.save_prefix(prefix, 5)
    assert list(tmp_path.iterdir()) == []


def test_changes_of_a_prefix(tiny: foreword.Backbone) -> None:
    prefix = tiny.capture("a text")
    with pytest.raises(PrefixError, match="meta has no field 'nope'; it has backbone, bos"):
        prefix.with_meta(nope=1)
    with pytest.raises(PrefixError, match="labels must be several labels"):
        prefix.only(5)
    with pytest.raises(PrefixError, match="dtype must be a torch.dtype"):
        prefix.to("float16")


BACKBONES: dict[str, tuple[Callable[[Any, foreword.Backbone], Any], str]] = {
    "generate": (lambda given, _: foreword.generate(given, ["a"]), "backbone must be a Backbone"),
    "features": (lambda given, _: foreword.features(given, ["a"]), "backbone must be a Backbone"),
    "train": (
        lambda given, _: foreword.train(given, ROWS, foreword.TrainSettings()),
        "backbone must be a Backbone",
    ),
    "attach": (
        lambda given, tiny: foreword.attach(given, tiny.capture("a")),
        "expected a transformers model",
    ),
    "trainable": (
        lambda given, tiny: foreword.attach_trainable(given, tiny.capture("a")),
        "expected a transformers model",
    ),
    "detach": (lambda given, _: foreword.detach(given), "expected a transformers model"),
    "Backbone": (
        lambda given, _: foreword.Backbone(given),
        "expected a transformers model",
    ),
}


@pytest.mark.parametrize("call", BACKBONES)
@pytest.mark.parametrize("given", [None, "smollm2", torch.nn.Linear(2, 2)], ids=str)
def test_backbones_and_models(call: str, given: Any, tiny: foreword.Backbone) -> None:
    run, message = BACKBONES[call]
    with pytest.raises((BackboneError, UnsupportedModel), match=message):
        run(given, tiny)


def test_a_bare_model_is_told_how_to_become_a_backbone(tiny: foreword.Backbone) -> None:
    with pytest.raises(BackboneError, match="found LlamaForCausalLM; wrap the model: .*Backbone"):
        foreword.generate(tiny.model, ["a"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "inputs are texts or rows; found NoneType"),
        (["a", None], "input 2: expected text or a row, found NoneType"),
        ([b"a"], "input 1: expected text or a row, found bytes"),
        (["a", "half \ud800"], r"input 2: its text has a lone surrogate, '\\ud800' at character 5"),
    ],
)
def test_inputs(given: Any, message: str, tiny: foreword.Backbone) -> None:
    with pytest.raises(DataError, match=message):
        foreword.generate(tiny, given)


def test_prefixes_options_and_tasks_of_generation(tiny: foreword.Backbone) -> None:
    with pytest.raises(PrefixError, match="prefix must be a Prefix, as foreword.load_prefix"):
        foreword.generate(tiny, ["a"], "faq")
    with pytest.raises(DataError, match="options must be GenerateOptions; found {'max_new"):
        foreword.generate(tiny, ["a"], options={"max_new_tokens": 3})
    with pytest.raises(DataError, match="task must be a Task of templates; found '{a}'"):
        foreword.generate(tiny, ["a"], task="{a}")
    with pytest.raises(PrefixError, match="the prefix of row 2 must be a Prefix"):
        foreword.attach(tiny.model, [None, "faq"])


@pytest.mark.parametrize("text", [[-1], [258], [1.5], ["a"], [10**30], 5, "half \ud800"])
def test_tokens_that_a_backbone_does_not_know(text: Any, tiny: foreword.Backbone) -> None:
    """They raised IndexError in the middle of a forward pass."""
    with pytest.raises(PrefixError, match="token|text"):
        tiny.capture(text)


def test_a_prefix_that_leaves_no_room_is_refused_before_it_is_made(tiny: foreword.Backbone) -> None:
    """A length of a thousand million took all memory first."""
    settings = foreword.TrainSettings(prompt="{mr}", target="{ref}", length=10**9)
    with pytest.raises(DataError, match="a prefix of 1000000000 leaves"):
        foreword.train(tiny, ROWS, settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": {"length": 2}}, "settings must be TrainSettings"),
        ({"folder": 5}, "folder must be a path"),
        ({"store": "prefixes"}, "store must be a PrefixStore"),
        ({"callbacks": [5]}, "a callback must be a TrainerCallback"),
    ],
)
def test_arguments_of_training(
    arguments: dict[str, Any], message: str, tiny: foreword.Backbone
) -> None:
    settings = foreword.TrainSettings(prompt="{mr}", target="{ref}", length=2, steps=1)
    with pytest.raises(TrainingError, match=message):
        foreword.train(tiny, ROWS, **{"settings": settings, **arguments})


def test_empty_evaluation_data_is_not_no_evaluation(tiny: foreword.Backbone) -> None:
    """An empty list meant that no best prefix was chosen, in silence."""
    settings = foreword.TrainSettings(prompt="{mr}", target="{ref}", length=2, steps=1)
    with pytest.raises(DataError, match="no rows"):
        foreword.train(tiny, ROWS, settings, evaluation=[])


def test_values_are_shown_in_a_few_words_whatever_they_are() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    class Half:
        def __repr__(self) -> str:
            return "\ud800"

    assert shown(Broken()).endswith("(Broken)")
    assert shown(Half()) == "\\ud800 (Half)"
    assert len(shown("x" * 10_000)) < 100


def test_text_and_paths() -> None:
    check_text("a name", "日本 🍣", DataError)
    with pytest.raises(DataError, match="read the text as UTF-8"):
        check_text("a name", "\udcff", DataError)
    with pytest.raises(StoreError, match="folder must be a path"):
        path_of("folder", b"x", StoreError)
