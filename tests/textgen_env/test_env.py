import copy
import pickle
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from transformers import PreTrainedTokenizerFast

from textgen_env import Prompt, RewardError, TextGenEnv, TextTask, TextTokenizer, dense, register, train_tokenizer
from textgen_env.tokenizer import EOS_TOKEN


def length(completions, **_):
    return [float(len(text)) for text in completions]


def token_values(completion_ids):
    """One reward a token, known beforehand: its id / 1000."""
    return [[token / 1000 for token in ids] for ids in completion_ids]


@dense
def growing(completion_ids, stop_reasons):
    """Pays a token's id / 1000 as it comes; the last token's pay is doubled."""
    return [
        [token / 1000 * (2 if stop and i == len(ids) - 1 else 1) for i, token in enumerate(ids)]
        for ids, stop in zip(completion_ids, stop_reasons, strict=True)
    ]


@pytest.fixture
def make(tiny_task):
    def make_env(reward=length, **kwargs):
        return TextGenEnv(**{"task": tiny_task, "reward": reward, "vocab_size": 300, "max_new_tokens": 5, **kwargs})

    return make_env


def play(env, actions, **reset_kwargs):
    """The steps of one episode: (observation, reward, terminated, truncated, info) each."""
    env.reset(**reset_kwargs)
    return [env.step(action) for action in actions]


def tokens(env, text):
    return env.mdp.tokenizer.hf.encode(text)


def eos(env):
    return env.mdp.tokenizer.eos_ids[0]


# The checkers of others


@pytest.fixture(params=["built-in", "jsonl"])
def made(request, tiny_jsonl):
    """An environment made by id; the user's own is registered for the length of a test."""
    if request.param == "built-in":
        yield lambda **kwargs: gym.make("textgen_env/NewsSummary-v0", **kwargs)
        return
    register("test_env/Jsonl-v0", task=str(tiny_jsonl), reward="rouge_l", max_new_tokens=4, vocab_size=300)
    yield lambda **kwargs: gym.make("test_env/Jsonl-v0", **kwargs)
    del gym.registry["test_env/Jsonl-v0"]


@pytest.mark.parametrize("render_mode", [None, "ansi", "human"])
def test_gymnasium_checker_has_no_complaint(made, render_mode):
    check_env(made(render_mode=render_mode).unwrapped, skip_render_check=False)  # a warning is an error here


def test_sb3_checker_has_no_complaint(made):
    sb3_check_env(made().unwrapped, warn=True)


def test_checker_sees_a_reused_observation(make, monkeypatch):
    """Must fail: an environment that hands out its own buffers."""
    buffers = lambda env: {"input_ids": env._input_ids, "attention_mask": env._attention_mask}  # noqa: E731
    monkeypatch.setattr(TextGenEnv, "_observation", buffers)
    with pytest.raises(AssertionError):
        check_env(make(), skip_render_check=True)


def test_sb3_learns_on_it(make):
    agent = PPO("MultiInputPolicy", make(max_new_tokens=3), n_steps=8, batch_size=8, n_epochs=1, device="cpu", seed=0)
    before = agent.policy.action_net.weight.detach().clone()
    agent.learn(16)
    assert agent.num_timesteps == 16
    assert len(agent.ep_info_buffer) >= 4
    assert not (agent.policy.action_net.weight == before).all()
    observation, _ = agent.env.envs[0].reset()
    action, _ = agent.predict(observation)
    agent.env.envs[0].step(action)  # a 0-d array, as `predict` gives it


def test_episode_statistics(make):
    env = RecordEpisodeStatistics(make(max_new_tokens=3))
    *_, (_, reward, _, _, info) = play(env, tokens(env.unwrapped, "abc"), seed=0)
    assert reward == 3.0
    assert (info["episode"]["r"], info["episode"]["l"]) == (3.0, 3)


# An episode


def test_plain_loop(make):
    env = make()
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    ends = 0
    for _ in range(200):
        assert env.observation_space.contains(observation)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert isinstance(reward, float)
        assert (type(terminated), truncated) == (bool, False)
        if terminated:
            ends += 1
            assert env.observation_space.contains(observation)
            assert reward == len(info["text"])
            observation, _ = env.reset()
        else:
            assert (reward, info) == (0.0, {})
    assert ends >= 40


