"""The policy gradient against exact enumeration, and PPO's loss against SB3's own."""

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch

from agents.advantages import gae, masked_mean
from agents.losses import clipped_policy_loss, policy_gradient_loss, value_loss
from tests.agents.conftest import gradients, largest_gap
from tests.agents.tree import COMPLETIONS, DEPTH, EOS, Tree

# --- the tree ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree():
    return Tree()


@pytest.fixture(scope="module")
def baseline(tree):
    """An arbitrary function of the prefix alone."""
    prefixes = sorted({tokens[:t] for tokens in COMPLETIONS for t in range(len(tokens))})
    level = dict(zip(prefixes, np.random.default_rng(0).standard_normal(len(prefixes)), strict=True))
    values = torch.zeros_like(tree.rewards)
    for row, tokens in enumerate(COMPLETIONS):
        for t in range(len(tokens)):
            values[row, t] = level[tokens[:t]]
    return values


def test_the_tree_is_complete(tree):
    assert len(COMPLETIONS) == 31
    assert max(map(len, COMPLETIONS)) == DEPTH
    assert float(tree.probabilities().detach().sum()) == pytest.approx(1, abs=1e-12)


def advantages_of(tree, values, lam=1.0):
    return gae(tree.rewards, values, tree.mask, gamma=1.0, lam=lam)[0]


def clipped(log_probs, advantages, mask, count):
    return clipped_policy_loss(log_probs, log_probs.detach(), advantages, mask, clip_range=0.2, count=count)


def plain(log_probs, advantages, mask, count):
    return policy_gradient_loss(log_probs, advantages, mask, count=count)


def expected_gradient(tree, loss, advantages, mask=None, per_sequence=False):
    """−E_τ[∇ loss(τ)]: the library's loss of each trajectory by itself, weighted by p(τ)."""
    log_probs = tree.log_probs()
    mask = tree.mask if mask is None else mask
    expected = torch.zeros((), dtype=torch.float64)
    for row, p in enumerate(tree.probabilities().tolist()):
        one = slice(row, row + 1)
        count = int(tree.lengths[row]) if per_sequence else 1
        expected = expected - p * loss(log_probs[one], advantages[one], mask[one], count)
    return tree.gradient(expected)


@pytest.mark.parametrize("loss", [clipped, plain])
@pytest.mark.parametrize("measured", [False, True])
def test_the_expected_gradient_is_the_exact_one(tree, baseline, loss, measured):
    values = baseline if measured else torch.zeros_like(baseline)
    exact = tree.exact_gradient()
    assert max(float(g.abs().max()) for g in exact.values()) > 0.01
    assert largest_gap(expected_gradient(tree, loss, advantages_of(tree, values)), exact) < 1e-12


def without_eos(tree, baseline):
    mask = tree.mask.clone()
    for row, tokens in enumerate(COMPLETIONS):
        if tokens[-1] == EOS:
            mask[row, len(tokens) - 1] = False
    return {"advantages": advantages_of(tree, baseline), "mask": mask}


def of_the_action(tree, baseline):
    """A baseline that has seen what it is to be compared with: the level of the prefix after the action."""
    late = torch.cat([baseline[:, 1:], torch.zeros_like(baseline[:, :1])], dim=-1)
    return {"advantages": advantages_of(tree, late)}


@pytest.mark.parametrize("loss", [clipped, plain])
@pytest.mark.parametrize(
    "variant",
    [
        without_eos,
        of_the_action,
        lambda tree, _: {"advantages": advantages_of(tree, torch.zeros_like(tree.rewards)), "per_sequence": True},
        lambda tree, baseline: {"advantages": advantages_of(tree, baseline, lam=0.9)},
        lambda tree, _: {"advantages": tree.rewards},
        lambda tree, baseline: {"advantages": -advantages_of(tree, baseline)},
    ],
    ids=[
        "EOS masked out",
        "baseline of the own action",
        "mean a sequence",
        "lambda .9 on a wrong critic",
        "no reward to go",
        "sign",
    ],
)
def test_a_biased_variant_is_seen(tree, baseline, loss, variant):
    """Must fail: each of these is a known way to train towards something else."""
    found = expected_gradient(tree, loss, **variant(tree, baseline))
    assert largest_gap(found, tree.exact_gradient()) > 1e-3


