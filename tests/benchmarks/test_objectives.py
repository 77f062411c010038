import itertools

import numpy as np
import pytest
import torch

from agents import Random, SupervisedConfig, small_gpt2, supervised_fit
from benchmarks.objectives import OBJECTIVES, OPTIMA
from textgen_env import TextGenVectorEnv, TextMDP
from textgen_env.tasks import reverse
from textgen_env.tasks.steer_kl import steer_kl

SMALL = {"words": 3, "steps": 3, "positive": 1, "sharpness": 1.5, "beta": 0.7}
WORDS = (2, 3, 4)


@pytest.fixture
def mdp():
    return TextMDP(steer_kl(**SMALL, texts_per_prompt=200))


def make(mdp):
    env = TextGenVectorEnv(1, mdp=mdp, autoreset_mode="Disabled")
    return Random(small_gpt2(mdp.tokenizer, positions=5, layers=1, width=16), env, seed=0, device="cpu")


@torch.no_grad()
def enumerated(agent, mdp):
    """``E_π[r] − β KL(π‖p)`` over all 27 completions of every prompt, by definition."""
    steering = mdp.task.reward.steering
    texts = list(itertools.product(WORDS, repeat=3))
    values = np.array([sum(1.0 if token == 2 else -1.0 for token in text) for text in texts])
    scores = []
    for prompt in mdp.prompts:
        context = prompt.metadata["context_ids"]
        ids = torch.tensor([[*context, *text] for text in texts])
        logits, _ = agent.policy(ids, torch.arange(5).expand(27, -1), torch.arange(27 * 5))
        log_probs = torch.log_softmax(logits.double()[:, 2:], -1).reshape(27, 5, 3)[:, 1:4]
        log_q = log_probs.gather(-1, ids[:, 2:, None] - 2).sum((1, 2)).numpy()
        log_p = np.array([steering.prior.log_prob(context, text).sum() for text in texts])
        scores.append(np.exp(log_q) @ (values - steering.beta * (log_q - log_p)))
    return float(np.mean(scores))


def test_the_regularised_return_is_that_of_enumeration(mdp):
    agent, measure, optimum = make(mdp), OBJECTIVES["regularised_return"], OPTIMA["regularised_return"](mdp)
    assert measure(agent, mdp) == pytest.approx(enumerated(agent, mdp), rel=0.05)  # uniform: far from the optimum
    agent.policy.temperature = 1.0
    supervised_fit(agent.policy, mdp, SupervisedConfig(epochs=4, learning_rate=0.01))
    assert measure(agent, mdp) == pytest.approx(enumerated(agent, mdp), rel=0.05)
    steering = mdp.task.reward.steering
    contexts = tuple(np.array([prompt.metadata["context_ids"] for prompt in mdp.prompts]).T - 2)
    prior = steering.objective_WW(steering.prior.log_probs_WWW)[contexts].mean()
    assert measure(agent, mdp) == pytest.approx(prior, abs=0.15)
    assert optimum == pytest.approx(steering.optimum_WW[contexts].mean())
    assert measure(agent, mdp) < optimum - 0.5


def test_it_is_of_one_task():
    other = TextMDP(reverse())
    with pytest.raises(ValueError, match="measured on SteerKL, whose prior is known, not on 'reverse'"):
        OPTIMA["regularised_return"](other)


def test_every_objective_has_an_optimum():
    assert set(OBJECTIVES) == set(OPTIMA)
