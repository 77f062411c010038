"""The same architecture again from plain data, as a loaded agent needs it."""

import json

import pytest
import torch

from agents import PPO
from agents.model_source import blueprint, from_blueprint, load_model
from tests.agents.conftest import FAMILIES, gpt2_config, largest_gap, make_env, weights


def half_frozen():
    model = load_model(gpt2_config(), seed=0)
    model.transformer.wte.requires_grad_(False)  # tied: the head's too
    model.transformer.h[0].requires_grad_(False)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_blueprint_is_plain_data_and_gives_the_architecture(family):
    model = load_model(FAMILIES[family](), seed=0).eval()
    again = from_blueprint(json.loads(json.dumps(blueprint(model)))).eval()
    again.load_state_dict(model.state_dict())
    ids = torch.arange(8)[None] + 2
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_what_was_frozen_stays_frozen():
    model = half_frozen()
    again = from_blueprint(blueprint(model))
    flags = [{name: p.requires_grad for name, p in one.named_parameters()} for one in (model, again)]
    assert flags[0] == flags[1]
    assert not all(flags[0].values())


def test_an_agent_with_frozen_layers_goes_on_as_if_never_stopped(tmp_path):
    agent = PPO(
        half_frozen(), make_env(), seed=3, device="cpu", episodes_per_rollout=12, learning_rate_schedule="constant"
    )
    frozen = weights(agent.policy.model.transformer.h[0])
    agent.learn(1).save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=make_env(), device="cpu")
    for one in (agent, loaded):
        one.learn(1, reset_num_timesteps=False)
        assert largest_gap(weights(one.policy.model.transformer.h[0]), frozen) == 0
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) == 0
    assert largest_gap(weights(loaded.policy.model.transformer.h[1]), weights(half_frozen().transformer.h[1])) > 0
