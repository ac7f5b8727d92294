"""SOAP: Adam in turned axes, and what it must not depend on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foreword.train.soap import FAINT, LARGEST, SOAP, _shared_eigenvectors


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def follow(
    parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradients: list[Tensor]
) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


def moved(gradients: list[Tensor], **options: Any) -> Tensor:
    """Where a parameter of zeros goes."""
    parameter = nn.Parameter(torch.zeros_like(gradients[0]))
    follow(parameter, SOAP([parameter], lr=0.1, **options), gradients)
    return parameter.detach()


def slope(covariance: Tensor) -> Tensor:
    """What decides between axes along which no gradient has been."""
    return torch.diag(torch.linspace(0, FAINT, len(covariance)).double()) * covariance.trace()


def reference(gradients: list[Tensor], lr: float, every: int, damping: float) -> Tensor:
    """The paper's algorithm 3 for one head (P, D), the right side turned, in float64."""
    beta1, beta2, beta = 0.9, 0.99, 0.95
    tokens, size = gradients[0].shape
    right = torch.zeros(size, size).double()
    weight, momentum, square = (torch.zeros(tokens, size).double() for _ in range(3))
    for step, gradient in enumerate((g.double() for g in gradients), start=1):
        right = beta * right + (1 - beta) * gradient.T @ gradient
        if step == 1 or step % every == 0:
            axes = torch.linalg.eigh(right + slope(right))[1]
        if step == 1:
            continue
        momentum = beta1 * momentum + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * (gradient @ axes) ** 2
        mean = momentum @ axes / (1 - beta1**step)
        size_now = (square / (1 - beta2**step)).sqrt()
        size_now = size_now + damping * (size_now**2).mean().sqrt()
        weight = weight - lr * (mean / size_now) @ axes.T
    return weight


def test_it_is_the_papers_algorithm_in_each_head() -> None:
    gradients = [draw(2, 5, 8, seed=step) for step in range(12)]
    found = moved(gradients, damping=1e-3, every=5)
    for head in range(2):
        expected = reference([g[head] for g in gradients], 0.1, every=5, damping=1e-3)
        torch.testing.assert_close(found[head].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6,), (4, 5), (1, 2, LARGEST + 1)])
def test_without_axes_to_turn_it_is_adam(shape: tuple[int, ...]) -> None:
    gradients = [draw(*shape, seed=step) for step in range(6)]
    parameter = nn.Parameter(torch.zeros(shape))
    adam = torch.optim.AdamW([parameter], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    follow(parameter, adam, gradients)
    torch.testing.assert_close(moved(gradients), parameter.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 4), (4, 20), (8, 8)])
def test_of_a_matrix_the_shorter_side_is_turned(shape: tuple[int, int]) -> None:
    gradients = [draw(*shape, seed=step) for step in range(12)]
    found = moved(gradients, matrices=True)
    upright = shape[1] <= shape[0]
    seen = [gradient if upright else gradient.T for gradient in gradients]
    expected = reference(seen, 0.1, every=5, damping=1e-3)
    expected = expected if upright else expected.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_matrices_go_on_bit_for_bit_and_together_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(20, 4), (4, 20), (4, 20), (20, 4), (6,), (LARGEST + 2, LARGEST + 1)]
    ways = []
    for cut, together in ((9, False), (4, False), (9, True)):
        if together:
            monkeypatch.setattr(SOAP, "_together", lambda self, given: _by_shape(given))
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        optimizer = SOAP(parameters, lr=0.1, matrices=True)
        for step in range(9):
            if step == cut:
                kept = copy.deepcopy(optimizer.state_dict())
                optimizer = SOAP(parameters, lr=0.5, matrices=True)
                optimizer.load_state_dict(kept)
            for index, parameter in enumerate(parameters):
                parameter.grad = draw(*parameter.shape, seed=100 * step + index)
            optimizer.step()
        ways.append([parameter.detach() for parameter in parameters])
    for whole, resumed, at_once in zip(*ways, strict=True):
        assert torch.equal(whole, resumed)
        torch.testing.assert_close(whole, at_once, rtol=1e-5, atol=1e-6)


def test_turning_the_gradients_turns_the_way() -> None:
    """Adam depends on the axes that a gradient is written in; this does not."""
    turn = torch.linalg.qr(draw(8, 8, seed=99))[0]
    gradients = [draw(2, 12, 8, seed=step) for step in range(12)]  # along all axes from the start
    turned = moved([gradient @ turn for gradient in gradients])
    torch.testing.assert_close(turned, moved(gradients) @ turn, rtol=1e-3, atol=1e-3)


def test_rounding_errors_are_no_steps() -> None:
    """Gradients along two directions only: elsewhere there is nothing but noise, and no movement."""
    tokens, dimensions = draw(1, 6, 2, seed=50), draw(1, 2, 16, seed=51)
    gradients = [tokens @ torch.diag(draw(2, seed=step)) @ dimensions for step in range(20)]
    noisy = [g * (1 + 1e-7 * draw(*g.shape, seed=i)) for i, g in enumerate(gradients)]
    torch.testing.assert_close(moved(noisy), moved(gradients), rtol=0, atol=1e-3)
    assert float((moved(noisy, damping=0.0) - moved(gradients, damping=0.0)).abs().max()) > 1e-2


def test_no_gradient_moves_nothing() -> None:
    gradients = [torch.zeros(2, 3, 4)] * 7
    assert torch.equal(moved(gradients), torch.zeros(2, 3, 4))


def test_a_kept_state_goes_on_bit_for_bit() -> None:
    gradients = [draw(2, 5, 8, seed=step) for step in range(12)]
    whole = moved(gradients)
    parameter = nn.Parameter(torch.zeros(2, 5, 8))
    optimizer = SOAP([parameter], lr=0.1)
    follow(parameter, optimizer, gradients[:7])
    kept = copy.deepcopy(optimizer.state_dict())
    other = SOAP([parameter], lr=0.5)
    other.load_state_dict(kept)
    assert other.state[parameter]["covariance"].dtype == torch.float64
    follow(parameter, other, gradients[7:])
    assert torch.equal(parameter.detach(), whole)


def test_parameters_that_move_together_move_as_each_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = [(2, 5, 8), (2, 5, 8), (3, 4), (2, 5, 8), (3, 4), (1, 2, LARGEST + 1)]
    ways = []
    for together in (False, True):
        if together:  # what a GPU runs
            monkeypatch.setattr(SOAP, "_together", lambda self, given: _by_shape(given))
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        optimizer = SOAP(parameters, lr=0.1)
        for step in range(11):
            for index, parameter in enumerate(parameters):
                parameter.grad = draw(*parameter.shape, seed=100 * step + index)
            optimizer.step()
        ways.append(parameters)
    for one, other in zip(*ways, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_eigenvectors_found_in_threads_are_the_same() -> None:
    root = draw(3, 2, 8, 8).double()
    covariance = root @ root.mT
    expected = torch.linalg.eigh(covariance)[1]
    torch.testing.assert_close(_shared_eigenvectors(covariance), expected)


def _by_shape(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    by_shape: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_shape.setdefault(parameter.shape, []).append(parameter)
    return list(by_shape.values())


def test_a_closure_is_called_with_gradients() -> None:
    parameter = nn.Parameter(torch.ones(2, 3, 4))

    def closure() -> float:
        loss = parameter.square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer = SOAP([parameter], lr=0.1)
    assert optimizer.step(closure) == 24.0
    assert optimizer.step() is None
    assert float(parameter.detach().square().sum()) < 24.0