# --- SB3 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("clip_range", "spread"), [(0.2, 0.0), (0.2, 0.5), (0.01, 0.5)])
def test_loss_and_gradients_are_those_of_sb3(clip_range, spread, normalise):
    """SB3's own `train` on one injected rollout; its gradients against those of our losses on the same tensors."""
    size, ent_coef, vf_coef = 32, 0.03, 0.7
    agent = stable_baselines3.PPO(
        "MlpPolicy",
        gym.make("CartPole-v1"),
        n_steps=size,
        batch_size=size,
        n_epochs=1,
        clip_range=clip_range,
        ent_coef=ent_coef,
        vf_coef=vf_coef,
        normalize_advantage=normalise,
        max_grad_norm=1e9,
        policy_kwargs={"net_arch": [8], "optimizer_class": torch.optim.SGD},
        learning_rate=0.0,
        device="cpu",
        seed=0,
    )
    agent.learn(size)
    buffer, generator = agent.rollout_buffer, np.random.default_rng(0)
    buffer.log_probs += spread * generator.standard_normal(buffer.log_probs.shape).astype(np.float32)
    for name in ("advantages", "returns"):
        setattr(buffer, name, generator.standard_normal((size, 1)).astype(np.float32))
    observations = torch.from_numpy(buffer.observations).reshape(size, 4)
    actions, old, advantages, returns = (
        torch.from_numpy(array).reshape(size)
        for array in (buffer.actions, buffer.log_probs, buffer.advantages, buffer.returns)
    )
    agent.train()  # with a learning rate of 0: the gradients stay in place, the weights as they are
    expected = gradients(agent.policy)

    agent.policy.zero_grad(set_to_none=True)
    values, log_probs, entropies = agent.policy.evaluate_actions(observations, actions)
    mask = torch.ones(size, 1, dtype=torch.bool)
    if normalise:  # SB3 divides by the sample's standard deviation
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    policy_loss = clipped_policy_loss(
        log_probs[:, None], old[:, None], advantages[:, None], mask, clip_range=clip_range
    )
    critic_loss = value_loss(values, returns[:, None], mask)
    # ½ stands in ours and not in SB3's
    loss = policy_loss + 2 * vf_coef * critic_loss - ent_coef * masked_mean(entropies[:, None], mask)
    loss.backward()
    assert largest_gap(gradients(agent.policy), expected) < 1e-6
    loss, policy_loss, critic_loss = (tensor.detach() for tensor in (loss, policy_loss, critic_loss))
    logged = agent.logger.name_to_value
    assert float(loss) == pytest.approx(logged["train/loss"], abs=1e-6)
    assert float(policy_loss) == pytest.approx(logged["train/policy_gradient_loss"], abs=1e-6)
    assert float(2 * critic_loss) == pytest.approx(logged["train/value_loss"], abs=1e-6)
    assert logged["train/clip_fraction"] > 0.3 or spread == 0
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-2


# --- by hand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # clipped: no reason to go on
        (1.5, -2.0, 3.0, 2.0),  # worse than before: never clipped
        (0.5, -2.0, 1.6, 0.0),
        (0.5, 2.0, -1.0, -2.0),
    ],
)
def test_the_clipped_surrogate_by_hand(ratio, advantage, loss, slope):
    log_prob = torch.tensor([[np.log(ratio)]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    value = clipped_policy_loss(log_prob, torch.zeros(1, 1), torch.tensor([[advantage]]), mask, clip_range=0.2)
    value.backward()
    assert float(value.detach()) == pytest.approx(loss)
    assert float(log_prob.grad) == pytest.approx(slope * ratio)  # d ratio / d log π is the ratio


@pytest.mark.parametrize(
    ("value", "target", "clip", "loss"),
    [
        (1.0, 3.0, None, 2.0),
        (1.0, 3.0, 0.2, 0.5 * 2.8**2),  # the old value was 0: moving to 1 counts as moving to .2
        (0.1, 3.0, 0.2, 0.5 * 2.9**2),
        (1.0, 0.0, 0.2, 0.5),  # clipping never makes the loss smaller
    ],
)
def test_the_value_loss_by_hand(value, target, clip, loss):
    mask = torch.tensor([[True, False]])
    values, targets = torch.tensor([[value, 7.0]]), torch.tensor([[target, -9.0]])
    result = value_loss(values, targets, mask, old_values_BT=torch.zeros(1, 2), clip_range=clip)
    assert float(result) == pytest.approx(loss)


def test_clipping_the_value_needs_the_old_one():
    with pytest.raises(ValueError, match="needs old_values_BT"):
        value_loss(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), clip_range=0.2)
