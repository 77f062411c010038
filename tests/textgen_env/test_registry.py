import copy
import json
import os
import pickle
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from textgen_env import TextGenEnv, TextGenVectorEnv, register
from textgen_env.registry import BUILT_IN
from textgen_env.tasks import reverse

NEWS = "textgen_env/NewsSummary-v0"


def brevity(completions, **_):
    return [-float(len(text)) for text in completions]


class Heavy:
    """A reward that must not be copied, as a model on a GPU must not."""

    def __call__(self, completions):
        return [1.0] * len(completions)

    def __deepcopy__(self, memo):
        raise AssertionError("the reward was copied")


@pytest.fixture
def ids():
    """Names to register under; they are taken back after the test."""
    before = set(gym.registry)
    yield iter(f"test_registry/Task{number}-v0" for number in range(9))
    for id in set(gym.registry) - before:
        del gym.registry[id]


# The built-in ids


@pytest.mark.parametrize("id", BUILT_IN)
def test_built_in_ids(id):
    env = gym.make(id)
    assert isinstance(env.unwrapped, TextGenEnv)
    json.loads(env.spec.to_json())
    again = EnvSpec.from_json(env.spec.to_json()).make()
    np.testing.assert_equal(again.reset(seed=0)[1], env.reset(seed=0)[1])  # masks are arrays
    rows = gym.make_vec(id, num_envs=8)
    assert isinstance(rows, TextGenVectorEnv)
    assert rows.reset(seed=0)[0]["input_ids"].shape == (8, *env.observation_space["input_ids"].shape)


def test_arguments_reach_the_environment():
    env = gym.make_vec(
        NEWS,
        num_envs=3,
        reward=brevity,
        max_new_tokens=5,
        split="validation",
        vocab_size=300,
        autoreset_mode="Disabled",
        defer_scoring=True,
    )
    assert (env.num_envs, env.autoreset_mode, env.defer_scoring) == (3, AutoresetMode.DISABLED, True)
    assert (env.mdp.split, env.mdp.max_new_tokens, env.mdp.tokenizer.vocab_size) == ("validation", 5, 300)
    assert env.mdp.reward.function is brevity
    single = gym.make(NEWS, reward=brevity, max_new_tokens=5).unwrapped
    assert (single.mdp.max_new_tokens, single.mdp.reward.name) == (5, "brevity")


def test_length_cap_is_no_time_limit():
    with pytest.raises(ValueError, match="pass max_new_tokens="):
        gym.make_vec(NEWS, num_envs=2, max_episode_steps=9)


@pytest.mark.parametrize(("mode", "kind"), [("sync", SyncVectorEnv), ("async", AsyncVectorEnv)])
def test_gymnasiums_own_vectorisation(mode, kind):
    arguments = {"num_envs": 2, "reward": brevity, "max_new_tokens": 3}
    theirs, ours = gym.make_vec(NEWS, vectorization_mode=mode, **arguments), gym.make_vec(NEWS, **arguments)
    try:
        assert isinstance(theirs, kind)
        observations = [env.reset(seed=0)[0] for env in (ours, theirs)]
        assert all((observations[0][key] == observations[1][key]).all() for key in observations[0])
        rewards = np.zeros((2, 2))
        for _ in range(5):
            for i, env in enumerate((ours, theirs)):
                observations[i], reward, *_ = env.step(np.array([40, 50]))
                rewards[i] += reward
            assert all((observations[0][key] == observations[1][key]).all() for key in observations[0])
        assert rewards[0].tolist() == rewards[1].tolist() == [-3.0, -3.0]
    finally:
        theirs.close()


EPISODES = """
import hashlib
import gymnasium as gym
env = gym.make("textgen_env:textgen_env/NewsSummary-v0", max_new_tokens=4)
env.action_space.seed(1)
digest = hashlib.blake2b()
for episode in range(6):
    observation, info = env.reset(seed=5 if episode == 0 else None)
    digest.update(observation["input_ids"].tobytes() + repr(info).encode())
    over = False
    while not over:
        observation, reward, over, _, info = env.step(env.action_space.sample())
        digest.update(observation["input_ids"].tobytes() + repr((reward, info)).encode())
print(digest.hexdigest())
"""


