"""The replay keeps the last episodes whole, and draws successes and demonstrations in the asked shares."""

import numpy as np
import pytest
import torch

from agents.replay import ReplayBuffer, join, successes
from agents.trajectories import Trajectories

VOCAB = 5


def episode(number, *, length=None, prompt=None, reward=None, masked=False):
    """One episode that can be told from its tokens; lengths differ."""
    length = 1 + number % 4 if length is None else length
    prompt = 1 + number % 3 if prompt is None else prompt
    rewards = torch.zeros(1, length)
    rewards[0, -1] = float(number) if reward is None else reward
    allowed = (torch.arange(VOCAB * length).reshape(1, length, VOCAB) + number) % 2 == 0
    return Trajectories(
        input_ids_BS=torch.full((1, prompt + length), number),
        prompt_lengths_B=torch.tensor([prompt]),
        action_mask_BT=torch.ones(1, length, dtype=torch.bool),
        log_probs_BT=torch.full((1, length), -1.0),
        values_BT=torch.full((1, length), 7.0),
        rewards_BT=rewards,
        bootstrap_values_B=torch.tensor([0.5 * number]),
        prompt_groups_B=torch.tensor([0]),
        infos=({"text": str(number)},),
        allowed_BTV=allowed if masked else None,
    )


def episodes(numbers, **kwargs):
    return join([episode(number, **kwargs) for number in numbers])


def numbers_in(batch):
    return batch.input_ids_BS[:, 0].tolist()


def assert_is(batch, row, expected):
    """Row ``row`` is that episode, all of it, and 0 beyond."""
    length, prompt = expected.num_tokens, int(expected.prompt_lengths_B)
    assert int(batch.lengths_B[row]) == length
    assert int(batch.prompt_lengths_B[row]) == prompt
    assert batch.input_ids_BS[row, : prompt + length].tolist() == expected.input_ids_BS[0].tolist()
    assert not batch.input_ids_BS[row, prompt + length :].any()
    assert batch.rewards_BT[row, :length].tolist() == expected.rewards_BT[0].tolist()
    assert float(batch.bootstrap_values_B[row]) == float(expected.bootstrap_values_B)
    if expected.allowed_BTV is not None:
        assert torch.equal(batch.allowed_BTV[row, :length], expected.allowed_BTV[0])


@pytest.mark.parametrize("masked", [False, True])
def test_the_ring_holds_the_last_episodes_whole(masked):
    replay, generator = ReplayBuffer(10), np.random.default_rng(0)
    for start in range(1, 40, 3):
        replay.add(episodes(range(start, start + 3), masked=masked))
        batch = replay.sample(200, generator)
        expected = set(range(max(1, start + 3 - 10), start + 3))
        assert set(numbers_in(batch)) == expected
        assert len(replay) == len(expected)
        for row, number in enumerate(numbers_in(batch)):
            assert_is(batch, row, episode(number, masked=masked))


def test_more_than_fits_at_once_leaves_the_last():
    replay = ReplayBuffer(4)
    replay.add(episodes(range(1, 10)))
    assert set(numbers_in(replay.sample(100, np.random.default_rng(0)))) == {6, 7, 8, 9}
    replay.add(episodes([20]))
    assert set(numbers_in(replay.sample(100, np.random.default_rng(0)))) == {7, 8, 9, 20}


def test_a_batch_is_as_wide_as_its_longest_episode():
    replay = ReplayBuffer(10)
    replay.add(episodes([1], length=9, prompt=5))
    for _ in range(10):
        replay.add(episodes([2], length=2, prompt=3))
    batch = replay.sample(8, np.random.default_rng(0))
    assert batch.input_ids_BS.shape == (8, 5)
    assert batch.action_mask_BT.shape == (8, 2)


