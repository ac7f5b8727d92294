"""A prefix and its head: learned, resumed, used, kept, and refused where they do not belong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification, ElectraConfig, ElectraModel

import foreword
from foreword.attention.bound import bind
from foreword.errors import DataError, MismatchError, PrefixError, TrainingError
from foreword.head import Head, pooled
from foreword.methods.heads import scale_of
from foreword.methods.prefix.build import parameterise
from foreword.methods.prefix.headed import HeadedParameterization, with_head
from foreword.methods.prefix.start import start
from foreword.objectives.encode import encode
from foreword.objectives.supervised import score
from foreword.objectives.task import for_task
from foreword.predict import features, predict
from foreword.tasks import LABELLINGS, Answered, Classified, Tagged
from tests.conftest import MEMORY, byte_tokenizer, tiny_model
from tests.tasks.models import ANSWER, CLASSIFY, ROWS, TAG, marking_tokenizer, tiny_encoder

TASKS = tuple(ROWS)
SETTINGS = foreword.TrainSettings(length=6, steps=12, batch_size=4, checkpoint_every=4)
Trained = Callable[[str], foreword.Prefix]


def changed(**fields: object) -> foreword.TrainSettings:
    return foreword.TrainSettings(**{**SETTINGS.as_json(), **fields})


def hidden(backbone: foreword.Backbone, ids: list[int], prefix: foreword.Prefix | None) -> Tensor:
    """Hidden states of one text, by transformers' own call."""
    with backbone.attached(prefix), torch.no_grad():
        model = backbone.model
        return model.base_model(torch.tensor([ids]))[0][0]  # type: ignore[no-any-return]


# -- what is learned ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_learned_and_the_backbone_left_alone(task: str, trained: Trained) -> None:
    prefix, backbone = trained(task), tiny_encoder()
    found = foreword.evaluate(backbone, prefix, ROWS[task])
    assert isinstance(found, foreword.LabelEvaluation)
    assert found.base is not None
    first = LABELLINGS[found.task].figures[0][1]
    assert found.task == task == prefix.meta.recipe["task"]
    assert found.prefix[first] > 90
    assert found.prefix["nll"] < 0.8 * found.base["nll"]
    assert "_foreword_attachment" not in backbone.model.__dict__


def test_a_decoder_learns_to_classify_from_its_last_token(tiny: foreword.Backbone) -> None:
    rows = [{"mr": row["mr"], "kind": row["mr"][-5:-1]} for row in MEMORY]
    settings = changed(task="classify", prompt="{mr}", target="{kind}", steps=80, lr=0.1)
    prefix = foreword.train(tiny, rows, settings).prefix
    assert prefix.head is not None
    assert prefix.head.pooling == "last"
    assert prefix.meta.recipe["pooling"] == "last"
    found = foreword.evaluate(tiny, prefix, rows, base=False)
    assert isinstance(found, foreword.LabelEvaluation)
    assert found.prefix["accuracy"] > 90
    assert found.base is None


@pytest.mark.parametrize("task", TASKS)
def test_keys_values_and_head_all_get_gradients(task: str, encoder: foreword.Backbone) -> None:
    rows = ROWS[task]
    settings = for_task(encoder, SETTINGS, rows)
    first = with_head(encoder, start(encoder, settings), settings, rows)
    assert first.head is not None
    weight = torch.randn(first.head.weight.shape, generator=torch.Generator().manual_seed(0))
    first = first.with_head(first.head.made_of(weight, first.head.bias))
    encoded = encode(encoder, rows, settings, first)[0]
    made = parameterise(encoder, first, settings, encoded)
    prefix = made.materialise()
    batch = foreword.data.Collator(1)(encoded)
    bound = bind(prefix, encoder.sites, live=True)
    with encoder.attached(None) as attachment, attachment.using(bound):
        scores = score(encoder.model, batch, head=prefix.head)
    scores.nll_N.sum().backward()
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0


def test_the_first_loss_is_that_of_a_head_of_zeros(encoder: foreword.Backbone) -> None:
    for rows, labels in ((CLASSIFY, 2), (TAG, 3)):
        result = foreword.train(encoder, rows, changed(steps=1, batch_size=12))
        assert result.history[0]["loss"] == pytest.approx(torch.tensor(labels).log().item(), 1e-5)


