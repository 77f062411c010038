"""The policy as it was: the frozen side of a KL, of a mask or of a target network."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from agents.policy import TextPolicy


def frozen_copy(policy: TextPolicy) -> TextPolicy:
    """The policy as it stands now, without gradients and without its optimiser.

    Weights that do not train are shared, not copied, and its ``state_dict`` leaves them to the policy's. The
    reference of a LoRA policy so costs an adapter's memory. Reading the policy with its adapter off would cost
    none, but that is the policy as it stands now only while the adapter is fresh: after a warm start of the adapter,
    or with a trained one, the KL would be measured from another model (TRL issue 6591).
    """
    optimizer = policy.__dict__.pop("optimizer", None)
    try:
        copied = copy.deepcopy(policy, {id(weight): weight for weight in _frozen(policy)})
    finally:
        if optimizer is not None:
            policy.optimizer = optimizer
    shared_ids = {id(weight) for weight in _frozen(policy)}
    shared = {name for name, value in copied.state_dict(keep_vars=True).items() if id(value) in shared_ids}
    copied.requires_grad_(False)

    def leave_out(_module: nn.Module, state: dict[str, Any], _prefix: str, _metadata: dict[str, Any]) -> None:
        for name in shared:
            state.pop(name, None)

    def not_missing(_module: nn.Module, incompatible: Any) -> None:
        incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in shared]

    copied.register_state_dict_post_hook(leave_out)
    copied.register_load_state_dict_post_hook(not_missing)
    return copied


def _frozen(policy: TextPolicy) -> Iterable[nn.Parameter]:
    return (weight for weight in policy.parameters() if not weight.requires_grad)
