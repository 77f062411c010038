"""Completions packed behind their shared prompt score as they do in rows of their own."""

import pytest
import torch

import agents.policy
from agents.packing import packed, separate, sharing_pays
from tests.agents.conftest import FAMILIES, gradients, largest_gap, make_episodes, make_policy


def score_with_gradients(policy, episodes, groups_B):
    """Log-probabilities, values, entropies, and the gradients of a sum that weighs each differently."""
    outputs = episodes.score(policy, groups_B=groups_B)
    generator = torch.Generator().manual_seed(2)
    policy.zero_grad(set_to_none=True)
    sum((torch.rand(x.shape, generator=generator, dtype=torch.float64) * x).sum() for x in outputs).backward()
    return outputs, gradients(policy)


@pytest.fixture
def _always_shared(monkeypatch):
    monkeypatch.setattr(agents.policy, "sharing_pays", lambda *_: True)


@pytest.mark.usefixtures("_always_shared")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_separate_rows(family, attention):
    policy, episodes = make_policy(family, attention=attention), make_episodes()
    assert episodes.groups_B.tolist() == [7, 2, 7, 7, 2, 9]  # not contiguous, and one of a single member
    expected, expected_gradients = score_with_gradients(policy, episodes, None)
    outputs, packed_gradients = score_with_gradients(policy, episodes, episodes.groups_B)
    tolerance = 1e-10 if attention == "sdpa" else 1e-5
    for output, target in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, target, rtol=0, atol=tolerance)
        assert (output[~episodes.action_mask_BT] == 0).all()
    scale = max(float(g.abs().max()) for g in expected_gradients.values())
    assert largest_gap(packed_gradients, expected_gradients) < tolerance * scale


@pytest.mark.usefixtures("_always_shared")
def test_completions_of_one_token_only():
    policy, episodes = make_policy(), make_episodes((4, 4, 4), (1, 1, 1), (0, 0, 0))
    expected = episodes.score(policy)
    for output, target in zip(episodes.score(policy, groups_B=episodes.groups_B), expected, strict=True):
        torch.testing.assert_close(output, target, rtol=0, atol=1e-10)


def test_a_prompt_is_fed_once_and_last_actions_never():
    episodes = make_episodes()
    places = packed(episodes.input_ids_BS, episodes.prompt_lengths_B, episodes.action_mask_BT, episodes.groups_B)
    # groups 2, 7 and 9: prompt, and every completion less its last token
    assert places.input_ids.shape == (3, max(3 + 0 + 4, 5 + 3 + 5 + 1, 1 + 2))
    assert len(places.select_N) == int(episodes.action_mask_BT.sum())
    assert places.position_ids[1, :14].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9, 5]


@pytest.mark.usefixtures("_always_shared")
@pytest.mark.parametrize("fault", ["mask", "positions"])
def test_a_faulty_packing_is_seen(monkeypatch, fault):
    """Must fail: a mask that lets completions see each other, and positions that count on from the neighbour's."""

    def faulty(*args):
        places = packed(*args)
        width = places.input_ids.shape[1]
        if fault == "mask":
            return type(places)(places.input_ids, places.position_ids, causal(width), places.select_N)
        counted = torch.arange(width).expand_as(places.input_ids)
        return type(places)(places.input_ids, counted, places.attention_mask, places.select_N)

    def causal(width):
        return torch.ones(width, width, dtype=torch.bool).tril()[None, None]

    monkeypatch.setattr(agents.policy, "packed", faulty)
    policy, episodes = make_policy(), make_episodes()
    expected, *_ = episodes.score(policy)
    seen, *_ = episodes.score(policy, groups_B=episodes.groups_B)
    assert (seen - expected).abs().max() > 0.1


def work(places, hidden):
    """Multiplications of a forward, up to a factor: projections and attention, padding included."""
    rows, width = places.input_ids.shape
    return rows * width * (12 * hidden + width)


@pytest.mark.parametrize(
    ("prompt", "completion", "samples", "pays"),
    [
        (100, 5, 8, True),  # a long prompt, short answers
        (2, 200, 8, False),  # next to no prompt: attention over the neighbours' keys is all it would add
        (50, 50, 1, False),  # nothing to share
        (40, 20, 4, True),
    ],
)
def test_sharing_pays_where_it_saves_work(prompt, completion, samples, pays):
    groups = [group for group in range(4) for _ in range(samples)]
    episodes = make_episodes([prompt] * len(groups), [completion] * len(groups), groups)
    args = (episodes.input_ids_BS, episodes.prompt_lengths_B, episodes.action_mask_BT)
    assert sharing_pays(*args[1:], episodes.groups_B, 32) is pays
    if samples > 1:
        saves = work(packed(*args, episodes.groups_B), 32) < work(separate(*args), 32)
        assert saves is pays


def test_one_long_group_makes_sharing_unwise():
    """Rows are as wide as the fullest one: a group of many beside singles would mostly be padding."""
    groups = [0] * 8 + list(range(1, 25))
    episodes = make_episodes([4] * 32, [10] * 32, groups)
    assert not sharing_pays(episodes.prompt_lengths_B, episodes.action_mask_BT, episodes.groups_B, 32)
