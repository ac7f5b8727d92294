"""What might beat a LoRA of equal size: something beside the prefix, outside of the softmax.

    python benchmarks/tries.py [--models FOLDER] [--shared ../shared] [--sets sst2] [--tries shifts,plus]
        [--runs "beside+beside=low soap 0.06"]

Each try is a prefix and something else, together as large as the other methods of benchmarks/methods.py,
compared as these are: both optimisers, rates searched, three seeds. Runs are kept with theirs.

- shifts: a learned vector is added to what every attention and every MLP gives.
- plus: Prefix-Tuning+ (arXiv 2506.13674): elu(q) + 1 of a head's query times a learned matrix is added
  to what the head gives.
- both: all of these.
- low: a LoRA of rank 1 on all linear layers, on those of the MLPs (low-mlp), or on those that make
  queries and keys (low-match).
- turn: queries are scaled and shifted, each number by itself, which changes how tokens see each other.

Shapes: B rows, T tokens, L layers, H key/value heads, D size of a head, E that of hidden states.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import methods
import torch
from common import table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils import logging

from foreword import format as prefix_file
from foreword.backbone import Backbone
from foreword.data import Collator, Encoded
from foreword.data.collate import padding_of
from foreword.methods.base import Applied, Learner, Method, Rows, Start
from foreword.methods.layers import (
    KEY_AND_VALUE,
    QUERY_AND_VALUE,
    Targets,
    chosen_layers,
    last_layers,
)
from foreword.methods.prefix.learner import PrefixLearner
from foreword.methods.prefix.method import PrefixMethod, PrefixStart
from foreword.methods.prefix.settings import PrefixSettings
from foreword.methods.registry import OWN, Known
from foreword.objectives.base import Batch, Objective
from foreword.objectives.encode import InFront
from foreword.prefix import Prefix, rms

UNIT = 0.1
"""Of the size of what a module gives the part that 1 stands for: with all of it training diverges."""

QUERIES = [name for name in QUERY_AND_VALUE if "v" not in name]

MATCHING = [*QUERIES, *(name for name in KEY_AND_VALUE if "v" not in name)]
"""Names of the layers that make queries or keys, each in a product of its own."""


class Beside(nn.Module, ABC):
    """Something that is learned beside a prefix, zero at first.

    Args:
        units: By the module that it is about what its parameter counts in, so that one learning rate
            suits it and the prefix.
        shape: Of each parameter.
    """

    def __init__(self, units: Mapping[str, float], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.units = dict(units)
        self.learned = nn.ParameterList(self.begun(name, shape) for name in units)

    def begun(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """What the parameter of a module starts at."""
        return torch.zeros(shape)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By module what is added there, with gradients."""
        pairs = zip(self.units.items(), self.learned, strict=True)
        return {name: unit * parameter for (name, unit), parameter in pairs}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what was learned, once units are 1."""
        for name, parameter in zip(self.units, self.learned, strict=True):
            parameter.data = tensors[name]

    @abstractmethod
    def hooked(self, model: nn.Module) -> Any:
        """A model with what is learned in its passes, for a block."""


class Behind(Beside):
    """Something that changes what modules give."""

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """The module whose output is changed for one of those that units are told of."""
        return model.get_submodule(name)

    @abstractmethod
    def changed(self, name: str, learned: Tensor, read: Tensor, output: Tensor) -> Tensor:
        """A module's output with what is learned, of what the module read."""

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Hooks behind the modules."""
        with ExitStack() as stack:
            for name, learned in self.tensors.items():

                def hook(
                    module: nn.Module,
                    args: Any,
                    output: Tensor,
                    name: str = name,
                    one: Tensor = learned,
                ) -> Tensor:
                    return self.changed(name, one.to(output.dtype), args[0], output)

                handle = self.module(model, name).register_forward_hook(hook)
                stack.callback(handle.remove)
            yield


class Shifts(Behind):
    """A vector for each module (E,), added to what it gives."""

    def changed(self, name: str, learned: Tensor, read: Tensor, output: Tensor) -> Tensor:
        """The vector more."""
        return output + learned


class Plus(Beside):
    """A matrix (H, D, D) for each attention: elu(q) + 1 times it is added to what its heads give."""

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Hooks behind what makes the queries and before what the attention ends with."""
        with ExitStack() as stack:
            for name, matrix in self.tensors.items():
                queries: list[Tensor] = []
                handle = query_of(model, name).register_forward_hook(
                    lambda module, args, output, queries=queries: queries.append(output)
                )
                stack.callback(handle.remove)

                def added(
                    module: nn.Module,
                    args: Any,
                    queries: list[Tensor] = queries,
                    matrix: Tensor = matrix,
                ) -> Any:
                    heads, width, _ = matrix.shape
                    query_BTHGD = queries.pop().unflatten(-1, (heads, -1, width)).float()
                    features = functional.elu(query_BTHGD / width**0.5) + 1
                    more = torch.einsum("bthgd,hde->bthge", features, matrix)
                    return (args[0] + more.flatten(-3).to(args[0].dtype), *args[1:])

                handle = model.get_submodule(name).register_forward_pre_hook(added)
                stack.callback(handle.remove)
            yield


