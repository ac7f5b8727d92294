"""Text metrics on corpora, over one or several references per text.

BLEU (Papineni et al., ACL 2002) and chrF (Popović, WMT 2015) are sacrebleu's with its default
signature; ROUGE-L (Lin, 2004) is rouge_score's F1 without stemming, the best over references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sacrebleu
from rouge_score import rouge_scorer

References = Sequence[Sequence[str]]
"""Per text its references, at least one each."""


def bleu(texts: Sequence[str], references: References) -> float:
    """Corpus BLEU, 0 to 100."""
    return float(sacrebleu.corpus_bleu(list(texts), _columns(references), force=True).score)


def chrf(texts: Sequence[str], references: References) -> float:
    """Corpus chrF2, 0 to 100."""
    return float(sacrebleu.corpus_chrf(list(texts), _columns(references)).score)


def rouge_l(texts: Sequence[str], references: References) -> float:
    """Mean ROUGE-L F1, 0 to 100."""
    scorer = rouge_scorer.RougeScorer(["rougeL"])
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


def _columns(references: References) -> list[list[Any]]:
    """The first reference of each text, the second of each, and so on; None where there is none."""
    most = max(map(len, references))
    return [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]