def test_the_scale_is_the_size_of_hidden_states(encoder: foreword.Backbone) -> None:
    settings = for_task(encoder, SETTINGS, CLASSIFY)
    first = with_head(encoder, start(encoder, settings), settings, CLASSIFY)
    encoded = encode(encoder, CLASSIFY[:2], settings, first)[0]
    rows = [hidden(encoder, row.input_ids, first) for row in encoded]
    size = torch.cat(rows).pow(2).mean().sqrt()
    assert scale_of(encoder, first, encoded) == pytest.approx(float(1 / (size * 32**0.5)), 1e-5)


@pytest.mark.parametrize("parameterization", ["mlp", "gated"])
def test_other_parameterisations_carry_a_head(
    parameterization: str, encoder: foreword.Backbone
) -> None:
    result = foreword.train(encoder, CLASSIFY, changed(parameterization=parameterization, lr=0.02))
    assert result.prefix.head is not None
    assert float(result.prefix.head.weight.abs().max()) > 0
    assert len(predict(encoder, ["a fine film"], result.prefix)) == 1


# -- what is chosen ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_task_and_templates_are_picked_from_the_data(task: Any, encoder: foreword.Backbone) -> None:
    found = for_task(encoder, SETTINGS, ROWS[task])
    default = LABELLINGS[task].templates
    assert found.task == task
    assert found.templates == (default or foreword.Task())
    assert found.pooling == ("mean" if task == "classify" else None)


def test_templates_say_which_columns(encoder: foreword.Backbone) -> None:
    tags = [{"words": row["tokens"], "ner": row["tags"]} for row in TAG]
    assert for_task(encoder, changed(prompt="{words}", target="{ner}"), tags).task == "tag"
    pairs = [{"a": "x", "b": "y", "c": 0}]
    assert for_task(encoder, changed(prompt="{a} {b}", target="{c}"), pairs).task == "classify"


def test_a_decoder_writes_unless_the_data_is_to_be_labelled(tiny: foreword.Backbone) -> None:
    assert for_task(tiny, changed(prompt="{mr}", target="{ref}"), MEMORY).task == "causal"
    assert for_task(tiny, SETTINGS, CLASSIFY).task == "classify"
    assert for_task(tiny, SETTINGS, [{"messages": []}]).task == "causal"


def test_a_conversation_is_written_whatever_other_columns_it_has(
    tiny: foreword.Backbone, encoder: foreword.Backbone
) -> None:
    """Sets of conversations often have a text and a label beside them, and were classified."""
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    for columns in (CLASSIFY[0], TAG[0], ANSWER[0]):
        rows = [{**columns, "messages": turns}]
        assert for_task(tiny, SETTINGS, rows).task == "causal"
    assert for_task(encoder, SETTINGS, [{**CLASSIFY[0], "messages": turns}]).task == "classify"
    assert for_task(tiny, SETTINGS, [{**CLASSIFY[0], "messages": None}]).task == "classify"
    assert for_task(tiny, changed(task="classify"), [{**CLASSIFY[0], "messages": turns}]).task == (
        "classify"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "causal"}, "task 'causal' needs a decoder"),
        ({"task": "seq2seq"}, "is an encoder, which learns classify, tag, answer"),
        ({"task": "tag", "pooling": "mean"}, "pooling is only used with task='classify'"),
        ({"init": "demonstrations"}, "needs a task that writes text"),
    ],
)
def test_what_a_task_cannot_use_is_refused(
    fields: dict[str, Any], message: str, encoder: foreword.Backbone
) -> None:
    with pytest.raises(TrainingError, match=message):
        foreword.train(encoder, CLASSIFY, changed(**fields))


def test_an_encoder_decoder_carries_no_head() -> None:
    from tests.kinds.families import BY_NAME

    backbone = foreword.Backbone(BY_NAME["t5"].build(), marking_tokenizer())
    with pytest.raises(TrainingError, match="is an encoder-decoder, which learns seq2seq"):
        foreword.train(backbone, CLASSIFY, changed(task="classify"))
    with pytest.raises(foreword.ForewordError, match="feature extraction needs a"):
        features(backbone, ["x"])
    with pytest.raises(foreword.ForewordError, match="carries no head"):
        _ = backbone.width


