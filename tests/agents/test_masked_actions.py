"""What the environment forbids has no probability: not in sampling, in scoring, in the gradient or in the KL."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents import A2C, GRPO, NLPO, PPO, REINFORCE, evaluate
from agents.invariants import InvariantError, check_first_rollout
from agents.policy import TextPolicy, entropy
from agents.rollout import Collector
from tests.agents.conftest import (
    gpt2_config,
    largest_gap,
    letters,
    make_agent,
    make_env,
    make_episodes,
    make_mdp,
    make_policy,
    weights,
)
from tests.agents.tree import COMPLETIONS, DEPTH, VOCAB, Tree, expected_ascent, weighted_ascent
from textgen_env import TextGenEnv

EOS, A, F = 1, 2, 7


def climbing(prompt, actions, tokenizer):
    """Letters from the prompt's first on, each at least the last; the end once there is one. Never padding."""
    lowest = actions[-1] if actions else tokenizer.encode_prompt(prompt.text)[0]
    return [*([EOS] if actions else []), *range(lowest, tokenizer.vocab_size)]


@pytest.fixture(scope="module")
def mdp():
    return make_mdp(allowed_tokens=climbing)


@pytest.fixture(scope="module")
def agent(mdp):
    return make_agent(make_env(mdp=mdp), kl_coef_per_sequence=0.1)


def prefixes(rollout):
    """Prompt, actions before, action: each decision of a rollout."""
    for row, completion in enumerate(rollout.completions):
        for step, action in enumerate(completion.token_ids):
            yield row, step, completion.prompt, completion.token_ids[:step], action


def allowed_by_hand(rollout, mdp):
    allowed = torch.ones((*rollout.action_mask_BT.shape, mdp.tokenizer.vocab_size), dtype=torch.bool)
    for row, step, prompt, before, _ in prefixes(rollout):
        allowed[row, step] = False
        allowed[row, step, climbing(prompt, before, mdp.tokenizer)] = True
    return allowed


# --- sampling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 4, 64])
def test_no_draw_is_forbidden(mdp, agent, num_envs):
    """Also where rows end and new episodes take their place."""
    rollout = Collector(make_env(num_envs, mdp=mdp), agent.policy, seed=1).collect(64)
    assert all(action in climbing(prompt, before, mdp.tokenizer) for _, _, prompt, before, action in prefixes(rollout))
    assert torch.equal(rollout.allowed_BTV, allowed_by_hand(rollout, mdp))
    assert len(set(rollout.lengths_B.tolist())) > 3


def test_without_masks_forbidden_tokens_are_drawn(mdp, agent):
    """Must fail: the same policy in an environment that does not say."""
    rollout = Collector(make_env(mdp=make_mdp()), agent.policy, seed=1).collect(64)
    assert rollout.allowed_BTV is None
    forbidden = [
        action not in climbing(prompt, before, mdp.tokenizer) for *_, prompt, before, action in prefixes(rollout)
    ]
    assert np.mean(forbidden) > 0.2


def test_greedy_takes_the_likeliest_allowed_token(mdp, agent):
    rollout = Collector(make_env(mdp=mdp), agent.policy, seed=1).collect(6, prompt_indices=range(6), greedy=True)
    for *_, prompt, before, action in prefixes(rollout):
        ids = torch.tensor([[*mdp.tokenizer.encode_prompt(prompt.text), *before]])
        with torch.no_grad():
            logits = agent.policy.model(input_ids=ids).logits[0, -1]
        allowed = climbing(prompt, before, mdp.tokenizer)
        assert action == allowed[int(logits[allowed].argmax())]


@pytest.mark.parametrize("greedy", [False, True])
def test_an_evaluation_obeys(mdp, agent, greedy):
    found = evaluate(agent, mdp, greedy=greedy)
    for sample in found.samples:
        words = sample.completion.split()
        assert words == sorted(words)
        assert words[0] >= sample.prompt[0]
    assert 0 < found.entropy < np.log(7)
    assert found.kl_per_sequence == (None if greedy else pytest.approx(0, abs=1e-5))


# --- other ways to the same masks -------------------------------------------------------------------------


