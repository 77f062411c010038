"""What must hold before the first update. A violation stops the run with the reason.

These are the silent failures of RL on language models: a sampler and a trainer that disagree about
log π(a), a reference that is not the policy it was copied from, dropout during rollouts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.policy import TextPolicy
from agents.trajectories import Trajectories

LOG_PROB_TOLERANCE = {"float32": 1e-3, "bf16": 0.25}
"""Largest difference in nats between two ways to the same log-probability. Cached and full forwards differ by
about 1e-5 in float32; in bf16 ratios of .97 to 1.04 are common and single tokens reach farther."""


class InvariantError(RuntimeError):
    """The first rollout shows that training would optimise something else than it samples."""


def check_first_rollout(policy: TextPolicy, trajectories: Trajectories, reference: TextPolicy | None) -> None:
    """Compare sampler, trainer and (where it starts equal to the policy) reference on a few episodes.

    Args:
        policy: the policy that collected the episodes, not yet updated.
        trajectories: the episodes.
        reference: the frozen reference if it is a copy of the policy, else None.

    Raises:
        InvariantError: with what disagrees, by how much, and the likely causes.
    """
    active = [name for name, module in policy.named_modules() if module.training]
    if active:
        raise InvariantError(
            f"the policy is in training mode (module '{active[0] or 'policy'}'): dropout would make every "
            "probability ratio noise. Leave policy.eval() on; gradients flow in eval mode too"
        )
    few = trajectories.select(range(min(8, len(trajectories))))
    tolerance = LOG_PROB_TOLERANCE[policy.precision]
    with torch.no_grad():
        trained_BT, values_BT, _ = policy.score(few, with_entropy=False)
    _compare(
        few.log_probs_BT,
        trained_BT,
        few.action_mask_BT,
        tolerance,
        "the sampler's log-probabilities differ from the trainer's, so the first ratio is not 1",
        "position ids or masks that the architecture treats differently with a cache, or a temperature "
        "that one side lacks; try the model with attn_implementation='eager'",
    )
    scale = max(1.0, float(values_BT.abs().max()))
    _compare(
        few.values_BT / scale,
        values_BT / scale,
        few.action_mask_BT,
        tolerance,
        "the sampler's values differ from the trainer's",
        "a cache that the architecture treats differently",
    )
    if reference is not None:
        with torch.no_grad():
            reference_BT, _, _ = reference.score(few, with_entropy=False)
        _compare(
            trained_BT,
            reference_BT,
            few.action_mask_BT,
            tolerance,
            "the reference was copied from the policy, yet the KL at step 0 is not 0",
            "the policy was changed after the agent was made, before learn()",
        )


def _compare(first_BT: Tensor, second_BT: Tensor, mask_BT: Tensor, tolerance: float, what: str, causes: str) -> None:
    gap = float((first_BT - second_BT)[mask_BT].abs().max())
    if not gap <= tolerance:  # also when it is NaN
        raise InvariantError(
            f"{what}: by up to {gap:.2g}, more than {tolerance:g}. Likely causes: {causes}. "
            "(check_invariants=False turns this check off)"
        )
