"""The policy gradient against exact enumeration, and PPO's loss against SB3's own."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch

from agents.advantages import gae, masked_mean
from agents.losses import clipped_policy_loss, value_loss
from tests.agents.conftest import gradients, largest_gap, make_agent, make_env, make_mdp, make_policy

# --- every completion of a tree of three tokens, four deep ------------------------------------------------

EOS, DEPTH = 0, 4
COMPLETIONS = [
    tokens
    for length in range(1, DEPTH + 1)
    for tokens in itertools.product(range(3), repeat=length)
    if EOS not in tokens[:-1] and (tokens[-1] == EOS or length == DEPTH)
]


class Tree:
    """A tiny policy, all 31 trajectories of one prompt, and a reward for each."""

    def __init__(self):
        self.policy = make_policy(vocab_size=3)
        prompt = [2, 1]
        count = len(COMPLETIONS)
        self.prompt_lengths = torch.full((count,), len(prompt))
        self.lengths = torch.tensor([len(tokens) for tokens in COMPLETIONS])
        self.mask = torch.arange(DEPTH) < self.lengths[:, None]
        self.input_ids = torch.zeros(count, len(prompt) + DEPTH, dtype=torch.long)
        for row, tokens in enumerate(COMPLETIONS):
            self.input_ids[row, : len(prompt) + len(tokens)] = torch.tensor([*prompt, *tokens])
        generator = torch.Generator().manual_seed(4)
        self.scores = torch.randn(count, generator=generator, dtype=torch.float64)
        self.rewards = torch.zeros(count, DEPTH, dtype=torch.float64)
        self.rewards[range(count), self.lengths - 1] = self.scores
        # An arbitrary baseline is a function of the prefix alone.
        prefixes = sorted({tokens[:t] for tokens in COMPLETIONS for t in range(len(tokens))})
        level = dict(zip(prefixes, torch.randn(len(prefixes), generator=generator).tolist(), strict=True))
        self.baseline = torch.zeros_like(self.rewards)
        for row, tokens in enumerate(COMPLETIONS):
            for t in range(len(tokens)):
                self.baseline[row, t] = level[tokens[:t]]

    def log_probs(self):
        return self.policy.score_actions(self.input_ids, self.prompt_lengths, self.mask)[0]

    def gradient(self, objective):
        self.policy.zero_grad(set_to_none=True)
        objective.backward()
        return gradients(self.policy.model)

    def exact_gradient(self):
        """∇ Σ_τ p(τ) R(τ), by autograd through the probabilities themselves."""
        return self.gradient((self.log_probs().sum(-1).exp() * self.scores).sum())

    def expected_gradient(self, advantages, mask=None, per_sequence=False):
        """−E_τ[∇ loss(τ)]: the library's loss of each trajectory by itself, weighted by p(τ)."""
        log_probs = self.log_probs()
        mask = self.mask if mask is None else mask
        expected = torch.zeros((), dtype=torch.float64)
        for row in range(len(COMPLETIONS)):
            one = slice(row, row + 1)
            loss = clipped_policy_loss(
                log_probs[one],
                log_probs[one].detach(),
                advantages[one],
                mask[one],
                clip_range=0.2,
                count=int(self.lengths[row]) if per_sequence else 1,
            )
            expected = expected - log_probs[row].detach().sum().exp() * loss
        return self.gradient(expected)


@pytest.fixture(scope="module")
def tree():
    return Tree()


def test_the_tree_is_complete(tree):
    assert len(COMPLETIONS) == 31
    assert float(tree.log_probs().detach().sum(-1).exp().sum()) == pytest.approx(1, abs=1e-12)


def advantages_of(tree, values, lam=1.0):
    return gae(tree.rewards, values, tree.mask, gamma=1.0, lam=lam)[0]


@pytest.mark.parametrize("baseline", [False, True])
def test_the_expected_gradient_is_the_exact_one(tree, baseline):
    values = tree.baseline if baseline else torch.zeros_like(tree.baseline)
    exact = tree.exact_gradient()
    assert max(float(g.abs().max()) for g in exact.values()) > 0.01
    assert largest_gap(tree.expected_gradient(advantages_of(tree, values)), exact) < 1e-12


def without_eos(tree):
    mask = tree.mask.clone()
    for row, tokens in enumerate(COMPLETIONS):
        if tokens[-1] == EOS:
            mask[row, len(tokens) - 1] = False
    return {"advantages": advantages_of(tree, torch.zeros_like(tree.rewards)), "mask": mask}


@pytest.mark.parametrize(
    "variant",
    [
        without_eos,
        lambda tree: {"advantages": advantages_of(tree, torch.zeros_like(tree.rewards)), "per_sequence": True},
        lambda tree: {"advantages": advantages_of(tree, tree.baseline, lam=0.9)},
        lambda tree: {"advantages": tree.rewards},
        lambda tree: {"advantages": -advantages_of(tree, tree.baseline)},
    ],
    ids=["EOS masked out", "mean a sequence", "lambda .9 on a wrong critic", "no reward to go", "sign"],
)
def test_a_biased_variant_is_seen(tree, variant):
    """Must fail: each of these is a known way to train towards something else."""
    assert largest_gap(tree.expected_gradient(**variant(tree)), tree.exact_gradient()) > 1e-3


def test_the_whole_update_of_the_library_is_exact(tree):
    """Through PPO's own `prepare` and `accumulate_gradients`: all trajectories as one rollout, weighted by p(τ)."""
    env = make_env(mdp=make_mdp(words="a", max_new_tokens=DEPTH, prompts=["a a"]))  # 3 tokens
    agent = make_agent(
        env,
        gae_lambda=1.0,
        whiten_advantages=False,
        kl_coef_per_sequence=0.0,
        value_coef=0.0,
        check_invariants=False,
        episodes_per_rollout=len(COMPLETIONS),
        minibatches=1,
    )
    agent.policy = tree.policy
    some = agent.collector.collect(len(COMPLETIONS))
    log_probs = tree.log_probs().detach()
    weights = log_probs.sum(-1).exp()
    rollout = some.replace(
        input_ids_BS=tree.input_ids,
        prompt_lengths_B=tree.prompt_lengths,
        action_mask_BT=tree.mask,
        log_probs_BT=log_probs,
        values_BT=torch.zeros_like(log_probs),
        rewards_BT=tree.rewards * weights[:, None],
        bootstrap_values_B=torch.zeros_like(weights),
        prompt_groups_B=torch.zeros_like(tree.lengths),
    )
    exact = tree.exact_gradient()
    tree.policy.zero_grad(set_to_none=True)
    stats = agent.accumulate_gradients(agent.prepare(rollout), torch.arange(len(COMPLETIONS)))
    assert stats["policy/ratio"] == pytest.approx(1, abs=1e-12)
    ascent = {name: -gradient * rollout.num_tokens for name, gradient in gradients(tree.policy.model).items()}
    assert largest_gap(ascent, exact) < 1e-12


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
