"""Prompts for vLLM, which need no vLLM."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tokenizers import AddedToken

import foreword
from foreword.description import Piece
from foreword.engine.vllm import Named, OfflinePrefixes, engine_arguments, placeholder_of, prefixed
from foreword.engine.vllm import requests as vllm_requests
from foreword.errors import DataError, MismatchError, ServeError
from foreword.head import Head
from foreword.store import PrefixStore
from tests.conftest import byte_tokenizer
from tests.engine.vllm import tiny

DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return tiny.backbone()


@pytest.fixture
def store(tmp_path, backbone) -> PrefixStore:
    made = PrefixStore(tmp_path / "store")
    made.save("five", tiny.prefix(backbone, 5, 0))
    return made


def test_a_prompt_has_a_placeholder_for_each_virtual_token_and_names_its_prefix(store) -> None:
    outline = store.outline("five")
    made = prefixed([7, 8], 263, "five", outline)
    assert made.token_ids == (263,) * 5 + (7, 8)
    salt = f"foreword:{outline.digest}:"
    assert made.prompt == {"prompt_token_ids": [263] * 5 + [7, 8], "cache_salt": salt}
    named = {"prefix": {"name": "five", "digest": store.load("five").digest}}
    assert made.extra_args == {"kv_transfer_params": named}
    assert vllm_requests.named_in(named) == Named("five", outline.digest)


def test_a_prompt_without_a_prefix_is_the_text_alone() -> None:
    made = prefixed([7, 8], 263)
    assert made.prompt == {"prompt_token_ids": [7, 8]}
    assert made.extra_args is None
    assert vllm_requests.named_in(None) is None
    assert vllm_requests.named_in({"do_remote_prefill": True}) is None


def test_a_salt_is_of_one_prefix_and_tenant_and_of_no_text() -> None:
    named, other = Named("a", DIGEST), Named("a", "cd" * 32)
    salts = {named.salt(), named.salt("x"), other.salt("x"), None, "x"}
    assert len(salts) == 5
    assert named.salt(named.salt("x")) == named.salt("x")
    assert named.salt(other.salt("x")) not in (other.salt("x"), named.salt("x"))
    assert vllm_requests.foreign_salt("x") == "x"
    assert vllm_requests.foreign_salt(named.salt()) != named.salt()
    assert not str(vllm_requests.foreign_salt(named.salt())).startswith(vllm_requests.MARK)


@pytest.mark.parametrize(
    "params",
    [
        "five",
        {"name": "five"},
        {"name": "five", "digest": DIGEST[:-1]},
        {"name": "five", "digest": DIGEST.upper()},
        {"name": 5, "digest": DIGEST},
        {"name": "five", "digest": DIGEST, "path": "/"},
    ],
)
def test_params_of_another_form_are_refused(params) -> None:
    with pytest.raises(DataError, match="must be an object with the texts 'name' and 'digest'"):
        vllm_requests.named_in({"prefix": params})


def test_a_prompt_without_text_is_refused(store) -> None:
    with pytest.raises(DataError, match="at least one token behind its prefix"):
        prefixed([], 263, "five", store.outline("five"))


def test_prefixes_that_are_no_plain_cache_are_refused_by_name(store, backbone) -> None:
    prefix = store.load("five")
    head = Head("classify", ("a", "b"), "mean", torch.zeros(2, 64), torch.zeros(2))
    store.save("headed", prefix.with_head(head))
    store.save("gated", prefix.with_meta(softmax="own"))
    other = tuple(replace(site, stack="encoder") for site in prefix.sites)
    store.save("encoder", replace(prefix, sites=other))
    store.save("half", prefix.strength(0.5))
    store.save("beside", foreword.concat(prefix, prefix.strength(-1.5)))
    store.save("mixed", foreword.concat(prefix, prefix.strength(-0.5), combination="logits"))
    pieces = (Piece("", 3), Piece("mood=kind", 2))
    store.save("control", prefix.with_meta(pieces=pieces, combination="control"))
    for name, said in {
        "headed": "carries a head for 'classify'",
        "gated": "has a softmax of its own",
        "encoder": "site encoder.0 of this prefix is of stack 'encoder'",
        "half": "piece at strength 0.5, and vLLM's attention knows of none but 1; use Foreword's own",
        "beside": "piece at strength -1.5,",
        "mixed": r"combination of pieces \('logits'\), .* to all; use .* one of its pieces",
        "control": r"combination of pieces \('control'\), ",
    }.items():
        with pytest.raises(MismatchError, match=said):
            prefixed([7], 263, name, store.outline(name))


def test_pieces_at_full_strength_are_a_plain_cache(store) -> None:
    """Also what a selection leaves of a prefix with control."""
    five = store.load("five")
    pieces = (Piece("", 3), Piece("mood=kind", 1), Piece("mood=rude", 1))
    control = five.with_meta(pieces=pieces, combination="control")
    store.save("both", foreword.concat(five, five.strength(1.0), names=["a", "b"]))
    store.save("kind", control.select(mood="kind"))
    assert store.outline("both").meta.pieces
    for name, length in {"both": 10, "kind": 4}.items():
        assert prefixed([7], 263, name, store.outline(name)).token_ids == (263,) * length + (7,)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([9, 9, 7], "begins with 3 placeholders"),
        ([7, 9, 9, 9], "found 0"),
        ([9, 9], "found 2"),
        (None, "found 0"),
        ([9, 9, 9], "at least one token behind its prefix"),
    ],
)
def test_placeholders_are_checked(ids, said) -> None:
    vllm_requests.check_prompt([9, 9, 9, 7], 3, 9)
    vllm_requests.check_prompt([9, 9, 9, 9], 3, 9)  # text may have the token too
    with pytest.raises(DataError, match=said):
        vllm_requests.check_prompt(ids, 3, 9)


@pytest.mark.parametrize("ids", [[9], [9, 9, 7]])
def test_placeholders_that_name_no_prefix_are_no_text(ids) -> None:
    """VLLM's search by beams loses the name, and the placeholders were read as text."""
    for fine in ([7, 9], [], None):
        vllm_requests.check_text_alone(fine, 9)
    with pytest.raises(DataError, match="begins with the placeholder.*names? none"):
        vllm_requests.check_text_alone(ids, 9)


