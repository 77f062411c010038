"""A policy's matrices in bf16, cast once for many forwards."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from agents.policy import TextPolicy


class CastWeights:
    """A second view of a policy for acting: its linear layers in bf16, in memory of their own; all else is shared.

    Autocast casts the weights that it meets once a context. A CUDA graph must find them at the same place every
    time, and casting them at every token would cost more than reading them. The results are autocast's own.

    Args:
        policy: the policy; it may learn, but not be moved.

    Attributes:
        policy: the view, without gradients; `refresh` brings it up to date.
    """

    def __init__(self, policy: TextPolicy) -> None:
        shared: dict[int, Any] = {
            id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in policy.parameters()
        }
        optimizer = policy.__dict__.get("optimizer")
        if optimizer is not None:
            shared[id(optimizer)] = None  # of the learner
        self.policy = copy.deepcopy(policy, shared)
        self._casts: list[Tensor] = []
        self._sources: list[Tensor] = []
        for module in self.policy.model.modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                for name, weight in list(module.named_parameters(recurse=False)):
                    cast = weight.detach().to(torch.bfloat16)
                    setattr(module, name, nn.Parameter(cast, requires_grad=False))
                    self._sources.append(weight.detach())
                    self._casts.append(cast)

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the weights as they are now."""
        torch._foreach_copy_(self._casts, self._sources)
