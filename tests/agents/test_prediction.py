"""``predict`` in other people's loops: the returned state is a cache, and never more than that."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from agents.prediction import PrefixState
from tests.agents.conftest import letters, make_agent, make_env, make_mdp, word_tokenizer
from textgen_env import TextGenEnv, TextTask


@pytest.fixture(scope="module")
def agent():
    """One whose greedy choices differ from prefix to prefix."""
    agent, generator = make_agent(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return agent


def single_env():
    task = TextTask.from_pairs({"train": ["a", "b c d e", "d d"]}, name="letters")
    return TextGenEnv(task=task, reward=letters, tokenizer=word_tokenizer("a b c d e f"), max_new_tokens=7)


def test_an_observation_gives_one_token(agent):
    env = single_env()
    observation, _ = env.reset(seed=0)
    action, state = agent.predict(observation, deterministic=True)
    assert np.ndim(action) == 0
    env.step(action)
    prefix = observation["input_ids"][: observation["attention_mask"].sum()]
    logits = agent.policy.model(input_ids=torch.from_numpy(prefix)[None]).logits[0, -1]
    assert action == int(logits.argmax())
    assert isinstance(state, PrefixState)


def play(agent, env, steps, stateful, forget=()):
    """Greedy actions of ``steps`` vector steps; rows start anew whenever they end."""
    observations, _ = env.reset(options={"prompt_index": np.arange(env.num_envs)})
    state, chosen = None, []
    for step in range(steps):
        actions, new_state = agent.predict(observations, state=state, deterministic=True)
        state = new_state if stateful and step not in forget else None
        chosen.append(actions.tolist())
        observations, _, terminated, _, _ = env.step(actions)
        if terminated.any():
            prompts = np.full(env.num_envs, step % 6)
            observations, _ = env.reset(options={"reset_mask": terminated, "prompt_index": prompts})
    return chosen


def test_the_cached_state_changes_no_action(agent):
    expected = play(agent, make_env(), 25, stateful=False)
    assert len({tuple(actions) for actions in expected}) > 5
    assert play(agent, make_env(), 25, stateful=True) == expected
    assert play(agent, make_env(), 25, stateful=True, forget=(3, 4, 11)) == expected


def test_a_state_of_other_prefixes_is_not_believed(agent):
    """Rows swapped, prefixes cut or changed: the cache must notice, whatever the flags say."""
    env = make_env(mdp=make_mdp(prompts=["a b c", "d e f", "a b", "c"]))
    observations, _ = env.reset(options={"prompt_index": np.arange(4)})
    _, state = agent.predict(observations, deterministic=True)
    observations, *_ = env.step(np.array([3, 4, 5, 6]))
    swapped = {key: value[::-1].copy() for key, value in observations.items()}
    changed = {key: value.copy() for key, value in observations.items()}
    changed["input_ids"][0, 0] = 7  # the length fits, the text does not
    for other in (swapped, changed, observations, observations):
        expected, _ = agent.predict(other, deterministic=True)
        actions, state = agent.predict(other, state=state, episode_start=np.zeros(4, dtype=bool), deterministic=True)
        assert actions.tolist() == expected.tolist()


def test_a_state_that_believes_everything_is_seen(agent, monkeypatch):
    """Must fail: the swapped rows above, were they taken for the ones in the cache."""

    def believe(state, input_ids, lengths):
        if state.lengths.any():
            last = input_ids[np.arange(len(lengths)), lengths - 1]
            state.decoder.append(torch.from_numpy(last))
        else:
            state.decoder.start(
                list(range(len(lengths))),
                [torch.from_numpy(r[:n].copy()) for r, n in zip(input_ids, lengths, strict=True)],
            )
        state.lengths = lengths

    env = make_env()
    observations, _ = env.reset(options={"prompt_index": np.arange(4)})
    monkeypatch.setattr(PrefixState, "advance", believe)
    _, state = agent.predict(observations, deterministic=True)
    logits, fresh = [], {key: value[::-1].copy() for key, value in observations.items()}
    for given in (state, None):
        _, after = agent.predict(fresh, state=given, deterministic=True)
        logits.append(after.decoder.step()[0])
    assert (logits[0] - logits[1]).abs().max() > 0.1


def test_a_batch_of_another_size_starts_anew(agent):
    small, large = make_env(2), make_env(4)
    _, state = agent.predict(small.reset(seed=0)[0], deterministic=True)
    observations, _ = large.reset(seed=0)
    expected, _ = agent.predict(observations, deterministic=True)
    assert agent.predict(observations, state=state, deterministic=True)[0].tolist() == expected.tolist()


def test_an_empty_prefix_is_refused(agent):
    observation, _ = single_env().reset(seed=0)
    observation["attention_mask"][:] = 0
    with pytest.raises(ValueError, match="without a single token"):
        agent.predict(observation)


def test_sampling_follows_the_agents_seed():
    def sampled(seed):
        agent = make_agent(seed=seed)
        observations, _ = make_env(4).reset(options={"prompt_index": np.arange(4)})
        return [agent.predict(observations)[0].tolist() for _ in range(8)]

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert len({tuple(actions) for actions in sampled(1)}) > 1


class Stateless:
    """The agent, its state forgotten at each step."""

    def __init__(self, agent):
        self.agent = agent

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return self.agent.predict(observation, deterministic=deterministic)[0], None


@pytest.mark.parametrize("vectorised", [False, True])
def test_evaluate_policy_of_sb3(agent, vectorised):
    def scores(model):
        env = agent._wrap_env(make_env(3)) if vectorised else Monitor(single_env())
        (env.seed if vectorised else env.reset)(**({"seed": 5}))
        return evaluate_policy(model, env, n_eval_episodes=7, return_episode_rewards=True)

    rewards, lengths = scores(agent)
    assert len(rewards) == len(lengths) == 7
    assert (rewards, lengths) == scores(Stateless(agent))
    assert max(lengths) <= 7
    assert len(set(lengths)) > 1


def test_a_registered_environment_is_played(agent):
    """The loop of Gymnasium's own documentation."""
    gym.register("test_prediction/Letters-v0", entry_point=single_env)
    try:
        env = gym.make("test_prediction/Letters-v0")
        observation, _ = env.reset(seed=0)
        state, over, steps = None, False, 0
        while not over:
            action, state = agent.predict(observation, state=state)
            observation, _, terminated, truncated, info = env.step(action)
            over, steps = terminated or truncated, steps + 1
        assert len(info["completion"].token_ids) == steps
    finally:
        del gym.registry["test_prediction/Letters-v0"]
