"""Routing: how often an input goes to the task that it is of, by ways of comparing features.

    python benchmarks/routing.py [--shared ../shared] [--backbone NAME] [--quick]

The inputs are those of E2E (descriptions in brackets), TREC (questions), SST-2 (film reviews), ParaDetox
(rude comments) and Yelp (short reviews), as users give them. 200 of each are there to fit on, of which
8, 32 and 200 are taken; the figures are those of 100 others each. Yelp is what SST-2 is nearest to, so
there are figures without it, too. --quick takes 20 others.

Ways: cosine, of the input's features with the mean of each task's; centred, the same about the mean of
all tasks; diagonal, the nearest mean where each feature is measured in its deviation within tasks; and
what `foreword.Router` does, the nearest mean in the shrunk covariance within tasks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from common import SHARED, machine, read_rows, shuffled, table
from torch import Tensor
from torch.nn.functional import normalize
from transformers.utils import logging

import foreword
from foreword.router import discriminant

SETS = {
    "E2E": ("data2text/e2e_dev.jsonl", "mr"),
    "TREC": ("classification/trec_train.jsonl", "text"),
    "SST-2": ("classification/sst2_train.jsonl", "text"),
    "ParaDetox": ("style/paradetox.jsonl", "toxic"),
    "Yelp": ("style/yelp_sentiment_test.jsonl", "text"),
}
FITTED, TESTED = 200, 100
COUNTS = (8, 32, 200)


def cosine(groups: Sequence[Tensor], x_ND: Tensor) -> Tensor:
    """Cosine with the mean of each group."""
    return normalize(x_ND) @ normalize(_means(groups)).T


def centred(groups: Sequence[Tensor], x_ND: Tensor) -> Tensor:
    """The same about the mean of the groups' means."""
    mean_KD = _means(groups)
    middle_D = mean_KD.mean(dim=0)
    return normalize(x_ND - middle_D) @ normalize(mean_KD - middle_D).T


def diagonal(groups: Sequence[Tensor], x_ND: Tensor) -> Tensor:
    """Less the distance to the mean of each group, each feature in its deviation within groups."""
    within_ND = torch.cat([group - group.mean(dim=0) for group in groups])
    deviation_D = within_ND.pow(2).mean(dim=0).sqrt().clamp(min=1e-9)
    return -torch.cdist(x_ND / deviation_D, _means(groups) / deviation_D)


def router(groups: Sequence[Tensor], x_ND: Tensor) -> Tensor:
    """What `foreword.Router` does."""
    weight_KD, bias_K = discriminant(groups)
    return x_ND @ weight_KD.T + bias_K


WAYS: dict[str, Callable[[Sequence[Tensor], Tensor], Tensor]] = {
    "cosine": cosine,
    "centred cosine": centred,
    "diagonal": diagonal,
    "router": router,
}


def _means(groups: Sequence[Tensor]) -> Tensor:
    return torch.stack([group.mean(dim=0) for group in groups])


def inputs(shared: Path, tested: int) -> dict[str, list[str]]:
    """By task as many different inputs as are fitted on and tested."""
    found: dict[str, list[str]] = {}
    for name, (file, column) in SETS.items():
        rows = read_rows(shared / "data" / file)
        found[name] = shuffled(dict.fromkeys(row[column] for row in rows))[: FITTED + tested]
    return found


def right(way: str, features: dict[str, Tensor], tasks: Sequence[str], count: int) -> list[float]:
    """By task the share of its held-out inputs that a way sends there, 0 to 100."""
    groups = [features[task][:count] for task in tasks]
    return [
        100 * float((WAYS[way](groups, features[task][FITTED:]).argmax(1) == index).double().mean())
        for index, task in enumerate(tasks)
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--backbone", default="smollm2-135m-instruct")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    backbone = foreword.load(options.backbone, dtype="float32")
    texts = inputs(options.shared, 20 if options.quick else TESTED)
    features = {
        name: foreword.features(backbone, own, pooling="mean").double()
        for name, own in texts.items()
    }
    print(json.dumps({**machine(), "backbone": Path(options.backbone).name}))
    rows = []
    for tasks in ([*SETS], [*SETS][:-1]):
        for count in COUNTS:
            for way in WAYS:
                each = right(way, features, tasks, count)
                own = dict(zip(tasks, (f"{share:.0f}" for share in each), strict=True))
                mean = f"{sum(each) / len(each):.1f}"
                line = {"tasks": len(tasks), "fitted on": count, "way": way, "mean %": mean}
                rows.append({**line, **{name: own.get(name, "") for name in SETS}})
    print(table(rows))


if __name__ == "__main__":
    main()
