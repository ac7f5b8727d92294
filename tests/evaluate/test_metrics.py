"""Text metrics against the libraries called directly, and against a reference written out here."""

from __future__ import annotations

import math
import re

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from foreword.data import read_rows
from foreword.evaluate.metrics import bleu, chrf, exact_match, rouge_l, tokenisation

TEXTS = [
    "Zizzi serves Thai food by the river and it is cheap.",
    "The Eagle is a coffee shop near Burger King.",
    "Near Café Brazil there is an expensive place, The Mill.",
]
REFERENCES = [
    ["Zizzi serves cheap Thai food by the river.", "By the river, Zizzi has cheap Thai food."],
    ["The Eagle is a coffee shop near Burger King.", "Near Burger King is The Eagle coffee shop."],
    ["The Mill, near Café Brazil, is expensive.", "An expensive place near Café Brazil: The Mill."],
]
COLUMNS = [list(column) for column in zip(*REFERENCES, strict=True)]


def test_bleu_and_chrf_are_sacrebleus() -> None:
    assert bleu(TEXTS, REFERENCES) == sacrebleu.corpus_bleu(TEXTS, COLUMNS).score
    assert chrf(TEXTS, REFERENCES) == sacrebleu.corpus_chrf(TEXTS, COLUMNS).score
    assert 0 < bleu(TEXTS, REFERENCES) < 100
    assert 0 < chrf(TEXTS, REFERENCES) < 100


@pytest.mark.parametrize("metric", [bleu, chrf, rouge_l, exact_match])
def test_a_text_that_equals_any_reference_scores_full(metric: object) -> None:
    references = [
        ["x y z v w", TEXTS[0]],
        [TEXTS[1]],
        ["a b c d e", "f g h i j", "k l m n o", TEXTS[2]],
    ]
    assert metric(TEXTS, references) == pytest.approx(100)  # type: ignore[operator]
    worse = [references[0], ["Something else stands in this place."], references[2]]
    assert metric(TEXTS, worse) < 90  # type: ignore[operator]


def test_unequal_numbers_of_references_are_as_if_one_were_repeated() -> None:
    unequal = [REFERENCES[0], REFERENCES[1][:1], REFERENCES[2]]
    repeated = [REFERENCES[0], REFERENCES[1][:1] * 2, REFERENCES[2]]
    for metric in (bleu, chrf, rouge_l, exact_match):
        assert metric(TEXTS, unequal) == pytest.approx(metric(TEXTS, repeated))


def test_a_missing_reference_is_not_an_empty_one() -> None:
    """An empty reference would be nearer in length to a short text, and spare it the penalty."""
    whole, short = "a b c d e f g h i", "a b c d"
    found = bleu([whole, short], [[whole, "x"], [whole]])
    assert found == pytest.approx(100 * math.exp(1 - 18 / 13))


def test_bleu_is_what_a_hand_counts() -> None:
    # Precisions 4/5, 3/4, 2/3 and 1/2 against the second reference; equal lengths, so no penalty.
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert bleu(["a b c d x"], [["q r s t u", "a b c d e"]]) == pytest.approx(expected)


