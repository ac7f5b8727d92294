"""Attributes on the command line: trained, inspected, generated and evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import foreword
from foreword.cli.main import main
from foreword.data import read_rows
from foreword.store import PrefixStore
from tests.cli.test_main import F32, place, train

__all__ = ["place"]  # fixtures


@pytest.fixture
def shipped(place: Path) -> list[dict[str, str]]:
    """Rows of E2E as a file with a column for the price range that they say; the first says none."""
    rows = []
    for row in read_rows("foreword/e2e:heldout")[::14]:
        price = row["mr"].partition("priceRange[")[2].partition("]")[0]
        rows.append({"mr": row["mr"], "ref": row["ref"][:30], "price": price})
    lines = ["mr\tref\tprice", *("\t".join(row.values()) for row in rows)]
    (place / "e2e.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return rows


def test_from_a_column_of_values_to_text(
    shipped: list[dict[str, str]], place: Path, call, recwarn: pytest.WarningsRecorder
) -> None:
    assert not shipped[0]["price"]
    flags = ["--attributes", "price", "--attribute-length", "2"]
    code, out, err = call(*train(*flags, data="e2e.tsv"))
    assert code == 0, err
    prefix = PrefixStore().load("food")
    prices = tuple(sorted({row["price"] for row in shipped} - {""}))
    assert len(prices) > 2
    assert prefix.attributes == {"price": prices}
    assert [piece.length for piece in prefix.meta.pieces] == [5, *[2] * len(prices)]
    assert f"attributes price ({', '.join(prices)})" in err

    code, out, _ = call("inspect", "food")
    assert f"attributes    price: {', '.join(prices)}\n" in out

    (place / "ask.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in shipped[::9]), encoding="utf-8"
    )
    code, out, _ = call(
        "generate", "food", *F32, "--input", "ask.jsonl", "--max-new-tokens", "4", "--json"
    )
    backbone = foreword.load(str(place / "tiny-model"), dtype="float32")
    options = foreword.GenerateOptions(max_new_tokens=4)
    wanted = []
    for row in shipped[::9]:
        values = {"price": row["price"]} if row["price"] else {}
        wanted += foreword.generate(backbone, [row], prefix.select(values), options)
    assert [json.loads(line)["outputs"] for line in out.splitlines()] == wanted

    code, out, _ = call(
        "evaluate", "food", "ask.jsonl", *F32, "--max-new-tokens", "4", "--no-base", "--json"
    )
    found = foreword.evaluate(backbone, prefix, shipped[::9], options=options, base=False)
    assert json.loads(out)["prefix"]["nll"] == pytest.approx(found.prefix.nll, rel=1e-5)
    assert [[text] for text in found.outputs] == wanted

    said = json.dumps({"mr": shipped[0]["mr"], "price": "free"})
    code, out, err = call("generate", "food", *F32, said, "--max-new-tokens", "4")
    shared = foreword.generate(backbone, [shipped[0]["mr"]], prefix, options)
    assert (code, out) == (0, shared[0][0] + "\n")
    assert "not for 'free'" in " ".join(err.split())


def test_a_wrong_column_is_refused_before_the_backbone_is_loaded(
    shipped: list[dict[str, str]], place: Path, call
) -> None:
    code, _, err = call(*train("--attributes", "prize", data="e2e.tsv", backbone="no-model"))
    said = " ".join(err.split())
    assert code == 1
    assert "no row has a value of the attribute 'prize'; the columns are: mr, ref, price" in said
    assert "did you mean 'price'?" in said
    assert main(["train", "e2e.tsv", "--name", "a", "--attribute-length", "2"]) == 1