def test_spaces(make):
    env = make(max_prompt_tokens=7)
    assert env.action_space.n == env.mdp.tokenizer.vocab_size
    assert env.observation_space["input_ids"].shape == env.observation_space["attention_mask"].shape == (12,)
    assert env.observation_space["input_ids"].dtype == np.int64
    assert env.observation_space["input_ids"].high.max() == env.mdp.tokenizer.vocab_size - 1


def test_eos_ends_an_episode(make):
    env = make()
    actions = [*tokens(env, "ab"), eos(env)]
    *running, (_, reward, terminated, truncated, info) = play(env, actions, options={"prompt_index": 2})
    assert [(step[1], step[2], step[4]) for step in running] == [(0.0, False, {})] * 2
    assert (reward, terminated, truncated) == (2.0, True, False)
    completion = info.pop("completion")
    assert completion.token_ids == tuple(actions)  # the EOS is an action like any other
    assert (completion.text, completion.stop_reason) == ("ab", "eos")
    assert completion.prompt is env.mdp.prompts[2]
    assert info == {
        "prompt": "two and two make",
        "references": ("four", "4"),
        "text": "ab",
        "stop_reason": "eos",
        "reward": {"length": {"raw": 2.0, "normalised": 2.0, "weighted": 2.0}},
    }


def test_length_cap_terminates_and_pays(make):
    env = make()
    *running, (_, reward, terminated, truncated, info) = play(env, tokens(env, "abcde"))
    assert not any(step[2] for step in running)
    assert (reward, terminated, truncated) == (5.0, True, False)
    assert (info["stop_reason"], info["text"]) == ("length", "abcde")


def test_eos_on_the_last_step_counts_as_eos(make):
    env = make()
    *_, (_, reward, terminated, _, info) = play(env, [*tokens(env, "abcd"), eos(env)])
    assert (reward, terminated, info["stop_reason"]) == (4.0, True, "eos")


def test_eos_at_once_is_an_empty_text(make):
    env = make()
    ((_, reward, terminated, _, info),) = play(env, [eos(env)])
    assert (reward, terminated, info["text"], info["completion"].token_ids) == (0.0, True, "", (eos(env),))


def test_several_eos_ids(make):
    env = make(eos_token_id=[70, 80])
    for token in (70, 80):
        assert play(env, [token])[0][4]["stop_reason"] == "eos"
    assert play(env, [1])[0][2] is False  # the tokenizer's own EOS was overridden


def test_pad_is_never_an_eos(make):
    backend = train_tokenizer(["abc"], 260).backend_tokenizer
    shared = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=EOS_TOKEN, eos_token=EOS_TOKEN)
    assert shared.pad_token_id == shared.eos_token_id
    env = make(tokenizer=shared)
    tokenizer = env.mdp.tokenizer
    assert tokenizer.eos_ids == (shared.eos_token_id,)
    assert tokenizer.pad_id not in tokenizer.eos_ids
    observation, _ = env.reset()
    assert (observation["input_ids"][observation["attention_mask"] == 0] == tokenizer.pad_id).all()


def test_steps_outside_an_episode(make):
    env = make()
    with pytest.raises(RuntimeError, match="reset"):
        env.step(5)
    play(env, [eos(env)])
    with pytest.raises(RuntimeError, match="the episode is over"):
        env.step(5)


@pytest.mark.parametrize("action", [-1, 300, 2**40, 1.5, 3.0, None, "a", np.array([3]), float("nan")])
def test_bad_actions(make, action):
    env = make()
    size = env.mdp.tokenizer.vocab_size
    before, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match=rf"is no token id in \[0, {size}\)|is no integer"):
        env.step(action)
    after, *_ = env.step(np.int64(5))  # nothing was written by the refused one
    assert after["attention_mask"].sum() == before["attention_mask"].sum() + 1


# Observations


