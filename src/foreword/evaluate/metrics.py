"""Text metrics on corpora, over one or several references per text.

BLEU (Papineni et al., ACL 2002) and chrF (Popović, WMT 2015) are sacrebleu's with its default
signature; ROUGE-L (Lin, 2004) is rouge_score's F1 without stemming, the best over references. What
counts as a word in BLEU and ROUGE-L is said by `Tokenisation`, by the script of the references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import sacrebleu
from rouge_score import rouge_scorer, tokenize

from foreword.data.words import script_of, words

MOSTLY_ASCII = 0.98
"""Share of letters from a to z above which ROUGE's own tokenizer, which knows no others, is right: so
English, names such as Café among it, is scored as everywhere else."""
SOME_UNSPACED = 0.1
"""Share of letters of scripts without spaces above which BLEU cannot take what stands between spaces for
words."""

BleuWords = Literal["13a", "zh", "char"]
RougeWords = Literal["ascii", "unicode"]
BLEU: tuple[BleuWords, ...] = get_args(BleuWords)
ROUGE_L: tuple[RougeWords, ...] = get_args(RougeWords)

References = Sequence[Sequence[str]]
"""Per text its references, at least one each."""


@dataclass(frozen=True)
class Tokenisation:
    """What counts as a word in figures over words.

    Attributes:
        bleu: sacrebleu's tokenizer: ``13a``, its default; ``zh``, a word for each Chinese character;
            ``char``, one for each character of a script without spaces that is not Chinese.
        rouge_l: ``ascii``, rouge_score's own: runs of a to z and 0 to 9; ``unicode``: runs of letters,
            marks and digits, and each letter of a script without spaces, see `words`.
    """

    bleu: BleuWords = "13a"
    rouge_l: RougeWords = "ascii"


def tokenisation(references: References) -> Tokenisation:
    """What counts as a word where these are the references, by the script that they are written in."""
    found = script_of(chain.from_iterable(references))
    is_ascii = found.ascii >= MOSTLY_ASCII * found.letters
    if found.unspaced <= SOME_UNSPACED * found.letters:
        return Tokenisation("13a", "ascii" if is_ascii else "unicode")
    is_chinese = found.kana == 0 and 2 * found.han > found.unspaced
    return Tokenisation("zh" if is_chinese else "char", "unicode")


def bleu(texts: Sequence[str], references: References) -> float:
    """Corpus BLEU, 0 to 100.

    Where no text has four words, as where a label is written out, it counts up to the longest runs that
    there are; sacrebleu's default gives 0 there, whatever the texts are.
    """
    found = sacrebleu.corpus_bleu(
        list(texts),
        _columns(references),
        force=True,
        tokenize=tokenisation(references).bleu,
        use_effective_order=True,
    )
    return float(found.score)


def chrf(texts: Sequence[str], references: References) -> float:
    """Corpus chrF2, 0 to 100."""
    return float(sacrebleu.corpus_chrf(list(texts), _columns(references)).score)


def rouge_l(texts: Sequence[str], references: References) -> float:
    """Mean ROUGE-L F1, 0 to 100."""
    scorer = rouge_scorer.RougeScorer(
        ["rougeL"], tokenizer=_Tokenizer(tokenisation(references).rouge_l)
    )
    scores = [
        scorer.score_multi(list(refs), text)["rougeL"].fmeasure
        for text, refs in zip(texts, references, strict=True)
    ]
    return float(100 * sum(scores) / len(scores))


def exact_match(texts: Sequence[str], references: References) -> float:
    """Share of texts that equal a reference up to outer spaces, 0 to 100."""
    pairs = zip(texts, references, strict=True)
    hits = [text.strip() in {ref.strip() for ref in refs} for text, refs in pairs]
    return 100 * sum(hits) / len(hits)


@dataclass(frozen=True)
class _Tokenizer:
    """What rouge_score asks for the words of a text."""

    how: RougeWords

    def tokenize(self, text: str) -> list[str]:
        """The words in lower case; of a text that has none, such as an emoji, its characters."""
        is_ascii = self.how == "ascii"
        found = list(tokenize.tokenize(text, None)) if is_ascii else words(text.lower())
        return found or [char for char in text if not char.isspace()]


def _columns(references: References) -> list[list[Any]]:
    """The first reference of each text, the second of each, and so on; None where there is none."""
    most = max(map(len, references))
    return [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]
