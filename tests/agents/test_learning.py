"""It learns: from random weights, on prompts it sees and on prompts it never saw."""

import itertools
import random
from dataclasses import replace

import pytest
import torch

from agents import A2C, GRPO, NLPO, PPO, REINFORCE
from agents.advantages import gae
from agents.rollout import Collector
from tests.agents.conftest import gpt2_config, make_env, word_tokenizer
from textgen_env import TextMDP, TextTask

WORDS = "a b c d e f"
PROMPTS = [" ".join(pair) for pair in itertools.product(WORDS.split(), repeat=2)]
random.Random(0).shuffle(PROMPTS)
TASK = TextTask.from_pairs({"train": [(p, p) for p in PROMPTS[7:]], "test": [(p, p) for p in PROMPTS[:7]]}, name="copy")
TOKENIZER = word_tokenizer(WORDS)
THRESHOLD = 0.9


def copied(prompts, completion_ids):
    """The fraction of right tokens, where right is the prompt again and then the EOS."""
    targets = [[*TOKENIZER.encode(prompt), 1] for prompt in prompts]
    return [
        sum(a == b for a, b in zip(target, ids, strict=False)) / len(target)
        for target, ids in zip(targets, completion_ids, strict=True)
    ]


def make_copy_mdp(split):
    return TextMDP(TASK, copied, TOKENIZER, split=split, max_new_tokens=4)


def mean_reward(agent, split, greedy):
    mdp, samples = make_copy_mdp(split), 1 if greedy else 6
    collector = Collector(make_env(mdp=mdp, num_envs=32), agent.policy, seed=0)
    count = len(mdp.prompts)
    episodes = collector.collect(
        count * samples, samples_per_prompt=samples, prompt_indices=range(count), greedy=greedy
    )
    return float(episodes.returns_B.mean())


def make_learner(agent_class=PPO, seed=0, **options):
    return agent_class(
        gpt2_config(spread=0.1),
        make_env(mdp=make_copy_mdp("train"), num_envs=32),
        seed=seed,
        device="cpu",
        **{"learning_rate": 2e-3, "kl_coef_per_sequence": 0.0, **options},
    )


def test_ppo_learns_to_copy():
    agent = make_learner()
    assert max(mean_reward(agent, "test", greedy) for greedy in (False, True)) < 0.4
    agent.learn(25_000)
    rewards = {
        (split, greedy): mean_reward(agent, split, greedy) for split in ("train", "test") for greedy in (False, True)
    }
    assert min(rewards.values()) >= THRESHOLD, rewards
    assert agent.generate([f"{a} {b}" for a, b in ("ab", "fc", "dd")], greedy=True) == ["a b", "f c", "d d"]


class Backwards(PPO):
    """PPO with the sign of its advantages lost."""

    def prepare(self, trajectories):
        batch = super().prepare(trajectories)
        return replace(batch, advantages_BT=-batch.advantages_BT)


def test_learning_backwards_is_seen():
    """Must fail, and does so early: what is right becomes rarer."""
    rewards = {}
    for kind in (PPO, Backwards):
        agent = make_learner(kind)
        agent.learn(5_000)
        rewards[kind] = mean_reward(agent, "train", greedy=False)
    assert rewards[Backwards] < 0.1
    assert rewards[PPO] > 0.4


# --- the others, each at a budget that its broken twins do not get by with ---------------------------------


class WrongSign(A2C):
    """The loss goes uphill."""

    def policy_loss(self, *args):
        return -super().policy_loss(*args)


class NoBaseline(A2C):
    """The critic is trained and then not used."""

    def estimate_advantages(self, trajectories, rewards_BT):
        values_BT = torch.zeros_like(trajectories.values_BT)
        return gae(rewards_BT, values_BT, trajectories.action_mask_BT, gamma=1.0, lam=1.0)


class NoEOS(A2C):
    """The EOS action is left out of the mask of the loss, as if it were padding."""

    def policy_loss(self, log_probs_BT, episodes, advantages_BT, count):
        eos_BT = torch.arange(log_probs_BT.shape[1]) == episodes.lengths_B[:, None] - 1
        return super().policy_loss(log_probs_BT, episodes, advantages_BT * ~eos_BT, count)


@pytest.mark.parametrize(
    ("kind", "options", "learns"),
    [
        (A2C, {"samples_per_prompt": 4}, True),
        (REINFORCE, {}, True),
        (GRPO, {}, True),
        (NLPO, {}, True),
        (WrongSign, {"samples_per_prompt": 4}, False),
        (NoBaseline, {}, False),
        (NoEOS, {"samples_per_prompt": 4}, False),
        (REINFORCE, {"baseline": "none"}, False),
    ],
)
def test_it_learns_unless_it_is_broken(kind, options, learns):
    agent = make_learner(kind, **options)
    agent.learn(20_000)
    sampled, greedy = mean_reward(agent, "train", greedy=False), mean_reward(agent, "test", greedy=True)
    assert (sampled >= 0.85 and greedy >= THRESHOLD) is learns, (sampled, greedy)
    assert learns or sampled < 0.8, sampled  # broken by a margin
