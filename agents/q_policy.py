"""A policy that acts on Q: duelling action-value heads on a causal language model, and their slow copy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from agents.policy import TextPolicy
from agents.trajectories import Trajectories


class DuellingHeads(nn.Module):
    """K linear heads on one hidden state, ``Q_k(a) = V_k + A_k(a) − mean_a A_k(a)`` (Wang et al. 2016, equation 9).

    The first head starts at 0, so that nothing looks better than what was not tried. Further ones start a little
    beside it, at a standard deviation of about 0.1: equal heads with equal targets would stay equal for ever.

    Args:
        width: H, of the hidden states.
        actions: V, the number of actions.
        count: K.
    """

    def __init__(self, width: int, actions: int, count: int) -> None:
        super().__init__()
        self.count = count
        # Without drawing weights that are overwritten at once: the global generator is not ours to move.
        self.advantage = nn.utils.skip_init(nn.Linear, width, count * actions)
        self.value = nn.utils.skip_init(nn.Linear, width, count)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        beside = torch.randn((count - 1) * actions, width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.advantage.weight[actions:] = 0.1 * width**-0.5 * beside

    def mean(self, hidden_NH: Tensor) -> Tensor:
        """The mean over the heads of Q of every action, (N, V): linear in the weights, so one product for all."""
        weight, bias = self._advantage_weights()
        advantages_NV = functional.linear(hidden_NH, weight.mean(0), bias.mean(0))
        values_N1 = self.value(hidden_NH).mean(-1, keepdim=True)
        return values_N1 + advantages_NV - advantages_NV.mean(-1, keepdim=True)

    def best(self, hidden_NH: Tensor, allowed_NV: Tensor | None = None) -> Tensor:
        """The allowed action of the highest mean Q, (N,): the heads' values and mean advantages do not bear on it."""
        weight, bias = self._advantage_weights()
        advantages_NV = functional.linear(hidden_NH, weight.mean(0), bias.mean(0))
        if allowed_NV is not None:
            advantages_NV = advantages_NV.masked_fill(~allowed_NV, -torch.inf)
        return advantages_NV.argmax(-1)

    def taken(self, hidden_NH: Tensor, actions_N: Tensor) -> Tensor:
        """Q of one action a row, (K, N): only its own rows of the weights are read, V times less than all actions."""
        weight, bias = self._advantage_weights()
        own_KN = (weight.index_select(1, actions_N) * hidden_NH).sum(-1) + bias.index_select(1, actions_N)
        mean_KN = functional.linear(hidden_NH, weight.mean(1), bias.mean(1)).T
        return self.value(hidden_NH).T + own_KN - mean_KN

    def _advantage_weights(self) -> tuple[Tensor, Tensor]:
        weight, bias = self.advantage.weight, self.advantage.bias
        return weight.unflatten(0, (self.count, -1)), bias.unflatten(0, (self.count, -1))


class PolicyWithTarget(TextPolicy):
    """A policy with a second copy of its weights, ``target``, that follows slowly (`update_target`).

    It costs the weights' memory once more, but no gradients and no optimiser state.

    Args:
        model: the causal LM.
        vocab_size: number of actions.
        **kwargs: see `TextPolicy`.
    """

    target: PolicyWithTarget | None
    """None before `add_target`, and in the copy."""

    def __init__(self, model: PreTrainedModel, vocab_size: int, **kwargs: Any) -> None:
        super().__init__(model, vocab_size, **kwargs)
        self.target = None

    def add_target(self) -> None:
        """Make the slow copy: of the weights as they are now."""
        target = copy.deepcopy(self)
        target.requires_grad_(False)
        self.target = target

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """``θ' ← (1 − τ) θ' + τ θ`` (Polyak averaging; Lillicrap et al. 2016); τ = 1 copies."""
        assert self.target is not None
        slow = dict(self.target.named_parameters())
        own = [parameter for name, parameter in self.named_parameters() if name in slow]
        polyak_update(own, slow.values(), tau)


class QPolicy(PolicyWithTarget):
    """Acts by ``softmax(β (Q − V))``, or with a prior by ``softmax(log π_β + β (Q − V))`` (Snell et al. 2023).

    π_β is the language model itself. Greedy decoding takes the best Q, or the best of that sum. V is the highest Q, or
    with a prior the value head; it cancels in the softmax and keeps the logits small. The slow copy has Q heads too.

    Args:
        model: the causal LM.
        vocab_size: number of actions.
        num_heads: K, the number of Q heads.
        beta: β, in nats a unit of reward; large is close to greedy.
        prior: whether the language model's own distribution takes part.
        **kwargs: see `TextPolicy`.
    """

    target: QPolicy | None

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        *,
        num_heads: int = 1,
        beta: float = 100.0,
        prior: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, vocab_size, **kwargs)
        if num_heads < 1 or beta <= 0:
            raise ValueError(f"num_heads and beta must be above 0, got {num_heads} and {beta}")
        self.beta = beta
        self.prior = prior
        weight = self.value_head.weight
        self.q_heads = DuellingHeads(weight.shape[1], vocab_size, num_heads).to(weight).eval()
        self.add_target()

    def heads(self, hidden_NH: Tensor, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """From the chosen places' hidden states and LM logits to the logits that act, (N, V), and V (N,)."""
        q_NV = self.q_heads.mean(hidden_NH)
        if self.prior:
            values_N = self.value_head(hidden_NH).squeeze(-1)
            return torch.log_softmax(logits_NV, -1) + self.beta * (q_NV - values_N[:, None]), values_N
        values_N = q_NV.max(-1).values
        return self.beta * (q_NV - values_N[:, None]), values_N

    def read(self, episodes: Trajectories, *, with_logits: bool = True) -> tuple[Tensor, Tensor]:
        """What the heads read before each of the N actions (row-major over the mask), in one forward.

        Returns:
            ``hidden_NH``, and the language model's own logits (N, V), or (0, V) without them.
        """
        places = self.places(
            episodes.input_ids_BS, episodes.prompt_lengths_B, episodes.action_mask_BT, episodes.prompt_groups_B
        )
        return self.features(
            places.input_ids,
            places.position_ids,
            places.select_N,
            attention_mask=places.attention_mask,
            with_logits=with_logits,
        )


def actions_of(episodes: Trajectories) -> Tensor:
    """The N actions of the episodes, row-major over the mask."""
    rows_N, steps_N = episodes.action_mask_BT.nonzero(as_tuple=True)
    return episodes.input_ids_BS[rows_N, episodes.prompt_lengths_B[rows_N] + steps_N]


def spread(flat: Tensor, mask_BT: Tensor) -> Tensor:
    """(…, N) entries to their places in (…, B, T), 0 elsewhere."""
    shape = (*flat.shape[:-1], *mask_BT.shape)
    return flat.new_zeros(shape).masked_scatter(mask_BT.expand(shape), flat)