def test_appending_is_one_write(make):
    env = make()
    observation, _ = env.reset(options={"prompt_index": 0})
    prompt = env.mdp.tokenizer.encode_prompt("the cat sat on")
    assert observation["input_ids"][: len(prompt)].tolist() == prompt.tolist()
    seen = [observation]
    actions = tokens(env, "hello"[:4])
    for action in actions:
        seen.append(env.step(action)[0])
    for number, (old, new) in enumerate(pairwise(seen)):
        (changed,) = np.flatnonzero(old["attention_mask"] != new["attention_mask"])
        assert changed == len(prompt) + number  # right-padded: the mask is ones, then zeros
        assert new["input_ids"][changed] == actions[number]
        rest = np.arange(len(old["input_ids"])) != changed
        assert (old["input_ids"][rest] == new["input_ids"][rest]).all()
    pads = seen[-1]["attention_mask"] == 0
    assert (seen[-1]["input_ids"][pads] == env.mdp.tokenizer.pad_id).all()
    assert pads.any()


def test_observations_belong_to_the_caller(make):
    env, twin = make(), make()
    mine, _ = env.reset(seed=3)
    theirs, _ = twin.reset(seed=3)
    for action in tokens(env, "abcd"):
        for array in mine.values():
            array[:] = 1
        mine, *_ = env.step(action)
        theirs, *_ = twin.step(action)
        assert all((mine[key] == theirs[key]).all() for key in mine)


def test_no_leftovers_of_the_last_episode(make):
    env = make()
    play(env, tokens(env, "abcde"), options={"prompt_index": 1})
    observation, _ = env.reset(options={"prompt_index": 0})
    fresh, _ = make().reset(options={"prompt_index": 0})
    assert all((observation[key] == fresh[key]).all() for key in fresh)


def test_empty_prompt_has_a_start(make):
    observation, info = make(task=TextTask("free", {"train": (Prompt(""),)})).reset()
    assert info["prompt"] == ""
    assert observation["attention_mask"].sum() == 1


# Rewards


def test_array_reward_is_summed_at_the_end(make):
    env = make(reward=token_values)
    actions = tokens(env, "abcde")
    *running, (_, reward, _, _, info) = play(env, actions)
    assert [step[1] for step in running] == [0.0] * 4
    assert reward == pytest.approx(sum(actions) / 1000)
    assert info["token_rewards"] == pytest.approx([token / 1000 for token in actions])
    assert info["reward"]["token_values"]["raw"] == reward


def test_dense_reward_is_paid_as_it_comes(make):
    env = make(reward=growing)
    actions = tokens(env, "abcde")
    steps = play(env, actions)
    expected = [token / 1000 for token in actions]
    expected[-1] *= 2
    assert [step[1] for step in steps] == pytest.approx(expected)
    assert [bool(step[4]) for step in steps] == [False] * 4 + [True]
    assert "token_rewards" not in steps[-1][4]
    assert steps[-1][4]["reward"]["growing"]["raw"] == pytest.approx(sum(expected))


def test_a_failing_reward_is_an_error(make):
    def broken(completions):
        raise KeyError("no such word")

    env = make(reward=broken)
    with pytest.raises(RewardError, match="'broken' raised KeyError"):
        play(env, tokens(env, "abcde"))


# Prompts


def test_prompt_index(make):
    env = make()
    for index, prompt in enumerate(env.mdp.prompts):
        _, info = env.reset(options={"prompt_index": index})
        assert info == {"prompt": prompt.text, "references": prompt.references, "prompt_index": index}
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"prompt_index {index} .* split 'train' has 4 prompts"):
            env.reset(options={"prompt_index": index})
    with pytest.raises(TypeError):
        env.reset(options={"prompt_index": 1.5})


def test_unknown_option(make):
    with pytest.raises(ValueError, match="unknown reset option 'prompt_idx': did you mean 'prompt_index'"):
        make().reset(options={"prompt_idx": 0})


def test_splits_share_the_spaces(make):
    spaces = [make(split=split).observation_space for split in ("train", "validation", "test")]
    assert spaces[0] == spaces[1] == spaces[2]
    assert make(split="test").reset()[1]["prompt"] == "one and one make"