class Sometimes(gym.Wrapper):
    """Says what is allowed only where something is forbidden; before the second letter everything is free."""

    def reset(self, **kwargs):
        observation, info = self.env.reset(**kwargs)
        return observation, {key: value for key, value in info.items() if key != "action_mask"}

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "action_mask" in info and info["action_mask"].sum() > 4:
            del info["action_mask"]
        return observation, reward, terminated, truncated, info


def single(mdp, wrapper=None):
    env = TextGenEnv(task=mdp.task, reward=letters, tokenizer=mdp.tokenizer, max_new_tokens=6, allowed_tokens=climbing)
    return env if wrapper is None else wrapper(env)


@pytest.mark.parametrize("count", [1, 3])
def test_single_environments_side_by_side(mdp, agent, count):
    env = SyncVectorEnv([lambda: single(mdp)] * count, autoreset_mode=AutoresetMode.DISABLED)
    rollout = Collector(env, agent.policy, seed=1).collect(20)
    assert torch.equal(rollout.allowed_BTV, allowed_by_hand(rollout, mdp))
    assert all(action in climbing(prompt, before, mdp.tokenizer) for _, _, prompt, before, action in prefixes(rollout))


def test_a_row_that_reports_no_mask_is_free(mdp, agent):
    """Not bound by the mask of the step before."""
    env = SyncVectorEnv([lambda: single(mdp, Sometimes)] * 3, autoreset_mode=AutoresetMode.DISABLED)
    rollout = Collector(env, agent.policy, seed=1).collect(30)
    seen = set()
    for row, step, prompt, before, action in prefixes(rollout):
        allowed = climbing(prompt, before, mdp.tokenizer)
        free = step == 0 or len(allowed) > 4
        expected = torch.zeros(8, dtype=torch.bool)
        expected[list(range(8)) if free else allowed] = True
        assert torch.equal(rollout.allowed_BTV[row, step], expected)
        assert expected[action]
        seen.add(free)
    assert seen == {False, True}


def test_an_agent_learns_in_a_wrapped_environment(mdp):
    env = SyncVectorEnv([lambda: single(mdp, Sometimes)] * 3, autoreset_mode=AutoresetMode.DISABLED)
    assert make_agent(env).learn(60)._n_updates > 0


# --- scoring ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 3])
def test_sampler_trainer_and_hand_agree(mdp, samples):
    """The likelihoods of what is allowed, divided by their sum; with and without shared prompts."""
    policy = make_policy(vocab_size=8, temperature=1.3)
    rollout = Collector(make_env(mdp=mdp), policy, seed=1).collect(18, samples_per_prompt=samples)
    with torch.no_grad():
        scored, _, entropies = policy.score(rollout)
        torch.testing.assert_close(rollout.log_probs_BT, scored, rtol=0, atol=1e-10)
        for row, step, prompt, before, action in prefixes(rollout):
            ids = torch.tensor([[*mdp.tokenizer.encode_prompt(prompt.text), *before]])
            likelihoods = (policy.model(input_ids=ids).logits[0, -1, :8] / 1.3).exp()
            p = likelihoods[climbing(prompt, before, mdp.tokenizer)]
            p = p / p.sum()
            chosen = float(likelihoods[action] / likelihoods[climbing(prompt, before, mdp.tokenizer)].sum())
            assert float(scored[row, step]) == pytest.approx(np.log(chosen), abs=1e-10)
            assert float(entropies[row, step]) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-10)


def masked_episodes(seed=0):
    """Ragged episodes, each action among a few random others."""
    episodes = make_episodes(vocab_size=8)
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand((*episodes.action_mask_BT.shape, 8), generator=generator) < 0.4
    rows, steps = episodes.action_mask_BT.nonzero(as_tuple=True)
    actions = episodes.input_ids_BS[rows, episodes.prompt_lengths_B[rows] + steps]
    allowed[rows, steps, actions] = True
    return episodes, allowed, (rows, steps, actions)


def test_a_forbidden_action_scores_minus_infinity():
    policy = make_policy(vocab_size=8)
    episodes, allowed, (rows, steps, actions) = masked_episodes()
    allowed[rows[2], steps[2], actions[2]] = False
    allowed[rows[2], steps[2], (actions[2] + 1) % 8] = True
    log_probs, _, _ = episodes.score(policy, allowed_BTV=allowed)
    assert log_probs[rows[2], steps[2]] == -torch.inf
    assert torch.isfinite(log_probs).sum() == log_probs.numel() - 1


