"""Everything that can happen in a world of three tokens, four deep: expectations are sums over 31 completions."""

import copy
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from stable_baselines3.common.logger import configure
from torch import Tensor

from agents.policy import TextPolicy
from agents.policy_gradient import Batch
from agents.trajectories import Trajectories
from tests.agents.conftest import gradients, make_env, make_mdp, make_policy

EOS, DEPTH, VOCAB = 1, 4, 3
PROMPT = [2, 2]
TEMPERATURE = 4.0
"""So that no completion is rare: a mistake in the last step shows as much as one in the first."""
COMPLETIONS = [
    tokens
    for length in range(1, DEPTH + 1)
    for tokens in itertools.product(range(VOCAB), repeat=length)
    if EOS not in tokens[:-1] and (tokens[-1] == EOS or length == DEPTH)
]
PAIRS = list(itertools.product(range(len(COMPLETIONS)), repeat=2))


class Tree:
    """A tiny policy, a reference beside it, all 31 completions of one prompt, and a reward for each."""

    mask_BTV: Tensor | None = None
    """True where an action is allowed; None allows all."""

    def __init__(self) -> None:
        self.policy = make_policy(vocab_size=VOCAB, temperature=TEMPERATURE)
        self.reference = make_policy(vocab_size=VOCAB, temperature=TEMPERATURE)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in self.reference.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        count = len(COMPLETIONS)
        self.lengths = torch.tensor([len(tokens) for tokens in COMPLETIONS])
        self.mask = torch.arange(DEPTH) < self.lengths[:, None]
        self.input_ids = torch.zeros(count, len(PROMPT) + DEPTH, dtype=torch.long)
        for row, tokens in enumerate(COMPLETIONS):
            self.input_ids[row, : len(PROMPT) + len(tokens)] = torch.tensor([*PROMPT, *tokens])
        self.scores = torch.randn(count, generator=generator, dtype=torch.float64)
        self.rewards = torch.zeros(count, DEPTH, dtype=torch.float64)
        self.rewards[range(count), self.lengths - 1] = self.scores
        score_of = dict(zip(COMPLETIONS, self.scores.tolist(), strict=True))
        self.mdp = make_mdp(
            lambda completion_ids: [score_of[tuple(ids)] for ids in completion_ids],
            prompts=["a a"],
            words="a",
            max_new_tokens=DEPTH,
        )

    # --- what is exact: autograd through the probabilities themselves

    def log_probs(self, policy: TextPolicy | None = None) -> Tensor:
        """log π of every action of every completion."""
        policy = self.policy if policy is None else policy
        lengths = torch.full((len(COMPLETIONS),), len(PROMPT))
        return policy.score_actions(self.input_ids, lengths, self.mask, allowed_BTV=self.mask_BTV)[0]

    def probabilities(self) -> Tensor:
        """p of each completion, with gradient."""
        log_probs = self.log_probs()
        return torch.where(self.mask, log_probs, 0.0).sum(-1).exp()

    def gradient(self, objective: Tensor) -> dict[str, Tensor]:
        """∇ of a function of the policy, over the language model's weights."""
        self.policy.zero_grad(set_to_none=True)
        objective.backward()
        return gradients(self.policy.model)

    def exact_gradient(self) -> dict[str, Tensor]:
        """∇ Σ_τ p(τ) R(τ)."""
        return self.gradient((self.probabilities() * self.scores).sum())

    def kl(self) -> Tensor:
        """KL(π‖π_ref) of whole completions, by its definition."""
        log_ratios = (self.log_probs() - self.log_probs(self.reference).detach()).sum(-1)
        return (self.probabilities() * log_ratios).sum()

    def over_prefixes(self, term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Σ_s p(s) Σ_a term(log π(a|s), log π_ref(a|s)) over prefixes s and actions a; p(s) without gradient."""
        log_probs, reference = self.log_probs(), self.log_probs(self.reference).detach()
        before = (log_probs.cumsum(-1) - log_probs).detach().exp()
        places = {tokens[: t + 1]: (row, t) for row, tokens in enumerate(COMPLETIONS) for t in range(len(tokens))}
        rows, steps = torch.tensor(list(places.values())).T
        return (before * term(log_probs, reference))[rows, steps].sum()

    # --- what the library does

    def agent(self, kind: Any, **options: Any) -> Any:
        """An agent with the tree's policy and reference, in its world; no option that biases on purpose is on."""
        neutral = {"whiten_advantages": False, "kl_coef_per_sequence": 0.0, "temperature": TEMPERATURE}
        env = make_env(mdp=self.mdp)
        agent = kind(copy.deepcopy(self.policy.model), env, seed=0, device="cpu", **{**neutral, **options})
        agent.policy.load_state_dict(self.policy.state_dict())
        if agent.reference is not None:
            agent.reference.load_state_dict(self.reference.state_dict())
        agent.set_logger(configure(None, []))
        return agent

    @torch.no_grad()
    def rollout(self, rows: Sequence[int] | None = None, samples_per_prompt: int = 1) -> Trajectories:
        """The completions with these numbers (all by default) as if the policy had just sampled them."""
        chosen = torch.arange(len(COMPLETIONS)) if rows is None else torch.as_tensor(rows)
        lengths = torch.full((len(COMPLETIONS),), len(PROMPT))
        log_probs, values, _ = self.policy.score_actions(self.input_ids, lengths, self.mask, allowed_BTV=self.mask_BTV)
        stops = ["eos" if tokens[-1] == EOS else "length" for tokens in COMPLETIONS]
        return Trajectories(
            input_ids_BS=self.input_ids[chosen],
            prompt_lengths_B=lengths[chosen],
            action_mask_BT=self.mask[chosen],
            log_probs_BT=log_probs[chosen],
            values_BT=values[chosen],
            rewards_BT=self.rewards[chosen],
            bootstrap_values_B=values.new_zeros(len(chosen)),
            prompt_groups_B=torch.arange(len(chosen)) // samples_per_prompt,
            infos=tuple({"stop_reason": stops[row], "prompt_index": 0} for row in chosen.tolist()),
            allowed_BTV=None if self.mask_BTV is None else self.mask_BTV[chosen],
        )

    def pairs(self) -> tuple[Trajectories, Tensor]:
        """All 31² ways to draw two completions, one after the other, and p of each, repeated for both."""
        p = self.probabilities().detach()
        first, second = torch.tensor(PAIRS).T
        return self.rollout(torch.tensor(PAIRS).flatten(), 2), (p[first] * p[second]).repeat_interleave(2)


def expected_ascent(agent: Any, batch: Batch, p_B: Tensor) -> dict[str, Tensor]:
    """−Σ_τ p(τ) ∇ loss(τ), by the agent's own `accumulate_gradients` on one completion after the other.

    The library divides a loss by the number of its actions, a random number that goes with the return. In a rollout
    of many episodes it is all but constant, a part of the step size; in one of a single episode it would favour short
    completions. What is exact is the gradient of the sum: the division is undone here.
    """
    ascent: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
    for row, p in enumerate(p_B.tolist()):
        agent.policy.zero_grad(set_to_none=True)
        agent.accumulate_gradients(batch, torch.tensor([row]))
        for name, gradient in gradients(agent.policy.model).items():
            ascent[name] = ascent[name] - p * int(batch.trajectories.lengths_B[row]) * gradient
    return ascent


def weighted_ascent(agent: Any, batch: Batch, p_B: Tensor) -> dict[str, Tensor]:
    """The same in one pass, for a loss that is linear in the advantages: they carry the weights."""
    batch = dataclasses.replace(batch, advantages_BT=batch.advantages_BT * p_B[:, None])
    agent.policy.zero_grad(set_to_none=True)
    agent.accumulate_gradients(batch, torch.arange(len(p_B)))
    count = batch.trajectories.num_tokens
    return {name: -count * gradient for name, gradient in gradients(agent.policy.model).items()}


def scaled(gradient: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """``factor`` times a gradient."""
    return {name: factor * value for name, value in gradient.items()}
