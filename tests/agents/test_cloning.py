"""The honest baselines: imitation of the best, and chance."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure

from agents.cloning import ExpertIteration, Supervised, best_of_groups
from agents.evaluation import evaluate
from agents.logged import logged_episodes
from agents.random_agent import Random
from tests.agents.conftest import gpt2_config, gradients, largest_gap, make_env, make_mdp, weights
from textgen_env import Prompt, TextMDP


def make(kind, env=None, **options):
    defaults = {"seed": 3, "device": "cpu", "num_envs": 4, "episodes_per_rollout": 16, "learning_rate": 3e-3}
    agent = kind(gpt2_config(), make_env() if env is None else env, **{**defaults, **options})
    agent.set_logger(configure(None, []))
    return agent


# --- what is kept -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returns", "groups", "fraction", "kept"),
    [
        ([1, 3, 2, 4], [0, 0, 0, 0], 0.25, [3]),
        ([1, 3, 2, 4], [0, 0, 0, 0], 0.5, [1, 3]),
        ([1, 3, 2, 4], [0, 0, 1, 1], 0.5, [1, 3]),
        ([1, 3, 2, 4], [5, 2, 2, 5], 0.5, [1, 3]),
        ([1, 1, 1, 2], [0, 0, 1, 1], 0.5, [3]),  # nothing to choose from in the first group
        ([0, 2, 2, 0], [0, 0, 0, 0], 0.25, [1]),  # of equals the earlier
        ([1, 2, 3, 4], [0, 0, 0, 0], 0.9, [2, 3]),  # never what is no better than the mean
    ],
)
def test_the_best_of_each_group(returns, groups, fraction, kept):
    mask = best_of_groups(torch.tensor(returns, dtype=torch.float32), torch.tensor(groups), fraction)
    assert mask.nonzero().squeeze(-1).tolist() == kept


def test_one_sample_a_prompt_is_measured_against_the_rollout():
    agent = make(ExpertIteration, samples_per_prompt=1)
    rollout = agent.collector.collect(16)
    seen = []
    agent.imitate = seen.append
    agent.train(rollout)
    best = np.sort(rollout.returns_B.numpy())[-4:]
    assert 0 < len(seen[0]) <= 4
    assert set(seen[0].returns_B.tolist()) <= set(best.tolist())


def test_equal_returns_teach_nothing():
    agent = make(ExpertIteration, make_env(reward=lambda completions: [1.0] * len(completions)))
    before = weights(agent.policy)
    agent.learn(30)
    assert largest_gap(weights(agent.policy), before) == 0


# --- the imitation ----------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_mean_log_likelihood():
    agent = make(ExpertIteration, micro_batch_tokens=20)
    rollout = agent.collector.collect(16, samples_per_prompt=8)
    stats = agent.accumulate_gradients(rollout)
    found = gradients(agent.policy.model)
    agent.policy.zero_grad(set_to_none=True)
    log_probs, *_ = agent.policy.score(rollout)
    loss = -log_probs.sum() / rollout.num_tokens
    loss.backward()
    assert stats["loss/policy"] == pytest.approx(float(loss.detach()), abs=1e-6)
    assert largest_gap(found, gradients(agent.policy.model)) < 1e-6


class Worst(ExpertIteration):
    """Must fail: the filter the wrong way round."""

    def train(self, trajectories):
        super().train(trajectories.replace(rewards_BT=-trajectories.rewards_BT))


@pytest.mark.parametrize(("kind", "better"), [(ExpertIteration, True), (Worst, False)])
def test_imitating_the_best_learns_and_imitating_the_worst_unlearns(kind, better):
    agent = make(kind, episodes_per_rollout=64, samples_per_prompt=8, num_envs=32)
    before = evaluate(agent, make_mdp(), samples_per_prompt=20).mean
    agent.learn(4000)
    after = evaluate(agent, make_mdp(), samples_per_prompt=20).mean
    assert (after > before + 0.7) if better else (after < before)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match="keep_fraction must lie between 0 and 1"):
        make(ExpertIteration, keep_fraction=1.0)


# --- chance -----------------------------------------------------------------------------------------------


def test_random_draws_uniformly_and_never_learns():
    agent = make(Random, episodes_per_rollout=200, num_envs=64)
    before = weights(agent.policy)
    rollout = agent.collector.collect(200)
    first = rollout.input_ids_BS[torch.arange(200), rollout.prompt_lengths_B]
    vocab = agent.policy.vocab_size
    assert rollout.log_probs_BT[rollout.action_mask_BT].tolist() == pytest.approx(
        [-np.log(vocab)] * rollout.num_tokens, abs=1e-6
    )
    expected = 200 / vocab
    counts = torch.bincount(first, minlength=vocab).double()
    assert float(((counts - expected) ** 2 / expected).sum()) < 24.3  # χ², 7 degrees of freedom, p = .001
    agent.learn(200)
    assert largest_gap(weights(agent.policy), before) == 0


# --- of references ----------------------------------------------------------------------------------------


def test_supervised_learns_the_references_of_the_split():
    agent = make(Supervised, make_env(mdp=make_mdp(max_new_tokens=6)), learning_rate=3e-3)
    agent.learn(3000)
    assert agent.generate(["a", "d d d", "f"], greedy=True) == ["a b"] * 3  # the small world's only reference
    assert agent.num_timesteps >= 3000
    assert len(agent.data) == 6


def test_supervised_learns_logged_episodes_where_it_has_some():
    mdp = make_mdp(max_new_tokens=6)
    data = logged_episodes(mdp, [0, 1, 2], ["c", "c", "c"])
    agent = make(Supervised, make_env(mdp=mdp), data=data)
    agent.learn(600)
    assert agent.generate(["a", "f"], greedy=True) == ["c", "c"]
    assert agent.data is data


def test_without_references_there_is_nothing_to_learn():
    mdp = make_mdp()
    bare = replace(mdp.task, splits={"train": tuple(Prompt(prompt.text) for prompt in mdp.prompts)})
    agent = make(Supervised, make_env(mdp=TextMDP(bare, lambda completions: [0.0] * len(completions), mdp.tokenizer)))
    with pytest.raises(ValueError, match="has no references to learn from"):
        agent.learn(10)