def test_probability_is_left_on_what_is_allowed_alone():
    """Summed over every action that might have been taken."""
    policy = make_policy(vocab_size=8)
    episodes, allowed, _ = masked_episodes()
    last = episodes.action_mask_BT.sum(-1) - 1
    at = torch.arange(len(last))
    total = torch.zeros(len(last), dtype=torch.float64)
    for token in range(8):
        episodes.input_ids_BS[at, episodes.prompt_lengths_B + last] = token
        log_probs = episodes.score(policy, allowed_BTV=allowed)[0][at, last].detach()
        assert torch.equal(log_probs > -torch.inf, allowed[at, last, token])
        total += log_probs.exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("few", [False, True])
def test_gradients_through_masks_are_finite(dtype, few):
    """Of log-probabilities and entropies; where one token is allowed there is nothing to choose, and no gradient."""
    policy = make_policy(dtype=dtype, vocab_size=8)
    episodes, allowed, (rows, steps, actions) = masked_episodes()
    if few:
        allowed = torch.zeros_like(allowed)
        allowed[rows, steps, actions] = True
    log_probs, _, entropies = episodes.score(policy, allowed_BTV=allowed)
    (log_probs.sum() + entropies.sum()).backward()
    found = [p.grad for p in policy.model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in found)
    assert torch.isfinite(entropies).all()
    assert (float(entropies.detach().abs().max()) == 0) is few
    assert (max(float(gradient.abs().max()) for gradient in found) < 1e-6) is few


def test_the_entropy_without_its_guard_is_seen():
    """Must fail: 0 · −∞."""
    log_probs = torch.tensor([[0.5, 0.5, 0.0]]).log().requires_grad_()
    value = entropy(log_probs)
    value.sum().backward()
    assert float(value.detach()) == pytest.approx(np.log(2))
    assert torch.isfinite(log_probs.grad).all()
    assert (-(log_probs.exp() * log_probs).sum()).isnan()


# --- learning ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def confined():
    """The tree, each prefix with one or two of its three tokens gone: the completions that are left, and their p."""
    tree = Tree()
    generator = torch.Generator().manual_seed(1)
    tables = {}
    tree.mask_BTV = torch.ones(len(COMPLETIONS), DEPTH, VOCAB, dtype=torch.bool)
    for row, tokens in enumerate(COMPLETIONS):
        for t in range(len(tokens)):
            if tokens[:t] not in tables:
                tables[tokens[:t]] = torch.rand(VOCAB, generator=generator) < 0.6
                tables[tokens[:t]][int(torch.randint(VOCAB, (1,), generator=generator))] = True
            tree.mask_BTV[row, t] = tables[tokens[:t]]
    probabilities = tree.probabilities().detach()
    rows = probabilities.nonzero().squeeze(-1)
    assert 5 < len(rows) < 25
    return tree, rows, probabilities[rows]


def exact_gradient(tree, rows, penalty=0.0):
    """∇ Σ_τ p(τ) (R(τ) − β d(τ)) over what is allowed; d carries no gradient of its own in expectation."""
    log_probs, reference = (tree.log_probs(policy)[rows].sum(-1) for policy in (tree.policy, tree.reference))
    paid = tree.scores[rows] - penalty * (log_probs - reference).detach()
    return tree.gradient((log_probs.exp() * paid).sum())


def test_what_is_allowed_is_all_that_happens(confined):
    _, _, p = confined
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (A2C, {"value_coef": 0.0}),
        (PPO, {"value_coef": 0.0, "gae_lambda": 1.0}),
        (NLPO, {"value_coef": 0.0, "gae_lambda": 1.0}),
        (REINFORCE, {"baseline": "none", "samples_per_prompt": 1, "credit": "sequence"}),
    ],
)
@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_the_expected_update_is_the_masked_policys_gradient(confined, kind, options, penalty):
    """Reward and KL of the distribution that acted: the reference is read under the same mask."""
    tree, rows, p = confined
    agent = tree.agent(kind, **options, kl_coef_per_sequence=penalty)
    batch = agent.prepare(tree.rollout(rows))
    exact = exact_gradient(tree, rows, penalty)
    assert max(float(g.abs().max()) for g in exact.values()) > 0.01
    assert largest_gap(weighted_ascent(agent, batch, p), exact) < 1e-12