class Turn(Behind):
    """A scale and a shift of each number of the queries, (2, E): they are zero where nothing changes."""

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """What makes the queries of the attention that ends with a module."""
        return query_of(model, name)

    def changed(self, name: str, learned: Tensor, read: Tensor, output: Tensor) -> Tensor:
        """Each number scaled and shifted."""
        scale, shift = learned
        changed: Tensor = output * (1 + scale) + shift
        return changed


class Low(Behind):
    """A LoRA of rank 1 beside each linear layer: the vector (IN,) that reads, and (OUT,) that writes.

    Args:
        sizes: By layer IN and OUT.
        seed: Of what reads at first, which is as in PEFT; what writes is zero.
    """

    SCALE = 2.0
    """As of PEFT's LoRA here, where alpha is twice the rank."""
    RATE = 1 / 15
    """A LoRA's best learning rate, of that of a prefix."""

    def __init__(self, sizes: Mapping[str, tuple[int, int]], seed: int, *, units: bool) -> None:
        self.sizes = dict(sizes)
        self.random = torch.Generator().manual_seed(seed)
        super().__init__(dict.fromkeys(sizes, self.RATE if units else 1.0), ())

    def begun(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """What reads is uniform within one over the square root of its size."""
        size, out = self.sizes[name]
        reads = (2 * torch.rand(size, generator=self.random) - 1) / size**0.5
        return torch.cat([reads / self.RATE, torch.zeros(out)])

    def changed(self, name: str, learned: Tensor, read: Tensor, output: Tensor) -> Tensor:
        """What the one vector reads, times the other."""
        reads, writes = learned.split(self.sizes[name])
        size_BT: Tensor = self.SCALE * (read @ reads)
        changed: Tensor = output + size_BT[..., None] * writes
        return changed


def query_of(model: nn.Module, last: str) -> nn.Linear:
    """The linear layer that makes the queries of the attention whose last one has a name."""
    path = last.split(".")
    for end in range(len(path) - 1, 0, -1):
        above = model.get_submodule(".".join(path[:end]))
        for name, module in above.named_modules():
            if name.rpartition(".")[2] in QUERIES and isinstance(module, nn.Linear):
                return module
    raise SystemExit(f"nothing makes the queries of {last}")


@dataclass(frozen=True, kw_only=True)
class BesideSettings(PrefixSettings):
    """A prefix, and what is beside it."""

    beside: str = "shifts"
    """Words with a dash between: shifts, plus, turn, low; mlp or match after low."""


@dataclass(frozen=True)
class Pair:
    """What was learned.

    Attributes:
        prefix: The prefix.
        tensors: What stands beside it, by name.
    """

    prefix: Prefix
    tensors: Mapping[str, Tensor]


class BesideLearner(Learner[Pair]):
    """A prefix in training, and what stands beside it."""

    turns_matrices = False

    def __init__(self, inner: PrefixLearner, beside: nn.ModuleDict) -> None:
        super().__init__(inner.backbone, inner.objective)
        self.inner = inner
        self.others = beside

    @contextmanager
    def applied(self, batch: Batch) -> Iterator[Any]:
        """The backbone under all of it."""
        with hooked(self.others, self.backbone), self.inner.applied(batch) as head:
            yield head

    def value(self) -> Pair:
        """As it is now."""
        tensors = {
            f"{kind} {name}": tensor.detach().clone()
            for kind, one in self.others.items()
            for name, tensor in cast(Beside, one).tensors.items()
        }
        return Pair(self.inner.value(), tensors)

    def save(self, value: Pair, path: Path) -> None:
        """Write the prefix, and the rest in a file beside it."""
        self.inner.save(value.prefix, path)
        save_file(dict(value.tensors), path.with_suffix(".beside"))

    def load(self, path: Path) -> Pair:
        """Read both."""
        return Pair(prefix_file.load(path), load_file(path.with_suffix(".beside")))


@contextmanager
def hooked(others: nn.ModuleDict, backbone: Backbone) -> Iterator[None]:
    """A backbone with all that stands beside its prefix."""
    with ExitStack() as stack:
        for one in others.values():
            stack.enter_context(cast(Beside, one).hooked(backbone.model))
        yield


class BesideStart(Start[BesideSettings, Pair]):
    """A prefix to start from, and zeros beside it."""

    def __init__(self, inner: PrefixStart[BesideSettings], rows: Rows) -> None:
        self.inner = inner
        self.backbone, self.settings = inner.backbone, inner.settings
        self.in_front, self.digest = inner.in_front, inner.digest
        self.numbers = inner.numbers + sum(p.numel() for p in self.made({}).parameters())

    @property
    def trained(self) -> int:
        """The prefix's numbers and the others."""
        return self.numbers - self.inner.numbers + self.inner.trained

    def made(self, sizes: Mapping[str, float]) -> nn.ModuleDict:
        """What stands beside the prefix, in units of sizes, or 1 of a module without one."""
        attentions, mlps = (
            [layer.name for layer in layers] for layers in last_layers(self.backbone)
        )
        site = self.backbone.sites[0]
        found = nn.ModuleDict()
        words = self.settings.beside.split("-")
        if "shifts" in words:
            units = {name: sizes.get(name, 1.0) for name in attentions + mlps}
            found["shifts"] = Shifts(units, (self.backbone.width,))
        if "low" in words:
            where: Targets = "attention" if "match" in words else "all-linear"
            where = "mlp" if "mlp" in words else where
            layers = {
                n: self.backbone.model.get_submodule(n) for n in chosen_layers(self.backbone, where)
            }
            if "match" in words:
                layers = {n: one for n, one in layers.items() if n.rpartition(".")[2] in MATCHING}
            pairs = {n: (one.in_features, one.out_features) for n, one in layers.items()}
            found["low"] = Low(pairs, self.settings.seed, units=bool(sizes))
        if "turn" in words:
            turns = dict.fromkeys(attentions, UNIT if sizes else 1.0)
            width = query_of(self.backbone.model, attentions[0]).out_features
            found["turn"] = Turn(turns, (2, width))
        if "plus" in words:
            units = {name: sizes.get(f"{name} before", 1.0) for name in attentions}
            units = {name: unit / site.key_dim if sizes else 1.0 for name, unit in units.items()}
            found["plus"] = Plus(units, (site.kv_heads, site.key_dim, site.value_dim))
        return found

    @contextmanager
    def learning(
        self, objective: Objective, rows: Sequence[Encoded], rate: float
    ) -> Iterator[BesideLearner]:
        """The prefix, with zeros beside it in the sizes of what the modules give."""
        sizes = measured(self.backbone, rows)
        with self.inner.learning(objective, rows, rate) as inner:
            yield BesideLearner(inner, self.made(sizes))

    @contextmanager
    def applied(self, value: Pair) -> Iterator[Applied]:
        """The backbone under both."""
        others = self.made({})
        for kind, one in others.items():
            own = {n.removeprefix(f"{kind} "): t for n, t in value.tensors.items()}
            cast(Beside, one).load(own)
        with hooked(others.requires_grad_(False), self.backbone):
            yield Applied(self.backbone, value.prefix, InFront.of(value.prefix))


@torch.no_grad()
def measured(backbone: Backbone, rows: Sequence[Encoded]) -> dict[str, float]:
    """By module a part of the size of what it gives, and under "NAME before" of what goes into it."""
    found: dict[str, float] = {}
    batch = Collator(padding_of(backbone.tokenizer, backbone.vocabulary))(rows[:16])
    names = {name: mask for name, mask in batch.items() if name in ("input_ids", "attention_mask")}
    with ExitStack() as stack:
        for layer in chain(*last_layers(backbone)):

            def seen(m: nn.Module, args: Any, output: Tensor, name: str = layer.name) -> None:
                found[name] = UNIT * rms(output)
                found[f"{name} before"] = UNIT * rms(args[0])

            handle = backbone.model.get_submodule(layer.name).register_forward_hook(seen)
            stack.callback(handle.remove)
        stack.enter_context(backbone.attached(None))
        backbone.model(**names)
    return found


class BesideMethod(Method[BesideSettings, Pair]):
    """A prefix, and something beside it."""

    name = "beside"
    settings = BesideSettings

    def start(self, backbone: Backbone, settings: BesideSettings, rows: Rows) -> BesideStart:
        """Where both start."""
        method: PrefixMethod[BesideSettings] = PrefixMethod()
        return BesideStart(method.start(backbone, settings, rows), rows)


BESIDE = Known(
    BesideMethod(),
    "length",
    label="prefix of {length} with {beside}",
    rates={"soap": 0.06, "adamw": 0.03},
    traits=OWN["prefix"].traits,
)

TRIES = {
    "shifts": "beside+beside=shifts",
    "plus": "beside+beside=plus",
    "both": "beside+beside=shifts-plus",
    "low": "beside+beside=low",
    "low-mlp": "beside+beside=low-mlp",
    "low-match": "beside+beside=low-match",
    "turn": "beside+beside=turn",
    "gated": "prefix+parameterization=gated",
    "last": "prefix+layers=last:3",
    "offset": "prefix+positions=offset",
    "mlp": "prefix+parameterization=mlp",
}


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    methods.common_options(parser)
    parser.add_argument("--sets", default="sst2")
    parser.add_argument("--tries", default=",".join(TRIES))
    parser.add_argument("--runs", help="single trainings instead: beside+beside=low soap 0.06, ...")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    cast(dict[str, Known], OWN)["beside"] = BESIDE
    if arguments.runs:
        for name in arguments.sets.split(","):
            print(
                table([methods.one(name, run, 0, arguments) for run in arguments.runs.split(",")])
            )
        return
    words = tuple(TRIES[name] for name in arguments.tries.split(","))
    for name in arguments.sets.split(","):
        methods.report(name, methods.compared(name, arguments, words))


if __name__ == "__main__":
    main()
