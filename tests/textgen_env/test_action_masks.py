import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from tests.textgen_env.test_vector_env import assert_same
from textgen_env import TextGenEnv, TextGenVectorEnv, TextMDP, TextTask, dense

NUM_ENVS = 4
WORDS = ("a", "b", "c", "d", "e")
EOS, A, E = 1, 2, 6


def climbing(prompt, actions, tokenizer):
    """EOS once there is a word; words from the prompt's first on, each at least the last: all three are used."""
    if EOS in actions:
        return []  # an error: nobody may ask what follows a finished text
    ids = tokenizer.encode_prompt(prompt.text)
    lowest = actions[-1] if actions else ids[0]
    return [*([EOS] if actions else []), *range(lowest, tokenizer.vocab_size)]


def length(completions, **_):
    return [float(len(text.split())) for text in completions]


@dense
def growing(completion_ids):
    return [[token / 10 for token in ids] for ids in completion_ids]


TASK = TextTask(
    "climb",
    TextTask.from_pairs({"train": ["a", "c b", "b"]}).splits,
    vocabulary=WORDS,
    max_new_tokens=5,
    reward=length,
    allowed_tokens=climbing,
)
ARGUMENTS = {"task": TASK, "reward": length}


def masked_actions(masks, rng):
    return np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])


# One episode


def test_masks_of_an_episode():
    env = TextGenEnv(**ARGUMENTS)
    _, info = env.reset(options={"prompt_index": 1})
    assert info["action_mask"].dtype == np.int8
    assert info["action_mask"].tolist() == [0, 0, 0, 0, 1, 1, 1]  # from "c" on
    assert env.action_masks().dtype == np.bool_
    *_, info = env.step(5)
    assert info["action_mask"].tolist() == env.action_masks().tolist() == [0, 1, 0, 0, 0, 1, 1]
    *_, terminated, _, info = env.step(EOS)
    assert terminated
    assert "action_mask" not in info


def test_gymnasium_samples_inside_the_mask():
    env = TextGenEnv(**ARGUMENTS)
    env.action_space.seed(0)
    for seed in range(20):
        _, info = env.reset(seed=seed)
        terminated = False
        while not terminated:
            mask = info["action_mask"]
            action = env.action_space.sample(mask=mask)
            assert mask[action]
            *_, terminated, _, info = env.step(action)
        ids = info["completion"].token_ids
        words = [token for token in ids if token != EOS]
        assert words == sorted(words)
        assert ids[0] != EOS


def test_a_step_outside_the_mask_is_taken():
    env = TextGenEnv(**ARGUMENTS)
    env.reset(options={"prompt_index": 1})
    *_, info = env.step(A)
    assert info["action_mask"].tolist() == [0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("make", [TextGenEnv, lambda **kwargs: TextGenVectorEnv(2, **kwargs)])
def test_no_mask_where_nothing_is_constrained(make):
    env = make(task=TextTask("free", TASK.splits, vocabulary=WORDS), reward=length)
    _, info = env.reset(seed=0)
    assert "action_mask" not in info
    *_, info = env.step(np.array([3, 3]) if isinstance(env, TextGenVectorEnv) else 3)
    assert info == {}
    masks = env.action_masks()
    assert masks.shape == ((2, 7) if isinstance(env, TextGenVectorEnv) else (7,))
    assert masks.dtype == np.bool_
    assert masks.all()


@pytest.mark.parametrize("id", ["textgen_env/Reverse-v0", "textgen_env/DelayedBit-v0"])
@pytest.mark.parametrize("allowed_tokens", [None, f"{__name__}:climbing"])
def test_checkers_have_no_complaint(id, allowed_tokens):
    """A warning is an error here. They act freely, outside the mask too."""
    env = gym.make(id, allowed_tokens=allowed_tokens, render_mode="ansi").unwrapped
    check_env(env)
    sb3_check_env(env, warn=True)


# Many rows


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("reward", [length, growing])
def test_parity_with_sync_vector_env(mode, reward):
    arguments = {"task": TASK, "reward": reward}
    ours = TextGenVectorEnv(NUM_ENVS, **arguments, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: TextGenEnv(**arguments) for _ in range(NUM_ENVS)], autoreset_mode=mode)
    reset = ours.reset(seed=7)
    assert_same(reset, theirs.reset(seed=7))
    assert reset[1]["_action_mask"].all()
    rng = np.random.default_rng(0)
    missing = 0
    for number in range(200):
        masks = ours.action_masks()
        if mode is not AutoresetMode.NEXT_STEP:  # there, an ended row's last episode is over
            assert_same(masks, np.array([env.unwrapped.action_masks() for env in theirs.envs]))
        actions = masked_actions(masks, rng)
        result = ours.step(actions)
        assert_same(result, theirs.step(actions), f"step {number}")
        _, _, terminated, _, infos = result
        has_mask = infos.get("_action_mask", np.zeros(NUM_ENVS, dtype=bool))
        assert (has_mask == (True if mode is AutoresetMode.SAME_STEP else ~terminated)).all()
        missing += (~has_mask).sum()
        if mode is AutoresetMode.DISABLED and terminated.any():
            again = [env.reset(options={"reset_mask": terminated.copy()}) for env in (ours, theirs)]
            assert_same(*again)
            assert (again[0][1]["_action_mask"] == terminated).all()
    assert (missing == 0) == (mode is AutoresetMode.SAME_STEP)


