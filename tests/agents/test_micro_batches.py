"""Memory that runs out in the middle of an update: smaller micro-batches, and the very same gradients."""

import logging

import pytest
import torch
from stable_baselines3.common.logger import configure

from agents import DQN, GRPO, ILQL, PPO, REINFORCE, Supervised
from agents.evaluation import evaluate
from agents.instruct.fit import InstructConfig, fit
from agents.logged import reference_episodes
from agents.micro_batches import MicroBatches
from agents.policy import TextPolicy
from agents.supervised import SupervisedConfig, supervised_fit
from tests.agents.conftest import (
    gpt2_config,
    gradients,
    largest_gap,
    make_agent,
    make_env,
    make_mdp,
    make_policy,
    weights,
)
from tests.agents.pretraining.test_run import learned
from tests.agents.test_dqn import collected as replayed
from tests.agents.test_dqn import make_dqn
from tests.agents.test_ppo import collected


class Shortage(torch.autograd.Function):
    """Passes values through; the backward pass fails, when half of it is done."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory (pretended)")


def short_of_memory(policy, monkeypatch, most_tokens, *, backward=False):
    """Let forwards (or backwards) of more than so many tokens fail, as a GPU's would; returns the sizes tried.

    A policy, or `TextPolicy` for all there will be.
    """
    tried = []
    own = policy.features

    def features(*args, **kwargs):
        tokens = next(one.numel() for one in args if isinstance(one, torch.Tensor))
        tried.append(tokens)
        short = tokens > most_tokens
        if short and not (backward and torch.is_grad_enabled()):
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        hidden, logits = own(*args, **kwargs)
        if short:  # the value head has had its gradients when the model's turn fails
            hidden, logits = Shortage.apply(hidden), Shortage.apply(logits)
        return hidden, logits

    monkeypatch.setattr(policy, "features", features)
    return tried


def update(agent, rollout):
    """The gradients of one minibatch of everything, and its figures."""
    batch = agent.prepare(rollout)
    agent.policy.zero_grad(set_to_none=True)
    stats = agent.accumulate_gradients(batch, torch.arange(len(rollout)))
    return gradients(agent.policy), stats


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", [PPO, REINFORCE, GRPO])
def test_an_update_short_of_memory_is_the_same(kind, backward, monkeypatch, caplog):
    options = {"episodes_per_rollout": 12, "seed": 3, "device": "cpu", "samples_per_prompt": 2, "num_envs": 4}
    agent = kind(gpt2_config(), make_env(), **options)
    agent.set_logger(configure(None, []))
    rollout = agent.collector.collect(12, samples_per_prompt=2)
    expected, expected_stats = update(agent, rollout)
    longest = rollout.input_ids_BS.shape[1]
    tried = short_of_memory(agent.policy, monkeypatch, 2 * longest, backward=backward)
    with caplog.at_level(logging.WARNING):
        seen, stats = update(agent, rollout)
    assert max(tried) > 2 * longest >= tried[-1]
    assert largest_gap(seen, expected) < 1e-6
    assert stats == pytest.approx(expected_stats, abs=1e-5)
    told = [record.getMessage() for record in caplog.records]
    assert told
    assert all("did not fit in the memory of 'cpu': going on with micro_batch_tokens=" in text for text in told)
    assert told[-1].endswith(f"={agent.micro_batches.tokens}")
    caplog.clear()
    update(agent, rollout)
    assert not caplog.records  # the size is kept, and told once


def test_what_ran_out_in_the_middle_counts_once(monkeypatch):
    """The second of several micro-batches fails, in its backward pass; gradients from before stay as well."""
    agent = make_agent(micro_batch_tokens=40)
    rollout = collected(agent)
    expected, _ = update(agent, rollout)
    batch = agent.prepare(rollout)
    standing = {name: torch.full_like(value, 0.25) for name, value in expected.items()}
    for failing in (0, 1, 2):
        agent.micro_batches = MicroBatches(agent.policy, agent.config)
        for name, parameter in agent.policy.named_parameters():
            parameter.grad = standing[name].clone() if name in standing else None
        calls = []

        def loss(rows, part, failing=failing, calls=calls):
            value, figures = agent._loss(batch, rows, part, rollout.num_tokens)
            calls.append(len(part))
            return (Shortage.apply(value) + value if len(calls) == failing + 1 else value), figures

        stats = agent.micro_batches.accumulate(rollout, loss)
        assert calls[failing] > 1  # episodes, which can be parted
        found = gradients(agent.policy)
        assert largest_gap({name: found[name] - 0.25 for name in found}, expected) < 1e-6
        assert stats["policy/ratio"] == pytest.approx(1, abs=1e-5)


def test_going_on_with_what_stands_is_seen(monkeypatch):
    """Must fail: begun again on top of the gradients of the first try, they are counted twice."""
    agent = make_agent(micro_batch_tokens=40)
    rollout = collected(agent)
    expected, _ = update(agent, rollout)
    own = MicroBatches.each
    batch, first = agent.prepare(rollout), []
    monkeypatch.setattr(MicroBatches, "each", lambda self, episodes, work, *, begin: own(self, episodes, work))

    def loss(rows, part):
        value, figures = agent._loss(batch, rows, part, rollout.num_tokens)
        first.append(len(part))
        return (Shortage.apply(value) if len(first) == 2 else value), figures

    agent.policy.zero_grad(set_to_none=True)
    agent.micro_batches.accumulate(rollout, loss)
    assert largest_gap(gradients(agent.policy), expected) > 1e-4


def test_every_algorithm_goes_on(monkeypatch):
    mdp = make_mdp()
    logged = {"device": "cpu", "seed": 0}
    agents = [
        make_agent(),
        make_dqn(learning_starts=1),
        make_dqn(learning_starts=1, kl_coef_per_sequence=0.1, q_heads=1),
        ILQL(gpt2_config(), make_env(mdp=mdp), data=reference_episodes(mdp), minibatches=1, **logged),
        Supervised(gpt2_config(), make_env(mdp=mdp), **logged),
    ]
    for agent in agents:
        agent.config.check_invariants = False  # of a few episodes, whole
        policies = [agent.policy, agent.reference, getattr(agent.policy, "target", None)]
        decoding = agent.collector.collect(4).input_ids_BS.shape[1]
        for policy in policies:
            if policy is not None:
                with_cache = policy.features
                short_of_memory(policy, monkeypatch, 2 * decoding)
                short = policy.features
                monkeypatch.setattr(
                    policy,
                    "features",
                    lambda *args, full=with_cache, short=short, **kwargs: (
                        full if kwargs.get("cache") is not None else short
                    )(*args, **kwargs),
                )
        agent.learn(1)
        assert agent._n_updates > 0
        assert agent.micro_batches.tokens < 16_384
    assert evaluate(agents[0], mdp, num_prompts=6).entropy > 0


@pytest.mark.parametrize("backward", [False, True])
def test_a_warm_start_short_of_memory_is_the_same(backward, monkeypatch, caplog):
    mdp = make_mdp(prompts=["a", "b c", "c d e", "d", "e"])
    config = SupervisedConfig(epochs=3, batch_size=4, learning_rate=1e-2)
    policies = [make_policy(vocab_size=8) for _ in range(2)]
    tried = short_of_memory(policies[1], monkeypatch, 10, backward=backward)
    with caplog.at_level(logging.WARNING):
        losses = [supervised_fit(policy, mdp, config) for policy in policies]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert largest_gap(*map(weights, policies)) < 1e-5
    assert len([tokens for tokens in tried if tokens > 10]) == len(caplog.records) > 0  # told, and not tried again


def test_a_pretraining_short_of_memory_is_the_same(monkeypatch, caplog):
    """Its validations, too; the held-out blocks are more than fit."""
    whole = learned("advantage_weighted", epochs=3)
    tried = short_of_memory(TextPolicy, monkeypatch, 12)
    with caplog.at_level(logging.WARNING):
        parts = learned("advantage_weighted", epochs=3)
    assert max(tried) > 12
    assert "did not fit in the memory of 'cpu': going on with micro_batch_tokens=12" in caplog.text
    assert largest_gap(weights(whole.policy), weights(parts.policy)) < 1e-4
    for row, expected in zip(parts.history, whole.history, strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


def test_an_instruction_tuning_short_of_memory_is_the_same(tmp_path, monkeypatch):
    def fitted(name):
        policy, mdp = make_policy(vocab_size=8), make_mdp(prompts=["a", "b c", "c d e", "d"])
        config = InstructConfig(epochs=2, batch_size=4, learning_rate=1e-2)
        (tmp_path / name).mkdir()
        return fit(policy, mdp, mdp, config, folder=tmp_path / name, fingerprint=""), policy

    whole, policy = fitted("whole")
    tried = short_of_memory(TextPolicy, monkeypatch, 10)
    parts, short = fitted("parts")
    assert max(tried) > 10
    assert largest_gap(weights(policy), weights(short)) < 1e-5
    assert [row["validation_loss"] for row in parts.history] == pytest.approx(
        [row["validation_loss"] for row in whole.history], abs=1e-5
    )


def test_a_single_episode_that_does_not_fit_names_the_mends(monkeypatch):
    agent = make_agent(precision="bf16")
    rollout = collected(agent)
    short_of_memory(agent.policy, monkeypatch, 3)
    message = (
        r"a single sequence of \d+ tokens .* 'cpu': try gradient_checkpointing=True, shorter sequences \(max_new_tokens"
    )
    with pytest.raises(torch.OutOfMemoryError, match=message):
        agent.rescore(agent.policy, rollout)
    agent.policy.precision, agent.policy.gradient_checkpointing = "float32", True
    with pytest.raises(torch.OutOfMemoryError, match=r"try precision='bf16', shorter sequences \(.*\) or a LoRA"):
        agent.rescore(agent.policy, rollout)


def test_with_weights_in_shards_nobody_begins_again_alone(monkeypatch):
    agent = make_agent()
    rollout = collected(agent)
    short_of_memory(agent.policy, monkeypatch, 3)
    monkeypatch.setattr("agents.micro_batches.is_sharded", lambda policy: policy is agent.policy)
    half = rollout.input_ids_BS.numel() // 2
    with pytest.raises(torch.OutOfMemoryError, match=f"no rank can begin again alone: set micro_batch_tokens={half}"):
        agent.rescore(agent.policy, rollout)


def test_other_errors_are_not_taken_for_a_shortage(monkeypatch):
    agent = make_agent()
    rollout = collected(agent)

    def fail(*_args, **_kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(agent.policy, "features", fail)
    with pytest.raises(RuntimeError, match="something else"):
        agent.rescore(agent.policy, rollout)


def test_a_loaded_agent_asks_its_own_memory(tmp_path):
    agent = make_agent()
    agent.micro_batches._limit = 30
    agent.save(tmp_path / "run.zip")
    assert PPO.load(tmp_path / "run.zip", env=make_env()).micro_batches.tokens == 16_384


def test_the_learners_of_a_replay_take_the_same_step(monkeypatch):
    plain, short = make_dqn(), make_dqn()
    batch = replayed(plain)
    longest = batch.input_ids_BS.shape[1]
    short_of_memory(short.policy, monkeypatch, 2 * longest)
    assert isinstance(short, DQN)
    assert plain.update(batch) == pytest.approx(short.update(batch), rel=1e-4, abs=1e-6)
    assert largest_gap(dict(plain.policy.state_dict()), dict(short.policy.state_dict())) < 1e-5
