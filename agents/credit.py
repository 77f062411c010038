"""Which tokens earned the reward: every token of a few texts with its probability, value, reward, KL and advantage."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.advantages import gae
from agents.base import TextAlgorithm
from agents.decoder import sample_actions
from agents.evaluation import collector_on
from agents.kl import k1
from agents.policy_gradient import PolicyGradient
from agents.rollout import Collector
from agents.shaping import shaped_rewards
from agents.trajectories import Trajectories
from textgen_env import TextMDP, TextTokenizer


@dataclass(frozen=True)
class TokenCredit:
    """One action of a completion, s_t the prefix it was taken in."""

    text: str
    """What the token adds to the text; empty where it is part of a character that a later token completes."""
    special: bool
    """A token that is no text: EOS, say. ``text`` is then its name."""
    log_prob: float
    """log π(a_t | s_t), at the sampling temperature."""
    entropy: float
    """Of π(· | s_t), in nats."""
    value: float | None
    """V(s_t) in reward units; None where there is no critic."""
    reward: float
    """The environment's r_t, before the agent shapes it or charges KL."""
    kl: float | None
    """d_t = log π − log π_ref in nats (k1), this token's share of the completion's KL; None without a reference."""
    advantage: float
    """A_t as `credit` says, not whitened; in reward units (GRPO's in standard deviations of its group)."""

    @property
    def probability(self) -> float:
        """π(a_t | s_t)."""
        return math.exp(self.log_prob)


@dataclass(frozen=True)
class TextCredit:
    """One completion with the credit of its tokens, and what the advantages were computed with."""

    prompt: str
    completion: str
    reference: str | None
    """The prompt's first reference."""
    stop_reason: str
    score: float
    """The undiscounted reward: the sum of the tokens'."""
    components: Mapping[str, float]
    """Raw value of each reward component; NaN where one does not apply."""
    tokens: tuple[TokenCredit, ...]
    kl_coef_per_sequence: float
    """β: what the advantages charge for a nat of KL, in reward units; 0 where they do not."""
    others_score: float | None
    """Mean score of the other samples of the prompt, where the agent learns from several."""

    @property
    def kl(self) -> float | None:
        """The completion's log π − log π_ref in nats; None without a reference."""
        shares = [token.kl for token in self.tokens if token.kl is not None]
        return sum(shares) if shares else None


@torch.no_grad()
def credit(
    agent: TextAlgorithm,
    mdp: TextMDP,
    *,
    prompt_indices: Sequence[int] | None = None,
    num_texts: int = 4,
    greedy: bool = False,
    seed: int = 0,
) -> list[TextCredit]:
    """Let an agent answer prompts of ``mdp``'s split, and say of every token what it was credited with.

    The advantages of a policy-gradient agent are its own, before whitening: over rewards as it shapes and charges
    them, against its own baseline; where it learns from several samples of a prompt, so many are played and the first
    is shown. For other agents they are ``Σ γ^l r_{t+l} − V(s_t)``. Without a critic V is 0. The agent is not changed.

    Args:
        agent: any of our agents.
        mdp: the rules, on a held-out split (see `on_split`).
        prompt_indices: the prompts, as indices into the split; by default those that `evaluate` takes for ``seed``.
        num_texts: how many where ``prompt_indices`` does not say; all of the split where it has fewer.
        greedy: show the most likely token each time, instead of a sample at the training temperature.
        seed: seeds the choice of prompts and the sampling, as in `evaluate`.

    Raises:
        ValueError: no prompts were asked for, one does not exist, or the environment's vocabulary is not the agent's.
    """
    prompts = _chosen_prompts(len(mdp.prompts), prompt_indices, num_texts, seed)
    samples = agent.config.samples_per_prompt if isinstance(agent, PolicyGradient) else 1
    collector = collector_on(agent, mdp, len(prompts) * samples, seed)
    played = _play(collector, prompts, samples, greedy=greedy)
    log_probs_BT, values_BT, entropies_BT = _score(agent, played)
    log_ratio_BT = None
    if agent.reference is not None:
        # Both sides of the ratio by the same full forward: the sampler's cached one rounds differently in bf16.
        reference_BT, _ = agent.rescore(agent.reference, played)
        log_ratio_BT = k1(log_probs_BT - reference_BT) * played.action_mask_BT
    played = played.replace(log_probs_BT=log_probs_BT, values_BT=values_BT)
    # What a baseline remembers, or plays, happens to a copy: on these prompts, and not to the agent.
    observer = copy.copy(agent)
    observer.collector = collector
    advantages_BT, kl_coef = _advantages(observer, played, log_ratio_BT)
    critic_BT = values_BT if values_BT.any() else None  # a value head that nothing trained is exactly 0
    columns_BT = (log_probs_BT, entropies_BT, critic_BT, played.rewards_BT, log_ratio_BT, advantages_BT)
    scores = played.returns_B.tolist()
    texts = []
    for row in range(0, len(played), samples):
        info, completion = played.infos[row], played.completions[row]
        others = scores[row + 1 : row + samples]
        texts.append(
            TextCredit(
                prompt=info["prompt"],
                completion=info["text"],
                reference=next(iter(info["references"]), None),
                stop_reason=info["stop_reason"],
                score=scores[row],
                components={name: values["raw"] for name, values in info["reward"].items()},
                tokens=_tokens(mdp.tokenizer, completion.token_ids, [c if c is None else c[row] for c in columns_BT]),
                kl_coef_per_sequence=kl_coef,
                others_score=sum(others) / len(others) if others else None,
            )
        )
    return texts


