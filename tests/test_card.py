"""The model card: parsed by the Hub's own reader, rendered by a Markdown parser, fed hostile values."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from foreword.card import MOST, base_model, card, code
from foreword.data import Report
from foreword.errors import HubError
from foreword.evaluate.run import Evaluation, Metrics
from foreword.evaluate.scores import Scores, scores_of
from foreword.prefix import Piece, Prefix, PrefixMeta, Site

HOSTILE = (
    "`` ` ```\n\n# Owned\n\n<script>alert(1)</script>\n[x](javascript:alert(1)) ![i](http://e/i.png)\n"
    "---\nlicense: mit\n---\n| a | b |\n\u202etxet\u2028\x1b[31m\\` \U000e0001"
)


def made(**meta: object) -> Prefix:
    """A prefix of three virtual tokens at one site."""
    site = Site("attn", "decoder", 0, kv_heads=1, key_dim=2, value_dim=4)
    return Prefix((site,), (torch.ones(1, 3, 2),), (torch.ones(1, 3, 4),), PrefixMeta(**meta))


TRAINED = made(
    backbone="smollm2-135m-instruct",
    family="llama",
    fingerprint="f" * 64,
    tokenizer="e" * 64,
    bos="input",
    recipe={"method": "prefix", "prompt": "{mr} ->", "target": " {ref}", "lr": 0.03, "seed": None},
    training={
        "data": "d" * 64,
        "rows": 480,
        "steps": 120,
        "seconds": 131.5,
        "final_loss": 1.25,
        "backbone_parameters": 1800,
    },
    parents=("a" * 64,),
)


def scores(prefix: Prefix, **changes: object) -> Scores:
    ours = Metrics(1.5, 4.4817, 61.0, 50.25, 40.0, 55.5, 3.0, 12.0)
    theirs = dataclasses.replace(ours, nll=2.963, bleu=4.0)
    found = Evaluation(
        ours, theirs, 80, 6, 1915, Report(80, 0, 0), [], [], [], [],
        data="foreword/e2e:heldout", digest=prefix.digest,
    )  # fmt: skip
    return scores_of({**found.as_json(), **changes}, prefix)


def test_the_hub_reads_the_metadata() -> None:
    found = ModelCard(card(TRAINED, "me/food", license="apache-2.0", scores=scores(TRAINED)))
    data = found.data
    assert data.library_name == "foreword"
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert data.tags == ["foreword", "prefix-tuning"]
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == "text-generation"
    assert data.model_name == "food"
    values = {one.metric_type: one.metric_value for one in data.eval_results}
    expected = {"loss": 1.5, "bleu": 50.25, "chrf": 40.0, "rouge": 55.5, "exact_match": 3.0}
    assert values == expected
    assert {one.dataset_type for one in data.eval_results} == {"foreword/e2e"}
    assert {one.dataset_name for one in data.eval_results} == {"foreword/e2e:heldout"}


def test_what_is_unknown_is_left_out() -> None:
    prefix = made(backbone="/home/somebody/model")
    found = ModelCard(card(prefix, "me/food"))
    assert found.data.license is None
    assert found.data.base_model is None
    assert found.data.eval_results is None
    assert "base_model_relation" not in found.data.to_dict()
    assert found.text.count("The file does not say.") == 2
    assert "Figures" not in found.text
    assert "revision" not in re.sub(r"```.*?```", "", found.text, flags=re.DOTALL)


def test_the_text_says_everything() -> None:
    text = ModelCard(card(TRAINED, "me/food", scores=scores(TRAINED))).text
    for wanted in (
        "$ foreword pull me/food",
        'foreword.pull("me/food")',
        "A prefix of 3 virtual tokens",
        "18 = 3 x 1 sites x 1 key/value heads x (2 + 4); 1.000% of the backbone's 1,800",
        "free: the prefix takes no positions",
        "visible: sliding windows never drop",
        "input: inputs add their own BOS",
        '`prompt`: `"{mr} ->"`',
        '`target`: `" {ref}"`',
        "`lr`: `0.03`",
        "`steps`: `120`",
        "`seconds`: `131.5`",
        "`final_loss`: `1.25`",
        f"- prefix: `{TRAINED.digest}`",
        f"- weights of the backbone: `{'f' * 64}`",
        f"- tokenizer: `{'e' * 64}`",
        f"- training data: `{'d' * 64}`",
        f"- made from: `{'a' * 64}`",
        "On 6 inputs and 80 rows of `foreword/e2e:heldout`.",
        "| NLL per target token | 2.9630 | 1.5000 |",
        "| BLEU | 4.0 | 50.2 |",
    ):
        assert wanted in text
    assert "`seed`" not in text
    alone = card(TRAINED, "me/food", scores=scores(TRAINED, base=None, data=""))
    assert "| BLEU | 50.2 |" in alone
    assert "On 6 inputs and 80 rows.\n" in alone
    assert "other weights" not in alone
    assert "other weights" in card(
        TRAINED, "me/food", scores=scores(TRAINED, same_weights=False, data="C:\\me\\rows.jsonl")
    )


def rendered(text: str) -> tuple[set[str], list[str], list[str]]:
    """Kinds of tokens, texts of headings, and code spans, as CommonMark with tables has them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds, headings, spans = set(), [], []
    for index, token in enumerate(tokens):
        kinds.add(token.type)
        if token.type == "heading_open":
            headings.append(tokens[index + 1].content)
        for child in token.children or ():
            kinds.add(child.type)
            if child.type == "code_inline":
                spans.append(child.content)
    return kinds, headings, spans


