"""SOAP: Adam in the eigenbasis of the gradients' covariance, for keys and values, and for matrices.

The gradients of keys and values lie along few directions of a head's dimensions. Adam scales each
dimension by itself and is blind to that; turned to the axes of their covariance, it is not
(benchmarks/LOG.md has what that is worth).

Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024 (arXiv 2409.11321),
algorithm 3; here per head, with one side turned (section 7) and the momentum kept in the original axes.
Of a matrix, such as LoRA's, that is the shorter side, as there.

Shapes: N parameters of one shape, H key/value heads (1 of a matrix), P prefix length, D dimension (the
sides of a matrix, the shorter one last).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 512
"""Dimensions beyond which a parameter keeps its own axes: finding others would cost too much."""

FAINT = 1e-6
"""Share of a covariance's trace that is next to nothing."""


class SOAP(torch.optim.Optimizer):
    """Adam in turned axes for parameters (H, P, D), and matrices if asked; plain Adam for all others.

    The first step finds the axes and moves nothing that has any.

    Args:
        params: Float32 parameters, or groups of them.
        lr: Step size: about the RMS of a step's change to a parameter.
        matrices: Whether to turn matrices, too.
        betas: Decay of the momentum, and of the squared gradients.
        covariance_beta: Decay of the gradients' covariance.
        every: Steps between two findings of the axes.
        damping: Share of the gradient's RMS in a head that is added to the size along each axis. Along
            axes that gradients hardly touch, rounding errors would else be steps as large as any.
        eps: What plain Adam adds to the size.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        matrices: bool = False,
        betas: tuple[float, float] = (0.9, 0.99),
        covariance_beta: float = 0.95,
        every: int = 5,
        damping: float = 1e-3,
        eps: float = 1e-8,
    ) -> None:
        own = {"betas": betas, "covariance_beta": covariance_beta, "every": every}
        super().__init__(params, {"lr": lr, **own, "damping": damping, "eps": eps})
        self.matrices = matrices

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step from the gradients that are there; what `closure` gives, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in self._together(group["params"]):
                self._move(parameters, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimiser's, but for the covariances, which stay float64."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, saved in state_dict["state"].items():
            if "covariance" in saved:
                place = _place_of_float64(parameters[index].device)
                kept = saved["covariance"].to(place, copy=True)
                self.state[parameters[index]]["covariance"] = kept

    def _together(self, parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
        """Parameters that move by the same operations: on a GPU, where each is a launch, all alike."""
        groups: dict[object, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                step = self.state[parameter].get("step", 0)
                alike = parameter.shape, parameter.dtype, parameter.device, step
                alone = id(parameter) if parameter.device.type == "cpu" else None
                groups.setdefault((alike, alone), []).append(parameter)
        return groups.values()

    def _move(self, parameters: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        """A step of parameters of one shape, which are stacked: N more dimensions below."""
        states = [self.state[parameter] for parameter in parameters]
        gradient = _stacked([self._seen(p.grad) for p in parameters if p.grad is not None])
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = 0
                state["momentum"] = torch.zeros_like(parameter)
                state["square"] = torch.zeros_like(parameter)
            state["step"] += 1
        step = states[0]["step"]
        turns = gradient.ndim == 4 and gradient.shape[-1] <= LARGEST
        axes = self._axes(states, gradient, group) if turns else None
        if turns and step == 1:
            return
        first, second = group["betas"]
        momenta = [self._seen(state["momentum"]) for state in states]
        squares = [self._seen(state["square"]) for state in states]
        momentum = _blended(momenta, gradient, 1 - first) / (1 - first**step)
        if axes is not None:
            gradient, momentum = gradient @ axes, momentum @ axes
        square = _blended(squares, gradient.square(), 1 - second) / (1 - second**step)
        if axes is None:
            change = momentum / (square.sqrt() + group["eps"])
        else:
            damping = group["damping"] * square.mean(dim=(-2, -1), keepdim=True).sqrt()
            size = (square.sqrt() + damping).clamp_min(torch.finfo(square.dtype).tiny)
            change = momentum / size @ axes.mT
        seen = [self._seen(parameter) for parameter in parameters]
        torch._foreach_sub_(seen, list(change.unbind()), alpha=group["lr"])

    def _seen(self, tensor: Tensor) -> Tensor:
        """A view (H, P, D) of what is to be turned, a parameter or what is kept of it."""
        if not self.matrices or tensor.ndim != 2:
            return tensor
        long, short = tensor.shape
        return (tensor if short <= long else tensor.mT)[None]

    def _axes(
        self, states: Sequence[dict[str, Any]], gradient_NHPD: Tensor, group: dict[str, Any]
    ) -> Tensor:
        """The axes (N, H, D, D) after these gradients.

        The covariance is kept in float64: in float32 its small eigenvalues, and so their axes, would
        be rounding errors of the large ones.
        """
        long_NHPD = gradient_NHPD.to(_place_of_float64(gradient_NHPD.device), torch.float64)
        new_NHDD = long_NHPD.mT @ long_NHPD
        for state, new_HDD in zip(states, new_NHDD, strict=True):
            state.setdefault("covariance", torch.zeros_like(new_HDD))
        kept = [state["covariance"] for state in states]
        covariance_NHDD = _blended(kept, new_NHDD, 1 - group["covariance_beta"])
        step = states[0]["step"]
        if step == 1 or step % group["every"] == 0:
            axes_NHDD = _eigenvectors(covariance_NHDD).to(gradient_NHPD)
            for state, axes_HDD in zip(states, axes_NHDD, strict=True):
                state["axes"] = axes_HDD.clone()
            return axes_NHDD
        return _stacked([state["axes"] for state in states])


def _place_of_float64(device: torch.device) -> torch.device:
    """The device, or the CPU for one that may know no float64."""
    return device if device.type == "cuda" else torch.device("cpu")


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape under a new first dimension; a single one is not copied."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


def _blended(kept: list[Tensor], new: Tensor, weight: float) -> Tensor:
    """Move what is kept of parameters towards new values, in place; what is kept then, stacked."""
    stacked = _stacked(kept).lerp_(new, weight)
    if len(kept) > 1:
        torch._foreach_copy_(kept, list(stacked.unbind()))
    return stacked


def _eigenvectors(covariance: Tensor) -> Tensor:
    """Eigenvectors (any, D, D) by rising eigenvalue, so that they keep their order; on the CPU.

    Where no gradient has been yet, any axes would be eigenvectors; a faint slope along the diagonal
    decides, not rounding errors. A GPU takes longer over so small matrices than a CPU, whose cores
    share those of a GPU's many parameters (benchmarks/LOG.md).
    """
    on_cpu = covariance.cpu()
    slope_D = torch.linspace(0, FAINT, on_cpu.shape[-1], dtype=on_cpu.dtype)
    trace = on_cpu.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    sloped = on_cpu + torch.diag_embed(slope_D * trace)
    if covariance.device.type == "cpu":
        axes: Tensor = torch.linalg.eigh(sloped)[1]
        return axes
    return _shared_eigenvectors(sloped)


def _shared_eigenvectors(covariance: Tensor) -> Tensor:
    """Eigenvectors (any, D, D), each core's share in a thread of its own."""
    parts = covariance.flatten(0, -3).chunk(os.cpu_count() or 1)
    with ThreadPoolExecutor(len(parts)) as threads:
        found = [axes for _, axes in threads.map(torch.linalg.eigh, parts)]
    return torch.cat(found).view(covariance.shape)