def token_texts(tokenizer: TextTokenizer, token_ids: Sequence[int]) -> list[str]:
    """What each token adds to the text: joined, the pieces are the decoded text, special tokens by their names.

    A byte-level token may end within a character. The token that completes the character then shows it, and those
    before it add nothing; bytes that never become one are shown as U+FFFD by the last token.
    """
    pieces, before = [], ""
    for end in range(1, len(token_ids) + 1):
        text: str = tokenizer.hf.decode(
            list(token_ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if end < len(token_ids):
            text = text.rstrip("\ufffd")
        pieces.append(text[len(before) :])
        before = text
    return pieces


def _chosen_prompts(available: int, asked: Sequence[int] | None, num_texts: int, seed: int) -> list[int]:
    if asked is None:
        if num_texts < 1:
            raise ValueError(f"num_texts={num_texts} must be at least 1")
        drawn: list[int] = np.sort(np.random.default_rng(seed).permutation(available)[:num_texts]).tolist()
        return drawn
    if not asked:
        raise ValueError("prompt_indices names no prompt")
    for index in asked:
        if not 0 <= index < available:
            raise ValueError(f"prompt_indices names prompt {index}, the split has 0 to {available - 1}")
    return list(asked)


def _play(collector: Collector, prompts: Sequence[int], samples: int, *, greedy: bool) -> Trajectories:
    """``samples`` completions a prompt; the first of them greedy where that is asked, all others drawn."""

    def first_greedy(logits_NV: Tensor, episodes_N: npt.NDArray[np.int64]) -> Tensor:
        drawn_N = sample_actions(torch.log_softmax(logits_NV, dim=-1), collector.generator)
        first_N = torch.from_numpy(episodes_N % samples == 0).to(drawn_N.device)
        return torch.where(first_N, logits_NV.argmax(-1), drawn_N)

    played = collector.collect(
        len(prompts) * samples,
        samples_per_prompt=samples,
        prompt_indices=prompts,
        act=first_greedy if greedy else None,
    )
    assert played is not None  # nobody abandons it
    return played


def _score(agent: TextAlgorithm, played: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
    """``log_probs_BT``, ``values_BT`` and ``entropies_BT`` of a whole rollout."""
    scored = tuple(torch.zeros_like(played.log_probs_BT) for _ in range(3))

    def score(rows: Tensor, part: Trajectories) -> None:
        for whole_BT, part_BT in zip(scored, agent.policy.score(part), strict=True):
            whole_BT[rows, : part_BT.shape[1]] = part_BT

    agent.micro_batches.each(played, score)
    return scored[0], scored[1], scored[2]


def _advantages(agent: TextAlgorithm, played: Trajectories, log_ratio_BT: Tensor | None) -> tuple[Tensor, float]:
    """``advantages_BT`` before whitening, and the β that they charge."""
    if not isinstance(agent, PolicyGradient):
        rewards_BT = shaped_rewards(played, agent.config)
        return gae(rewards_BT, played.values_BT, played.action_mask_BT, gamma=agent.config.gamma, lam=1.0)[0], 0.0
    charged = log_ratio_BT is not None and agent.config.kl_in == "reward"
    advantages_BT, _ = agent.estimate_advantages(played, agent.learner_rewards(played, log_ratio_BT))
    return advantages_BT, agent.kl_controller.coef if charged else 0.0


def _tokens(
    tokenizer: TextTokenizer, token_ids: Sequence[int], columns_T: Sequence[Tensor | None]
) -> tuple[TokenCredit, ...]:
    special = {*tokenizer.hf.all_special_ids, *tokenizer.eos_ids}
    count = len(token_ids)
    figures = [[None] * count if column is None else column[:count].tolist() for column in columns_T]
    kinds = [token in special for token in token_ids]
    return tuple(TokenCredit(*row) for row in zip(token_texts(tokenizer, token_ids), kinds, *figures, strict=True))
