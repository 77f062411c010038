"""Natural language policy optimisation (Ramamurthy et al. 2023): PPO on the likely tokens of a lagged policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.cast_weights import CastWeights
from agents.config import option
from agents.decoder import Decoder
from agents.policy import TextPolicy
from agents.ppo import PPO, PPOConfig
from agents.reference import frozen_copy
from agents.trajectories import Trajectories


@dataclass
class NLPOConfig(PPOConfig):
    """NLPO's options."""

    top_p: float = option(0.9, "an action must be among the lagged policy's likeliest, of this much probability")
    mask_refresh_rollouts: int = option(10, "rollouts after which the lagged policy catches up with the policy")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.mask_refresh_rollouts < 1:
            raise ValueError(f"mask_refresh_rollouts must be at least 1, got {self.mask_refresh_rollouts}")


class NLPO(PPO):
    """NLPO: PPO whose actions are confined to the top-p tokens of an earlier policy, refreshed as it goes.

    The mask acts in sampling and in the update's log-probabilities alike; the reference is read under the same mask,
    so that the KL is one between distributions over the same actions. At evaluation nothing is masked.
    """

    config_class = NLPOConfig
    shards = False
    config: NLPOConfig
    mask_policy: TextPolicy
    """The lagged policy, frozen."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.mask_policy = frozen_copy(self.policy)

    def _setup_collector(self) -> None:
        super()._setup_collector()
        self.collector.constrains = True
        self.collector.make_decoder = self._masked_decoder

    def _masked_decoder(self, policy: TextPolicy, num_slots: int, capacity: int) -> Decoder:
        return TopPDecoder(policy, num_slots, capacity, lagged=self.mask_policy, top_p=self.config.top_p)

    def refresh_reference(self) -> None:
        """Make the policy, as it is now, the reference and the one that masks."""
        super().refresh_reference()
        self.refresh_mask()

    def refresh_mask(self) -> None:
        """Let the lagged policy catch up."""
        self.mask_policy.load_state_dict(self.policy.state_dict())

    def train(self, trajectories: Trajectories) -> None:
        """PPO's update; every ``mask_refresh_rollouts`` of them the mask catches up with the policy."""
        super().train(trajectories)
        allowed_BTV = trajectories.allowed_BTV
        assert allowed_BTV is not None  # our decoder always says
        allowed = allowed_BTV[trajectories.action_mask_BT].sum(-1, dtype=torch.float32)
        self.logger.record("policy/allowed_tokens", float(allowed.mean()))
        if (self._iteration + 1) % self.config.mask_refresh_rollouts == 0:
            self.refresh_mask()

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        return [*names, "mask_policy"], variables

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "mask_policy"]


class TopPDecoder(Decoder):
    """A decoder that only lets through what a second, lagged policy finds likely on the same prefixes."""

    def __init__(self, policy: TextPolicy, num_slots: int, capacity: int, *, lagged: TextPolicy, top_p: float) -> None:
        super().__init__(policy, num_slots, capacity)
        # Autocast keeps no casts of frozen weights: it would make them anew at every token.
        self._cast = CastWeights(lagged) if lagged.precision == "bf16" else None
        self.lagged = Decoder(lagged if self._cast is None else self._cast.policy, num_slots, capacity)
        self.top_p = top_p

    def clear(self) -> None:
        """Stop all rows of both, which may have learned."""
        super().clear()
        if self._cast is not None:
            self._cast.refresh()
        self.lagged.clear()

    def start(self, rows: Sequence[int], prompts: Sequence[Tensor]) -> None:
        """Give new prompts to some rows of both."""
        super().start(rows, prompts)
        self.lagged.start(rows, prompts)

    def step(self, allowed_NV: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The policy's logits and values; −inf also for what the lagged policy finds unlikely."""
        logits_NV, values_N = super().step(allowed_NV)
        lagged_NV, _ = self.lagged.step(allowed_NV)
        return logits_NV.masked_fill(~top_p_mask(lagged_NV, self.top_p), -torch.inf), values_N

    def append(self, tokens_N: Tensor) -> None:
        """The tokens chosen for the running rows."""
        super().append(tokens_N)
        self.lagged.append(tokens_N)

    def drop(self, row: int) -> int | None:
        """Stop a row of both."""
        self.lagged.drop(row)
        return super().drop(row)


def top_p_mask(logits_NV: Tensor, top_p: float) -> Tensor:
    """True for the smallest set of likeliest tokens whose probability reaches ``top_p`` (Holtzman et al. 2020).

    The likeliest token is always in it.
    """
    probabilities, order = torch.softmax(logits_NV, dim=-1).sort(dim=-1)
    # A token is in unless it and the less likely ones hold no more than what may be left out. Summed from the
    # small end, where a sum from the other would round: at top_p = 1 every token of any probability stays.
    kept = probabilities.cumsum(-1) > 1 - top_p
    kept[:, -1] = True
    return torch.zeros_like(kept).scatter(-1, order, kept)
