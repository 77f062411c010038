import copy
import pickle

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from textgen_env import TextGenEnv, TextGenVectorEnv, TextMDP, dense

MODES = list(AutoresetMode)
NUM_ENVS = 4


def vowels(completions, references, stop_reasons, **_):
    """A terminal reward that depends on everything an environment might mix up between rows."""
    return [
        sum(letter in "aeiou" for letter in text) + len(listed) / 10 + (0.01 if stop == "eos" else 0.0)
        for text, listed, stop in zip(completions, references, stop_reasons, strict=True)
    ]


def token_values(completion_ids):
    return [[token / 1000 for token in ids] for ids in completion_ids]


@dense
def growing(completion_ids, stop_reasons):
    return [
        [token / 1000 * (i + 1) + (stop == "length") * (i == len(ids) - 1) for i, token in enumerate(ids)]
        for ids, stop in zip(completion_ids, stop_reasons, strict=True)
    ]


REWARDS = [vowels, token_values, growing]


@pytest.fixture
def arguments(tiny_task):
    def merge(**kwargs):
        return {"task": tiny_task, "reward": vowels, "vocab_size": 300, "max_new_tokens": 6, **kwargs}

    return merge


@pytest.fixture
def make(arguments):
    def make_env(num_envs=NUM_ENVS, **kwargs):
        return TextGenVectorEnv(num_envs, **arguments(**kwargs))

    return make_env


@pytest.fixture
def make_sync(arguments):
    """The reference: Gymnasium's own loop over single environments."""

    def make_env(num_envs=NUM_ENVS, autoreset_mode="NextStep", **kwargs):
        single = arguments(**kwargs)
        return SyncVectorEnv([lambda: TextGenEnv(**single) for _ in range(num_envs)], autoreset_mode=autoreset_mode)

    return make_env


class Actions:
    """Random tokens, an EOS one time in six."""

    def __init__(self, env, seed=0):
        self.rng = np.random.default_rng(seed)
        self.num_envs, self.vocab_size = env.num_envs, int(env.single_action_space.n)

    def __call__(self):
        actions = self.rng.integers(2, self.vocab_size, self.num_envs)
        actions[self.rng.random(self.num_envs) < 1 / 6] = 1  # the trained tokenizer's EOS
        return actions