def test_a_trainer_without_the_masks_is_seen(confined):
    """Must fail: the probabilities of another policy."""
    tree, rows, p = confined
    agent = tree.agent(A2C, value_coef=0.0)
    batch = agent.prepare(tree.rollout(rows).replace(allowed_BTV=None))
    assert largest_gap(expected_ascent(agent, batch, p), exact_gradient(tree, rows)) > 1e-3


def test_the_check_of_the_first_rollout_catches_it(mdp, agent, monkeypatch):
    rollout = agent.collector.collect(12)
    check_first_rollout(agent.policy, rollout, agent.reference)
    with pytest.raises(InvariantError, match="the first ratio is not 1"):
        check_first_rollout(agent.policy, rollout.replace(allowed_BTV=None), agent.reference)
    score = TextPolicy.score_actions
    monkeypatch.setattr(TextPolicy, "score_actions", lambda *args, allowed_BTV=None, **kwargs: score(*args, **kwargs))
    forgetful = make_agent(make_env(mdp=mdp))
    with pytest.raises(InvariantError, match="the first ratio is not 1"):
        forgetful.learn(1)


@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_micro_batches_keep_the_masks_with_their_episodes(mdp, kind):
    options = {"seed": 0, "kl_coef_per_sequence": 0.1, "episodes_per_rollout": 16}
    agent = kind(gpt2_config(), make_env(mdp=mdp), device="cpu", **options)
    rollout = agent.collector.collect(16, samples_per_prompt=8)
    whole = agent.rescore(agent.policy, rollout)[0]
    agent.config.micro_batch_tokens = 20
    torch.testing.assert_close(agent.rescore(agent.policy, rollout)[0], whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole, rollout.log_probs_BT, rtol=0, atol=1e-4)
    for _, part in rollout.micro_batches(20):
        assert part.allowed_BTV.shape[:2] == part.action_mask_BT.shape  # no wider than the longest of them
    before = weights(agent.policy)
    agent.learn(1)
    assert largest_gap(weights(agent.policy), before) > 0


# --- predict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [False, True])
def test_predict_obeys_the_masks_it_is_given(mdp, agent, deterministic):
    env = make_env(5, mdp=mdp)
    observations, _ = env.reset(seed=0)
    state, free = None, 0
    for _ in range(6):
        masks = env.action_masks()
        unmasked, _ = agent.predict(observations, deterministic=True)
        actions, state = agent.predict(observations, state, deterministic=deterministic, action_masks=masks)
        assert masks[np.arange(5), actions].all()
        free += int(masks[np.arange(5), unmasked].sum())
        if deterministic:
            again, _ = agent.predict(observations, deterministic=True, action_masks=masks.astype(np.int8))
            assert again.tolist() == actions.tolist()  # the cache changes nothing
        observations, _, terminated, _, _ = env.step(actions)
        if terminated.any():
            observations, _ = env.reset(options={"reset_mask": terminated})
    assert free < 30  # must fail: without masks it would have strayed


def test_predict_for_one_environment(mdp, agent):
    env = single(mdp)
    observation, info = env.reset(seed=0)
    action, _ = agent.predict(observation, action_masks=info["action_mask"])
    assert np.ndim(action) == 0
    assert info["action_mask"][action]
    only = np.arange(8) == F
    assert agent.predict(observation, action_masks=only)[0] == F


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones((2, 8)), r"action_masks must have shape \(3, 8\), got \(2, 8\)"),
        (np.ones((3, 9)), r"got \(3, 9\)"),
        (np.arange(24).reshape(3, 8) // 8 != 1, "allow no token at all in row 1"),
    ],
)
def test_predict_refuses_masks_that_cannot_be(mdp, agent, masks, message):
    observations, _ = make_env(3, mdp=mdp).reset(seed=0)
    with pytest.raises(ValueError, match=message):
        agent.predict(observations, action_masks=masks)
