"""The command line: every verb through `main`, on a tiny backbone in a folder of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import foreword
from foreword.cli.main import VERBS
from foreword.store import PrefixStore
from tests.conftest import MEMORY


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data.jsonl; the store is below it; wide terminal."""
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps(row) for row in MEMORY]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "some.jsonl").write_text("\n".join(lines[:3]) + "\n")
    return tmp_path


TRAIN = {
    "backbone": "tiny-model",
    "prompt": "{mr} ->",
    "target": " {ref}",
    "length": "5",
    "steps": "4",
    "name": "food",
    "dtype": "float32",
}
F32 = ("--dtype", "float32")


def train(*flags: str, data: str = "data.jsonl", **changes: str) -> list[str]:
    """Arguments of the train verb: the usual ones with some changed."""
    words = ["train", data]
    for name, value in {**TRAIN, **changes}.items():
        words += [f"--{name.replace('_', '-')}", value]
    return [*words, *flags]


def test_the_whole_way_from_rows_to_text(place: Path, call) -> None:
    code, out, err = call(*train(eval="some.jsonl", checkpoint_every="2"))
    assert (code, err.count("error")) == (0, 0)
    prefix = PrefixStore().load("food")
    assert f"food: {prefix.parameters:,} parameters" in out
    assert "12 rows, none truncated" in out
    assert "examples/s" in err
    assert "evaluation NLL" in err
    assert not (place / "store/.runs/food").exists()

    code, out, _ = call(
        "generate", "food", *F32, "name[Zizzi], food[Thai]", "--max-new-tokens", "6"
    )
    backbone = foreword.load(str(place / "tiny-model"), dtype="float32")
    options = foreword.GenerateOptions(max_new_tokens=6)
    wanted = foreword.generate(backbone, [MEMORY[0]], prefix, options)
    assert (code, out) == (0, wanted[0][0] + "\n")

    code, out, _ = call(
        "generate", "food", *F32, "name[Zizzi], food[Thai]", "--max-new-tokens", "6", "--no-prefix"
    )
    frozen = foreword.generate(
        backbone, [MEMORY[0]], None, options, task=foreword.Task("{mr} ->", " {ref}")
    )
    assert (code, out) == (0, frozen[0][0] + "\n")

    code, out, _ = call("generate", "food", *F32, "--input", "some.jsonl", "--max-new-tokens", "6")
    answers = foreword.generate(backbone, MEMORY[:3], prefix, options)
    assert (code, out) == (0, "".join(answer + "\n" for (answer,) in answers))

    code, out, _ = call("evaluate", "food", *F32, "some.jsonl", "--max-new-tokens", "4", "--json")
    found = json.loads(out)
    wanted_figures = foreword.evaluate(
        backbone, prefix, MEMORY[:3], options=foreword.GenerateOptions(max_new_tokens=4)
    )
    assert found["prefix"]["nll"] == pytest.approx(wanted_figures.prefix.nll)
    assert found["base"]["nll"] == pytest.approx(wanted_figures.base.nll)
    assert found["inputs"] == 3

    code, out, err = call(
        "evaluate", "food", *F32, "some.jsonl", "--max-new-tokens", "4", "--no-base"
    )
    assert code == 0
    for label in ("NLL", "perplexity", "BLEU", "chrF", "ROUGE-L", "exact match", "token accuracy"):
        assert label in out
    assert "frozen model" not in out

    code, out, _ = call("inspect", "food")
    assert "720 = 5 x 3 sites x 2 key/value heads x (12 + 12)" in out
    assert f"% of the backbone's {backbone.parameters:,}" in out
    assert prefix.digest in out
    assert "free: the prefix takes no positions" in out
    assert "prompt='{mr} ->'" in out
    assert len(re.findall(r"decoder\.\d", out)) == 3
    code, out, _ = call("inspect", "food", "--json")
    assert json.loads(out)["digest"] == prefix.digest

    code, out, err = call("list")
    assert "food" in out
    assert prefix.digest[:12] in out
    assert "1 prefix in" in err
    assert call("remove", "food")[0] == 0
    assert "food" not in PrefixStore()


def test_one_prefix_starts_from_another_and_what_it_is_stands_in_its_recipe(
    place: Path, call
) -> None:
    flags = ("--frozen", "1", "--layers", "0,last:1", "--sites", "decoder", "--dropout", "0.2")
    assert call(*train(*flags, parameterization="gated", name="first"))[0] == 0
    first = PrefixStore().load("first")
    assert [site.label for site in first.sites] == ["decoder.0", "decoder.2"]
    recipe = {name: first.meta.recipe[name] for name in ("parameterization", "frozen", "layers")}
    assert recipe == {"parameterization": "gated", "frozen": 1, "layers": "0,last:1"}
    code, out, _ = call("inspect", "first")
    assert "own: the prefix has a softmax of its own" in out
    assert "480 = 5 x 2 sites x 2" in out
    code, out, _ = call("generate", "first", *F32, "name[Zizzi]", "--max-new-tokens", "3")
    assert code == 0

    words = train("--init", "first")
    at = words.index("--length")
    assert call(*words[:at], *words[at + 2 :])[0] == 0
    second = PrefixStore().load("food")
    assert second.meta.parents == (first.digest,)
    assert (second.length, second.sites) == (5, first.sites)
    code, _, err = call(*train("--init", "absent", "--overwrite"))
    assert (code, "init 'absent' is neither one of text" in err) == (1, True)