@pytest.mark.parametrize("label", ["x" * 257, "a\nb"])
def test_labels_that_no_file_can_hold_are_refused(label: str, encoder: foreword.Backbone) -> None:
    rows = [*CLASSIFY, {"text": "x", "label": label}]
    with pytest.raises(DataError, match="256 printable"):
        foreword.train(encoder, rows, SETTINGS)


# -- how it goes on ----------------------------------------------------------------------------------


def test_a_resumed_run_ends_with_the_undisturbed_head_bit_for_bit(
    encoder: foreword.Backbone, tmp_path: Path
) -> None:
    whole = foreword.train(encoder, TAG, SETTINGS, folder=tmp_path / "a").prefix
    shutil.rmtree(tmp_path / "a" / "checkpoint-12")
    resumed = foreword.train(encoder, TAG, SETTINGS, folder=tmp_path / "a", resume=True).prefix
    for one, other in zip(whole.tensors, resumed.tensors, strict=True):
        assert torch.equal(one, other)


def test_a_prefix_to_start_from_keeps_its_head_if_it_knows_the_labels(
    encoder: foreword.Backbone, tmp_path: Path, trained: Trained
) -> None:
    before = trained("classify")
    foreword.save_prefix(before, tmp_path / "p.safetensors")
    again = changed(init=str(tmp_path / "p.safetensors"), length=None, steps=1)
    half = [row for row in CLASSIFY if row["label"] == "good"]
    settings = for_task(encoder, again, half)
    assert before.head is not None
    with pytest.raises(DataError, match="all rows have the label"):
        with_head(encoder, start(encoder, settings), settings, half)
    kept = with_head(encoder, start(encoder, settings), settings, CLASSIFY).head
    assert kept is not None
    assert torch.equal(kept.weight, before.head.weight)
    more = [*CLASSIFY, {"text": "so so", "label": "medium"}]
    fresh = with_head(encoder, start(encoder, settings), settings, more).head
    assert fresh is not None
    assert fresh.labels == ("bad", "good", "medium")
    assert not fresh.weight.any()


def test_a_prefix_with_a_head_goes_on_to_write_without_it(
    tiny: foreword.Backbone, tmp_path: Path
) -> None:
    labelled = foreword.train(tiny, CLASSIFY, changed(steps=2)).prefix
    foreword.save_prefix(labelled, tmp_path / "p.safetensors")
    settings = changed(prompt="{mr} ->", target=" {ref}", init=str(tmp_path / "p.safetensors"))
    assert foreword.train(tiny, MEMORY, settings).prefix.head is None


def test_the_best_head_of_the_evaluations_is_kept(
    encoder: foreword.Backbone, tmp_path: Path
) -> None:
    result = foreword.train(
        encoder, CLASSIFY, changed(lr=0.2), evaluation=CLASSIFY, folder=tmp_path / "run"
    )
    found = foreword.evaluate(encoder, result.prefix, CLASSIFY, base=False)
    assert isinstance(found, foreword.LabelEvaluation)
    best = min(entry["eval_loss"] for entry in result.history if "eval_loss" in entry)
    assert found.prefix["nll"] == pytest.approx(best, rel=1e-4)


def test_anothers_trainer_leaves_the_head_as_it_was(
    encoder: foreword.Backbone, trained: Trained
) -> None:
    prefix = trained("tag")
    held = foreword.attach_trainable(encoder, prefix).prefix()
    foreword.detach(encoder)
    assert prefix.head is not None
    assert held.head is not None
    assert torch.equal(held.head.weight, prefix.head.weight)


# -- how it is used ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_prediction_is_what_the_layer_says_of_the_hidden_states(
    task: Any, trained: Trained
) -> None:
    """By transformers' own forward pass, one row at a time."""
    prefix, backbone = trained(task), tiny_encoder()
    head, labelling = prefix.head, LABELLINGS[task]
    assert head is not None
    templates = labelling.templates or foreword.Task()
    reader = foreword.tasks.reader_for(backbone, "none", 100)
    for row, found in zip(ROWS[task], predict(backbone, ROWS[task], prefix), strict=True):
        readings = labelling.read(reader, templates, row)
        states = hidden(backbone, readings[0].ids, prefix)
        if task == "classify":
            states = states.mean(dim=0)
        logits = torch.nn.functional.linear(states, head.weight, head.bias)
        expected = labelling.predicted(templates, head.labels, row, readings, [logits])
        if isinstance(expected, Classified):
            assert isinstance(found, Classified)
            assert found.label == expected.label
            assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        elif isinstance(expected, Answered):
            assert isinstance(found, Answered)
            assert (found.text, found.start) == (expected.text, expected.start)
        else:
            assert found == expected


