"""Adam in one kernel or several: the same steps, whichever way the saved state was made."""

import copy

import pytest
import torch

from agents import PPO
from agents.optimiser import adam
from tests.agents.conftest import largest_gap, make_agent, make_env, weights


def learn(module, optimiser, steps, start=0):
    """Some steps on a loss that is another one at each."""
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        module(torch.randn(8, 4, generator=generator)).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def make(fused):
    module = torch.nn.Linear(4, 3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    return module, adam(module.parameters(), lr=0.1, eps=1e-5, fused=fused)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_saved_state_goes_on_in_either_kernel(before, after):
    module, optimiser = make(before)
    learn(module, optimiser, 3)
    resumed, other = make(after)
    resumed.load_state_dict(module.state_dict())
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    assert bool(other.param_groups[0]["fused"]) == after  # as it was made, not as it was saved
    assert other.param_groups[0]["lr"] == 0.1
    learn(module, optimiser, 2, start=3)
    learn(resumed, other, 2, start=3)
    assert largest_gap(weights(resumed), weights(module)) < 1e-6
    fresh, forgetful = make(after)  # must fail: without the state the steps are others
    fresh.load_state_dict(resumed.state_dict())
    learn(fresh, forgetful, 1, start=5)
    learn(resumed, other, 1, start=5)
    assert largest_gap(weights(fresh), weights(resumed)) > 1e-3


def test_torchs_own_adam_would_follow_the_saved_state():
    """Must fail: on a CPU's state a GPU would go on in many kernels."""
    module, optimiser = make(False)
    learn(module, optimiser, 1)
    other = torch.optim.Adam(make(True)[0].parameters(), fused=True)
    other.load_state_dict(optimiser.state_dict())
    assert not other.param_groups[0]["fused"]


def test_on_a_cpu_it_is_torchs_default():
    _, optimiser = make(None)
    assert optimiser.param_groups[0]["fused"] is None
    assert make_agent(adam_eps=1e-4).policy.optimizer.param_groups[0]["eps"] == 1e-4


def test_a_saved_agent_goes_on(tmp_path):
    agent = make_agent()
    agent.learn(1)
    agent.save(tmp_path / "run.zip")
    loaded = PPO.load(tmp_path / "run.zip", env=make_env())
    assert len(loaded.policy.optimizer.state) == len(agent.policy.optimizer.state) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_it_is_one_kernel(tmp_path):
    agent = make_agent(device="cuda")
    assert agent.policy.optimizer.param_groups[0]["fused"]
    agent.learn(1)
    agent.save(tmp_path / "run.zip")
    loaded = PPO.load(tmp_path / "run.zip", env=make_env(), device="cpu")
    assert not loaded.policy.optimizer.param_groups[0]["fused"]
    loaded.learn(1)
    loaded.save(tmp_path / "cpu.zip")
    again = PPO.load(tmp_path / "cpu.zip", env=make_env(), device="cuda")
    assert again.policy.optimizer.param_groups[0]["fused"]
    assert {state["step"].device.type for state in again.policy.optimizer.state.values()} == {"cuda"}
    again.learn(1)
