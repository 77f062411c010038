"""What is silently wrong in a run of RL on a language model must stop it."""

import numpy as np
import pytest
import torch

import agents.decoder
import agents.policy
import agents.rollout
from agents.invariants import InvariantError, check_first_rollout
from tests.agents.conftest import make_agent, make_env


def first_rollout(agent):
    return agent.collector.collect(12)


def test_a_sound_agent_passes():
    agent = make_agent(kl_coef_per_sequence=0.1)
    check_first_rollout(agent.policy, first_rollout(agent), agent.reference)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_tolerance_fits_the_precision(precision):
    agent = make_agent(kl_coef_per_sequence=0.1, precision=precision)
    check_first_rollout(agent.policy, first_rollout(agent), agent.reference)


def test_dropout_stops_the_run():
    agent = make_agent()
    agent.policy.train()
    with pytest.raises(InvariantError, match="training mode"):
        agent.learn(1)


def test_one_module_in_training_mode_stops_the_run():
    agent = make_agent()
    agent.policy.model.transformer.h[1].mlp.dropout.train()
    with pytest.raises(InvariantError, match=r"h\.1\.mlp\.dropout"):
        agent.learn(1)


def sharper(logits, actions):
    """A sampler that reports the log-probabilities of another temperature."""
    return agents.policy.chosen(torch.log_softmax(logits / 0.9, -1), actions)


def test_a_perturbed_sampler_stops_the_run(monkeypatch):
    agent = make_agent()
    monkeypatch.setattr(agents.decoder, "chosen", sharper)
    with pytest.raises(
        InvariantError, match=r"log-probabilities differ from the trainer's, so the first ratio is not 1"
    ):
        agent.learn(1)
    assert agent._n_updates == 0  # before anything was learnt


def test_left_padding_stops_the_run(monkeypatch):
    """The classic: positions that count the padding."""
    agent = make_agent()
    step = agents.decoder.Decoder.step

    def late(decoder, allowed_NV=None):
        decoder._positions += 1
        output = step(decoder, allowed_NV)
        decoder._positions -= 1
        return output

    monkeypatch.setattr(agents.decoder.Decoder, "step", late)
    with pytest.raises(InvariantError, match="sampler"):
        agent.learn(1)


def test_a_wrong_value_stops_the_run():
    agent = make_agent()
    rollout = first_rollout(agent)
    with pytest.raises(InvariantError, match="values differ"):
        check_first_rollout(agent.policy, rollout.replace(values_BT=rollout.values_BT + 0.01), None)


def test_a_nan_stops_the_run():
    agent = make_agent()
    rollout = first_rollout(agent)
    with pytest.raises(InvariantError, match="by up to nan"):
        check_first_rollout(agent.policy, rollout.replace(log_probs_BT=rollout.log_probs_BT * np.nan), None)


def changed(agent):
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter *= 1.05
    return agent


def test_a_changed_reference_stops_the_run():
    agent = changed(make_agent(kl_coef_per_sequence=0.1))
    with pytest.raises(InvariantError, match=r"the KL at step 0 is not 0.*changed after the agent was made"):
        agent.learn(1)


def test_refreshing_the_reference_mends_it():
    agent = changed(make_agent(kl_coef_per_sequence=0.1))
    agent.refresh_reference()
    agent.learn(1)


def test_the_check_can_be_turned_off():
    changed(make_agent(kl_coef_per_sequence=0.1, check_invariants=False)).learn(1)


def test_later_runs_may_differ_from_the_reference(tmp_path):
    """Only a reference that was just copied must be equal: a trained agent has moved away from it, as it should."""
    agent = make_agent(kl_coef_per_sequence=0.1, learning_rate=0.01)
    agent.learn(100)
    agent.learn(1)
    agent.save(tmp_path / "agent.zip")
    type(agent).load(tmp_path / "agent.zip", env=make_env()).learn(1)
