"""Muon (Jordan et al. 2024) for matrices and convolution kernels: momentum whose singular values are all made about 1.

``torch.optim.Muon`` takes matrices only; here a kernel counts as the matrix of its output channels. The update has the
size that AdamW's usually has (Liu et al. 2025, arXiv 2502.16982, eq. 4), so that one learning rate fits both.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Tuple

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration; they grow small singular values fastest."""
ADAMW_RMS = 0.2
"""Root mean square of the numbers of an update of AdamW's, over its learning rate."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal.

    Args:
        parameters: of two or more axes, the first being the output channels.
        lr: learning rate, as for AdamW.
        momentum: of the gradients' running sum.
        weight_decay: decoupled, as AdamW's.
        steps: of the Newton-Schulz iteration.
        precision: of its products; bfloat16 is what the method was made for.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: Dict[torch.Size, List[Tuple[Any, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                gradient = parameter.grad.float()
                if "sum" not in state:
                    state["sum"] = torch.zeros_like(gradient)
                state["sum"].lerp_(gradient, 1 - group["momentum"])
                ahead = gradient.lerp(state["sum"], group["momentum"]).flatten(1).to(self.precision)
                alike.setdefault(ahead.shape, []).append((parameter, ahead))
            for shape, some in alike.items():
                scale = ADAMW_RMS * max(shape) ** 0.5
                updates = self._orthogonalised([ahead for _, ahead in some], group["steps"])
                for (parameter, _), update in zip(some, updates):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    # The rate may be a tensor: one that a CUDA graph of this step is to read.
                    parameter.sub_(update.view_as(parameter).to(parameter.dtype) * (group["lr"] * scale))

    def _orthogonalised(self, matrices: List[Tensor], steps: int) -> List[Tensor]:
        """Each one; on a GPU, which waits for the next product rather than computes, all of one shape at once."""
        if matrices[0].device.type == "cpu":
            return [orthogonalised(matrix, steps) for matrix in matrices]
        return list(orthogonalised(torch.stack(matrices), steps).unbind())


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix with the same singular vectors and singular values near 1 (0.7 to 1.2), (…, rows, columns)."""
    a, b, c = COEFFICIENTS
    upright = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if upright else matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if upright else x
