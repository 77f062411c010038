"""PPO end to end: one update is what the equations say, and the agent is a citizen of Stable-Baselines3."""

import csv
import re
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from transformers import GPT2LMHeadModel

import agents.ppo
from agents import PPO
from agents.environments import TextVecEnv
from agents.evaluation import evaluate
from agents.kl import k3
from tests.agents.conftest import (
    PROMPTS,
    gpt2_config,
    gradients,
    largest_gap,
    letters,
    make_agent,
    make_env,
    make_mdp,
    weights,
    word_tokenizer,
)
from textgen_env import Reward, TextGenEnv, TextTask

# --- one update -------------------------------------------------------------------------------------------


def collected(agent):
    agent.set_logger(configure(None, []))
    config = agent.config
    return agent.collector.collect(config.episodes_per_rollout, samples_per_prompt=config.samples_per_prompt)


def gradients_of(agent, rollout, rows=None):
    agent.policy.zero_grad(set_to_none=True)
    rows = torch.arange(len(rollout)) if rows is None else rows
    stats = agent.accumulate_gradients(agent.prepare(rollout), rows)
    return gradients(agent.policy), stats


def moved(agent, scale=0.05):
    """The policy a little away from the one that sampled: ratios that are not 1, a critic that says something."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def plain_targets(agent, rollout):
    """Advantages and returns as two lists of numbers an episode, by the recursion in any textbook."""
    config = agent.config
    reference, *_ = agent.reference.score_actions(
        rollout.input_ids_BS, rollout.prompt_lengths_B, rollout.action_mask_BT
    )
    advantages, returns = [], []
    for row, length in enumerate(rollout.lengths_B.tolist()):
        next_value, running, episode = float(rollout.bootstrap_values_B[row]), 0.0, []
        for t in reversed(range(length)):
            kl = float(rollout.log_probs_BT[row, t] - reference[row, t])
            value = float(rollout.values_BT[row, t])
            reward = float(rollout.rewards_BT[row, t]) - config.kl_coef_per_sequence * kl
            running = reward + config.gamma * next_value - value + config.gamma * config.gae_lambda * running
            episode.append((running, running + value))
            next_value = value
        advantages.append([advantage for advantage, _ in reversed(episode)])
        returns.append([target for _, target in reversed(episode)])
    return advantages, returns


@pytest.mark.parametrize("whiten", [False, True])
def test_one_update_is_its_equations(whiten):
    """Every option away from its neutral value, the loss written out token by token."""
    agent = make_agent(
        gamma=0.97,
        gae_lambda=0.9,
        clip_range=0.1,
        value_clip_range=0.3,
        value_coef=0.7,
        entropy_coef=0.05,
        kl_coef_per_sequence=0.3,
        temperature=1.3,
        whiten_advantages=whiten,
    )
    moved(agent, 0.2)
    rollout = collected(agent)
    rollout = rollout.replace(bootstrap_values_B=torch.linspace(-1, 1, 12))
    moved(agent)
    seen, stats = gradients_of(agent, rollout)

    advantages, returns = plain_targets(agent, rollout)
    everything = np.concatenate(advantages)
    if whiten:
        advantages = [[(a - everything.mean()) / everything.std() for a in episode] for episode in advantages]
    log_probs, values, entropies = agent.policy.score_actions(
        rollout.input_ids_BS, rollout.prompt_lengths_B, rollout.action_mask_BT
    )
    policy_terms, value_terms, entropy_terms, clipped = [], [], [], []
    for row, length in enumerate(rollout.lengths_B.tolist()):
        for t in range(length):
            ratio = (log_probs[row, t] - rollout.log_probs_BT[row, t]).exp()
            advantage, target = advantages[row][t], returns[row][t]
            policy_terms.append(-torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage))
            old = rollout.values_BT[row, t]
            near = torch.maximum(torch.minimum(values[row, t], old + 0.3), old - 0.3)
            value_terms.append(0.5 * torch.maximum((values[row, t] - target) ** 2, (near - target) ** 2))
            entropy_terms.append(entropies[row, t])
            clipped += [bool((ratio - 1).abs() > 0.1), bool((values[row, t] - old).abs() > 0.3)]
    assert 0.1 < np.mean(clipped[::2]) < 0.9
    assert 0.1 < np.mean(clipped[1::2]) < 0.9
    policy_loss, critic_loss, bonus = (torch.stack(x).mean() for x in (policy_terms, value_terms, entropy_terms))
    agent.policy.zero_grad(set_to_none=True)
    (policy_loss + 0.7 * critic_loss - 0.05 * bonus).backward()
    expected = gradients(agent.policy)
    scale = max(float(g.abs().max()) for g in expected.values())
    assert largest_gap(seen, expected) < 1e-5 * max(scale, 1)
    assert stats["loss/policy"] == pytest.approx(float(policy_loss.detach()), abs=1e-5)
    assert stats["loss/value"] == pytest.approx(float(critic_loss.detach()), rel=1e-5)
    assert stats["entropy"] == pytest.approx(float(bonus.detach()), rel=1e-5)
    assert stats["policy/clipfrac"] == pytest.approx(np.mean(clipped[::2]), abs=1e-6)


OPTIONS = [
    {},
    {"samples_per_prompt": 3, "kl_coef_per_sequence": 0.3, "entropy_coef": 0.1, "value_clip_range": None},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_micro_batches_do_not_change_the_gradient(options):
    whole = make_agent(micro_batch_tokens=10**6, **options)
    rollout = collected(whole)
    moved(whole)
    expected, expected_stats = gradients_of(whole, rollout)
    assert sum(1 for _ in rollout.micro_batches(whole.config.micro_batch_tokens)) == 1
    for tokens in (1, 40):
        whole.config.micro_batch_tokens = tokens
        assert sum(1 for _ in rollout.micro_batches(whole.config.micro_batch_tokens)) >= 3
        seen, stats = gradients_of(whole, rollout)
        scale = max(float(g.abs().max()) for g in expected.values())
        assert largest_gap(seen, expected) < 1e-6 * max(scale, 1)
        assert stats == pytest.approx(expected_stats, abs=1e-5)


def test_means_of_micro_batch_means_are_seen(monkeypatch):
    """Must fail: each micro-batch divided by its own count of tokens."""
    agent = make_agent()
    rollout = collected(agent)
    moved(agent)
    expected, _ = gradients_of(agent, rollout)
    ours = agents.ppo.clipped_policy_loss
    monkeypatch.setattr(agents.ppo, "clipped_policy_loss", lambda *args, count, **kwargs: ours(*args, **kwargs))
    agent.config.micro_batch_tokens = 40
    assert largest_gap(gradients_of(agent, rollout)[0], expected) > 1e-3


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("tokens", [1, 40, 10**6])
def test_micro_batches_cover_every_episode_once(samples, tokens):
    agent = make_agent(samples_per_prompt=samples, micro_batch_tokens=tokens)
    rollout = collected(agent)
    parts = list(rollout.micro_batches(agent.config.micro_batch_tokens))
    assert sorted(row for rows, _ in parts for row in rows.tolist()) == list(range(12))
    for rows, part in parts:
        assert [info["completion"] for info in part.infos] == [rollout.infos[row]["completion"] for row in rows]
        assert part.input_ids_BS.numel() <= tokens or len(rows) == 1
        if samples * rollout.input_ids_BS.shape[1] <= tokens:
            counts = torch.bincount(part.prompt_groups_B)
            assert set(counts[counts > 0].tolist()) == {samples}  # a prompt's samples stay together


@pytest.mark.parametrize(("samples", "count"), [(1, 1), (1, 5), (1, 12), (2, 4), (3, 2)])
def test_minibatches_deal_out_every_episode_once(samples, count):
    agent = make_agent(samples_per_prompt=samples, minibatches=count)
    rollout = collected(agent)
    epochs = [list(rollout.minibatches(count, agent.collector.shuffle)) for _ in range(2)]
    for epoch in epochs:
        assert len(epoch) == count
        assert sorted(row for rows in epoch for row in rows.tolist()) == list(range(12))
        for rows in epoch:
            groups = rollout.prompt_groups_B[rows]
            assert all(int((groups == group).sum()) == samples for group in groups)
    if count > 1:
        assert [r.tolist() for r in epochs[0]] != [r.tolist() for r in epochs[1]]


@pytest.mark.parametrize("options", OPTIONS)
def test_what_stands_in_the_padding_does_not_matter(options):
    agent = make_agent(**options)
    rollout = collected(agent)
    moved(agent)
    expected, expected_stats = gradients_of(agent, rollout)
    totals = rollout.prompt_lengths_B + rollout.lengths_B
    outside = torch.arange(rollout.input_ids_BS.shape[1]) >= totals[:, None]
    assert outside.any()
    for token in (1, 5):
        seen, stats = gradients_of(
            agent, rollout.replace(input_ids_BS=rollout.input_ids_BS.masked_fill(outside, token))
        )
        assert stats == expected_stats
        assert largest_gap(seen, expected) == 0  # bit for bit
    inside = rollout.input_ids_BS.clone()
    inside[:, 0] = 5  # must fail: an id that is no padding
    assert largest_gap(gradients_of(agent, rollout.replace(input_ids_BS=inside))[0], expected) > 1e-3


def test_the_first_ratio_is_one():
    agent = make_agent()
    _, stats = gradients_of(agent, collected(agent))
    assert stats["policy/ratio"] == pytest.approx(1, abs=1e-4)
    assert stats["policy/approxkl"] == pytest.approx(0, abs=1e-7)
    assert stats["policy/clipfrac"] == 0


def logged(agent, tokens=1):
    agent.set_logger(configure(None, []))
    agent.learn(tokens, log_interval=10**9)
    return dict(agent.logger.name_to_value)


def test_a_learning_rate_of_zero_changes_nothing():
    agent = make_agent(learning_rate=0.0, kl_coef_per_sequence=0.1, epochs=3)
    before = weights(agent.policy)
    values = logged(agent)
    assert largest_gap(weights(agent.policy), before) == 0
    assert values["policy/optimiser_steps"] == 6
    assert values["policy/approxkl"] == pytest.approx(0, abs=1e-7)
    assert values["policy/ratio"] == pytest.approx(1, abs=1e-4)
    assert values["policy/grad_norm"] > 0
    assert largest_gap(weights(make_trained().policy), before) > 0  # another rate does change them


def make_trained(**options):
    return make_agent(**options).learn(1)


def test_the_kl_to_a_fresh_reference_is_zero():
    values = logged(make_agent(kl_coef_per_sequence=0.1))
    for name in ("kl/per_sequence", "kl/per_token", "kl/k3_per_token"):
        assert values[name] == pytest.approx(0, abs=1e-5)
    assert values["kl/coef_per_sequence"] == 0.1


def test_the_kl_is_that_of_the_episodes():
    """Two policies apart: what is logged and paid against log-probabilities scored by hand."""
    agent = make_agent(kl_coef_per_sequence=0.5, gae_lambda=1.0, whiten_advantages=False)
    moved(agent, 0.2)
    rollout = collected(agent)
    batch = agent.prepare(rollout)
    with torch.no_grad():
        args = rollout.input_ids_BS, rollout.prompt_lengths_B, rollout.action_mask_BT
        log_ratio = agent.policy.score_actions(*args)[0] - agent.reference.score_actions(*args)[0]
    values, mask = agent.logger.name_to_value, rollout.action_mask_BT
    assert values["kl/per_sequence"] == pytest.approx(float(log_ratio.sum(-1).mean()), rel=1e-4)
    assert values["kl/per_token"] == pytest.approx(float(log_ratio[mask].mean()), rel=1e-4)
    assert values["kl/k3_per_token"] == pytest.approx(float(k3(log_ratio)[mask].mean()), rel=1e-4)
    assert abs(values["kl/per_sequence"]) > 0.1
    expected = rollout.returns_B - 0.5 * log_ratio.sum(-1)  # the first return is the whole sequence's
    torch.testing.assert_close(batch.returns_BT[:, 0], expected, rtol=0, atol=1e-4)
    assert not batch.advantages_BT.requires_grad


def test_the_adaptive_coefficient_moves_and_survives_a_save(tmp_path):
    options = {"kl_coef_per_sequence": 0.1, "kl_target_per_sequence": 5.0, "kl_horizon_episodes": 100}
    agent = make_agent(**options).learn(1)
    expected = 0.1 * (1 - 0.2 * 12 / 100)  # the KL is 0, far below the target
    assert agent.kl_controller.coef == pytest.approx(expected)
    agent.save(tmp_path / "agent")
    assert PPO.load(tmp_path / "agent").kl_controller.coef == agent.kl_controller.coef


def test_a_prompts_other_samples_are_its_baseline():
    options = {"samples_per_prompt": 3, "gae_lambda": 1.0, "whiten_advantages": False, "kl_coef_per_sequence": 0.0}
    agent = make_agent(**options)
    rollout = collected(agent)  # the critic says 0
    rewards = rollout.returns_B.view(-1, 3)
    expected = (3 / 2 * (rewards - rewards.mean(-1, keepdim=True))).flatten()[:, None] * rollout.action_mask_BT
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(agent.prepare(rollout).advantages_BT, expected, rtol=0, atol=1e-5)
    agent.config.prompt_baseline = False
    plain = rollout.returns_B[:, None] * rollout.action_mask_BT
    torch.testing.assert_close(agent.prepare(rollout).advantages_BT, plain, rtol=0, atol=1e-5)


def test_a_target_kl_ends_the_epochs():
    agent = make_agent(target_kl=1e-9, epochs=4, learning_rate=0.01)
    values = logged(agent)
    assert values["policy/optimiser_steps"] == 1
    assert agent._n_updates == 1
    assert all(parameter.grad is None for parameter in agent.policy.parameters())


def test_gradients_are_clipped():
    agent = make_agent(max_grad_norm=1e-3)
    agent.accumulate_gradients(agent.prepare(collected(agent)), torch.arange(12))
    taken = {}
    agent.policy.optimizer.step = lambda: taken.update(gradients(agent.policy))
    norm = agent.optimiser_step()
    assert norm > 1e-2
    assert torch.stack([g.square().sum() for g in taken.values()]).sum().sqrt() == pytest.approx(1e-3, rel=1e-3)


def test_a_gradient_that_is_not_finite_stops_the_run():
    agent = make_agent()
    agent.policy.value_head.weight.grad = torch.full((1, 32), float("nan"))
    with pytest.raises(FloatingPointError, match="the gradient norm is nan"):
        agent.optimiser_step()


def test_the_linear_schedule_falls_and_never_below_zero():
    seen = []

    class Watch(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            seen.append(self.model.policy.optimizer.param_groups[0]["lr"])

    agent = make_agent(learning_rate_schedule="linear", learning_rate=0.01)
    agent.learn(200, callback=Watch())
    rates = [*seen[1:], agent.policy.optimizer.param_groups[0]["lr"]]
    assert len(rates) >= 3
    assert rates[0] == pytest.approx(0.01)  # the first update is at the full rate
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert rates[-1] > 0
    assert agent.num_timesteps > 200  # although the last rollout ran over


@pytest.mark.parametrize("samples", [1, 3])
def test_bf16_compares_like_with_like(samples):
    agent = make_agent(precision="bf16", kl_coef_per_sequence=0.1, samples_per_prompt=samples)
    rollout = collected(agent)
    batch = agent.prepare(rollout)
    scored = batch.trajectories
    assert scored.log_probs_BT.dtype == scored.values_BT.dtype == scored.rewards_BT.dtype == torch.float32
    assert batch.advantages_BT.dtype == torch.float32
    assert (scored.log_probs_BT - rollout.log_probs_BT).abs().max() < 0.2
    other = rollout.replace(log_probs_BT=rollout.log_probs_BT - 0.1, values_BT=rollout.values_BT + 1)
    assert torch.equal(agent.prepare(other).trajectories.log_probs_BT, scored.log_probs_BT)  # computed anew
    assert torch.equal(agent.prepare(other).returns_BT, batch.returns_BT)
    _, stats = gradients_of(agent, rollout)
    assert stats["policy/ratio"] == pytest.approx(1, abs=1e-6)
    assert stats["policy/approxkl"] == pytest.approx(0, abs=1e-6)
    before = weights(agent.policy)
    values = logged(agent)
    assert all(np.isfinite(value) for value in values.values())
    assert largest_gap(weights(agent.policy), before) > 0
    assert {parameter.dtype for parameter in agent.policy.parameters()} == {torch.float32}


# --- the SB3 citizen --------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights():
    first, again, other = (make_agent(seed=seed).learn(60) for seed in (1, 1, 2))
    assert largest_gap(weights(first.policy), weights(again.policy)) == 0
    assert largest_gap(weights(first.policy), weights(other.policy)) > 0


CITIZEN = {"kl_coef_per_sequence": 0.1, "learning_rate": 3e-3}


def test_a_loaded_agent_goes_on_as_if_never_stopped(tmp_path):
    agent = make_agent(**CITIZEN).learn(1)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=make_env(), device="cpu")
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) == 0
    assert largest_gap(weights(loaded.reference), weights(agent.reference)) == 0
    assert largest_gap(weights(loaded.reference), weights(loaded.policy)) > 0  # it has moved on, the reference not
    assert not any(parameter.requires_grad for parameter in loaded.reference.parameters())
    for one in (agent, loaded):
        one.learn(1, reset_num_timesteps=False)
    assert loaded.num_timesteps == agent.num_timesteps
    assert loaded._n_updates == agent._n_updates
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) == 0


def test_one_run_is_two_halves():
    whole, halves = make_agent(**CITIZEN), make_agent(**CITIZEN)
    halves.learn(1)
    halves.learn(1, reset_num_timesteps=False)
    whole.learn(halves.num_timesteps)
    assert whole._iteration == 2
    assert largest_gap(weights(whole.policy), weights(halves.policy)) == 0


def test_a_forgotten_optimiser_is_seen(tmp_path):
    """Must fail: the same weights with fresh Adam moments take another step."""
    agent = make_agent(**CITIZEN).learn(1)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=make_env(), device="cpu")
    loaded.policy.optimizer.state.clear()
    for one in (agent, loaded):
        one.learn(1, reset_num_timesteps=False)
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) > 1e-4


def test_an_agent_loaded_without_an_environment_writes(tmp_path):
    agent = make_agent(**CITIZEN).learn(1)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip")
    texts = loaded.generate(PROMPTS, greedy=True)
    assert texts == agent.generate(PROMPTS, greedy=True)
    assert all(len(text.split()) <= 6 for text in texts)  # the cap it learned with
    assert loaded.generate(PROMPTS, seed=5) == agent.generate(PROMPTS, seed=5)
    observation, _ = make_env().reset(seed=0)
    expected, _ = agent.predict(observation, deterministic=True)
    assert loaded.predict(observation, deterministic=True)[0].tolist() == expected.tolist()
    loaded.predict(observation)
    with pytest.raises(RuntimeError, match="no environment to learn in"):
        loaded.learn(1)
    loaded.save(tmp_path / "again.zip")  # also after it has drawn tokens
    assert PPO.load(tmp_path / "again.zip").generate(PROMPTS, greedy=True) == texts


def test_generating_does_not_change_training():
    expected, disturbed = make_agent(), make_agent()
    for agent in (expected, disturbed):
        agent.learn(1)
        if agent is disturbed:
            agent.generate(["a"])
        agent.learn(1, reset_num_timesteps=False)
    assert largest_gap(weights(expected.policy), weights(disturbed.policy)) == 0


def test_generate_takes_texts(tmp_path):
    agent = make_agent()
    assert agent.generate([]) == []
    assert len(agent.generate(["a", "a", "b c d e"])) == 3
    assert all(len(text.split()) <= 2 for text in agent.generate(["a"] * 5, max_new_tokens=2))
    with pytest.raises(TypeError, match="a list of texts, not one text"):
        agent.generate("a b")


def test_a_zip_holds_every_weight_once(tmp_path):
    """Policy, reference and two Adam moments, however the model came in."""
    model = GPT2LMHeadModel(gpt2_config(layers=8))
    agent = PPO(model, make_env(), seed=0, device="cpu", episodes_per_rollout=4, kl_coef_per_sequence=0.1).learn(1)
    agent.save(tmp_path / "agent.zip")
    size = sum(value.numel() * value.element_size() for value in agent.policy.parameters())
    assert size > 300_000
    assert (tmp_path / "agent.zip").stat().st_size < 4 * size + 200_000
    assert PPO.load(tmp_path / "agent.zip").generate(["a"], greedy=True) == agent.generate(["a"], greedy=True)


def test_set_env_exchanges_the_environment():
    agent = make_agent(make_env(4))
    agent.set_env(make_env(7))
    assert agent.n_envs == agent.collector.env.num_envs == 7
    agent.learn(1)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        agent.set_env(make_env(max_new_tokens=9))


def single_env():
    task = TextTask.from_pairs({"train": [(prompt, "a b") for prompt in PROMPTS]}, name="letters")
    return TextGenEnv(task=task, reward=letters, tokenizer=word_tokenizer("a b c d e f"), max_new_tokens=6)


def test_many_things_are_an_environment():
    gym.register("test_ppo/Letters-v0", entry_point=single_env)
    try:
        mdp = make_mdp()
        envs = [single_env(), gym.make("test_ppo/Letters-v0"), make_env(mdp=mdp), TextVecEnv(make_env(mdp=mdp))]
        expected = weights(make_agent(envs[0]).learn(1).policy)
        for env in envs[1:]:
            assert largest_gap(weights(make_agent(env).learn(1).policy), expected) == 0
    finally:
        del gym.registry["test_ppo/Letters-v0"]
    with pytest.raises(TypeError, match="must be a registered id, a Gymnasium environment"):
        make_agent(object())


def test_the_vec_env_is_what_sb3_makes_of_single_ones():
    ours = TextVecEnv(make_env(3, mdp=single_env().mdp))
    theirs = DummyVecEnv([lambda: Monitor(single_env())] * 3)
    for env in (ours, theirs):
        env.seed(5)
    assert_same_observations(ours.reset(), theirs.reset())
    generator, ended = np.random.default_rng(0), 0
    for _ in range(40):
        actions = generator.integers(8, size=3)
        observations, rewards, dones, infos = ours.step(actions)
        expected = theirs.step(actions)
        assert_same_observations(observations, expected[0])
        np.testing.assert_array_equal(rewards, expected[1])
        np.testing.assert_array_equal(dones, expected[2])
        for info, other in zip(infos, expected[3], strict=True):
            if "episode" in other:
                ended += 1
                assert_same_observations(info["terminal_observation"], other["terminal_observation"])
                assert info["episode"]["l"] == other["episode"]["l"]
                assert info["episode"]["r"] == pytest.approx(other["episode"]["r"], abs=1e-5)
                assert info["TimeLimit.truncated"] is other["TimeLimit.truncated"] is False
                assert info["text"] == other["text"]
            else:
                assert info == {}
    assert ended > 10


def assert_same_observations(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


class Counter(BaseCallback):
    """Counts what SB3's callbacks are told."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after = stop_after
        self.calls = self.dones = self.rollouts = 0

    def _on_step(self):
        self.calls += 1
        self.dones += int(np.sum(self.locals["dones"]))
        return self.calls != self.stop_after

    def _on_rollout_end(self):
        self.rollouts += 1