def test_hostile_values_stay_in_their_code_spans(tmp_path: Path) -> None:
    prefix = made(
        backbone=HOSTILE,
        family=HOSTILE,
        revision=HOSTILE,
        fingerprint=HOSTILE,
        tokenizer=HOSTILE,
        recipe={HOSTILE: HOSTILE, "prompt": HOSTILE, "deep": {HOSTILE: [HOSTILE]}, "e": ""},
        training={"data": HOSTILE, HOSTILE: 1, "long": "x" * 9999, "backbone_parameters": HOSTILE},
        parents=(HOSTILE, ""),
    )
    text = card(
        prefix, "me/food", scores=scores(prefix, data=HOSTILE, backbone=HOSTILE, prompts=[HOSTILE])
    )
    tame = card(made(recipe={"prompt": ""}), "me/food", scores=scores(made(recipe={"prompt": ""})))
    kinds, headings, spans = rendered(text.split("\n---\n", 1)[1])
    usual, usual_headings, _ = rendered(tame.split("\n---\n", 1)[1])
    assert kinds <= usual
    assert {"html_inline", "html_block", "link_open", "image", "hr"}.isdisjoint(kinds)
    assert headings == usual_headings
    assert sum("Owned" in span for span in spans) >= 10
    assert text.count("Owned") == sum(span.count("Owned") for span in spans) + text.split(
        "\n---\n", 1
    )[0].count("Owned")
    assert all(c.isprintable() or c == "\n" for c in text)
    assert max(map(len, spans)) <= MOST + 10
    data = ModelCard(text).data
    assert data.license is None
    assert data.base_model is None
    block = text.split("---\n")[1]
    assert set(yaml.safe_load(block)) == {"library_name", "pipeline_tag", "tags", "model-index"}


def test_pieces_are_named_in_a_code_span() -> None:
    assert "pieces" not in card(made(), "me/food")
    text = card(made(pieces=(Piece("a `b`", 1), Piece("", 2, 0.5))), "me/food")
    words = "a `b` (1 x 1), no name (2 x 0.5): all in front of the text, each at its strength"
    assert f"- pieces: {code(words)}\n" in text


def test_a_span_that_could_be_ended_would_be_noticed() -> None:
    """The control of the test above: the same parser sees what a plain span lets out."""
    kinds, _, _ = rendered(f"- backbone: `{HOSTILE}`\n")
    assert {"html_block", "heading_open"} & kinds


def test_code_spans() -> None:
    assert code("plain") == "`plain`"
    assert code("") == "`(empty)`"
    assert code(" ") == "`(empty)`"
    assert code({"a": [1, None]}) == '`{"a": [1, null]}`'
    assert code("a`b\n") == "`a\\u0060b\\u000a`"
    assert code("\U000e0001") == "`\\udb40\\udc01`"
    assert len(code("y" * 5000)) == MOST + 2
    assert code("é 好 |") == "`é 好 |`"


@pytest.mark.parametrize(
    ("backbone", "found"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/home/me/model", None),
        ("./model", None),
        ("models/mine", None),
        ("", None),
        ("a/b\nlicense: mit", None),
    ],
)
def test_only_names_on_the_hub_are_base_models(
    backbone: str, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    assert base_model(made(backbone=backbone)) == found


def test_names_are_checked() -> None:
    with pytest.raises(HubError, match="OWNER/NAME"):
        card(TRAINED, "food")
    for license in ("MIT", "mit\ntags: x", ""):
        with pytest.raises(HubError, match="not a licence"):
            card(TRAINED, "me/food", license=license)