def test_idle_rows_have_no_mask():
    env = TextGenVectorEnv(NUM_ENVS, **ARGUMENTS, autoreset_mode="Disabled")
    env.reset(seed=0, options={"prompt_index": 0})
    for _ in range(2):
        *_, infos = env.step(np.array([EOS, 3, 4, 5]))
        assert infos["_action_mask"].tolist() == [False, True, True, True]
        assert infos["action_mask"][0].sum() == 0
    assert env.action_masks()[0].all()
    assert env.action_masks()[3].tolist() == [False, True, False, False, False, True, True]


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_continue_alike(twin_of):
    env = TextGenVectorEnv(NUM_ENVS, **ARGUMENTS)
    env.reset(seed=5)
    env.step(np.full(NUM_ENVS, E))
    twin = twin_of(env)
    assert_same(env.step(np.full(NUM_ENVS, EOS)), twin.step(np.full(NUM_ENVS, EOS)))


def test_made_by_id():
    rows = gym.make_vec("textgen_env/Reverse-v0", num_envs=3, task_kwargs={"mask": True})
    single = gym.make("textgen_env/Reverse-v0", task_kwargs={"mask": True})
    for env, count in ((rows, 3), (single, 1)):
        _, info = env.reset(seed=0)
        allowed = np.flatnonzero(np.atleast_2d(info["action_mask"]).all(0))
        assert allowed.tolist() == list(range(1, 10))  # EOS and eight symbols; neither padding nor "="
        assert env.unwrapped.action_masks().sum() == 9 * count


# What a constraint may be


def only_eos(prompt, actions, tokenizer):
    return tokenizer.eos_ids


def test_an_argument_beats_the_task_and_may_be_named():
    named = f"{__name__}:only_eos"
    for allowed in (only_eos, named):
        assert TextMDP(TASK, allowed_tokens=allowed).action_mask(0, ()).tolist() == [0, 1, 0, 0, 0, 0, 0]
    task = TextTask("named", TASK.splits, vocabulary=WORDS, reward=length, allowed_tokens=named)
    assert TextMDP(task).action_mask(0, ()).tolist() == [0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("returned", [(3, 4), [3, 4], range(3, 5), np.array([4, 3]), [3, 3, 4]])
def test_any_sequence_of_ids_will_do(returned):
    mdp = TextMDP(TASK, allowed_tokens=lambda prompt, actions, tokenizer: returned)
    assert mdp.action_mask(0, ()).tolist() == [0, 0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([], r"returned nothing for prompt 'a' after 'b c' \(tokens \[3, 4\]\)"),
        ([3, 7], r"returned 7, which lies outside the vocabulary of 7 tokens, for prompt 'a' after 'b c'"),
        ([-1], "returned -1, which lies outside"),
        ([True, False], "returned bool values"),
        (["b"], "returned <U1 values"),
        ([[3]], r"returned an array of shape \(1, 1\)"),
        (3, r"returned an array of shape \(\)"),
    ],
)
def test_what_is_no_set_of_ids_names_prompt_and_prefix(returned, message):
    mdp = TextMDP(TASK, allowed_tokens=lambda prompt, actions, tokenizer: returned)
    with pytest.raises(ValueError, match=message):
        mdp.action_mask(0, (3, 4))


def test_a_list_is_no_constraint():
    with pytest.raises(TypeError, match=r"allowed_tokens must be a function .* got list"):
        TextMDP(TASK, allowed_tokens=[1, 2])


def test_masks_before_reset_and_after_the_end():
    env = TextGenEnv(**ARGUMENTS)
    with pytest.raises(RuntimeError, match=r"call reset\(\) before action_masks"):
        env.action_masks()
    env.reset(seed=0)
    env.step(EOS)
    with pytest.raises(RuntimeError, match="no episode is running"):
        env.action_masks()
    with pytest.raises(RuntimeError, match=r"call reset\(\) before action_masks"):
        TextGenVectorEnv(2, **ARGUMENTS).action_masks()