# --- successes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ([0.0] * 98 + [1.0] * 2, 2),  # a rare reward: every one of them
        ([0.0] * 70 + [0.5] * 10 + [1.0] * 20, 20),  # ties at the top stay together
        (list(range(100)), 10),  # the best tenth
        ([1.0] * 100, 0),  # nothing to prefer
        ([0.0, 1.0], 1),
        ([3.0], 0),
        ([], 0),
    ],
)
def test_successes_are_the_best_tenth_above_the_worst(returns, expected):
    returns = np.array(returns, dtype=np.float64)
    assert successes(returns).sum() == expected
    assert (successes(5 * returns - 7) == successes(returns)).all()


def test_the_shares_of_a_batch():
    replay, generator = ReplayBuffer(100), np.random.default_rng(0)
    replay.add(episodes(range(1, 99), reward=0.0))
    replay.add(episodes([200, 201], reward=1.0))
    assert sorted(replay.success_rows) == [98, 99]
    replay.demonstrations = episodes([300, 301], length=6, masked=True)
    batch = replay.sample(64, generator, success_share=0.5, demonstration_share=0.25)
    drawn = np.array(numbers_in(batch))
    assert len(batch) == 64
    assert ((drawn >= 200) & (drawn < 300)).sum() >= 32
    assert (drawn >= 300).sum() == 16
    for row in range(64):
        assert_is(batch, row, episode(drawn[row], **_as_added(drawn[row])))
    unmasked = torch.from_numpy(drawn < 300)  # these came without masks: all was allowed
    assert batch.allowed_BTV[unmasked][batch.action_mask_BT[unmasked]].all()


def _as_added(number):
    if number >= 300:
        return {"length": 6, "masked": True}
    return {"reward": float(number >= 200)}


def test_without_successes_or_demonstrations_all_is_drawn_evenly():
    replay = ReplayBuffer(100)
    replay.add(episodes(range(1, 101), reward=1.0))
    batch = replay.sample(5_000, np.random.default_rng(0), success_share=0.5, demonstration_share=0.25)
    counts = np.bincount(numbers_in(batch), minlength=101)[1:]
    assert len(batch) == 5_000
    assert abs(counts - 50).max() < 5 * np.sqrt(50)


def test_new_episodes_change_what_a_success_is():
    replay = ReplayBuffer(3)
    replay.add(episodes([1, 2, 3]))
    assert replay.success_rows.tolist() == [2]
    replay.add(episodes([9]))  # over the oldest
    assert replay.success_rows.tolist() == [0]


# --- state ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("count", [3, 10, 14])
def test_a_loaded_replay_goes_on_alike(tmp_path, count, masked):
    replay, loaded = ReplayBuffer(10), ReplayBuffer(10)
    for number in range(1, 1 + count):
        replay.add(episodes([number], masked=masked))
    replay.demonstrations = episodes([50])
    torch.save(replay.state_dict(), tmp_path / "replay.pth")
    loaded.load_state_dict(torch.load(tmp_path / "replay.pth", weights_only=True))
    for number in range(20, 26):
        batches = [
            one.sample(32, np.random.default_rng(number), success_share=0.5, demonstration_share=0.2)
            for one in (replay, loaded)
        ]
        assert numbers_in(batches[0]) == numbers_in(batches[1])
        for name in ("input_ids_BS", "action_mask_BT", "rewards_BT", "bootstrap_values_B"):
            assert torch.equal(getattr(batches[0], name), getattr(batches[1], name))
        for one in (replay, loaded):
            one.add(episodes([number], masked=masked))


def test_an_empty_replay_is_saved_too():
    loaded = ReplayBuffer(10)
    loaded.load_state_dict(ReplayBuffer(10).state_dict())
    assert len(loaded) == 0
    with pytest.raises(ValueError, match="the replay is empty"):
        loaded.sample(1, np.random.default_rng(0))


def test_bad_use_is_refused():
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        ReplayBuffer(0)
    replay = ReplayBuffer(10)
    replay.add(episodes([1, 2]))
    with pytest.raises(ValueError, match="action masks always or never"):
        replay.add(episodes([3], masked=True))
    small = ReplayBuffer(1)
    with pytest.raises(ValueError, match="2 saved episodes do not fit into a replay of 1"):
        small.load_state_dict(replay.state_dict())
