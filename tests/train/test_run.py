"""Training: what is learned, what is kept, how it stops, and how it goes on."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import foreword
from foreword.errors import DataError, StoreError, TrainingError
from foreword.methods.prefix.parameterization import DirectParameterization
from foreword.methods.prefix.settings import NEUTRAL_TEXT
from foreword.methods.prefix.start import scales, start
from foreword.objectives import supervised
from foreword.objectives.encode import encode
from foreword.objectives.supervised import score
from foreword.train import checkpoint, trainer
from foreword.train import folder as run_folder
from tests.conftest import MEMORY, byte_tokenizer, tiny_model

SETTINGS = foreword.TrainSettings(
    prompt="{mr} ->", target=" {ref}", length=6, steps=12, batch_size=4, checkpoint_every=4
)
Rows = list[dict[str, str]]


def changed(**fields: object) -> foreword.TrainSettings:
    return foreword.TrainSettings(**{**SETTINGS.as_json(), **fields})


def nll(backbone: foreword.Backbone, prefix: foreword.Prefix, rows: Rows) -> float:
    """Plain NLL per target token, row by row."""
    encoded, _ = encode(backbone, rows, SETTINGS, prefix)
    total, targets = 0.0, 0
    with backbone.attached(prefix), torch.no_grad():
        for row in encoded:
            ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
            logits = backbone.model(ids).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
            )
            total += float(loss)
            targets += row.targets
    return total / targets


def equal(one: foreword.Prefix, two: foreword.Prefix) -> bool:
    pairs = zip((*one.keys, *one.values), (*two.keys, *two.values), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Interrupt(TrainerCallback):
    """Ctrl-C, or worse, at the end of a step."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == self.step:
            raise self.error


# -- what is learned ---------------------------------------------------------------------------------


def test_training_lowers_the_nll_and_leaves_the_backbone_alone(
    tiny: foreword.Backbone, rows: Rows
) -> None:
    weights = {name: p.clone() for name, p in tiny.model.named_parameters()}
    result = foreword.train(tiny, rows, changed(steps=60, lr=0.3))
    before = nll(tiny, start(tiny, SETTINGS), rows)
    after = nll(tiny, result.prefix, rows)
    assert after < before - 0.4
    assert all(torch.equal(weights[name], p) for name, p in tiny.model.named_parameters())
    assert tiny.model.config._attn_implementation == "sdpa"
    assert "_foreword_attachment" not in tiny.model.__dict__


def test_the_first_loss_is_the_nll_of_the_start(tiny: foreword.Backbone, rows: Rows) -> None:
    result = foreword.train(tiny, rows, changed(batch_size=12, steps=1))
    assert result.history[0]["loss"] == pytest.approx(
        nll(tiny, start(tiny, SETTINGS), rows), rel=1e-4
    )


