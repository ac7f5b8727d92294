"""What happens inside when prefixes stand together: attention mass, likelihood, sizes.

Shapes: B rows, L layers, A query heads, Q queries, K columns, C pieces, N target tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence

import torch
from attributes import SEEDS, SENTIMENT, splits
from combination_ways import WAYS, Parts
from combinations import TASKS, Trained
from common import Results, Row
from torch import Tensor

import foreword
from foreword.backbone import Backbone
from foreword.backbone.kinds.base import IGNORED
from foreword.data import Collator, Encoded
from foreword.data.collate import padding_of
from foreword.methods.prefix.start import start
from foreword.prefix import Prefix

ROWS = 12
"""Real rows of a combination that nothing learned from."""
SEEN = (
    "joint training",
    "task alone",
    "attribute alone",
    "concat",
    "cascade",
    "cascade, attribute behind",
    "sum",
    "sum of halves",
    "task + 0.5 (attribute - opposite)",
    "touch-up",
    "control",
)
"""Ways of one pass that are looked into."""


def inside(trained: Trained, results: Results, seed: int) -> None:
    """Keep the figures of each way, unless they are known, and the sizes of what was learned."""
    eager = foreword.load(attention="eager")
    for way in SEEN:
        composed = WAYS[way].composed
        if composed is None or f"inside {way} seed {seed}" in results:
            continue
        lines = []
        for task in TASKS:
            for attribute in SENTIMENT.attributes:
                parts = Parts(trained, task, attribute, seed)
                (branch,) = composed(parts)
                assert isinstance(branch.prefix, Prefix)
                lines.append(_figures(eager, branch.prefix, _rows(parts)))
        figures = {
            name: [
                round(statistics.mean(of), 4) for of in zip(*(x[name] for x in lines), strict=True)
            ]
            for name in lines[0]
        }
        results.add(f"inside {way} seed {seed}", **figures)
    _sizes(trained, results, seed)


def _rows(parts: Parts) -> list[Encoded]:
    """Held-out rows that have both, as token ids."""
    held = splits(parts.trained.shared, SENTIMENT)[parts.attribute].held
    tokens = parts.backbone.tokens
    made = []
    for row in parts.task.rows(held)[:ROWS]:
        given = tokens(row["given"])
        ids = tokens(f"{row['given']} {row['text']}")
        made.append(Encoded(ids, [IGNORED] * len(given) + ids[len(given) :]))
    return made


def _figures(eager: Backbone, prefix: Prefix, rows: Sequence[Encoded]) -> dict[str, list[float]]:
    """NLL of the rows' target tokens, and by layer the mass that these give each piece.

    A prefix without pieces is one, ``front``; of two the second is ``behind``.
    """
    pieces = [piece.length for piece in prefix.meta.pieces] or [prefix.length]
    ends = [*itertools.accumulate([0, *pieces])]
    assert eager.tokenizer is not None
    batch = Collator(padding_of(eager.tokenizer, eager.vocabulary))(rows)
    following_BQ = batch.pop("labels")[:, 1:]
    with torch.inference_mode(), eager.inferring(prefix):
        out = eager.model(**batch, use_cache=False, output_attentions=True)
    predicting_BQ = following_BQ != IGNORED
    logits_NV = out.logits[:, :-1][predicting_BQ].float()
    nll = torch.nn.functional.cross_entropy(logits_NV, following_BQ[predicting_BQ])
    mass_LC = torch.stack([_masses(one, ends, predicting_BQ) for one in out.attentions])
    by_piece = {
        name: mass_LC[:, place].tolist()
        for place, name in enumerate(("front", "behind", "third")[: len(pieces)])
    }
    return {"nll": [float(nll)], **by_piece}


def _masses(weight_BAQK: Tensor, ends: Sequence[int], predicting_BQ: Tensor) -> Tensor:
    """The share of attention on each piece, mean over heads and the queries that predict targets."""
    mean_BQK = weight_BAQK[:, :, :-1].float().mean(dim=1)
    mean_K = mean_BQK[predicting_BQ].mean(dim=0)
    return torch.stack([mean_K[a:b].sum() for a, b in itertools.pairwise(ends)])


def _sizes(trained: Trained, results: Results, seed: int) -> None:
    """RMS of keys and values beside those of the start, and of what was learned, mean over layers."""
    first = start(trained.backbone, trained.settings("{given}", seed))
    known = {attribute: trained.of_attribute(attribute, seed) for attribute in SENTIMENT.attributes}
    known |= {task.name: trained.of_task(task, seed) for task in TASKS}
    for name, prefix in known.items():
        if f"sizes {name} seed {seed}" not in results:
            results.add(f"sizes {name} seed {seed}", **_size(prefix, first))


def _size(prefix: Prefix, first: Prefix) -> dict[str, float]:
    def mean(of: Callable[[Tensor, Tensor], Tensor], name: str) -> float:
        pairs = zip(getattr(prefix, name), getattr(first, name), strict=True)
        found = [
            float(of(a, b).square().mean().sqrt() / b.square().mean().sqrt()) for a, b in pairs
        ]
        return round(statistics.mean(found), 4)

    return {
        "keys": mean(lambda a, b: a, "keys"),
        "values": mean(lambda a, b: a, "values"),
        "keys_learned": mean(lambda a, b: a - b, "keys"),
        "values_learned": mean(lambda a, b: a - b, "values"),
    }


def inside_rows(results: Results) -> list[Row]:
    """NLL of real rows of the combinations, and the mass of each piece: all, first and last layers."""
    rows = []
    for way, seed in itertools.product(SEEN, SEEDS):
        line = results.get(f"inside {way} seed {seed}")
        if line is not None:
            masses = {piece: _thirds(line.get(piece)) for piece in ("front", "behind")}
            rows.append({"way": way, "NLL": f"{line['nll'][0]:.2f}", **masses, "seed": seed})
    return rows


def _thirds(mass_L: Sequence[float] | None) -> str:
    """The mean over layers, and those of the first, the middle and the last third of them."""
    if mass_L is None:
        return "-"
    size = len(mass_L) // 3
    thirds = (mass_L[at * size : (at + 1) * size] for at in range(3))
    each = " ".join(f"{statistics.mean(third):.2f}" for third in thirds)
    return f"{statistics.mean(mass_L):.2f} ({each})"


def size_rows(results: Results) -> list[Row]:
    """RMS of keys and values, in that of the start's, and of what was learned since."""
    found = [line for line in results if str(line["run"]).startswith("sizes ")]
    return [{"prefix": line["run"].split()[1], **_without_run(line)} for line in found]


def _without_run(line: Row) -> Row:
    return {name: value for name, value in line.items() if name != "run"}