def test_callbacks_are_told_of_every_step_and_episode():
    counter = Counter()
    agent = make_agent().learn(100, callback=counter)
    assert counter.calls == counter.n_calls
    assert counter.num_timesteps == agent.num_timesteps >= 100
    assert counter.dones == agent._episode_num == 12 * counter.rollouts


def test_a_callback_can_stop_in_the_middle_of_a_rollout():
    agent = make_agent()
    before = weights(agent.policy)
    agent.learn(10_000, callback=Counter(stop_after=3))
    assert 0 < agent.num_timesteps <= 12
    assert agent._n_updates == 0
    assert largest_gap(weights(agent.policy), before) == 0
    agent.learn(1)  # and it can go on


@pytest.mark.filterwarnings("ignore:.*callback.*:UserWarning")
def test_callbacks_of_sb3(tmp_path):
    agent = make_agent()
    agent.learn(10_000, callback=StopTrainingOnMaxEpisodes(max_episodes=6))  # in each of the 4 rows
    assert agent._episode_num == 12  # the 24th ends the second rollout, and the run before its update
    assert agent._iteration == 1
    agent.learn(60, callback=CheckpointCallback(save_freq=5, save_path=str(tmp_path), name_prefix="run"))
    saved = sorted(tmp_path.glob("run_*_steps.zip"))
    assert len(saved) >= 2
    PPO.load(saved[0], env=make_env()).learn(1)


