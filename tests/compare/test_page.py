"""The page of a comparison: its order, its figures, and that nothing on it is more than text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from foreword.compare.page import page_of
from foreword.compare.result import Comparison, Latency, Metric, Seed, Side, Tried
from tests.compare.example import EXAMPLE, FROZEN, FULL, LORA, PREFIX
from tests.compare.reading import DASH, SVG, Page

EVIL = """<img src=x onerror="alert('1')">&amp;</td></svg></style><script>"""


def with_sides(*sides: Side) -> Comparison:
    return replace(EXAMPLE, sides=sides)


def scaled(side: Side, factor: float) -> Side:
    """A side whose measured figures are all so many times as large."""

    def times(latency: Latency | None) -> Latency | None:
        if latency is None:
            return None
        parts = (latency.prefill, latency.decode)
        return Latency(*({rows: factor * one for rows, one in part.items()} for part in parts))

    seeds = tuple(
        replace(
            seed,
            figures={name: factor * one for name, one in seed.figures.items()},
            forgotten={name: factor * one for name, one in seed.forgotten.items()},
            seconds=factor * seed.seconds,
            peak_bytes=seed.peak_bytes and max(1, int(factor * seed.peak_bytes)),
            history=tuple((step, factor * loss) for step, loss in seed.history),
        )
        for seed in side.seeds
    )
    trained = side.trained and max(1, int(factor * side.trained))
    latency, merged = times(side.latency), times(side.merged)
    return replace(side, seeds=seeds, trained=trained, latency=latency, merged=merged)


def seeded(side: Side, **changed: Any) -> Side:
    """A side all of whose seeds have other values."""
    return replace(side, seeds=tuple(replace(seed, **changed) for seed in side.seeds))


LOWER = replace(EXAMPLE, metric=Metric("nll", "NLL", higher=False, form="{:.3f}"))
CASES = {
    "example": EXAMPLE,
    "lower is better": LOWER,
    "one method": with_sides(PREFIX),
    "one seed": with_sides(replace(PREFIX, seeds=PREFIX.seeds[:1])),
    "all failed": with_sides(FULL, replace(LORA, failed="no memory")),
    "nothing trained": with_sides(FROZEN),
    "no methods": with_sides(),
    "huge": with_sides(scaled(PREFIX, 1e12), scaled(LORA, 1e9), FROZEN),
    "tiny": with_sides(scaled(PREFIX, 1e-12), scaled(LORA, 1e-9), FROZEN),
    "zero": with_sides(scaled(PREFIX, 0.0), LORA),
    "negative": with_sides(seeded(PREFIX, figures={"bleu": -3.0, "nll": -1.0}), LORA),
    "not a number": with_sides(
        seeded(PREFIX, figures={"bleu": float("nan")}, history=((1, float("nan")),)), LORA
    ),
    "many": with_sides(*(replace(PREFIX, label=f"prefix {size}") for size in range(20)), FROZEN),
    "bare": Comparison({}, {}, "", Metric("bleu", "BLEU", higher=True), 1, (Side("x", "X"),)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_page_is_whole_and_asks_nothing_of_any_other_place(name: str) -> None:
    text = page_of(CASES[name])
    page = Page(text)
    rest = text.replace("http://www.w3.org/2000/svg", "")
    for reference in ("http:", "https:", "//", "src=", "url(", "@import", "<script", "javascript"):
        assert reference not in rest
    assert [given["href"] for _, given in page.elements if "href" in given] == ["data:,"]
    for picture in page.pictures.values():
        title, description = picture[0], picture[1]
        assert (title.tag, description.tag) == (f"{SVG}title", f"{SVG}desc")
        assert title.text
        assert description.text
        assert picture.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        numbers = re.findall(
            r"nan|inf", " ".join(" ".join(one.attrib.values()) for one in picture.iter())
        )
        assert numbers == []


@pytest.mark.parametrize("name", CASES)
def test_every_row_of_the_main_table_is_as_wide_as_its_headings(name: str) -> None:
    above, below, *rows = Page(page_of(CASES[name])).results.rows
    wide = sum(cell.span for cell in above)
    assert wide == 1 + len(below)
    assert {sum(cell.span for cell in row) for row in rows} <= {wide}
    assert {cell.given.get("scope") for cell in above} == {"col", "colgroup"}
    assert {cell.given.get("scope") for cell in below} == {"col"}
    assert {(row[0].tag, row[0].given.get("scope")) for row in rows} <= {("th", "row")}


def test_headings_come_in_order() -> None:
    headings = Page(page_of(EXAMPLE)).headings
    assert headings[0] == ("h1", "smollm2-135m-instruct on rows.jsonl")
    assert [text for tag, text in headings if tag == "h2"] == [
        "Verdict",
        "What was compared",
        "Results",
        "Quality, cost and learning",
        "Latency",
        "What is said, and what was measured",
        "Search for the learning rate",
        "What was equal",
        "What could not be",
        "Commands",
    ]


def test_what_is_not_known_has_no_heading() -> None:
    headings = [text for tag, text in Page(page_of(CASES["bare"])).headings if tag == "h2"]
    assert headings == ["What was compared", "Results", "Quality, cost and learning", "Latency"]


def test_the_facts_are_there() -> None:
    text = Page(page_of(EXAMPLE)).text
    for fact in (
        "smollm2-135m-instruct (llama, decoder, bfloat16, 134,515,008 parameters)",
        "rows.jsonl (400 to train on, 40 held out, 43 to test on)",
        "at most 190,000 trained parameters (0.141% of the backbone)",
        "2 cores with AVX2",
        "2026-11-30",
        "Foreword 0.0",
        "foreword compare rows.jsonl --prompt '{mr} ->' --target ' {ref}'",
        *EXAMPLE.verdict,
    ):
        assert fact in text
    assert "no limit to what a method trains" in Page(page_of(replace(EXAMPLE, budget=None))).text


def test_a_method_has_all_its_figures() -> None:
    """Shares, sizes and percentages worked out by hand from the example."""
    above, below, *rows = Page(page_of(EXAMPLE)).results.texts
    assert above == [
        *("Method", "Trained", "Test rows", "Forgotten", "Training", "Prefill", "Decode", "Takes"),
        "What it can do",
    ]
    by_name = {row[0].split()[-1]: row[1:] for row in rows}
    expected = {
        "parameters": "189,000",
        "of the backbone": "0.141%",
        "BLEU": "37.5 ± 1.0",
        "NLL": "1.300 ± 0.020",
        "text": "+0.020 ± 0.000",
        "instructions": "+0.010 ± 0.000",
        "seconds": "35",
        "tokens/s": "1,350",
        "peak memory": DASH,
        "one task, stored": "756 kB",
        "100 tasks, in memory": "367 MB",
        "shares a batch": "no",
        "merges": "yes",
        "composes": "yes",
        "switches off": "yes",
    }
    lora = by_name["lora"]
    assert {head: lora[below.index(head)] for head in expected} == expected
    assert [cell for head, cell in zip(below, lora, strict=True) if "row" in head] == [
        "1.25 (1.00)",
        "1.12 (1.00)",
        "1.35 (1.00)",
        "1.20 (1.00)",
    ]
    prefix = by_name["prefix"]
    assert prefix[below.index("peak memory")] == "944 MB"
    assert prefix[below.index("1 row")] == "1.08"


def test_what_is_not_trained_has_no_figures_of_training() -> None:
    (row,) = Page(page_of(with_sides(replace(FROZEN, traits=None)))).results.texts[2:]
    assert row == [
        *("the frozen model, asked frozen", "0", "0%", "4.2", "3.250", DASH, DASH, DASH),
        *("1.00", "1.00", "1.00", "1.00", "0 B", "283 MB", DASH, DASH, DASH, DASH),
    ]


def order(comparison: Comparison) -> list[str]:
    return [row[0].split()[-1] for row in Page(page_of(comparison)).results.texts[2:]]


def test_rows_are_sorted_by_what_decides_and_failed_ones_are_last() -> None:
    bare = replace(PREFIX, name="unmeasured", seeds=())
    sides = (FULL, bare, FROZEN, PREFIX, LORA)
    assert order(with_sides(*sides)) == ["lora", "prefix", "frozen", "unmeasured", "full"]
    errors = replace(EXAMPLE.metric, higher=False)
    assert order(replace(EXAMPLE, metric=errors, sides=sides)) == [
        *("frozen", "prefix", "lora", "unmeasured", "full")
    ]


def test_a_failed_method_has_its_reason_in_place_of_figures() -> None:
    row = Page(page_of(EXAMPLE)).results.texts[-1]
    assert row == [
        *("full fine-tuning full", "134,515,008", "100%"),
        "failed: out of memory <at 2 GB> & more",
    ]


def test_nll_that_decides_is_there_once() -> None:
    below = Page(page_of(LOWER)).results.texts[1]
    assert below.count("NLL") == 1
    assert "BLEU" not in below
    assert "Sorted by NLL, lower is better." in Page(page_of(LOWER)).text


def test_one_seed_has_no_deviation() -> None:
    page = Page(page_of(CASES["one seed"]))
    assert "±" not in page.text
    assert "36.0" in page.results.texts[2]


def test_what_is_said_stands_beside_what_was_measured() -> None:
    html = page_of(EXAMPLE)
    section = html[html.index("What is said, and what was measured") :]
    rows = re.findall(r"<tr>(.*?)</tr>", section[: section.index("</table>")])[1:]
    cells = [re.sub(r"<[^>]+>", "|", row).replace("||", "|").strip("|").split("|") for row in rows]
    assert cells == [
        [PREFIX.label, "0.1 to 3%", "0.137%", "5 to 15%", "5 to 8%", "4 to 6%"],
        [LORA.label, "0.01 to 1%", "0.141%", "under 1%, merged", "0%", "0%"],
    ]
    assert "What is said" not in page_of(with_sides(FROZEN))


def test_a_variant_of_a_method_is_said_the_same_of() -> None:
    varied = replace(LORA, name="lora+targets=attention", merged=None)
    (row,) = re.findall(r"under 1%, merged</td>(.*?)</tr>", page_of(with_sides(varied)))
    assert row == f"<td>{DASH}</td><td>{DASH}</td>"


def test_searches_say_what_was_chosen_and_what_is_doubtful() -> None:
    page = Page(page_of(EXAMPLE))
    searches = [table.texts for table in page.tables if table.texts[0][0] == "Optimiser"]
    assert searches[0][1:] == [
        ["adamw", "0.015", "1.440", ""],
        ["adamw", "0.03", "1.400", ""],
        ["adamw", "0.06", "1.420", ""],
        ["soap", "0.03", "1.350", ""],
        ["soap", "0.06", "1.310", "chosen"],
        ["soap", "0.12", "1.360", ""],
    ]
    assert searches[1][1:] == [
        ["adamw", "0.002", "1.330", ""],
        ["adamw", "0.004", "1.290", "chosen"],
        ["adamw", "0.008", DASH, ""],
    ]
    assert page.text.count("not between two that are worse") == 1
    assert "not between" not in Page(page_of(with_sides(PREFIX))).text


def test_every_command_is_there_under_its_name() -> None:
    page = Page(page_of(EXAMPLE))
    (found,) = [table for table in page.tables if table.given.get("class") == "commands"]
    assert found.texts == [
        *([f"Seed {seed.seed}", seed.command] for seed in PREFIX.seeds),
        ["Search, soap 0.06", "foreword compare rows.jsonl --only 'prefix soap 0.06 seed 0'"],
    ]


def test_a_plot_names_those_that_are_not_in_it() -> None:
    text = Page(page_of(EXAMPLE)).text
    assert "Not known for: LoRA, all linear layers, rank 2; full fine-tuning." in text
    assert "Not known for" not in Page(page_of(with_sides(PREFIX, FROZEN))).text


def of_side(**changed: Any) -> Callable[[str], Comparison]:
    """The example with texts of its first side replaced."""
    return lambda evil: with_sides(
        replace(PREFIX, **{name: made(evil) for name, made in changed.items()}), LORA
    )


def of_all(name: str, made: Callable[[str], Any] = str) -> Callable[[str], Comparison]:
    """The example with a text of its own replaced."""
    return lambda evil: replace(EXAMPLE, **{name: made(evil)})


TEXTS: dict[str, Callable[[str], Comparison]] = {
    **{name: of_all(name) for name in ("task", "machine", "made", "version", "command")},
    **{name: of_all(name, lambda evil: (evil,)) for name in ("equal", "unequal", "verdict")},
    **{
        f"backbone {key}": lambda evil, key=key: replace(
            EXAMPLE, backbone={**EXAMPLE.backbone, key: evil}
        )
        for key in EXAMPLE.backbone
    },
    **{
        f"data {key}": lambda evil, key=key: replace(EXAMPLE, data={**EXAMPLE.data, key: evil})
        for key in EXAMPLE.data
    },
    "metric": of_all("metric", lambda evil: Metric("bleu", evil, higher=True)),
    "form": of_all("metric", lambda evil: Metric("bleu", "BLEU", higher=True, form=evil)),
    "side name": of_side(name=str),
    "label": of_side(label=str),
    "failed": of_side(failed=str),
    "setting": of_side(settings=lambda evil: {"length": evil}),
    "name of a setting": of_side(settings=lambda evil: {evil: 1}),
    "optimiser": of_side(search=lambda evil: (Tried(evil, 0.1, 1.0, "run"),)),
    "command of a rate": of_side(search=lambda evil: (Tried("soap", 0.1, 1.0, evil),)),
    "command of a seed": of_side(seeds=lambda evil: (Seed(0, 1.0, {"bleu": 3.0}, command=evil),)),
    "neutral set": of_side(seeds=lambda evil: (Seed(0, 1.0, {"bleu": 3.0}, {evil: 0.1}),)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_text_is_text_and_no_markup(name: str) -> None:
    text = page_of(TEXTS[name](EVIL))
    assert "<img" not in text
    assert "<script" not in text
    assert EVIL in Page(text).text
    plain = {tag for tag, _ in Page(page_of(TEXTS[name]("plain"))).elements}
    assert {tag for tag, _ in Page(text).elements} == plain


def test_the_list_of_texts_is_whole() -> None:
    """A new field of text is tried above as well; `optimizer` and the metric's name are not shown."""
    fields = [
        f"{one.__name__}.{field.name}"
        for one in (Comparison, Side, Seed, Tried, Metric)
        for field in dataclasses.fields(one)
        if "str" in str(field.type)
    ]
    assert fields == [
        *("Comparison.backbone", "Comparison.data", "Comparison.task", "Comparison.machine"),
        *("Comparison.made", "Comparison.version", "Comparison.command", "Comparison.equal"),
        *("Comparison.unequal", "Comparison.verdict", "Side.name", "Side.label", "Side.settings"),
        *("Side.optimizer", "Side.failed", "Seed.figures", "Seed.forgotten", "Seed.command"),
        *("Tried.optimizer", "Tried.command", "Metric.name", "Metric.label", "Metric.form"),
    ]


def test_control_characters_and_halves_of_characters_are_spelled_out() -> None:
    """XML has none of them, in whatever way they are escaped, and UTF-8 no halves."""
    label = "a\x00b\x1b[31m\ud800\uffff"
    text = page_of(with_sides(replace(PREFIX, label=label)))
    text.encode()
    assert "a\\x00b\\x1b[31m\\ud800\\uffff" in Page(text).text


def test_a_page_is_light_or_dark_as_the_reader_has_it_and_fit_for_paper() -> None:
    text = page_of(EXAMPLE)
    colours = set(re.findall(r"(--\w+): #", text.partition("@media")[0]))
    dark = set(re.findall(r"(--\w+): #", text.partition("dark) {")[2].partition("* {")[0]))
    assert colours == dark
    assert len(colours) > 8
    assert set(re.findall(r"var\((--\w+)\)", text)) - {"--own"} <= colours
    assert "@media print" in text
