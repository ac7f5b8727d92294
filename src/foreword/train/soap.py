"""SOAP: Adam in the eigenbasis of the gradients' covariance, for keys and values.

The gradients of keys and values lie along few directions of a head's dimensions. Adam scales each
dimension by itself and is blind to that; turned to the axes of their covariance, it is not
(benchmarks/LOG.md has what that is worth).

Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024 (arXiv 2409.11321),
algorithm 3; here per head, with one side turned (section 7) and the momentum kept in the original axes.

Shapes: H key/value heads, P prefix length, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 512
"""Dimensions beyond which a parameter keeps its own axes: finding others would cost too much."""

FAINT = 1e-6
"""Share of a covariance's trace that is next to nothing."""


class SOAP(torch.optim.Optimizer):
    """Adam in turned axes for parameters (H, P, D); plain Adam for all others.

    The first step finds the axes and moves nothing that has any.

    Args:
        params: Float32 parameters, or groups of them.
        lr: Step size: about the RMS of a step's change to a parameter.
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
        betas: tuple[float, float] = (0.9, 0.99),
        covariance_beta: float = 0.95,
        every: int = 5,
        damping: float = 1e-3,
        eps: float = 1e-8,
    ) -> None:
        own = {"betas": betas, "covariance_beta": covariance_beta, "every": every}
        super().__init__(params, {"lr": lr, **own, "damping": damping, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step from the gradients that are there; what `closure` gives, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimiser's, but for the covariances, which stay float64 on the CPU."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, saved in state_dict["state"].items():
            if "covariance" in saved:
                kept = saved["covariance"].to("cpu", copy=True)
                self.state[parameters[index]]["covariance"] = kept

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        turns = parameter.ndim == 3 and parameter.shape[-1] <= LARGEST
        if not state:
            state["step"] = 0
            state["momentum"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        axes = self._axes(state, gradient, group) if turns else None
        if turns and state["step"] == 1:
            return
        first, second = group["betas"]
        state["momentum"].lerp_(gradient, 1 - first)
        momentum = state["momentum"] / (1 - first ** state["step"])
        if axes is not None:
            gradient, momentum = gradient @ axes, momentum @ axes
        state["square"].lerp_(gradient.square(), 1 - second)
        square = state["square"] / (1 - second ** state["step"])
        if axes is None:
            change = momentum / (square.sqrt() + group["eps"])
        else:
            damping = group["damping"] * square.mean(dim=(1, 2), keepdim=True).sqrt()
            size = (square.sqrt() + damping).clamp_min(torch.finfo(square.dtype).tiny)
            change = momentum / size @ axes.mT
        parameter.sub_(change, alpha=group["lr"])

    def _axes(self, state: dict[str, Any], gradient_HPD: Tensor, group: dict[str, Any]) -> Tensor:
        """The axes (H, D, D) after this gradient.

        The covariance is kept in float64: in float32 its small eigenvalues, and so their axes, would
        be rounding errors of the large ones.
        """
        long_HPD = gradient_HPD.to("cpu", torch.float64)
        covariance_HDD = long_HPD.mT @ long_HPD
        if "covariance" not in state:
            state["covariance"] = torch.zeros_like(covariance_HDD)
        state["covariance"].lerp_(covariance_HDD, 1 - group["covariance_beta"])
        if state["step"] == 1 or state["step"] % group["every"] == 0:
            state["axes"] = _eigenvectors(state["covariance"]).to(gradient_HPD)
        axes: Tensor = state["axes"]
        return axes


def _eigenvectors(covariance_HDD: Tensor) -> Tensor:
    """Eigenvectors by rising eigenvalue, so that they keep their order.

    Where no gradient has been yet, any axes would be eigenvectors; a faint slope along the diagonal
    decides, not rounding errors.
    """
    slope_D = torch.linspace(0, FAINT, covariance_HDD.shape[-1], dtype=covariance_HDD.dtype)
    trace_H1 = covariance_HDD.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    axes_HDD: Tensor = torch.linalg.eigh(covariance_HDD + torch.diag_embed(slope_D * trace_H1))[1]
    return axes_HDD
