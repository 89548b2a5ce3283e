"""Muon against the singular values that it is meant to give, and on a problem with a known end."""

from __future__ import annotations

import pytest
import torch
from famsam.training.muon import ADAMW_RMS, Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 8), (8, 40), (40, 8), (1, 5)])
def test_singular_values_become_about_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before, after = torch.linalg.svd(matrix, full_matrices=False), orthogonalised(matrix)
    in_its_axes = before.U.T @ after @ before.Vh.T
    values = in_its_axes.diag()
    assert values.min() > 0.6 and values.max() < 1.3
    torch.testing.assert_close(in_its_axes, values.diag(), atol=1e-4, rtol=0)


def test_an_update_has_the_size_of_adamws():
    kernel = torch.nn.Parameter(torch.zeros(16, 4, 3, 3, 3))
    kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(1)) * 1e-4
    Muon([kernel], lr=0.01).step()
    assert kernel.detach().square().mean().sqrt() == pytest.approx(0.01 * ADAMW_RMS, rel=0.2)


def test_it_finds_the_least_squares_and_decays_what_has_no_gradient():
    generator = torch.Generator().manual_seed(2)
    truth, inputs = torch.randn(6, 10, generator=generator), torch.randn(200, 10, generator=generator)
    weight, idle = torch.nn.Parameter(torch.zeros(6, 10)), torch.nn.Parameter(torch.ones(4, 4))
    optimiser = Muon([{"params": [weight]}, {"params": [idle], "weight_decay": 0.1}], lr=0.1)
    idle.grad = torch.zeros_like(idle)
    for step in range(300):
        for group in optimiser.param_groups:
            group["lr"] = 0.1 * (1 - step / 300)
        weight.grad = 2 * (weight.detach() - truth) @ (inputs.T @ inputs) / len(inputs)
        optimiser.step()
    assert (weight - truth).norm() / truth.norm() < 0.1
    left = (1 - 0.1 * 0.1 * 0.5) ** 300  # the mean rate is half of the first
    torch.testing.assert_close(idle.detach(), torch.full((4, 4), left), rtol=0.05, atol=0)


def test_a_parameter_without_a_gradient_stays():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    Muon([weight], lr=1.0, weight_decay=0.5).step()
    assert (weight == 1).all()