@pytest.mark.parametrize("task", TASKS)
def test_rows_together_are_rows_alone_and_a_file_gives_them_back(
    task: str, trained: Trained, tmp_path: Path
) -> None:
    prefix, backbone = trained(task), tiny_encoder()
    foreword.save_prefix(prefix, tmp_path / "p.safetensors")
    loaded = foreword.load_prefix(tmp_path / "p.safetensors")
    together = predict(backbone, ROWS[task], loaded)
    for row, one in zip(ROWS[task], together, strict=True):
        alone = predict(backbone, [row], prefix)[0]
        if isinstance(alone, Classified) and isinstance(one, Classified):
            assert one.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        elif isinstance(alone, Answered) and isinstance(one, Answered):
            assert (one.text, one.start) == (alone.text, alone.start)
        else:
            assert one == alone


def test_inputs_may_be_texts(trained: Trained) -> None:
    backbone = tiny_encoder()
    text, row = (
        predict(backbone, [one], trained("classify"))
        for one in ("fine film", {"text": "fine film"})
    )
    assert text == row
    tagged = predict(backbone, ["Ada sits in Rome ."], trained("tag"))[0]
    assert tagged == Tagged(TAG[0]["tokens"], TAG[0]["tags"])
    asked = json.dumps({name: ANSWER[0][name] for name in ("question", "context")})
    answered = predict(backbone, [asked], trained("answer"))[0]
    assert isinstance(answered, Answered)
    assert answered.text == "Ada"
    with pytest.raises(DataError, match="an input is a JSON object"):
        predict(backbone, ["Who?"], trained("answer"))
    with pytest.raises(DataError, match="input 2: its words are"):
        predict(backbone, ["a", {"tokens": "b"}], trained("tag"))


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_features_are_pooled_hidden_states(
    pooling: Any, encoder: foreword.Backbone, trained: Trained
) -> None:
    texts = ["a fine film", "dull"]
    for prefix in (None, trained("classify")):
        found = features(encoder, texts, prefix, pooling=pooling)
        assert found.shape == (2, 32)
        for text, vector in zip(texts, found, strict=True):
            states = hidden(encoder, encoder.tokens(text), prefix)
            expected = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]
            torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


def test_pooling_sees_real_tokens_only() -> None:
    states = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    torch.testing.assert_close(pooled(states, mask, "mean")[0], states[0, :2].mean(0))
    assert torch.equal(pooled(states, mask, "first"), states[[0, 1], [0, 1]])
    assert torch.equal(pooled(states, mask, "last"), states[[0, 1], [1, 3]])