def test_accumulated_batches_equal_one_large_one(tiny: foreword.Backbone, rows: Rows) -> None:
    """Rows have unequal numbers of targets: a mean of means would differ."""
    large = foreword.train(tiny, rows, changed(batch_size=12, steps=3)).prefix
    small = foreword.train(tiny, rows, changed(batch_size=3, accumulate=4, steps=3)).prefix
    for one, two in zip((*large.keys, *large.values), (*small.keys, *small.values), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_trains_the_same_prefix(tiny: foreword.Backbone, rows: Rows) -> None:
    plain = foreword.train(tiny, rows, changed(steps=4)).prefix
    thrifty = foreword.train(tiny, rows, changed(steps=4, gradient_checkpointing=True)).prefix
    for one, two in zip(
        (*plain.keys, *plain.values), (*thrifty.keys, *thrifty.values), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_leaves_no_trace(tiny: foreword.Backbone, rows: Rows) -> None:
    foreword.train(tiny, rows, changed(steps=1, gradient_checkpointing=True))
    assert not any(module.training for module in tiny.model.modules())
    assert not any(getattr(m, "gradient_checkpointing", False) for m in tiny.model.modules())


def test_the_same_seed_gives_the_same_prefix_and_another_seed_another(
    tiny: foreword.Backbone, rows: Rows
) -> None:
    one, two = (foreword.train(tiny, rows, changed(steps=3)).prefix for _ in range(2))
    assert equal(one, two)
    assert not equal(one, foreword.train(tiny, rows, changed(steps=3, seed=1)).prefix)


def test_prefix_and_optimiser_are_float32_over_a_bfloat16_backbone(rows: Rows) -> None:
    half = foreword.Backbone(tiny_model().to(torch.bfloat16), byte_tokenizer(), name="tiny")
    result = foreword.train(half, rows, changed(steps=40, lr=0.1))
    assert result.prefix.dtype == torch.float32
    losses = [entry["loss"] for entry in result.history]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1
    fraction = result.prefix.keys[0].to(torch.bfloat16).float() != result.prefix.keys[0]
    assert bool(fraction.any())


# -- where it starts ---------------------------------------------------------------------------------


def test_text_start_is_the_texts_own_keys_and_values(tiny: foreword.Backbone) -> None:
    ids = tiny.tokens("Name the food.")
    whole = tiny.capture((ids * 3)[:20])
    begun = start(tiny, changed(length=20, init_text="Name the food."))
    assert equal(begun, whole.to(torch.float32))
    assert equal(
        start(tiny, SETTINGS), tiny.capture(tiny.tokens(NEUTRAL_TEXT)[:6]).to(torch.float32)
    )


def test_noise_zeros_and_vocabulary_starts(tiny: foreword.Backbone) -> None:
    zeros = start(tiny, changed(init="zeros"))
    assert all(not tensor.any() for tensor in (*zeros.keys, *zeros.values))
    noise = start(tiny, changed(init="noise", length=64))
    assert float(torch.cat([k.flatten() for k in noise.keys]).std()) == pytest.approx(0.02, rel=0.1)
    drawn = torch.randint(258, (6,), generator=torch.Generator().manual_seed(0)).tolist()
    vocabulary = start(tiny, changed(init="vocab"))
    assert equal(vocabulary, tiny.capture(drawn).to(torch.float32))


def test_scaled_parameters_stand_for_the_start_and_a_step_suits_each_site(
    tiny: foreword.Backbone,
) -> None:
    begun = start(tiny, SETTINGS)
    key_scales, value_scales = scales(tiny, begun)
    module = DirectParameterization(begun, key_scales, value_scales)
    made = module.materialise()
    for one, two in zip(made.keys, begun.keys, strict=True):
        torch.testing.assert_close(one, two)
    natural = tiny.capture(tiny.tokens(NEUTRAL_TEXT)[:8])
    assert key_scales[1] == pytest.approx(float(natural.keys[1].pow(2).mean().sqrt()))
    with torch.no_grad():
        module.values[2] += 0.01
    moved = module.materialise().values[2].detach() - begun.values[2]
    assert float(moved.mean()) == pytest.approx(0.01 * value_scales[2], rel=1e-3)


@pytest.mark.backbone
def test_the_default_start_is_at_most_three_percent_above_the_base_model(
    smollm2: foreword.Backbone,
) -> None:
    from foreword.cli.demo import SETTINGS as DEMO

    heldout = foreword.read_rows("foreword/e2e:heldout")[::12]
    prefix = start(smollm2, DEMO)
    encoded, _ = encode(smollm2, heldout, DEMO, prefix)

    def mean(bound: foreword.Prefix | None) -> float:
        total, targets = 0.0, 0
        with smollm2.attached(bound), torch.no_grad():
            for row in encoded:
                ids = torch.tensor([row.input_ids])
                batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                scores = score(smollm2.model, {**batch, "labels": torch.tensor([row.labels])})
                total += float(scores.nll_N.sum())
                targets += len(scores.nll_N)
        return total / targets

    base, begun = mean(None), mean(prefix)
    assert begun <= 1.03 * base
    assert mean(start(smollm2, foreword.TrainSettings(init="noise", length=16))) > begun


# -- how it goes on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("killed_at", [5, 8, 11])
def test_a_resumed_run_ends_with_the_undisturbed_prefix_bit_for_bit(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path, killed_at: int
) -> None:
    wanted = foreword.train(tiny, rows, SETTINGS, folder=tmp_path / "whole").prefix
    folder = tmp_path / "cut"
    with pytest.raises(SystemExit):
        foreword.train(
            tiny, rows, SETTINGS, folder=folder, callbacks=[Interrupt(killed_at, SystemExit())]
        )
    assert checkpoint.newest(folder) == folder / f"checkpoint-{(killed_at - 1) // 4 * 4}"
    resumed = foreword.train(tiny, rows, SETTINGS, folder=folder, resume=True)
    assert equal(resumed.prefix, wanted)
    assert resumed.prefix.meta.training["steps"] == 12
    assert [entry["step"] for entry in resumed.history] == list(range(1, 13))


def test_a_damaged_checkpoint_is_passed_over(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    wanted = foreword.train(tiny, rows, SETTINGS, folder=tmp_path / "whole").prefix
    with pytest.raises(SystemExit):
        foreword.train(tiny, rows, SETTINGS, folder=folder, callbacks=[Interrupt(9, SystemExit())])
    shutil.copytree(folder / "checkpoint-8", folder / "checkpoint-99")
    (folder / "checkpoint-99" / checkpoint.MANIFEST).unlink()
    weights = folder / "checkpoint-8" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (folder / "checkpoint-x").mkdir()
    assert checkpoint.newest(folder) == folder / "checkpoint-4"
    assert equal(foreword.train(tiny, rows, SETTINGS, folder=folder, resume=True).prefix, wanted)


def test_checkpoints_hold_the_prefix_only_and_two_are_kept(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    result = foreword.train(tiny, rows, SETTINGS, folder=tmp_path / "run")
    kept = sorted(place.name for place in (tmp_path / "run").glob("checkpoint-*"))
    assert kept == ["checkpoint-12", "checkpoint-8"]
    size = (tmp_path / "run/checkpoint-12/model.safetensors").stat().st_size
    assert size < 4 * result.prefix.parameters + 4096


@pytest.mark.parametrize(
    ("fields", "named"), [({"lr": 0.1}, "lr=0.06"), ({"steps": 20}, "steps=12")]
)
def test_resuming_under_other_settings_is_refused_by_name(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path, fields: dict[str, object], named: str
) -> None:
    foreword.train(tiny, rows, SETTINGS, folder=tmp_path)
    with pytest.raises(TrainingError, match=named):
        foreword.train(tiny, rows, changed(**fields), folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{}", b"\xff", b"[" * 100_000, b'{"settings": 5}']
)
def test_a_run_file_that_describes_no_run_is_named(
    content: bytes, tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(TrainingError, match=r"run.json.*start anew without --resume"):
        foreword.train(tiny, rows, changed(steps=1), folder=tmp_path, resume=True)
    assert (tmp_path / "run.json").read_bytes() == content


def test_resuming_on_other_rows_or_another_backbone_is_refused(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    foreword.train(tiny, rows, SETTINGS, folder=tmp_path)
    with pytest.raises(TrainingError, match="other rows"):
        foreword.train(tiny, rows[:-1], SETTINGS, folder=tmp_path, resume=True)
    other = foreword.Backbone(tiny_model(seed=1), byte_tokenizer(), name="tiny")
    with pytest.raises(TrainingError, match="another backbone"):
        foreword.train(other, rows, SETTINGS, folder=tmp_path, resume=True)


def test_a_run_of_a_version_that_knew_no_tasks_is_resumed(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    foreword.train(tiny, rows, SETTINGS, folder=tmp_path)
    file = tmp_path / "run.json"
    run = json.loads(file.read_text())
    del run["settings"]["task"], run["settings"]["pooling"]
    file.write_text(json.dumps(run))
    resumed = foreword.train(tiny, rows, SETTINGS, folder=tmp_path, resume=True)
    assert resumed.prefix.meta.training["steps"] == 12


def test_resuming_where_nothing_is_starts_anew(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    fresh = foreword.train(tiny, rows, changed(steps=2), folder=tmp_path / "run", resume=True)
    assert equal(fresh.prefix, foreword.train(tiny, rows, changed(steps=2)).prefix)


def test_a_new_run_clears_an_earlier_run_and_nothing_else(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    """An earlier version removed the whole folder, whatever was in it."""
    foreword.train(tiny, rows, SETTINGS, folder=tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    foreword.train(tiny, rows, changed(steps=4), folder=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="not empty"):
        foreword.train(tiny, rows, SETTINGS, folder=other)
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]


def test_a_resumed_run_remembers_its_evaluations(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    """Killed after its best evaluation: what comes after is worse, and must not replace the best."""
    settings = changed(steps=60, lr=0.3, warmup=0.0, checkpoint_every=2, early_stop=3)
    learned = [{**row, "ref": "a" * 20} for row in rows]
    other = [{**row, "ref": "z" * 20} for row in rows]
    whole = foreword.train(tiny, learned, settings, evaluation=other, folder=tmp_path / "whole")
    last = int(whole.prefix.meta.training["steps"])
    cut = tmp_path / "cut"
    with pytest.raises(SystemExit):
        foreword.train(
            tiny, learned, settings, evaluation=other, folder=cut,
            callbacks=[Interrupt(last - 1, SystemExit())],
        )  # fmt: skip
    resumed = foreword.train(tiny, learned, settings, evaluation=other, folder=cut, resume=True)
    assert equal(resumed.prefix, whole.prefix)
    assert resumed.prefix.meta.training["steps"] == last
    assert resumed.history == whole.history


# -- how it stops ------------------------------------------------------------------------------------


def test_the_best_prefix_is_kept_and_early_stop_ends_training(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    """Training says one thing and evaluation another: the better it learns, the worse it scores."""
    settings = changed(steps=60, lr=0.3, warmup=0.0, checkpoint_every=2, early_stop=3)
    learned = [{**row, "ref": "a" * 20} for row in rows]
    wanted = [{**row, "ref": "z" * 20} for row in rows]
    result = foreword.train(tiny, learned, settings, evaluation=wanted, folder=tmp_path / "run")
    evaluated = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    best = min(evaluated)
    assert result.prefix.meta.training["steps"] < 60
    assert len(evaluated) - 1 - evaluated.index(best) == 3
    assert result.prefix.meta.training["best_eval_nll"] == best
    assert nll(tiny, result.prefix, wanted) == pytest.approx(best, rel=1e-5)


def test_ctrl_c_keeps_what_was_learned(tiny: foreword.Backbone, rows: Rows, tmp_path: Path) -> None:
    wanted = foreword.train(tiny, rows, SETTINGS, folder=tmp_path / "whole")
    with pytest.raises(foreword.TrainingStopped, match="after 6 of 12 steps") as stopped:
        foreword.train(tiny, rows, SETTINGS, callbacks=[Interrupt(6, KeyboardInterrupt())])
    kept = stopped.value.result
    assert isinstance(stopped.value.__cause__, KeyboardInterrupt)
    assert kept.stopped is not None
    assert kept.prefix.meta.training["stopped"] == kept.stopped
    assert kept.history == wanted.history[:5]
    assert kept.prefix.meta.training["steps"] == 6
    assert kept.prefix.first_not_finite() is None
    assert "_foreword_attachment" not in tiny.model.__dict__


def nan_at_the_fourth() -> Callable[..., object]:
    """Scores whose fourth call gives a loss that is not a number."""
    calls = []

    def failing(*args: Any, **kwargs: Any) -> object:
        calls.append(1)
        scores = score(*args, **kwargs)
        if len(calls) == 4:
            scores.nll_N.data[0] = math.nan
        return scores

    return failing


def test_a_nan_loss_stops_with_the_last_good_prefix(
    tiny: foreword.Backbone, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = foreword.train(tiny, rows, SETTINGS, callbacks=[StopAt(2)]).prefix
    monkeypatch.setattr(supervised, "score", nan_at_the_fourth())
    with pytest.raises(foreword.TrainingStopped, match="nan at step 4.*--lr") as stopped:
        foreword.train(tiny, rows, SETTINGS)
    assert equal(stopped.value.result.prefix, two), "the loss after two steps was the last finite"


def test_what_is_too_large_to_copy_is_as_its_newest_checkpoint(
    tiny: foreword.Backbone, rows: Rows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whole models are not copied before each step; a loss that is nan leaves their checkpoint."""
    settings = changed(checkpoint_every=2)
    two = foreword.train(tiny, rows, settings, callbacks=[StopAt(2)]).prefix
    monkeypatch.setattr(trainer, "COPIED", 10)
    monkeypatch.setattr(supervised, "score", nan_at_the_fourth())
    with pytest.raises(foreword.TrainingStopped, match="nan at step 4") as stopped:
        foreword.train(tiny, rows, settings, folder=tmp_path / "run")
    assert equal(stopped.value.result.prefix, two)


def test_a_loss_that_is_never_finite_keeps_the_start(tiny: foreword.Backbone, rows: Rows) -> None:
    settings = changed(lr=3e38, warmup=0.0)
    with pytest.raises(foreword.TrainingStopped, match="at step 3") as stopped:
        foreword.train(tiny, rows, settings)
    kept = stopped.value.result.prefix
    torch.testing.assert_close(kept.keys[1], start(tiny, settings).keys[1])
    assert kept.first_not_finite() is None


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> object:
        control.should_training_stop = state.global_step == self.step
        return control


def test_a_full_disk_stops_with_the_best_so_far(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    real = checkpoint.publish

    def full(aside: Path, place: Path) -> None:
        if place.name == "checkpoint-8":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(aside, place)

    monkeypatch.setattr(trainer, "publish", full)
    with pytest.raises(foreword.TrainingStopped, match="disk is full") as stopped:
        foreword.train(tiny, rows, SETTINGS, folder=tmp_path / "run")
    assert stopped.value.result.prefix.meta.training["steps"] == 8
    assert checkpoint.newest(tmp_path / "run") == tmp_path / "run/checkpoint-4"


def test_too_little_disk_is_refused_before_training(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match="1000 bytes free"):
        foreword.train(tiny, rows, SETTINGS, folder=tmp_path / "run")


# -- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 0}, "length must be at least 1; found 0"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": math.nan}, "lr must be above 0"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"warmup": 1.0}, "warmup"),
        ({"init": "zeros", "init_text": "hi"}, "init_text is only used"),
        # Python does not hold anyone to a Literal: "gatd" trained directly, without a word.
        ({"parameterization": "gatd"}, "one of direct, mlp, gated; found 'gatd'"),
        ({"report_to": "tensorbord"}, "one of none, tensorboard, wandb"),
        ({"positions": "of"}, "one of free, offset"),
        ({"windows": "all"}, "one of visible, windowed"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        changed(**fields)


def test_bad_rows_are_refused_before_training(tiny: foreword.Backbone, rows: Rows) -> None:
    with pytest.raises(DataError, match="no rows"):
        foreword.train(tiny, [], SETTINGS)
    with pytest.raises(DataError, match="row 3 has no column 'ref'.*mr"):
        foreword.train(tiny, [*rows[:2], {"mr": "x"}], SETTINGS)
    with pytest.raises(DataError, match="row 2: its target has 308 tokens; the context leaves 250"):
        foreword.train(tiny, [rows[0], {"mr": "x", "ref": "y" * 306}], SETTINGS)
    with pytest.raises(DataError, match="leaves 0 of the backbone's 256"):
        foreword.train(tiny, rows, changed(length=256))
    with pytest.raises(TrainingError, match="early_stop needs evaluation"):
        foreword.train(tiny, rows, changed(early_stop=2))


def test_truncated_rows_are_counted_in_the_prefix(tiny: foreword.Backbone, rows: Rows) -> None:
    longer = [*rows[:3], {"mr": "m" * 300, "ref": "short"}]
    result = foreword.train(tiny, longer, changed(steps=1))
    assert result.report.truncated_rows == 1
    assert result.report.truncated_tokens == 300 + len(" ->") + len(" short") + 1 - 250
    assert result.prefix.meta.training["truncated_rows"] == 1


def test_the_recipe_is_in_the_prefix(tiny: foreword.Backbone, rows: Rows) -> None:
    prefix = foreword.train(tiny, rows, changed(steps=1)).prefix
    assert prefix.meta.recipe == {"method": "prefix", **changed(steps=1, task="causal").as_json()}
    assert prefix.meta.backbone == "tiny"
    assert json.loads(json.dumps(prefix.meta.as_json()))["positions"] == "free"


def test_checkpointing_leaves_no_hook(tiny: foreword.Backbone) -> None:
    """Each run left one on the embeddings, after which plain passes built graphs."""
    table = tiny.model.get_input_embeddings()
    mine = table.register_forward_hook(lambda *_: None)
    before = dict(table._forward_hooks)
    settings = foreword.TrainSettings(
        prompt="{mr} ->", target=" {ref}", length=3, steps=1, gradient_checkpointing=True
    )
    foreword.train(tiny, MEMORY, settings)
    assert dict(table._forward_hooks) == before
    assert not tiny.model(torch.tensor([[5, 6]])).logits.requires_grad
    mine.remove()


@pytest.mark.parametrize(
    "options",
    [
        {"init": "noise"},
        {"init": "zeros"},
        {"parameterization": "mlp"},
        {"parameterization": "gated"},
        {"dropout": 0.5},
        {"prompt": "{mr}", "target": "{ref}", "task": "classify"},
    ],
)
def test_torchs_default_dtype_is_not_the_prefixs(
    tiny: foreword.Backbone, options: dict[str, Any]
) -> None:
    recipe = {"prompt": "{mr} ->", "target": " {ref}", "length": 3, "steps": 1, **options}
    settings = foreword.TrainSettings(**recipe)
    expected = foreword.train(tiny, MEMORY, settings).prefix
    torch.set_default_dtype(torch.float64)
    try:
        found = foreword.train(tiny, MEMORY, settings).prefix
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    for ours, theirs in zip(found.tensors, expected.tensors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