def test_eval_callback_of_sb3(tmp_path):
    agent = make_agent()
    above = StopTrainingOnRewardThreshold(reward_threshold=-100.0)
    callback = EvalCallback(
        TextVecEnv(make_env(3)),
        callback_on_new_best=above,
        n_eval_episodes=5,
        eval_freq=4,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    agent.learn(10_000, callback=callback)
    assert callback.n_calls == 4  # the first evaluation passed the threshold and stopped the run
    assert np.load(tmp_path / "evaluations.npz")["results"].shape == (1, 5)
    assert (tmp_path / "best_model.zip").exists()
    agent = make_agent()
    with pytest.warns(UserWarning, match="not of the same type"):  # SB3 says so of every other kind of environment
        agent.learn(1, callback=EvalCallback(single_env(), n_eval_episodes=2, eval_freq=4, verbose=0, warn=False))
    assert agent.num_timesteps > 0


def documented_metrics():
    lines = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8").splitlines()
    return {name for line in lines if line.startswith("| `") for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


def test_metrics_go_to_csv_and_tensorboard_and_are_documented(tmp_path):
    agent = make_agent(kl_coef_per_sequence=0.1, tensorboard_log=str(tmp_path / "tb"))
    agent.learn(1)
    agent.logger.close()
    assert list((tmp_path / "tb" / "PPO_1").glob("events.out.tfevents.*"))
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(100)
    agent.logger.close()
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 2
    assert int(rows[-1]["num_tokens"]) == agent.num_timesteps
    documented = {name.replace("<name>", "letters") for name in documented_metrics()}
    assert set(rows[0]) - documented == set()
    assert {"reward", "rewards/letters/mean", "kl/per_sequence", "entropy", "policy/ratio"} <= set(rows[0])
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())


def test_logged_rollout_figures_are_the_rollouts():
    agent = make_agent()
    seen = {}

    class Keep(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            seen["rollout"] = self.locals["trajectories"]

    agent.set_logger(configure(None, []))
    agent.learn(1, callback=Keep(), log_interval=10**9)
    values, rollout = agent.logger.name_to_value, seen["rollout"]
    totals = [letters([info["text"]], None)[0] for info in rollout.infos]
    assert values["reward"] == pytest.approx(np.mean(totals), abs=1e-6)
    assert values["rewards/letters/mean"] == pytest.approx(np.mean(totals))
    assert values["reward_std"] == pytest.approx(np.std(totals), abs=1e-6)
    assert values["completions/mean_length"] == pytest.approx(rollout.num_tokens / 12)
    cut = np.mean([info["stop_reason"] == "length" for info in rollout.infos])
    assert values["completions/clipped_ratio"] == pytest.approx(cut)
    assert 0 < values["entropy"] < np.log(8)
    assert [episode["r"] for episode in agent.ep_info_buffer] == pytest.approx(totals, abs=1e-6)


def test_the_progress_bar_counts_tokens(capfd):
    agent = make_agent()
    agent.learn(50, progress_bar=True)
    assert "tok" in capfd.readouterr().err


def test_a_model_too_small_for_the_environment_is_refused():
    with pytest.raises(ValueError, match="knows 7 tokens, the environment has 8 actions"):
        PPO(gpt2_config(7), make_env())


def test_too_few_positions_stop_the_run_with_a_reason():
    with pytest.raises(ValueError, match="the model has 8 positions"):
        PPO(gpt2_config(positions=8), make_env(), device="cpu").learn(1)


def test_the_optimiser_is_as_configured():
    agent = make_agent(learning_rate=None, adam_eps=1e-3)
    assert agent.learning_rate == 0.04 / 32  # by the model's width
    agent.learn(1)
    group = agent.policy.optimizer.param_groups[0]
    assert (group["lr"], group["eps"]) == (0.04 / 32, 1e-3)
    assert sum(parameter.numel() for parameter in group["params"]) == sum(p.numel() for p in agent.policy.parameters())


# --- a reward that adapts ---------------------------------------------------------------------------------


class Centred(Reward):
    """Pays the difference from the mean so far, as a running normalisation would."""

    def __init__(self, seen=None):
        super().__init__(letters, name="centred")
        self.seen = [0.0, 0] if seen is None else seen
        self.learns = True

    def frozen(self):
        view = Centred(self.seen)
        view.learns = False
        return view

    def state(self):
        return {"seen": list(self.seen)}

    def load_state(self, state):
        self.seen[:] = state["seen"]

    def judge(self, completions):
        if self.learns:
            self.seen[0] += sum(len(completion.text) for completion in completions)
            self.seen[1] += len(completions)
        return super().judge(completions)


def test_what_the_reward_learned_is_saved_with_the_agent(tmp_path):
    agent = make_agent(make_env(reward=Centred()))
    agent.learn(1)
    reward = agent.collector.env.mdp.reward
    assert reward.seen[1] == 12
    evaluate(agent, agent.collector.env.mdp, num_prompts=4)
    assert reward.seen[1] == 12  # evaluation asks, and teaches nothing
    agent.save(tmp_path / "agent.zip")
    env = make_env(reward=Centred())
    PPO.load(tmp_path / "agent.zip", env=env, device="cpu")
    assert env.mdp.reward.seen == reward.seen
    with pytest.warns(UserWarning, match="which is not restored: reward 'letters' learns nothing"):
        PPO.load(tmp_path / "agent.zip", env=make_env(), device="cpu")
