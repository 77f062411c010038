"""Recomputed activations: the same gradients from less memory, and never dropout."""

import contextlib

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, FalconConfig, GPT2Config, OPTConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.activation_checkpointing import recomputing
from agents.policy import TextPolicy
from tests.agents.conftest import VOCAB, gradients, largest_gap, make_agent, make_episodes, make_policy, weights

SHAPE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DROPPING = {
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=48, attn_pdrop=0.5, resid_pdrop=0.5
    ),
    # These two call dropout by the flag of the layer itself, not of a module inside.
    "opt": lambda: OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=48, dropout=0.5),
    "falcon": lambda: FalconConfig(**SHAPE, alibi=False, hidden_dropout=0.5, attention_dropout=0.5),
}


def gradients_of(policy, *, shared=False):
    policy.zero_grad()
    episodes = make_episodes(prompts=(8, 5, 8, 8, 5, 1))
    tokens = (episodes.input_ids_BS, episodes.prompt_lengths_B, episodes.action_mask_BT)
    assert policy.places(*tokens, episodes.groups_B).attention_mask is not None  # prompts are really packed
    log_probs, values, entropies = episodes.score(policy, groups_B=episodes.groups_B if shared else None)
    (log_probs.sum() + values.square().sum() + entropies.sum()).backward()
    return gradients(policy)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "qwen2"])
def test_the_gradients_are_the_same(family, shared):
    expected = gradients_of(make_policy(family), shared=shared)
    assert largest_gap(gradients_of(make_policy(family, gradient_checkpointing=True), shared=shared), expected) < 1e-12


def dropping_policy(family, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        model = AutoModelForCausalLM.from_config(DROPPING[family](), attn_implementation="sdpa").double()
    return TextPolicy(model, VOCAB, **kwargs)


@contextlib.contextmanager
def layers_in_training_mode(model):
    """How transformers itself is told to recompute, modules inside spared."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
    yield
    for layer in layers:
        layer.training = False
    model.gradient_checkpointing_disable()


@pytest.mark.parametrize("family", DROPPING)
def test_dropout_stays_off(family):
    expected = gradients_of(dropping_policy(family))
    policy = dropping_policy(family, gradient_checkpointing=True)
    assert largest_gap(gradients_of(policy), expected) < 1e-12
    assert not any(module.training for module in policy.modules())
    policy.train()  # must fail: with dropout the gradients are others
    assert largest_gap(gradients_of(policy), expected) > 1e-2


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("family", ["opt", "falcon"])
def test_layers_in_training_mode_drop(family):
    """Must fail: transformers' switch, with only the layers' own flags raised, drops in these architectures."""
    policy = dropping_policy(family)
    expected = gradients_of(policy)
    with layers_in_training_mode(policy.model):
        assert largest_gap(gradients_of(policy), expected) > 1e-2


def saved_bytes(policy):
    """What the graph of one forward keeps for its backward pass, weights not counted."""
    own = {parameter.data_ptr() for parameter in policy.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        make_episodes().score(policy)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "qwen2"])
def test_less_is_kept(family):
    inputs = 2 * make_episodes().input_ids_BS.numel() * 32 * 8  # of both layers: the hooks do not see these
    assert saved_bytes(make_policy(family, gradient_checkpointing=True)) + inputs < saved_bytes(make_policy(family)) / 2


def test_training_is_the_same_bit_for_bit():
    plain, recomputed = (make_agent(gradient_checkpointing=on, samples_per_prompt=2) for on in (False, True))
    first, second = (agent.collector.collect(12) for agent in (plain, recomputed))
    assert torch.equal(first.log_probs_BT, second.log_probs_BT)
    for agent in (plain, recomputed):
        agent.learn(1)
    assert largest_gap(weights(recomputed.policy), weights(plain.policy)) == 0


def test_layers_are_left_as_they_were():
    model = make_policy().model
    first, second = model.transformer.h
    second.forward = wrapped = second.forward  # somebody else's wrapper

    def fail_inside():
        with recomputing(model):
            assert "forward" in vars(first)
            assert second.forward is not wrapped
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert "forward" not in vars(first)
    assert second.forward is wrapped


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="Linear has no layers that can be recomputed"), recomputing(nn.Linear(2, 2)):
        pass