def test_a_row_without_a_token_stands_for_virtual_tokens() -> None:
    assert placeholder_of(byte_tokenizer(), 264) == 263


def test_else_a_token_that_texts_do_not_have_else_a_plain_one() -> None:
    """Reserved by its name, or special and no part of conversations."""
    tokenizer = byte_tokenizer()

    def chosen() -> str:
        return tokenizer.convert_ids_to_tokens(placeholder_of(tokenizer, len(tokenizer)))

    plain = chosen()
    assert tokenizer.convert_tokens_to_ids(plain) == len(tokenizer) - 1
    for name in ("<repo_name>", "<|im_end|>", "<|user|>"):
        tokenizer.add_tokens([AddedToken(name, special=True)])
    tokenizer.chat_template += "<|user|>"
    assert chosen() == "<repo_name>"
    tokenizer.add_tokens([AddedToken("<|reserved_3|>", special=True), "a reserved word"])
    assert chosen() == "<|reserved_3|>"


def test_a_placeholder_is_never_an_end_or_a_filling() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
    assert placeholder_of(tokenizer, len(tokenizer)) == len(tokenizer) - 2
    with pytest.raises(ServeError, match="none of 2 tokens can stand for virtual tokens"):
        placeholder_of(tokenizer, 2)


def test_arguments_of_the_engine_name_the_connector_and_the_store(tmp_path) -> None:
    made = engine_arguments(tmp_path, 263, resident=4, tokenizer="ab")
    transfer = made["kv_transfer_config"]
    assert transfer["kv_load_failure_policy"] == "fail"
    assert transfer["kv_role"] == "kv_consumer"
    extra = transfer["kv_connector_extra_config"]
    said = {"placeholder": 263, "resident": 4, "tokenizer": "ab"}
    assert extra == {"store": str(tmp_path), **said}
    with pytest.raises(ServeError, match="placeholder must be at least 0"):
        engine_arguments(tmp_path, -1)
    with pytest.raises(ServeError, match="resident must be at least 1"):
        engine_arguments(tmp_path, 1, resident=0)


