"""What a benchmark measures of an agent: one number, higher is better, on prompts it never learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from agents.base import TextAlgorithm
from agents.evaluation import evaluate
from benchmarks.markov import divergence, next_word, written
from textgen_env import TextMDP
from textgen_env.tasks.markov import FIRST_WORD_ID, MarkovOracle
from textgen_env.tasks.match_corpus import OracleLogLikelihood
from textgen_env.tasks.steer_kl import Steering, WordValues

_TEXTS_PER_PROMPT = 32

Objective: TypeAlias = Callable[[TextAlgorithm, TextMDP], float]


def greedy_return(agent: TextAlgorithm, mdp: TextMDP) -> float:
    """The mean undiscounted return of the greedy answers to all prompts of ``mdp``'s split."""
    return evaluate(agent, mdp, num_prompts=len(mdp.prompts), greedy=True).mean


def regularised_return(agent: TextAlgorithm, mdp: TextMDP) -> float:
    """SteerKL's ``J(π) = E_π[r] − β KL(π‖p)`` of the agent's samples, the chain p known.

    Measured as ``J* − β KL(π‖π*)``, which is the same (see `textgen_env.tasks.steer_kl`). The KL is exact at every
    place of the sampled texts; that these are a sample matters the less, the nearer the policy is to the optimum.

    Raises:
        ValueError: the task is not SteerKL.
    """
    steering = _steering(mdp)
    texts = written(agent, mdp, _TEXTS_PER_PROMPT * len(mdp.prompts), seed=0)
    log_q, log_best = next_word(agent.policy, texts, steering.log_policy_TWWW)
    return optimal_regularised_return(mdp) - steering.beta * float(divergence(log_q, log_best).mean())


def optimal_regularised_return(mdp: TextMDP) -> float:
    """J*, its mean over the prompts of ``mdp``.

    Raises:
        ValueError: the task is not SteerKL.
    """
    optimum_WW = _steering(mdp).optimum_WW
    contexts = np.array([prompt.metadata["context_ids"] for prompt in mdp.prompts]) - FIRST_WORD_ID
    return float(optimum_WW[tuple(contexts.T)].mean())


def _steering(mdp: TextMDP) -> Steering:
    if not isinstance(mdp.task.reward, WordValues):
        raise ValueError(f"'regularised_return' is measured on SteerKL, whose prior is known, not on '{mdp.task.name}'")
    return mdp.task.reward.steering


def negative_kl(agent: TextAlgorithm, mdp: TextMDP) -> float:
    """MatchCorpus' −KL(q‖p), nats a completion: of the agent's samples at its temperature, exact at every place.

    Raises:
        ValueError: the task is not MatchCorpus.
    """
    chain = chain_of(mdp)
    texts = written(agent, mdp, _TEXTS_PER_PROMPT * len(mdp.prompts), seed=0)
    return -float(divergence(*next_word(agent.policy, texts, chain.log_probs_WWW)).mean())


def chain_of(mdp: TextMDP) -> MarkovOracle:
    """The chain that MatchCorpus' corpus is drawn from.

    Raises:
        ValueError: the task is not MatchCorpus.
    """
    if not isinstance(mdp.task.reward, OracleLogLikelihood):
        raise ValueError(f"'negative_kl' is measured on MatchCorpus, whose chain is known, not on '{mdp.task.name}'")
    return mdp.task.reward.chain


def _no_divergence(mdp: TextMDP) -> float:
    """The optimum of `negative_kl`: the chain itself."""
    chain_of(mdp)
    return 0.0


OBJECTIVES: Mapping[str, Objective] = {
    "return": greedy_return,
    "regularised_return": regularised_return,
    "negative_kl": negative_kl,
}
"""By the name that `Setup.objective` has."""
OPTIMA: Mapping[str, Callable[[TextMDP], float]] = {
    "return": TextMDP.optimal_return,
    "regularised_return": optimal_regularised_return,
    "negative_kl": _no_divergence,
}
"""The best there is of each."""
