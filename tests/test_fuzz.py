"""Every public function under odd arguments and files: it works, or refuses by one of our errors.

Whatever is refused leaves the model and the disk as they were. Examples are the same at every run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import foreword
from foreword.backbone import Backbone
from foreword.cli.main import main
from foreword.errors import ForewordError
from foreword.prefix import Prefix
from tests.conftest import byte_tokenizer, tiny_model
from tests.peft.test_hostile import CONFIG, GOOD, LENGTH, TENSORS, WIDTH
from tests.tasks.models import ROWS, tiny_encoder

GOLDEN = (Path(__file__).parent / "golden" / "v3.safetensors").read_bytes()
LONE = "half of a \ud800 character"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
OPTIONS = foreword.GenerateOptions(max_new_tokens=2)

fuzz = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=30,
    suppress_health_check=list(HealthCheck),
)
many = settings(fuzz, max_examples=150)

WORDS = st.sampled_from(
    ["", " ", "a", "{mr}", "{", "{}", "nope", "a/b", "../a", "a\x00b", LONE, "x" * 400, "decoder.0"]
)
NUMBERS = st.sampled_from([0, -1, 1, 3, 2**31, 2**70, -0.5, 2.5, float("nan"), float("inf"), True])
PLAIN = st.one_of(st.none(), NUMBERS, WORDS, st.sampled_from([b"bytes", b""]))
ODD = st.one_of(
    PLAIN,
    st.lists(PLAIN, max_size=2),
    st.dictionaries(WORDS, PLAIN, max_size=2),
    st.sampled_from([object(), (), torch.ones(2), Path("no/such/place"), int]),
)
"""What nobody should give, and somebody does."""


def or_odd(*good: Any) -> st.SearchStrategy[Any]:
    """Something that is right, about as often as not."""
    return st.one_of(st.sampled_from(good), ODD)


def answer(call: Callable[[], Any]) -> Any:
    """What a call gives, or the error that it is refused with."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except ForewordError as error:
        refusal = error
    assert str(refusal).strip(), f"{type(refusal).__name__} says nothing"
    return refusal