def test_standard_input_is_read_line_by_line(
    place: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    assert call(*train())[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("name[A]\n\nname[B]\n"))
    code, out, _ = call("generate", "food", *F32, "--max-new-tokens", "3")
    assert code == 0
    assert len(out.split("\n")) >= 3
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, _, err = call("generate", "food", *F32)
    assert (code, "there are no inputs" in err) == (1, True)


def test_a_yaml_file_holds_the_same_options_and_the_command_line_comes_first(
    place: Path, call
) -> None:
    (place / "run.yaml").write_text(
        'backbone: tiny-model\nprompt: "{mr} ->"\ntarget: " {ref}"\nlength: 5\nsteps: 4\n'
        "name: food\ndtype: float32\ninit: zeros\n"
    )
    code, _, err = call("train", "data.jsonl", "--config", "run.yaml", "--length", "3")
    assert code == 0, err
    prefix = PrefixStore().load("food")
    assert (prefix.length, prefix.meta.recipe["init"]) == (3, "zeros")
    assert prefix.meta.recipe["prompt"] == "{mr} ->"
    (place / "run.yaml").write_text("lenght: 5\n")
    code, out, err = call("train", "data.jsonl", "--config=run.yaml", "--name", "x")
    assert code == 2
    assert "lenght" in out + err
    code, _, err = call("train", "data.jsonl", "--config", "no.yaml", "--name", "x")
    assert (code, "there is no such file" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "nothing", "x"), "no prefix is called 'nothing'"),
        (("inspect", "../x"), "is not a name"),
        (("remove", "nothing"), "no prefix is called 'nothing'"),
        (train(data="no.jsonl"), "there is no such file"),
        (train(backbone="no-such-model"), "cannot load backbone 'no-such-model'"),
        (train(name="../x"), "is not a name"),
        (train(prompt="{facts} ->"), "has no column 'facts'; its columns are: mr, ref"),
        (train(prompt="{mr ->"), "template"),
        (train(length="0"), "length must be at least 1; found 0"),
        (train(early_stop="2"), "early_stop needs evaluation data"),
        (train(max_length="10"), "the context leaves 10"),
        (train(length="256"), "leaves 0 of the backbone's 256 tokens"),
    ],
)
def test_bad_input_gives_one_clear_error(
    place: Path, call, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = call(*arguments)
    assert code in (1, 2)
    assert message in " ".join((out + err).split())
    assert "Traceback" not in err
    assert list(PrefixStore()) == []


def test_a_taken_name_is_refused_before_the_backbone_is_loaded(
    place: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(*train())[0] == 0
    before = PrefixStore().load("food").digest
    with monkeypatch.context() as patch:
        patch.setattr("foreword.cli.options.load", lambda *_, **__: pytest.fail("loaded"))
        code, _, err = call(*train(steps="5"))
    assert (code, "already in" in err) == (1, True)
    assert PrefixStore().load("food").digest == before
    assert call(*train("--overwrite", steps="5"))[0] == 0
    assert PrefixStore().load("food").digest != before


def test_a_prefix_that_comes_while_one_is_trained_is_kept_and_so_is_the_trained_one(
    place: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was replaced without a word by what was trained under its name."""
    from foreword.cli.bar import TrainingBar

    assert call(*train(name="other"))[0] == 0
    other, real = PrefixStore().load("other"), TrainingBar.on_log

    def put(self, args, state, control, **kwargs):
        if state.global_step == 1:
            PrefixStore().save("food", other, overwrite=True)
        return real(self, args, state, control, **kwargs)

    monkeypatch.setattr(TrainingBar, "on_log", put)
    code, _, err = call(*train(steps="5"))
    assert code == 1
    assert "'food' is already in" in err
    assert "is kept as 'food-trained'" in " ".join(err.split())
    assert PrefixStore().load("food").digest == other.digest
    assert PrefixStore().load("food-trained").meta.training["steps"] == 5


def test_ctrl_c_keeps_the_prefix_exits_130_and_can_be_resumed(
    place: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(*train(steps="6", name="whole"))[0] == 0
    from foreword.cli.bar import TrainingBar

    real = TrainingBar.on_log

    def interrupted(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt
        return real(self, args, state, control, **kwargs)

    more = {"steps": "6", "checkpoint_every": "2"}
    with monkeypatch.context() as patch:
        patch.setattr(TrainingBar, "on_log", interrupted)
        code, _, err = call(*train(**more))
    assert code == 130
    assert "after 5 of 6 steps" in err
    assert "with --resume" in err
    assert PrefixStore().load("food").meta.training["steps"] == 5
    assert PrefixStore().load("food").meta.training["stopped"] == "interrupted (Ctrl-C)"
    code, _, err = call(*train("--resume", **more))
    assert code == 0, err
    assert PrefixStore().load("food").meta.training["stopped"] is None
    import torch

    whole, resumed = PrefixStore().load("whole"), PrefixStore().load("food")
    assert all(torch.equal(a, b) for a, b in zip(whole.keys, resumed.keys, strict=True))


def test_a_stopped_run_never_replaces_a_finished_prefix(
    place: Path, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foreword.cli.bar import TrainingBar

    assert call(*train())[0] == 0
    finished = PrefixStore().load("food").digest

    def interrupted(self, args, state, control, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingBar, "on_log", interrupted)
    code, _, err = call(*train("--overwrite", steps="9"))
    assert (code, "kept as 'food-stopped'" in err) == (130, True)
    assert PrefixStore().load("food").digest == finished
    assert PrefixStore().load("food-stopped").meta.training["steps"] == 1


def test_evaluate_takes_other_templates(place: Path, call) -> None:
    assert call(*train())[0] == 0
    asked = ("evaluate", "food", *F32, "some.jsonl", "--max-new-tokens", "2", "--no-base", "--json")
    code, out, _ = call(*asked, "--prompt", "Say: {mr}", "--target", "{ref}")
    found, wanted = json.loads(out), f"Say: {MEMORY[0]['mr']}"
    assert (code, found["prompts"][0]) == (0, wanted)
    backbone = foreword.load(str(place / "tiny-model"), dtype="float32")
    options = foreword.GenerateOptions(max_new_tokens=2)
    same = foreword.evaluate(
        backbone,
        PrefixStore().load("food"),
        MEMORY[:3],
        options=options,
        base=False,
        task=foreword.Task("Say: {mr}", "{ref}"),
    )
    assert found["prefix"]["nll"] == pytest.approx(same.prefix.nll)
    code, _, err = call(*asked, "--prompt", "Say: {mr}")
    assert (code, "a prompt template needs a target template" in err) == (1, True)


def test_each_output_in_json_says_why_it_ends(place: Path, call) -> None:
    assert call(*train())[0] == 0
    several = ("--num-beams", "2", "--num-return-sequences", "2", "--max-new-tokens", "3")
    code, out, _ = call("generate", "food", *F32, "--input", "some.jsonl", *several, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert (code, len(found)) == (0, 3)
    assert all(len(one["outputs"]) == 2 for one in found)
    assert all(one["finish"] == ["length", "length"] for one in found), "three tokens end nothing"


def test_tensorboard_files_stay(place: Path, call) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert call(*train("--report-to", "tensorboard"))[0] == 0
    events = EventAccumulator(str(place / "runs/food"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 4
    assert losses[-1] == pytest.approx(
        PrefixStore().load("food").meta.training["final_loss"], rel=1e-4
    )


def test_other_weights_warn_in_one_line_and_strict_refuses(place: Path, call) -> None:
    from tests.conftest import byte_tokenizer, tiny_model

    assert call(*train())[0] == 0
    tiny_model(seed=1).save_pretrained(place / "other")
    byte_tokenizer().save_pretrained(place / "other")
    asked = ("generate", "food", *F32, "x", "--max-new-tokens", "2", "--backbone", "other")
    code, _, err = call(*asked)
    assert code == 0
    assert err.count("warning: the prefix was made on 'tiny-model'") == 1
    code, _, err = call(*asked, "--strict")
    assert (code, "--strict" in err) == (1, True)


def test_a_damaged_file_is_listed_as_such(place: Path, call) -> None:
    assert call(*train())[0] == 0
    path = PrefixStore().path("food")
    path.write_bytes(path.read_bytes()[:-3])
    code, out, err = call("list")
    assert (code, "damaged" in out) == (0, True)
    code, _, err = call("generate", "food", *F32, "x")
    assert (code, "food.safetensors: " in err) == (1, True)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__.rstrip("_"))
def test_help_is_complete(place: Path, call, verb) -> None:
    """Every option of every verb has a sentence, made from its field's docstring."""
    code, out, _ = call(verb.__name__.rstrip("_"), "--help")
    assert code == 0
    rows = [line.strip("│ \n") for line in out.splitlines() if line.startswith("│")]
    options = [row for row in rows if row.lstrip("* ").startswith("--")]
    for row in options:
        described = re.split(r"\s{2,}", row.lstrip("* "), maxsplit=1)
        assert len(described) == 2, row
        assert described[1][0].isupper(), row


def test_backbones_lists_the_embedded_one_and_every_verified_family(place: Path, call) -> None:
    from tests.oracle.families import FAMILIES

    code, out, _ = call("backbones")
    assert code == 0
    assert "dequantised from 4 bits" in out
    assert all(family.name in out for family in FAMILIES)


def test_an_unknown_option_exits_2_with_a_hint(place: Path, call) -> None:
    code, out, err = call(*train(lenght="3"))
    assert code == 2
    assert "--length" in out + err