@pytest.fixture
def offline(tmp_path, store, backbone) -> OfflinePrefixes:
    return OfflinePrefixes(store.folder, str(tiny.saved(backbone, tmp_path / "model")))


def test_the_helper_makes_the_prompts_that_foreword_makes(offline, store, backbone) -> None:
    recipe = {"prompt": "{mr} ->", "target": " {ref}"}
    store.save("trained", store.load("five").with_meta(recipe=recipe))
    made = offline.prompt("trained", "name[Zizzi]", tenant="me")
    ids = backbone.tokens("name[Zizzi] ->")
    assert list(made.token_ids) == [263] * 5 + ids
    assert str(made.salt).endswith(":me")
    assert offline.prompt("trained", {"mr": "x"}).token_ids[5:] == tuple(backbone.tokens("x ->"))
    assert list(offline.prompt(None, "as it is").token_ids) == backbone.tokens("as it is")
    assert offline.context == 512
    assert "max_model_len" not in offline.engine_arguments()
    short = OfflinePrefixes(store.folder, offline.tokenizer.name_or_path, context=64)
    assert short.engine_arguments()["max_model_len"] == 64
    with pytest.raises(DataError, match="leave no room for a prompt in a context of 507"):
        offline.prompt("trained", "name", new=508)


def test_the_helper_refuses_a_prefix_of_another_tokenizer(offline, store) -> None:
    store.save("other", store.load("five").with_meta(tokenizer="ab" * 8))
    with pytest.raises(MismatchError, match="made with another tokenizer .*'tiny'"):
        offline.prompt("other", "a")
    store.save("unsaid", store.load("five").with_meta(tokenizer=""))
    assert offline.prompt("unsaid", "a").prefix


class Parameters:
    """Stands for vLLM's SamplingParams."""

    max_tokens = 4
    extra_args: dict | None = None
    prompt_logprobs: int | None = None
    ignore_eos = False
    stop_token_ids = (7,)
    stop = ("END",)
    detokenize = True

    def __post_init__(self) -> None:
        """As vLLM's, makes more of what was given."""
        self.all_ends = {*self.stop_token_ids}


class Scripted:
    """Stands for vLLM: answers with what it was given."""

    def generate(self, prompts, parameters, use_tqdm) -> list:
        pairs = zip(prompts, parameters, strict=True)
        return [SimpleNamespace(prompt=one, own=own, outputs=[]) for one, own in pairs]


def test_the_helper_gives_each_request_parameters_of_its_own(offline) -> None:
    sampling = Parameters()
    sampling.extra_args = {"own": 1}
    first, second = offline.generate(Scripted(), [("five", "a"), (None, "a")], sampling)
    sizes = [len(one.prompt["prompt_token_ids"]) for one in (first, second)]
    assert sizes[0] == sizes[1] + 5
    assert first.own.extra_args.keys() == {"own", "kv_transfer_params"}
    assert second.own.extra_args == {"own": 1} == sampling.extra_args
    sampling.prompt_logprobs = 1
    assert offline.generate(Scripted(), [(None, "a")], sampling)
    with pytest.raises(DataError, match="prompt_logprobs under a prefix"):
        offline.generate(Scripted(), [("five", "a")], sampling)
    with pytest.raises(DataError, match="an input must be a pair"):
        offline.generate(Scripted(), ["a"], Parameters())


def test_the_plugin_costs_a_process_of_vllm_nothing() -> None:
    """It is imported in every one, whether a connector of ours is used or not."""
    code = (
        "import sys, foreword.engine.vllm.plugin; "
        "assert not {'torch', 'transformers', 'vllm'} & set(sys.modules), 'too much'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
