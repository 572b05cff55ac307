"""Muon for many matrices of a few shapes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch


class StackedMuon(torch.optim.Muon):
    """torch.optim.Muon that makes the updates of all matrices of one shape orthogonal at once, as a stack.

    One matrix after another, each with its thirty small operations, was 47 of the 120 ms of a decoder's step on a
    GPU, which waited for most of them (docs/LOG.md). It keeps of a matrix what torch's keeps. Always with Nesterov's
    momentum, and updates of the size of AdamW's (`adjust_lr_fn="match_rms_adamw"`).
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            stacks: dict[tuple, list[torch.Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    stacks[weight.shape, weight.device].append(weight)
            for weights in stacks.values():
                self._step_together(weights, group)

    def _step_together(self, weights: list[torch.Tensor], group: dict) -> None:
        """One step of these weights, all of one shape."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        momenta = [self._momentum(weight) for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        updates = orthogonal(
            updates, group["ns_coefficients"], group["ns_steps"], eps=group["eps"]
        ).to(weights[0].dtype)
        rate = group["lr"] * 0.2 * max(weights[0].shape) ** 0.5  # as far as AdamW's would be
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, updates.unbind(), alpha=-rate)

    def _momentum(self, weight: torch.Tensor) -> torch.Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def orthogonal(
    stack: torch.Tensor, coefficients: tuple[float, float, float], steps: int, *, eps: float
) -> torch.Tensor:
    """Matrices [n, rows, columns] with their singular values brought near 1, in bfloat16.

    A quintic Newton-Schulz iteration of so many steps (Jordan et al. 2024).
    """
    a, b, c = coefficients
    tall = stack.shape[1] > stack.shape[2]
    x = (stack.mT if tall else stack).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
