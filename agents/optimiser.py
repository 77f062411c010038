"""Adam, as one kernel where every weight is on a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def adam(parameters: Iterable[nn.Parameter], *, lr: float, eps: float, fused: bool | None = None) -> torch.optim.Adam:
    """Adam (Kingma & Ba 2015) of some weights. How it computes is chosen here, whatever a state that it loads says.

    Args:
        parameters: the weights.
        lr: the step size.
        eps: added to the root of the second moment.
        fused: whether one kernel does all; by default where all weights are float32 and on a GPU.
    """
    parameters = list(parameters)
    if fused is None:
        fused = all(weight.is_cuda and weight.dtype == torch.float32 for weight in parameters)
    optimiser = torch.optim.Adam(parameters, lr=lr, eps=eps, fused=fused or None)

    def compute_as_here(_optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "param_groups": [{**group, "fused": fused or None} for group in state["param_groups"]]}

    optimiser.register_load_state_dict_pre_hook(compute_as_here)
    return optimiser