def assert_same(ours, theirs, where="result"):
    """Equal in type, dtype, shape, keys and every value; nothing is close to equal here."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert set(ours) == set(theirs), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(ours, (list, tuple)) or (isinstance(ours, np.ndarray) and ours.dtype == object):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
        assert np.array_equal(ours, theirs), where
    else:
        assert ours == theirs, where


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"a": 1}, {"a": 1, "_a": 1}),
        (np.zeros(2), np.zeros(2, dtype=np.float32)),
        (np.array([True, False]), np.array([True, True])),
        ({"a": {"b": np.array([None, {"c": 1}])}}, {"a": {"b": np.array([None, {"c": 2}])}}),
        (np.zeros(2), np.zeros(3)),
        (1, True),
    ],
)
def test_the_comparison_sees_differences(ours, theirs):
    """Must fail: else the parity below would prove nothing."""
    with pytest.raises(AssertionError):
        assert_same(ours, theirs)


# Parity with SyncVectorEnv


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [11, [3, 1, 4, 1]])
def test_parity_with_sync_vector_env(make, make_sync, mode, reward, seed):
    ours, theirs = make(autoreset_mode=mode, reward=reward), make_sync(autoreset_mode=mode, reward=reward)
    assert ours.metadata == theirs.metadata
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert_same(ours.reset(seed=seed), theirs.reset(seed=seed))
    sample = Actions(ours)
    stops = []
    for number in range(300):
        actions = sample()
        result = ours.step(actions)
        assert_same(result, theirs.step(actions), f"step {number}")
        assert result[1].dtype == np.float64
        assert ours.observation_space.contains(result[0])
        _, _, terminated, _, infos = result
        ends = infos.get("final_info", infos)
        stops += [ends["stop_reason"][row] for row in np.flatnonzero(terminated)]
        if mode is AutoresetMode.DISABLED and terminated.any():
            # A fresh dict each: SyncVectorEnv takes the mask out of its caller's.
            assert_same(
                ours.reset(options={"reset_mask": terminated.copy()}),
                theirs.reset(options={"reset_mask": terminated.copy()}),
                f"reset after step {number}",
            )
    assert min(stops.count("eos"), stops.count("length")) > 30


@pytest.mark.parametrize("chosen", [2, np.array([3, 0, 0, 1])])
def test_parity_of_chosen_prompts(make, make_sync, chosen):
    ours, theirs = make(), make_sync()
    _, infos = ours.reset(seed=1, options={"prompt_index": chosen})
    assert (infos["prompt_index"] == chosen).all()
    if np.ndim(chosen) == 0:  # SyncVectorEnv hands the same options to every row
        _, their_infos = theirs.reset(seed=1, options={"prompt_index": chosen})
        assert_same(infos, their_infos)
        sample = Actions(ours)
        for number in range(60):
            actions = sample()
            assert_same(ours.step(actions), theirs.step(actions), f"step {number}")
    else:
        singles = [env.reset(seed=1 + i, options={"prompt_index": chosen[i]})[0] for i, env in enumerate(theirs.envs)]
        observations, _ = make().reset(seed=1, options={"prompt_index": chosen})
        for row, single in enumerate(singles):
            assert_same({key: value[row] for key, value in observations.items()}, single)


def test_parity_of_seeds_at_construction(arguments):
    ours = TextGenVectorEnv(NUM_ENVS, **arguments(seed=20))
    theirs = SyncVectorEnv([lambda i=i: TextGenEnv(**arguments(seed=20 + i)) for i in range(NUM_ENVS)])
    for _ in range(6):  # the seed serves the first reset only
        assert_same(ours.reset(), theirs.reset())


def test_seed_at_construction_reaches_rows_reset_later(make):
    whole, parts = make(seed=20), make(seed=20)
    expected = whole.reset()[1]["prompt_index"]
    first = np.array([True, False, True, False])
    drawn = parts.reset(options={"reset_mask": first})[1]["prompt_index"]
    drawn = np.where(first, drawn, parts.reset(options={"reset_mask": ~first})[1]["prompt_index"])
    assert drawn.tolist() == expected.tolist()


def test_some_rows_reseeded(make, make_sync):
    ours, theirs = make(autoreset_mode="Disabled"), make_sync(autoreset_mode="Disabled")
    assert_same(ours.reset(seed=0), theirs.reset(seed=0))
    for mask in ([True, False, False, True], [False, True, False, False]):
        for seed in (None, 50, [None, 60, 61, None]):
            reset = [env.reset(seed=seed, options={"reset_mask": np.array(mask)}) for env in (ours, theirs)]
            assert_same(*reset)


# Rows and modes


def test_rows_differ_and_seeds_repeat(make):
    first = make(num_envs=12).reset(seed=0)
    assert len(set(first[1]["prompt_index"].tolist())) > 1
    assert_same(first, make(num_envs=12).reset(seed=0))
    assert first[1]["prompt_index"].tolist() != make(num_envs=12).reset(seed=50)[1]["prompt_index"].tolist()


def test_ended_rows_are_idle_when_disabled(make):
    env = make(autoreset_mode="Disabled", reward=growing)
    env.reset(seed=0, options={"prompt_index": 0})
    actions = np.array([1, 50, 50, 50])  # the first row ends with EOS
    ended = env.step(actions)
    assert ended[2].tolist() == [True, False, False, False]
    assert ended[4]["_stop_reason"].tolist() == [True, False, False, False]
    for _ in range(3):
        observations, rewards, terminated, _, infos = env.step(np.array([60, 50, 50, 50]))
        assert (rewards[0], terminated[0]) == (0.0, True)
        assert rewards[1:].all()
        assert infos == {}
        for key in observations:
            assert (observations[key][0] == ended[0][key][0]).all()
    # The others reach their cap meanwhile; a mask brings the first back without touching them.
    before, *_ = env.step(actions)
    after, infos = env.reset(options={"reset_mask": np.array([True, False, False, False])})
    assert infos["_prompt"].tolist() == [True, False, False, False]
    assert all((before[key][1:] == after[key][1:]).all() for key in after)
    _, _, terminated, _, infos = env.step(np.array([50, 50, 50, 50]))
    assert terminated.tolist() == [False, True, True, True]
    assert infos["stop_reason"].tolist() == [None, "length", "length", "length"]


def test_observations_belong_to_the_caller(make):
    env, twin = make(), make()
    mine, theirs = env.reset(seed=3)[0], twin.reset(seed=3)[0]
    sample = Actions(env)
    for _ in range(40):
        actions = sample()
        for array in mine.values():
            array[:] = 1
        (mine, rewards, terminated, truncated, _), (theirs, *_) = env.step(actions), twin.step(actions)
        assert_same(mine, theirs)
        rewards[:], terminated[:], truncated[:] = 9, True, True


def test_one_reward_call_a_step(make):
    calls = []

    def counted(completions):
        calls.append(len(completions))
        return [0.0] * len(completions)

    env = make(reward=counted)
    env.reset(seed=0)
    env.step(np.array([1, 1, 50, 1]))
    env.step(np.array([50, 50, 1, 50]))
    assert calls == [3, 1]


# Scoring later


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reward", [vowels, token_values])
def test_deferred_scores_are_the_same_numbers(make, mode, reward):
    now, later = (make(autoreset_mode=mode, reward=reward, defer_scoring=defer) for defer in (False, True))
    index = now.reset(seed=2)[1]["prompt_index"].copy()
    assert_same(later.reset(seed=2)[1]["prompt_index"], index)
    taken = [[] for _ in range(NUM_ENVS)]
    completions, expected = [], []
    sample = Actions(now)
    over = np.zeros(NUM_ENVS, dtype=bool)
    for _ in range(80):
        actions = sample()
        observations, rewards, terminated, _, infos = now.step(actions)
        deferred = later.step(actions)
        assert_same(deferred[0], observations)
        assert not deferred[1].any()
        assert deferred[2].tolist() == terminated.tolist()
        ends = infos.get("final_info", infos)
        their_ends = deferred[4].get("final_info", deferred[4])
        for row in range(NUM_ENVS):
            if not (over[row] and mode is AutoresetMode.NEXT_STEP):  # that action only restarted the row
                taken[row].append(actions[row])
            if terminated[row]:
                assert their_ends["stop_reason"][row] == ends["stop_reason"][row]
                assert not {"reward", "text", "completion"} & set(their_ends)
                completions.append(later.mdp.complete(index[row], taken[row], their_ends["stop_reason"][row]))
                assert completions[-1] == ends["completion"][row]
                expected.append(rewards[row])
                taken[row] = []
        over = terminated
        if mode is AutoresetMode.DISABLED and terminated.any():
            infos = now.reset(options={"reset_mask": terminated})[1]
            later.reset(options={"reset_mask": terminated})
        if "prompt_index" in infos:
            index = np.where(infos["_prompt_index"], infos["prompt_index"], index)
    assert len(completions) > 40
    assert later.mdp.score(completions).totals.tolist() == expected


def test_a_dense_reward_cannot_wait(make):
    with pytest.raises(ValueError, match="dense reward is paid at every step"):
        make(reward=growing, defer_scoring=True)


# Copies, statistics, rendering


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_copies_continue_alike(make, twin_of, mode):
    env = make(autoreset_mode=mode)
    env.reset(seed=5)
    sample = Actions(env)
    for _ in range(10):
        env.step(sample())
    twin = twin_of(env)
    for number in range(60):
        actions = sample()
        assert_same(env.step(actions), twin.step(actions), f"step {number}")


def test_episode_statistics(make):
    env = RecordEpisodeStatistics(make())
    env.reset(seed=0)
    sample = Actions(env)
    episodes = 0
    returns = []
    for _ in range(60):
        _, rewards, terminated, _, infos = env.step(sample())
        if terminated.any():
            assert infos["_episode"].tolist() == terminated.tolist()
            assert infos["episode"]["r"][terminated] == pytest.approx(rewards[terminated])
            assert (infos["episode"]["l"][terminated] <= 6).all()
            episodes += terminated.sum()
            returns += rewards[terminated].tolist()
    assert len(env.return_queue) == episodes
    assert list(env.return_queue) == pytest.approx(returns)


def test_rendering(make, capsys):
    env = make(num_envs=2, render_mode="ansi")
    env.reset(options={"prompt_index": np.array([0, 2])})
    letters = [env.mdp.tokenizer.hf.encode(letter)[0] for letter in "xy"]
    env.step(np.array(letters))
    assert env.render() == ("the cat sat on ▸ x", "two and two make ▸ y")
    human = make(num_envs=2, render_mode="human")
    human.reset(options={"prompt_index": np.array([0, 2])})
    capsys.readouterr()
    human.step(np.array(letters))
    assert capsys.readouterr().out == "the cat sat on ▸ x\ntwo and two make ▸ y\n"
    assert human.render() is None


# Errors


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 0, 0], r"actions must be integers of shape \(4,\), got int64 \(3,\)"),
        ([[0], [0], [0], [0]], r"integers of shape \(4,\)"),
        ([0.0, 0.0, 0.0, 0.0], "got float64"),
        ([0, -1, 0, 0], r"action -1 is no token id in \[0, "),
        ([0, 0, 0, 10**6], r"action 1000000 is no token id in \[0, "),
        (np.array([0, 0, 0, 2**63 + 1], dtype=np.uint64), "is no token id"),
    ],
)
def test_bad_actions(make, actions, message):
    env, twin = make(), make()
    env.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    good = np.array([5, 6, 7, 8])
    assert_same(env.step(good), twin.step(good))  # the refused ones changed nothing


@pytest.mark.parametrize("kind", [np.int32, np.uint8, list])
def test_other_integers_are_fine(make, kind):
    env = make()
    env.reset(seed=0)
    actions = [5, 6, 7, 8] if kind is list else np.array([5, 6, 7, 8], dtype=kind)
    observations, *_ = env.step(actions)
    last = observations["attention_mask"].sum(-1, dtype=np.int64) - 1
    assert observations["input_ids"][np.arange(4), last].tolist() == [5, 6, 7, 8]


def test_step_before_reset(make):
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        make().step(np.zeros(4, dtype=np.int64))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"options": {"promt_index": 1}}, ValueError, "'promt_index': did you mean 'prompt_index'"),
        ({"options": {"prompt_index": 4}}, IndexError, "prompt_index 4 is out of range"),
        ({"options": {"prompt_index": [0, 1]}}, ValueError, r"integers of shape \(4,\), got \[0, 1\]"),
        ({"options": {"prompt_index": 1.5}}, ValueError, "must be an integer"),
        ({"options": {"reset_mask": [True] * 4}}, ValueError, r"bool array of shape \(4,\)"),
        ({"options": {"reset_mask": np.ones(4)}}, ValueError, r"bool array of shape \(4,\)"),
        ({"options": {"reset_mask": np.ones(3, dtype=bool)}}, ValueError, r"bool array of shape \(4,\)"),
        ({"options": {"reset_mask": np.zeros(4, dtype=bool)}}, ValueError, "selects no row"),
        ({"seed": [1, 2]}, ValueError, "got 2 seeds for num_envs=4"),
    ],
)
def test_bad_resets(make, kwargs, error, message):
    with pytest.raises(error, match=message):
        make().reset(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"render_mode": "rgb_array"}, "render_mode must be one of"),
        ({"max_episode_steps": 9}, "pass max_new_tokens= instead"),
        ({"autoreset_mode": "Sometimes"}, "Sometimes"),
    ],
)
def test_bad_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_a_ready_mdp_takes_no_arguments(arguments):
    mdp = TextMDP(**arguments())
    assert TextGenVectorEnv(2, mdp=mdp).mdp is mdp
    with pytest.raises(ValueError, match=r"\['max_new_tokens'\] would be ignored"):
        TextGenVectorEnv(2, mdp=mdp, max_new_tokens=3)