def state(model: torch.nn.Module) -> dict[str, Any]:
    """What may not change in a model."""
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode() + tensor.numpy().tobytes())
    return {
        "weights": weights.hexdigest(),
        "config": model.config.to_json_string(),
        "kernel": model.config._attn_implementation,
        "forward": model.__dict__.get("forward"),
        "generate": model.__dict__.get("generate"),
        "hooks": [
            (name, len(m._forward_pre_hooks), len(m._forward_hooks))
            for name, m in model.named_modules()
        ],
        "gradients": [p.requires_grad for p in model.parameters()],
        "training": model.training,
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(tiny_model(), byte_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def encoder() -> Backbone:
    return tiny_encoder()


@pytest.fixture(scope="module")
def prefix(backbone: Backbone) -> Prefix:
    return backbone.capture("a start").with_meta(recipe={"prompt": "{mr}", "target": "{ref}"})


@pytest.fixture(scope="module")
def headed(encoder: Backbone) -> dict[str, Prefix]:
    short = foreword.TrainSettings(length=2, steps=1)
    return {task: foreword.train(encoder, rows, short).prefix for task, rows in ROWS.items()}


# -- values ------------------------------------------------------------------------------------------

SITE = {"name": "attn", "stack": "decoder", "layer": 0, "kv_heads": 1, "key_dim": 2, "value_dim": 2}
TENSOR = torch.ones(1, 3, 2)


@many
@given(field=st.sampled_from([*SITE, "window"]), value=ODD)
def test_site(field: str, value: Any) -> None:
    found = answer(lambda: foreword.Site(**{**SITE, field: value}))
    if isinstance(found, foreword.Site):
        assert isinstance(found.label, str)
        assert hash(found) is not None


@many
@given(name=or_odd("", "a=b"), length=or_odd(1, 3), strength=or_odd(1.0, -2, 1e300))
def test_piece(name: Any, length: Any, strength: Any) -> None:
    found = answer(lambda: foreword.Piece(name, length, strength))
    if isinstance(found, foreword.Piece):
        json.dumps(foreword.PrefixMeta(pieces=(found,)).as_json())


@many
@given(field=st.sampled_from([f.name for f in dataclasses.fields(foreword.PrefixMeta)]), value=ODD)
def test_prefix_meta(field: str, value: Any) -> None:
    found = answer(lambda: foreword.PrefixMeta(**{field: value}))
    if isinstance(found, foreword.PrefixMeta):
        json.dumps(found.as_json())


@many
@given(
    sites=or_odd((foreword.Site(**SITE),), [foreword.Site(**SITE)] * 2),
    keys=or_odd((TENSOR,), (TENSOR.to_sparse(),), (TENSOR.int(),), (TENSOR.to("meta"),)),
    values=or_odd((TENSOR,), (TENSOR[:, :2],), (TENSOR.numpy(),)),
    meta=or_odd(foreword.PrefixMeta()),
    head=or_odd(None, None, None),
)
def test_prefix(sites: Any, keys: Any, values: Any, meta: Any, head: Any) -> None:
    found = answer(lambda: Prefix(sites, keys, values, meta, head))
    if isinstance(found, Prefix) and not found.keys[0].is_meta:
        assert len(found.digest) == 64


@many
@given(
    task=or_odd("classify", "answer"),
    labels=or_odd(("a", "b"), ["a", "b"], ("start", "end"), ("a", "a"), ("a", LONE), (1, 2)),
    pooling=or_odd("mean", None),
    weight=or_odd(torch.ones(2, 3)),
    bias=or_odd(torch.ones(2)),
)
def test_head(task: Any, labels: Any, pooling: Any, weight: Any, bias: Any) -> None:
    answer(lambda: foreword.Head(task, labels, pooling, weight, bias))


@many
@given(prompt=or_odd("{mr} ->"), target=or_odd(" {ref}"))
def test_task(prompt: Any, target: Any) -> None:
    answer(lambda: foreword.Task(prompt, target))


@many
@given(
    field=st.sampled_from([f.name for f in dataclasses.fields(foreword.GenerateOptions)]), value=ODD
)
def test_generate_options(field: str, value: Any) -> None:
    found = answer(lambda: foreword.GenerateOptions(**{field: value}))
    if isinstance(found, foreword.GenerateOptions):
        json.dumps(dataclasses.asdict(found))


@many
@given(
    field=st.sampled_from([f.name for f in dataclasses.fields(foreword.TrainSettings)]), value=ODD
)
def test_train_settings(field: str, value: Any) -> None:
    """They become a recipe, which must be JSON, or hours of training end in an error."""
    templates = {"prompt": "{mr}", "target": "{ref}"}
    found = answer(lambda: foreword.TrainSettings(**{**templates, field: value}))
    if isinstance(found, foreword.TrainSettings):
        foreword.PrefixMeta(recipe=found.as_json())


@many
@given(data=st.data())
def test_what_a_prefix_offers(data: st.DataObject, prefix: Prefix) -> None:
    name = data.draw(st.sampled_from(["only", "to", "with_head", "strength", "__getitem__"]))
    answer(lambda: getattr(prefix, name)(data.draw(ODD)))
    answer(lambda: prefix.interpolate(data.draw(or_odd(prefix)), data.draw(or_odd(0.5, -1))))
    answer(lambda: foreword.concat(prefix, data.draw(or_odd(prefix)), names=data.draw(ODD)))
    field = data.draw(or_odd("backbone", "recipe", "nope").filter(lambda f: isinstance(f, str)))
    answer(lambda: prefix.with_meta(**{field: data.draw(ODD)}))


# -- files -------------------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file's bytes, cut, changed, or replaced by something else's."""
    kind = draw(st.sampled_from(["cut", "flip", "splice", "other"]))
    place = draw(st.integers(0, max(0, len(whole) - 1)))
    if kind == "cut":
        return whole[:place]
    if kind == "flip":
        return (
            whole[:place]
            + bytes([whole[place] ^ 1 << draw(st.integers(0, 7))])
            + whole[place + 1 :]
        )
    if kind == "splice":
        return whole[:place] + draw(st.binary(max_size=8)) + whole[place:]
    return draw(st.sampled_from([POINTER, b"", b"{}", b"[1]", b"null", b"\xff\xfe", b"[" * 99_999]))


@many
@given(content=damaged(GOLDEN), path=st.one_of(st.just("file"), ODD))
def test_load_prefix(content: bytes, path: Any) -> None:
    with scratch() as folder:
        (folder / "file").write_bytes(content)
        answer(lambda: foreword.load_prefix(folder / "file" if path == "file" else path))
        assert contents(folder) == {"file": content}


@many
@given(what=or_odd("prefix", "meta"), path=ODD)
def test_save_prefix_and_store(what: Any, path: Any, prefix: Prefix) -> None:
    if what == "meta":
        empty = tuple(key.to("meta") for key in prefix.keys)
        what = dataclasses.replace(prefix, keys=empty, values=empty)
    what = prefix if isinstance(what, str) and what == "prefix" else what
    with scratch() as folder:
        store = foreword.PrefixStore(folder)
        found = answer(lambda: store.save(path, what))
        assert bool(contents(folder)) is not isinstance(found, ForewordError)
        for verb in (store.load, store.remove, store.stamp, store.__contains__):
            answer(lambda verb=verb: verb(path))
        place = folder / path if isinstance(path, str) else path
        assume(not isinstance(place, Path) or (place.is_absolute() and ".." not in str(place)))
        answer(lambda: foreword.save_prefix(what, place))
        answer(lambda: foreword.PrefixStore(path))


BACKBONE_FILES = (
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    "generation_config.json",
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(num_hidden_layers=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@fuzz
@given(data=st.data(), name=st.sampled_from(BACKBONE_FILES))
def test_load_of_a_damaged_folder(data: st.DataObject, name: str, model_folder: Path) -> None:
    content = data.draw(damaged((model_folder / name).read_bytes()))
    with scratch() as folder:
        shutil.copytree(model_folder, folder, dirs_exist_ok=True)
        (folder / name).write_bytes(content)
        before = contents(folder)
        answer(lambda: foreword.load(str(folder), dtype="float32"))
        assert contents(folder) == before


FIELDS = ("hidden_size", "num_hidden_layers", "vocab_size", "head_dim", "model_type", "hidden_act")


@fuzz
@given(field=st.sampled_from(FIELDS), value=PLAIN.filter(lambda v: not isinstance(v, bytes)))
def test_load_under_another_config(field: str, value: Any, model_folder: Path) -> None:
    """Sizes that no memory holds are left out: they are as bad elsewhere."""
    assume(not isinstance(value, int) or value < 100)
    with scratch() as folder:
        shutil.copytree(model_folder, folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, field: value}))
        answer(lambda: foreword.load(str(folder), dtype="float32"))


@fuzz
@given(
    argument=st.sampled_from(["name", "dtype", "quantize", "device", "attention", "revision"]),
    value=ODD,
)
def test_load_of_odd_arguments(argument: str, value: Any, model_folder: Path) -> None:
    answer(lambda: foreword.load(**{"name": str(model_folder), argument: value}))


SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")


@many
@given(
    suffix=st.sampled_from(SUFFIXES),
    content=st.one_of(damaged(b'{"mr": "a", "ref": "b"}\n'), damaged(b"mr,ref\na,b\n")),
)
def test_read_rows(suffix: str, content: bytes) -> None:
    with scratch() as folder:
        path = folder / f"rows{suffix}"
        path.write_bytes(content)
        answer(lambda: foreword.read_rows(str(path)))
        assert contents(folder) == {path.name: content}


@many
@given(source=ODD)
def test_read_rows_of_odd_sources(source: Any) -> None:
    answer(lambda: foreword.read_rows(source))


@fuzz
@given(data=st.data(), fields=st.dictionaries(st.sampled_from(sorted(GOOD)), PLAIN, max_size=2))
def test_import_peft(data: st.DataObject, fields: dict[str, Any], backbone: Backbone) -> None:
    before = state(backbone.model)
    with scratch() as folder:
        config = json.dumps({**GOOD, **fields}, default=str).encode()
        save_file({"prompt_embeddings": torch.randn(LENGTH, WIDTH)}, folder / TENSORS)
        (folder / CONFIG).write_bytes(config)
        answer(lambda: foreword.import_peft(folder, backbone))
        name = data.draw(st.sampled_from([CONFIG, TENSORS]))
        (folder / name).write_bytes(data.draw(damaged((folder / name).read_bytes())))
        answer(lambda: foreword.import_peft(folder, backbone))
        answer(lambda: foreword.import_peft(data.draw(ODD), backbone))
        answer(lambda: foreword.import_peft(folder, data.draw(ODD)))
    assert state(backbone.model) == before


@fuzz
@given(which=st.sampled_from(["prefix", "backbone", "folder"]), value=ODD)
def test_export_peft(which: str, value: Any, backbone: Backbone, prefix: Prefix) -> None:
    with scratch() as folder:
        given = {"prefix": prefix, "backbone": backbone, "folder": folder / "new", which: value}
        if which == "folder" and isinstance(value, str | Path):
            given["folder"] = folder / value
            assume(".." not in str(value))
        found = answer(lambda: foreword.export_peft(**given))
        if isinstance(found, ForewordError):
            assert contents(folder) == {}


@fuzz
@given(argument=st.sampled_from(["repo_id", "token", "endpoint", "revision"]), value=ODD)
def test_pull(argument: str, value: Any) -> None:
    """The Hub is not asked: the tests are offline."""
    assert isinstance(
        answer(lambda: foreword.pull(**{"repo_id": "a/b", argument: value})), ForewordError
    )


@fuzz
@given(argument=st.sampled_from(["repo_id", "license", "metrics", "token", "endpoint"]), value=ODD)
def test_push(argument: str, value: Any, prefix: Prefix) -> None:
    given = {"repo_id": "a/b", argument: value}
    assert isinstance(answer(lambda: foreword.push(prefix, **given)), ForewordError)
    assert isinstance(answer(lambda: foreword.push(value, "a/b")), ForewordError)


# -- models ------------------------------------------------------------------------------------------


@fuzz
@given(model=ODD, tokenizer=or_odd(None), name=or_odd(""))
def test_backbone(model: Any, tokenizer: Any, name: Any) -> None:
    assert isinstance(answer(lambda: Backbone(model, name=name)), ForewordError)
    answer(lambda: Backbone(tiny_model(num_hidden_layers=1), tokenizer, name=name))


@fuzz
@given(value=ODD)
def test_attach_and_detach(value: Any, prefix: Prefix) -> None:
    model = tiny_model()
    before = state(model)
    for attach in (foreword.attach, foreword.attach_trainable):
        found = answer(lambda attach=attach: attach(model, value))
        if not isinstance(found, ForewordError):
            foreword.detach(model)
        assert state(model) == before
        assert isinstance(answer(lambda attach=attach: attach(value, prefix)), ForewordError)
    assert isinstance(answer(lambda: foreword.detach(value)), ForewordError)


@fuzz
@given(text=or_odd("a text", [3, 4]), positions=or_odd(None, "offset"))
def test_capture_and_moved(text: Any, positions: Any, backbone: Backbone, prefix: Prefix) -> None:
    before = state(backbone.model)
    answer(lambda: backbone.capture(text, positions))
    answer(lambda: backbone.moved(prefix, positions))
    answer(lambda: backbone.check(text))
    assert state(backbone.model) == before


INPUTS = or_odd(["text"], [{"mr": "x"}], [{"mr": LONE}], [LONE], [{}], [{"mr": None}], [[]], [5])


@fuzz
@given(data=st.data())
def test_generate(data: st.DataObject, backbone: Backbone, prefix: Prefix) -> None:
    before = state(backbone.model)
    arguments = {
        "backbone": backbone,
        "inputs": data.draw(INPUTS),
        "prefix": prefix,
        "options": OPTIONS,
    }
    answer(lambda: foreword.generate(**arguments))
    which = data.draw(st.sampled_from([*arguments, "task"]))
    answer(lambda: foreword.generate(**{**arguments, which: data.draw(ODD)}))
    assert state(backbone.model) == before


HEAD_INPUTS = or_odd(
    ["text"],
    [LONE],
    ['{"question": "q", "context": "c"}'],
    [{"text": LONE, "tokens": [LONE], "question": "q", "context": LONE}],
    [{"text": 5, "tokens": "word", "question": 5, "context": None}],
    [{"text": "", "tokens": [], "question": "q", "context": " "}],
)


@fuzz
@given(data=st.data(), task=st.sampled_from(sorted(ROWS)))
def test_predict_and_features(
    data: st.DataObject, task: str, encoder: Backbone, headed: dict[str, Prefix]
) -> None:
    before = state(encoder.model)
    inputs, size = data.draw(HEAD_INPUTS), data.draw(or_odd(2))
    answer(lambda: foreword.predict(encoder, inputs, headed[task], batch_size=size))
    answer(lambda: foreword.predict(encoder, ["text"], data.draw(ODD)))
    answer(lambda: foreword.predict(data.draw(ODD), ["text"], headed[task]))
    answer(lambda: foreword.features(encoder, inputs, pooling=data.draw(or_odd(None))))
    answer(lambda: foreword.features(encoder, ["text"], data.draw(ODD), batch_size=size))
    assert state(encoder.model) == before


def changed(draw: st.DrawFn, rows: list[dict[str, Any]]) -> Any:
    """Rows of a task, one of them odd."""
    found: list[Any] = [dict(row) for row in rows]
    column = draw(st.sampled_from(sorted(rows[0])))
    found[1] = draw(st.one_of(st.just({**found[1], column: draw(ODD)}), ODD))
    return draw(st.one_of(st.just(found), ODD))


TEXT_ROWS = [{"mr": f"in {n}", "ref": f"out {n}"} for n in range(3)]


@fuzz
@given(data=st.data())
def test_train_and_evaluate_text(data: st.DataObject, backbone: Backbone, prefix: Prefix) -> None:
    before = state(backbone.model)
    rows = changed(data.draw, TEXT_ROWS)
    short = foreword.TrainSettings(prompt="{mr}", target="{ref}", length=2, steps=1)
    with scratch() as folder:
        answer(lambda: foreword.train(backbone, rows, short, folder=folder / "run"))
        answer(lambda: foreword.train(backbone, TEXT_ROWS, short, evaluation=rows))
    which = data.draw(st.sampled_from(["backbone", "settings", "folder", "store", "logs"]))
    given = {"backbone": backbone, "settings": short, which: data.draw(ODD)}
    assume(which not in ("folder", "logs") or not isinstance(given[which], str | Path))
    answer(lambda: foreword.train(data=TEXT_ROWS, **given))
    answer(lambda: foreword.evaluate(backbone, prefix, rows, options=OPTIONS, base=False))
    limit = data.draw(ODD)
    answer(lambda: foreword.evaluate(backbone, prefix, TEXT_ROWS, limit=limit, options=OPTIONS))
    assert state(backbone.model) == before


@fuzz
@given(data=st.data(), task=st.sampled_from(sorted(ROWS)))
def test_train_and_evaluate_labels(
    data: st.DataObject, task: str, encoder: Backbone, headed: dict[str, Prefix]
) -> None:
    before = state(encoder.model)
    rows = changed(data.draw, ROWS[task])
    short = foreword.TrainSettings(length=2, steps=1, task=task)
    answer(lambda: foreword.train(encoder, rows, short))
    answer(lambda: foreword.evaluate(encoder, headed[task], rows, base=False))
    assert state(encoder.model) == before


STARTS = st.one_of(PLAIN, st.lists(PLAIN, max_size=2))


@many
@given(answers=st.fixed_dictionaries({"text": STARTS, "answer_start": STARTS}))
def test_answers(answers: dict[str, Any], encoder: Backbone, headed: dict[str, Prefix]) -> None:
    rows = [{**ROWS["answer"][0], "answers": answers}]
    answer(lambda: foreword.evaluate(encoder, headed["answer"], rows, base=False))


# -- the command line --------------------------------------------------------------------------------

YAML = st.one_of(
    st.dictionaries(st.sampled_from(["length", "steps", "prompt", "nope"]), PLAIN).map(
        lambda fields: repr(fields).encode(errors="backslashreplace")
    ),
    damaged(b"length: 4\nsteps: 1\n"),
    st.sampled_from([b"- a\n- b\n", b"text", b"a: [", b"\t", b"a: !!python/object:os.system {}"]),
)


@fuzz
@given(content=YAML)
def test_settings_in_yaml(content: bytes) -> None:
    """Exit codes as `main` promises them, and never a traceback."""
    with scratch() as folder:
        (folder / "rows.jsonl").write_text('{"mr": "a", "ref": "b"}\n')
        (folder / "settings.yaml").write_bytes(content)
        before = contents(folder)
        code = main(
            [
                *("train", str(folder / "rows.jsonl"), "--name", "a", "--store", str(folder / "s")),
                *("--backbone", str(folder / "none"), "--config", str(folder / "settings.yaml")),
            ]
        )
        assert code in (1, 2)
        assert contents(folder) == before


@fuzz
@given(
    verb=st.sampled_from(["generate", "predict", "evaluate", "inspect", "remove", "push"]),
    data=st.data(),
)
def test_verbs_on_damaged_prefixes(verb: str, data: st.DataObject) -> None:
    with scratch() as folder:
        (folder / "a.safetensors").write_bytes(data.draw(damaged(GOLDEN)))
        name = data.draw(st.sampled_from(["a", "b", "../a", "a\x00", ""]))
        more = {"generate": ["x"], "predict": ["x"], "evaluate": ["rows.jsonl"], "push": ["a/b"]}
        code = main([verb, name, *more.get(verb, []), "--store", str(folder)])
        assert code in (0, 1, 2)


def test_answer_lets_other_errors_through() -> None:
    """This file would hold nothing if it swallowed them."""
    with pytest.raises(TypeError):
        answer(lambda: io.BytesIO(5))  # type: ignore[arg-type]
