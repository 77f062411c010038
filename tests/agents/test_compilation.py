"""Compiled layers: the same numbers, only in updates, and a run that goes on where they cannot be compiled."""

import logging

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.compilation import Compilation
from agents.reference import frozen_copy
from tests.agents.conftest import gradients, largest_gap, make_agent, make_episodes, make_policy

# What torch says to itself while it compiles, and nobody else sees; as errors they would fail the compilation.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    """What one test has compiled is not there for the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """A backend that runs what it is given, and counts how often it is asked."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _inputs):
        self.graphs += 1
        return graph.forward


def scored(policy, **kwargs):
    policy.zero_grad(set_to_none=True)
    outputs = make_episodes().score(policy, **kwargs)
    sum(output.sum() for output in outputs).backward()
    return {**dict(enumerate(output.detach() for output in outputs)), **gradients(policy)}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_give_the_same(family, recompute):
    expected = scored(make_policy(family))
    policy = make_policy(family, gradient_checkpointing=recompute, compile=True)
    backend = Counting()
    policy._compilation = Compilation(backend)
    assert largest_gap(scored(policy), expected) < 1e-10
    assert policy._compilation.works
    assert backend.graphs >= 1
    layers = [module for module in policy.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert len(layers) == 2
    assert not any("forward" in vars(layer) for layer in layers)


def test_with_its_own_backward_pass():
    expected = scored(make_policy(dtype=torch.float32))
    policy = make_policy(dtype=torch.float32, compile=True)
    policy._compilation = Compilation("aot_eager")
    assert largest_gap(scored(policy), expected) < 1e-3
    assert policy._compilation.works


def test_a_copy_runs_its_own_layers():
    policy = make_policy(compile=True)
    policy._compilation = Compilation(Counting())
    expected = scored(policy)
    copied = frozen_copy(policy)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.zero_()
        log_probs, _, _ = make_episodes().score(copied)
    assert torch.equal(log_probs, expected[0])


def test_only_updates_are_compiled():
    agent = make_agent(compile=True)
    assert agent.reference._compilation is agent.policy._compilation  # warned of once
    backend = Counting()
    agent.policy._compilation = agent.reference._compilation = Compilation(backend)
    rollout = agent.collector.collect(4)
    assert backend.graphs == 0
    agent.rescore(agent.policy, rollout)
    assert backend.graphs >= 1
    agent.learn(1)  # the checks of the first rollout compare the two
    assert agent.policy._compilation.works
    assert make_agent().policy._compilation is None


def test_where_compiling_fails_the_run_goes_on(caplog):
    def broken(graph, inputs):
        raise OSError("no compiler\nand a page of what it said")

    policy = make_policy(compile=True)
    policy._compilation = Compilation(broken)
    with caplog.at_level(logging.WARNING):
        assert largest_gap(scored(policy), scored(make_policy())) == 0
        scored(policy)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "agents.compilation"]
    assert "torch.compile failed" in message
    assert "no compiler" in message
    assert message.endswith("going on without it; compile=False leaves it out")


def test_other_errors_are_not_the_compilers():
    """Must fail for a shortage of memory: it has its own answer."""
    compilation = Compilation(Counting())

    def call():
        raise torch.OutOfMemoryError("not here")

    with pytest.raises(torch.OutOfMemoryError):
        compilation.run(make_policy().model, call)
    assert compilation.works