def test_a_fresh_process_finds_the_id_and_plays_the_same_episodes(capsys):
    """The module prefix imports the package; nothing depends on the hash seed of the process."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", EPISODES],
        env={**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    exec(EPISODES, {})
    assert process.stdout == capsys.readouterr().out != ""


# A user's own


def test_register_a_file(ids, tiny_jsonl):
    id = next(ids)
    register(id, task=str(tiny_jsonl), reward="rouge_l", max_new_tokens=3, vocab_size=300)
    spec = gym.make(id).spec
    assert json.loads(spec.to_json())["kwargs"]["task"] == str(tiny_jsonl)
    env = gym.make(id)
    assert env.reset(seed=0)[1]["prompt"].startswith("count to ")
    assert gym.make(id, max_new_tokens=7).unwrapped.mdp.max_new_tokens == 7
    assert gym.make_vec(id, num_envs=2).mdp.max_new_tokens == 3


def test_a_task_that_brings_its_reward_needs_no_other(ids):
    named, held = next(ids), next(ids)
    register(named, task="textgen_env.tasks:reverse", task_kwargs={"length": 2})
    register(held, task=reverse(length=2))
    for id in (named, held):
        mdp = gym.make(id).unwrapped.mdp
        assert (mdp.reward.name, mdp.max_new_tokens) == ("fraction", 3)
        assert gym.make_vec(id, num_envs=2, reward=brevity).mdp.reward.function is brevity
    assert "reward" not in json.loads(gym.make(named).spec.to_json())["kwargs"]


def test_registered_arguments_are_the_callers_no_more(ids, tiny_jsonl):
    id, task_kwargs = next(ids), {"reference_field": None}
    register(id, task=str(tiny_jsonl), reward="rouge_l", vocab_size=300, task_kwargs=task_kwargs)
    task_kwargs["reference_field"] = "no such field"
    assert gym.make(id).reset()[1]["references"] == ()


def test_register_objects_without_copying_them(ids, tiny_task):
    id, reward = next(ids), Heavy()
    register(id, task=tiny_task, reward=reward, vocab_size=300, max_new_tokens=3)
    for env in (gym.make(id).unwrapped, gym.make_vec(id, num_envs=2), gym.make_vec(id, 2, vectorization_mode="sync")):
        mdp = env.envs[0].unwrapped.mdp if isinstance(env, SyncVectorEnv) else env.mdp
        assert mdp.reward.function is reward
        assert mdp.task is tiny_task
    assert gym.make(id, reward=brevity).unwrapped.mdp.reward.function is brevity


def test_a_reward_given_to_make_is_not_copied(ids, tiny_task):
    reward = Heavy()
    for make in (gym.make, gym.make_vec):
        env = make(NEWS, reward=reward, vocab_size=300).unwrapped
        assert env.mdp.reward.function is reward


def test_gymnasium_copies_registered_objects(ids, tiny_task):
    """Must fail: the plain way of registering, which `register` is there to avoid."""
    id = next(ids)
    gym.register(id, entry_point=TextGenEnv, kwargs={"task": tiny_task, "reward": Heavy(), "vocab_size": 300})
    with pytest.raises(AssertionError, match="the reward was copied"):
        gym.make(id)


@pytest.mark.parametrize("render_mode", ["ansi", "human"])
def test_registered_objects_render(ids, tiny_task, render_mode, capsys):
    id = next(ids)
    register(id, task=tiny_task, reward=brevity, vocab_size=300)
    env = gym.make(id, render_mode=render_mode)
    env.reset(seed=0, options={"prompt_index": 0})
    shown = env.render() if render_mode == "ansi" else capsys.readouterr().out
    assert shown.startswith("the cat sat on ▸")


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("rows", [None, 3])
def test_made_environments_can_be_copied(ids, tiny_task, twin_of, rows):
    id = next(ids)
    register(id, task=tiny_task, reward=brevity, vocab_size=300)
    env = gym.make(id) if rows is None else gym.make_vec(id, num_envs=rows)
    env.reset(seed=3)
    twin = twin_of(env)
    action = 50 if rows is None else np.full(rows, 50)
    ours, theirs = env.step(action)[0], twin.step(action)[0]
    assert all((ours[key] == theirs[key]).all() for key in ours)


def test_an_id_is_taken_once(ids, tiny_task):
    id = next(ids)
    register(id, task=tiny_task, reward=brevity)
    with pytest.raises(ValueError, match=f"'{id}' is registered already"):
        register(id, task=tiny_task, reward=brevity)


def test_malformed_id(tiny_task):
    with pytest.raises(gym.error.Error, match="Malformed environment ID"):
        register("two/slashes/here-v0", task=tiny_task, reward=brevity)
