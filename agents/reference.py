"""The policy as it was: the frozen side of a KL, of a mask or of a target network."""

from __future__ import annotations

import copy

from agents.policy import TextPolicy


def frozen_copy(policy: TextPolicy) -> TextPolicy:
    """A copy of the policy as it stands now, without gradients and without its optimiser."""
    optimizer = policy.__dict__.pop("optimizer", None)
    try:
        copied = copy.deepcopy(policy)
    finally:
        if optimizer is not None:
            policy.optimizer = optimizer
    copied.requires_grad_(False)
    return copied