def lcs(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, by the table of the textbook."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            longest = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else longest
    return table[-1][-1]


def plain_rouge_l(text: str, reference: str) -> float:
    words, wanted = (re.findall("[a-z0-9]+", one.lower()) for one in (text, reference))
    common = lcs(words, wanted)
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def test_rouge_l_is_the_best_f1_over_references() -> None:
    best = [
        max(plain_rouge_l(text, one) for one in refs)
        for text, refs in zip(TEXTS, REFERENCES, strict=True)
    ]
    assert rouge_l(TEXTS, REFERENCES) == pytest.approx(100 * sum(best) / 3)
    assert rouge_l(["q", ""], [["a b"], ["a b"]]) == 0


def test_an_exact_match_is_up_to_outer_spaces_and_case_counts() -> None:
    references = [["b", " a "], ["a"], ["a"], ["a  b"]]
    assert exact_match(["a", "a\n", "A", "a b"], references) == 50


@pytest.mark.parametrize("metric", [bleu, chrf, rouge_l, exact_match])
def test_an_empty_text_scores_nothing(metric: object) -> None:
    assert metric([""], [["a b c d e"]]) == 0  # type: ignore[operator]


# -- scripts other than English's ---------------------------------------------------------------------

SCRIPTS = {
    "Russian": ("Сегодня хорошая погода, мы идём гулять в парк.", "13a"),
    "Greek": ("Σήμερα ο καιρός είναι καλός και πάμε στο πάρκο.", "13a"),  # noqa: RUF001
    "Arabic": ("الطقس جميل اليوم وسنذهب إلى الحديقة", "13a"),
    "Hindi": ("आज मौसम अच्छा है और हम पार्क जा रहे हैं", "13a"),
    "Korean": ("오늘은 날씨가 좋아서 우리는 공원에 간다", "13a"),
    "Vietnamese": ("Hôm nay trời đẹp, chúng tôi đi dạo ở công viên.", "13a"),
    "Chinese": ("今天天气很好，我们去公园散步。", "zh"),  # noqa: RUF001
    "Japanese": ("今日は天気がいいので、公園へ行きます。", "char"),
    "Thai": ("วันนี้อากาศดีเราจะไปสวนสาธารณะ", "char"),
}


@pytest.mark.parametrize("language", SCRIPTS)
@pytest.mark.parametrize("metric", [bleu, chrf, rouge_l, exact_match])
def test_a_perfect_text_scores_full_in_any_script(metric: object, language: str) -> None:
    """ROUGE-L was 0.0 of perfect Cyrillic, Greek, Arabic, Hindi and Chinese."""
    text = SCRIPTS[language][0]
    assert metric([text], [[text]]) == pytest.approx(100)  # type: ignore[operator]


@pytest.mark.parametrize("language", SCRIPTS)
def test_half_a_text_scores_between_nothing_and_all_in_any_script(language: str) -> None:
    """BLEU was 0 of all but perfect Chinese, whose sentences are one word between spaces."""
    text = SCRIPTS[language][0]
    half = text[: len(text) // 2 + 2]
    assert 5 < bleu([half], [[text]]) < 95
    assert 20 < rouge_l([half], [[text]]) < 95


@pytest.mark.parametrize("language", SCRIPTS)
def test_the_tokenizers_are_said_and_are_sacrebleus(language: str) -> None:
    text, how = SCRIPTS[language]
    found = tokenisation([[text]])
    assert (found.bleu, found.rouge_l) == (how, "unicode")
    half = text[: len(text) // 2 + 2]
    wanted = sacrebleu.corpus_bleu([half], [[text]], tokenize=how, use_effective_order=True)
    assert bleu([half], [[text]]) == wanted.score


def test_rouge_l_of_other_scripts_is_what_a_hand_counts() -> None:
    """Marks and joiners belong to their word; a letter stands alone where there are no spaces."""
    # Three of four words in common, of which each side has four.
    assert rouge_l(["आज मौसम अच्छा था"], [["आज मौसम अच्छा है"]]) == pytest.approx(75)
    assert rouge_l(["МЫ идём домой"], [["мы идём, домой!"]]) == pytest.approx(100)
    assert rouge_l(["می\u200cخواهم"], [["خواهم"]]) == 0  # noqa: RUF001
    # 我们去公园 and 我们在公园: four of five characters.
    assert rouge_l(["我们去公园"], [["我们在公园"]]) == pytest.approx(80)


def test_english_is_scored_as_ever() -> None:
    """The shipped rows have a Café among their names, of which rouge_score sees "caf"."""
    references = [row["ref"] for row in read_rows("foreword/e2e:heldout")][:120]
    texts = [*references[7:], *references[:7]]
    assert tokenisation([[one] for one in references]) == tokenisation([["plain"]])
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    pairs = zip(texts, references, strict=True)
    wanted = sum(scorer.score(ref, text)["rougeL"].fmeasure for text, ref in pairs) / len(texts)
    columns = [[one] for one in references]
    assert rouge_l(texts, columns) == pytest.approx(100 * wanted)
    assert bleu(texts, columns) == sacrebleu.corpus_bleu(texts, [references]).score


@pytest.mark.parametrize("text", ["🙂", "positive", "42", "?!"])
@pytest.mark.parametrize("metric", [bleu, rouge_l, chrf, exact_match])
def test_a_perfect_label_scores_full(metric: object, text: str) -> None:
    """Fewer than four words had BLEU 0, and no letters ROUGE-L 0, beside exact match 100."""
    assert metric([text], [[text]]) == pytest.approx(100)  # type: ignore[operator]
    assert metric(["other words here"], [[text]]) < 20  # type: ignore[operator]
