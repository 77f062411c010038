"""One gradient step of a Q-learner: micro-batches, the slow copy, devices."""

import pytest
import torch

from tests.agents.conftest import largest_gap, make_env, make_mdp, weights
from tests.agents.test_dqn import collected, make_dqn
from tests.agents.test_q_policy import not_after_itself


def test_micro_batches_do_not_change_the_update():
    agents = [make_dqn(micro_batch_tokens=size) for size in (16_384, 30)]
    updates = [agent.update(collected(agent)) for agent in agents]
    assert updates[0] == pytest.approx(updates[1], rel=1e-4, abs=1e-6)
    assert largest_gap(*(weights(agent.policy) for agent in agents)) < 1e-5


def test_the_slow_copy_starts_as_the_network_and_follows_every_update():
    agent = make_dqn(target_tau=0.25)
    before = weights(agent.policy.target)
    own = {name: value for name, value in weights(agent.policy).items() if not name.startswith("target.")}
    assert largest_gap(before, own) == 0
    agent.update(collected(agent))
    after = {name: value for name, value in weights(agent.policy).items() if not name.startswith("target.")}
    expected = {name: 0.75 * before[name] + 0.25 * after[name] for name in before}
    assert largest_gap(weights(agent.policy.target), expected) < 1e-6
    agent.refresh_reference()
    assert largest_gap(weights(agent.policy.target), after) == 0


def test_episodes_move_with_every_tensor():
    episodes = collected(make_dqn(make_env(mdp=make_mdp(allowed_tokens=not_after_itself))))
    moved = episodes.to("meta")
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert moved.infos == episodes.infos