@pytest.mark.parametrize("side", ["left", "right"])
def test_long_prompts_are_cut_with_one_warning(make, side):
    env = make(max_prompt_tokens=3, truncation_side=side)
    whole = env.mdp.tokenizer.encode_prompt(env.mdp.prompts[1].text)
    assert len(whole) > 3
    with pytest.warns(UserWarning, match=f"cut on the {side} to max_prompt_tokens=3") as caught:
        observation, info = env.reset(options={"prompt_index": 1})
    assert len(caught) == 1
    kept = whole[-3:] if side == "left" else whole[:3]
    assert observation["input_ids"][:3].tolist() == kept.tolist()
    assert observation["attention_mask"].sum() == 3
    assert info["prompt"] == env.mdp.prompts[1].text  # the reward still sees the whole prompt
    for index in (0, 1, 2):
        env.reset(options={"prompt_index": index})  # a second warning would be an error here


def test_a_prompt_of_exactly_the_limit_is_not_cut(make):
    longest = make().mdp.max_prompt_tokens
    env = make(max_prompt_tokens=longest)
    assert max(env.reset(options={"prompt_index": i})[0]["attention_mask"].sum() for i in range(4)) == longest


# Seeds


def drawn(env, seed, count=12):
    return [env.reset(seed=seed if i == 0 else None)[1]["prompt_index"] for i in range(count)]


def test_seeds(make):
    assert drawn(make(), 7) == drawn(make(), 7)
    assert drawn(make(), 7) != drawn(make(), 8)
    assert set(drawn(make(), 7, 60)) == {0, 1, 2, 3}


def test_a_seed_at_construction_serves_the_first_reset(make):
    assert drawn(make(seed=7), None) == drawn(make(), 7)
    assert drawn(make(seed=7), 8) == drawn(make(), 8)
    env = make(seed=7)
    assert drawn(env, None, 12) != drawn(env, None, 12)  # it is not used again


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_continue_alike(make, twin_of):
    env = make()
    play(env, tokens(env, "ab"), seed=5)
    twin = twin_of(env)
    for action in [*tokens(env, "cd"), eos(env)]:
        ours, theirs = env.step(action), twin.step(action)
        assert ours[1:] == theirs[1:]
        assert all((ours[0][key] == theirs[0][key]).all() for key in ours[0])
    assert drawn(env, None) == drawn(twin, None)


# Rendering


def test_ansi(make):
    env = make(render_mode="ansi")
    play(env, tokens(env, "xy"), options={"prompt_index": 0})
    assert env.render() == "the cat sat on ▸ xy"


def test_human(make, capsys):
    env = make(render_mode="human")
    play(env, tokens(env, "xy"), options={"prompt_index": 0})
    assert env.render() is None
    assert capsys.readouterr().out.splitlines() == [
        "the cat sat on ▸ ",
        "the cat sat on ▸ x",
        "the cat sat on ▸ xy",
    ]


def test_render_without_a_mode(make):
    env = make()
    env.reset()
    with pytest.warns(UserWarning, match="render_mode='ansi'"):
        assert env.render() is None


# Arguments


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"render_mode": "rgb_array"}, "render_mode must be one of"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens must be at least 1"),
        ({"truncation_side": "middle"}, "truncation_side must be 'left' or 'right'"),
        ({"split": "tests"}, "did you mean 'test'"),
        ({"reward": "rouge_k"}, "did you mean 'rouge_"),
    ],
)
def test_bad_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_a_ready_tokenizer_brings_its_own_eos(make):
    tokenizer = TextTokenizer(train_tokenizer(["abc"], 260), eos_token_id=90)
    assert make(tokenizer=tokenizer).mdp.tokenizer is tokenizer
    with pytest.raises(ValueError, match="has its EOS already"):
        make(tokenizer=tokenizer, eos_token_id=91)


def test_a_path_object_is_a_task(tiny_jsonl):
    env = TextGenEnv(task=tiny_jsonl, reward=length, vocab_size=300)
    assert env.reset(seed=0)[1]["prompt"].startswith("count to ")
