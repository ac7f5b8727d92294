"""Pictures: points, bars and curves are where a calculation by hand puts them."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from foreword.compare.bars import latency_plot
from foreword.compare.curves import curve, curves_plot
from foreword.compare.drawing import series_of
from foreword.compare.figures import Spread
from foreword.compare.markup import Markup
from foreword.compare.plots import COSTS, quality_plot
from foreword.compare.result import Comparison, Latency, Seed, Side
from tests.compare.example import EXAMPLE, FROZEN, FULL, LORA, PREFIX
from tests.compare.reading import SVG, TIMES, markers, paths, words

PARAMETERS, SECONDS, MEMORY = COSTS


def read(plot: Markup | None) -> Element:
    assert plot is not None
    return ElementTree.fromstring(plot)


def with_sides(*sides: Side) -> Comparison:
    return replace(EXAMPLE, sides=sides)


def test_points_are_where_they_should_be() -> None:
    """By hand: 36 to 38.5 with 8% of that beyond is 35.8 to 38.7, from 274 up to 34.

    Numbers like 38.5 take 40.8 at the left. Both sizes are nearly equal, so the axis is a factor of
    4 times 4^0.16 long with them in its middle, (40.8 + 448) / 2 = 244.4; they are
    407.2 * log(189000 / 184320) / log(4^1.16) = 6.35 apart.
    """
    picture = read(quality_plot(EXAMPLE, PARAMETERS, "plot"))
    prefix, lora = markers(picture)
    assert prefix == (pytest.approx(244.4 - 3.17, abs=0.1), pytest.approx(174.7, abs=0.1))
    assert lora == (pytest.approx(244.4 + 3.17, abs=0.1), pytest.approx(133.3, abs=0.1))
    assert {"prefix tuning", "LoRA", "Trained parameters"} <= set(words(picture))


def test_error_bars_reach_a_deviation_to_both_sides() -> None:
    """38 and 36 on the axis of 35.8 to 38.7: 91.9 and 257.4."""
    bars = paths(read(quality_plot(EXAMPLE, PARAMETERS, "plot")), "error")
    assert bars == ["M241.2 257.4L241.2 91.9", "M247.6 216.1L247.6 50.6"]
    single = replace(PREFIX, seeds=PREFIX.seeds[:1])
    assert paths(read(quality_plot(with_sides(single), PARAMETERS, "plot")), "error") == []


def test_a_cost_that_differs_between_seeds_has_error_bars_too() -> None:
    """29.5, 31.5 and 33.5 seconds on an axis from 0 to 33.5 and 8%."""
    seeds = tuple(replace(seed, seconds=29.5 + 2 * seed.seed) for seed in PREFIX.seeds)
    picture = read(quality_plot(with_sides(replace(PREFIX, seeds=seeds)), SECONDS, "plot"))
    ((x, y),) = markers(picture)
    left = float(paths(picture, "grid")[0].split()[0][1:])
    scale = (448 - left) / (33.5 * 1.08)
    assert x == pytest.approx(left + 31.5 * scale, abs=0.1)
    across = paths(picture, "error")[1]
    ends = [float(number) for number in re.findall(r"[\d.]+", across)]
    assert ends == pytest.approx([left + 29.5 * scale, y, left + 33.5 * scale, y], abs=0.11)


def test_sizes_far_apart_are_on_a_logarithmic_axis() -> None:
    """A thousand times as many is as far as three powers of ten."""
    sides = [replace(PREFIX, trained=10**power, label=f"p{power}") for power in (3, 4, 6)]
    small, middle, large = markers(read(quality_plot(with_sides(*sides), PARAMETERS, "plot")))
    assert (large[0] - small[0]) / (middle[0] - small[0]) == pytest.approx(3, abs=0.01)
    assert {"1K", "10K", "100K", "1M"} <= set(
        words(read(quality_plot(with_sides(*sides), PARAMETERS, "plot")))
    )


@pytest.mark.parametrize(
    ("bleu", "height", "said"),
    [
        (36.5, 216.1, "the frozen model 36.5"),
        (4.2, 274.0, "the frozen model 4.2 (below the scale)"),
        (99.0, 34.0, "the frozen model 99.0 (above the scale)"),
    ],
)
def test_what_is_not_trained_is_a_line(bleu: float, height: float, said: str) -> None:
    frozen = replace(FROZEN, seeds=(Seed(0, 1.0, {"bleu": bleu}),))
    picture = read(quality_plot(with_sides(PREFIX, LORA, frozen), PARAMETERS, "plot"))
    assert paths(picture, "reference") == [f"M40.8 {height}L448.0 {height}"]
    assert said in words(picture)
    assert len(markers(picture)) == 2


def test_a_line_near_the_points_makes_the_axis_longer() -> None:
    """40 is within one and a half times 2.5 of 38.5; 36 to 40 and 8% is 35.68 to 40.32."""
    frozen = replace(FROZEN, seeds=(Seed(0, 1.0, {"bleu": 40.0}),))
    picture = read(quality_plot(with_sides(PREFIX, LORA, frozen), PARAMETERS, "plot"))
    (reference,) = paths(picture, "reference")
    assert float(reference.split()[-1]) == pytest.approx(34 + 240 * 0.32 / 4.64, abs=0.1)


def test_words_of_lines_at_one_edge_are_apart() -> None:
    sides = [
        replace(FROZEN, label=f"asked {way}", seeds=(Seed(0, 1.0, {"bleu": 4.0 + way}),))
        for way in range(3)
    ]
    picture = read(quality_plot(with_sides(PREFIX, *sides), PARAMETERS, "plot"))
    places = {
        (one.attrib["x"], one.attrib["y"])
        for one in picture.iter(f"{SVG}text")
        if "below the scale" in "".join(one.itertext())
    }
    assert len(places) == 3


def test_without_trained_methods_there_is_nothing_to_draw() -> None:
    assert quality_plot(with_sides(FROZEN, FULL), PARAMETERS, "plot") is None
    assert quality_plot(with_sides(LORA), MEMORY, "plot") is None
    assert curves_plot(with_sides(FROZEN, replace(PREFIX, failed="no memory")), "plot") is None
    assert latency_plot(with_sides(FULL), "decode", "plot") is None


def test_each_method_has_its_own_look() -> None:
    sides = [replace(PREFIX, label=f"p{size}") for size in range(16)]
    series = series_of(with_sides(*sides))
    marks = [re.sub(r"translate\S+ \S+", "", one.marker(0, 0)) for one in series]
    assert len(set(marks)) == 16
    assert len({(one.style, one.dashes) for one in series}) == 16


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["LoRA, all, rank 2", "prefix tuning, 8"], ["LoRA", "prefix tuning"]),
        (["LoRA, all, rank 2", "LoRA, all, rank 8"], ["LoRA, rank 2", "LoRA, rank 8"]),
        (["LoRA, all, rank 2", "LoRA, some, rank 2"], ["LoRA, all, rank 2", "LoRA, some, rank 2"]),
        (["LoRA", "LoRA"], ["LoRA", "LoRA"]),
        (["LoRA", "LoRA, rank 2"], ["LoRA", "LoRA, rank 2"]),
    ],
)
def test_names_are_as_short_as_tells_them_apart(labels: list[str], names: list[str]) -> None:
    found = series_of(with_sides(*(replace(PREFIX, label=label) for label in labels)))
    assert [one.name for one in found] == names


def trained_on(*histories: tuple[tuple[int, float], ...]) -> Side:
    seeds = (Seed(index, 1.0, {}, history=history) for index, history in enumerate(histories))
    return replace(PREFIX, seeds=tuple(seeds))


def test_a_curve_is_the_mean_over_seeds() -> None:
    side = trained_on(((1, 4.0), (2, 2.0)), ((1, 2.0), (2, 1.0), (3, 0.5)), ((2, float("nan")),))
    assert curve(side) == [(1, 3.0), (2, 1.5), (3, 0.5)]
    assert curve(trained_on(())) == []


def test_a_curve_is_smoothed_over_a_twentieth_of_the_steps() -> None:
    """Of 40 steps three: a single peak of 3 becomes three ones; at an end two are the mean."""
    history = tuple((step, 3.0 if step in (20, 40) else 0.0) for step in range(1, 41))
    found = dict(curve(trained_on(history)))
    assert [found[step] for step in (18, 19, 20, 21, 22)] == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert [found[step] for step in (38, 39, 40)] == [0.0, 1.0, 1.5]


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    found = curve(trained_on(tuple((step, 1.0) for step in range(1, 1001))))
    assert len(found) == 201
    assert (found[0][0], found[1][0], found[-1][0]) == (1, 6, 1000)


def test_curves_are_where_they_should_be() -> None:
    """Losses of 3 and 1 with 8% of 2 beyond, 0.84 to 3.16, on 240 from 274 up; step 10 is the end.

    Numbers like 1.5 take 33.6 at the left, the name 7.2 and 12 at the right.
    """
    side = replace(trained_on(((0, 3.0), (10, 1.0))), label="p")
    picture = read(curves_plot(with_sides(side), "plot"))
    left, right = 33.6, 448 - 7.2 - 12
    (drawn,) = paths(picture, "curve s0")
    places = [float(number) for number in re.findall(r"[\d.]+", drawn)]
    top, bottom = 34 + 240 * 0.16 / 2.32, 34 + 240 * 2.16 / 2.32
    assert places == pytest.approx([left, top, right, bottom], abs=0.06)


def bars(picture: Element) -> dict[str, list[tuple[float, float]]]:
    """By whether it is merged the left edges and widths of bars."""
    found: dict[str, list[tuple[float, float]]] = {"plain": [], "merged": []}
    for one in picture.iter(f"{SVG}rect"):
        kind = "merged" if "merged" in one.attrib["class"] else "plain"
        found[kind].append((float(one.attrib["x"]), float(one.attrib["width"])))
    return found


def test_bars_are_as_long_as_what_is_beyond_the_frozen_model() -> None:
    """The longest, 0.25, is 288; 0.08 of it is 92.16."""
    picture = read(latency_plot(with_sides(PREFIX, LORA), "prefill", "plot"))
    found = bars(picture)
    assert found["plain"] == [(112, 92.16), (112, 57.6), (112, 288), (112, 138.24)]
    assert found["merged"] == [(112, 0), (112, 0)]
    drawn = [word for word in words(picture) if "row" in word or word.endswith(TIMES)]
    assert drawn[-8:] == [
        *("1 row", f"1.25{TIMES}", "1 row, merged", f"1.00{TIMES}"),
        *("32 rows", f"1.12{TIMES}", "32 rows, merged", f"1.00{TIMES}"),
    ]


def test_what_is_faster_than_the_frozen_model_goes_to_the_left() -> None:
    """0.9 to 1.1 on 288: the frozen model is in the middle, at 256."""
    latency = Latency(prefill={}, decode={1: 0.9, 2: 1.1, 4: float("inf")})
    side = replace(PREFIX, latency=latency)
    picture = read(latency_plot(with_sides(side), "decode", "plot"))
    assert bars(picture)["plain"] == [(112, 144), (256, 144)]
    assert latency_plot(with_sides(side), "prefill", "plot") is None


def test_a_description_has_the_figures_of_a_picture() -> None:
    picture = read(quality_plot(EXAMPLE, PARAMETERS, "plot"))
    assert picture[1].text == (
        "prefix tuning: 37.0 ± 1.0 at 184K; LoRA: 37.5 ± 1.0 at 189K; the frozen model: 4.2"
    )
    assert Spread(37.0, 1.0).ends == (36.0, 38.0)