def test_a_model_with_a_head_of_its_own_serves_a_prefixs_head(trained: Trained) -> None:
    inner = tiny_encoder().model
    model = BertForSequenceClassification(inner.config).eval().requires_grad_(False)
    missing = model.bert.load_state_dict(inner.state_dict(), strict=False)
    assert not missing.unexpected_keys
    whole = foreword.Backbone(model, marking_tokenizer(), name="tiny-bert")
    prefix = trained("classify").with_meta(fingerprint="")
    sites = tuple(
        foreword.Site(**{**site.__dict__, "name": own.name})
        for site, own in zip(prefix.sites, whole.sites, strict=True)
    )
    moved = foreword.Prefix(sites, prefix.keys, prefix.values, prefix.meta, prefix.head)
    texts = [row["text"] for row in CLASSIFY]
    for one, other in zip(
        predict(whole, texts, moved), predict(tiny_encoder(), texts, prefix), strict=True
    ):
        assert isinstance(one, Classified)
        assert isinstance(other, Classified)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_the_width_is_that_of_hidden_states_not_of_embeddings() -> None:
    config = ElectraConfig(
        vocab_size=258,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    assert foreword.Backbone(ElectraModel(config)).width == 32


# -- where it does not belong ------------------------------------------------------------------------


def test_a_head_of_another_width_does_not_fit(encoder: foreword.Backbone, trained: Trained) -> None:
    wide = Head("classify", ("a", "b"), "mean", torch.zeros(2, 33), torch.zeros(2))
    with pytest.raises(MismatchError, match="hidden states of 33; those of 'tiny-bert' have 32"):
        predict(encoder, ["x"], trained("classify").with_head(wide))


def test_a_prefix_with_a_head_writes_nothing(tiny: foreword.Backbone, tmp_path: Path) -> None:
    prefix = foreword.train(tiny, CLASSIFY, changed(steps=2)).prefix
    with pytest.raises(MismatchError, match="carries a head for 'classify'"):
        foreword.generate(tiny, ["x"], prefix)
    with pytest.raises(PrefixError, match="carries a head"):
        foreword.export_peft(prefix, tiny, tmp_path / "peft")
    assert foreword.generate(tiny, ["x"], prefix.with_head(None))


def test_a_prefix_without_a_head_labels_nothing(encoder: foreword.Backbone) -> None:
    with pytest.raises(DataError, match="this prefix has no head"):
        predict(encoder, ["x"], encoder.capture("hello"))


def test_templates_of_ones_own_are_refused_in_evaluating_a_head(
    encoder: foreword.Backbone, trained: Trained
) -> None:
    with pytest.raises(DataError, match="under its own templates"):
        foreword.evaluate(encoder, trained("classify"), CLASSIFY, task=foreword.Task("{a}", "{b}"))
    with pytest.raises(DataError, match="limit must be at least 1"):
        foreword.evaluate(encoder, trained("classify"), CLASSIFY, limit=0)
    with pytest.raises(DataError, match="row 1: its label 'odd'"):
        foreword.evaluate(encoder, trained("classify"), [{"text": "x", "label": "odd"}])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "rank"}, "a head's task is one of"),
        ({"labels": ("a",)}, "at least two labels"),
        ({"labels": ("a", "a")}, "all different"),
        ({"labels": ("a", "")}, "printable characters"),
        ({"pooling": None}, "has a pooling among"),
        ({"task": "tag"}, "has a pooling among"),
        ({"task": "answer", "pooling": None}, "has the labels"),
        ({"weight": torch.zeros(3, 4)}, "a head of 2 labels needs a weight"),
        ({"weight": torch.zeros(2, 0)}, "a head of 2 labels needs a weight"),
        ({"bias": torch.zeros(2, dtype=torch.float16)}, "need one dtype"),
    ],
)
def test_a_head_that_is_ill_formed_is_refused(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "task": "classify",
        "labels": ("a", "b"),
        "pooling": "mean",
        "weight": torch.zeros(2, 4),
        "bias": torch.zeros(2),
    }
    Head(**good)
    with pytest.raises(PrefixError, match=message):
        Head(**{**good, **fields})


def test_a_head_has_the_dtype_of_its_prefix(trained: Trained) -> None:
    prefix = trained("classify")
    assert prefix.head is not None
    with pytest.raises(PrefixError, match="the head must have the dtype"):
        prefix.with_head(prefix.head.to(torch.float16))
    half = prefix.to(torch.float16)
    assert half.head is not None
    assert half.head.weight.dtype == torch.float16
    assert half.parameters == prefix.parameters == 6 * 3 * 4 * 16 + 2 * 33


def test_a_head_trains_beside_any_inner_parameterisation() -> None:
    """What is materialised is the inner prefix and the head in its own units."""
    tiny = foreword.Backbone(tiny_model(), byte_tokenizer())
    inner = parameterise(tiny, tiny.capture("hello"), SETTINGS.__class__(length=5))
    head = Head("tag", ("a", "b"), None, torch.full((2, 32), 3.0), torch.ones(2))
    made = HeadedParameterization(inner, head, 0.5)
    assert float(made.weight[0, 0].detach()) == 6
    found = made.materialise()
    assert found.head is not None
    assert torch.equal(found.head.weight, head.weight)
    assert torch.equal(found.keys[0], inner.materialise().keys[0])
