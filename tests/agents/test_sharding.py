"""A policy in two shards learns what a whole one learns, acts as it does, and is saved whole."""

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents import DQN, PPO, REINFORCE
from agents.compilation import Compilation
from agents.distributed import WorldError
from agents.evaluation import evaluate
from agents.sharding import clip_gradients, gathered, is_sharded, save_pretrained
from tests.agents.conftest import gpt2_config, largest_gap, make_env, make_mdp, weights
from tests.agents.ranks import on_ranks

OPTIONS = {
    "seed": 5,
    "device": "cpu",
    "episodes_per_rollout": 8,
    "num_envs": 4,
    "epochs": 1,
    "minibatches": 2,
    "learning_rate": 1e-3,
    "kl_coef_per_sequence": 0.1,
}


def full(agent):
    return {name: value.clone() for name, value in gathered(agent.policy.state_dict()).items()}


def learn_sharded_and_whole(folder: Path):
    found = {}
    agents = {}
    for kind, shard_weights in (("whole", False), ("sharded", True)):
        agent = agents[kind] = PPO(
            gpt2_config(), make_env(), shard_weights=shard_weights, micro_batch_tokens=24, **OPTIONS
        )
        world = agent.world
        start = full(agent)
        # Ranks of different numbers of steps and of micro-batches: who waited for the other would wait for ever.
        with agent.whole():
            rollout = agent.collector.collect(8 if world.is_main else 4)
            greedy = evaluate(agent, make_mdp(), greedy=True).mean if world.is_main else None
        agent._logger = type("Silent", (), {"record": lambda *_: None})()
        batch = agent.prepare(rollout)
        idle = agent.micro_batches._idle_passes(rollout)
        agent.accumulate_gradients(batch, torch.arange(len(rollout)))
        world.sum_gradients(agent.policy.parameters())
        gradient = gathered({name: p.grad for name, p in agent.policy.named_parameters()})
        norm = float(clip_gradients(agent.policy.parameters(), 1e9))
        agent.policy.optimizer.zero_grad()
        del agent._logger

        agent.learn(1)  # a rollout
        after = full(agent)
        agent.save(folder / f"{kind}.zip")
        loaded = PPO.load(folder / f"{kind}.zip", env=make_env(), device="cpu")
        for one in (agent, loaded):
            one.learn(one.num_timesteps + 1, reset_num_timesteps=False)
        save_pretrained(loaded.policy, folder / kind, world)
        found[kind] = {
            "is_sharded": (is_sharded(agent.policy), is_sharded(loaded.policy), is_sharded(loaded.reference)),
            "log_probs": rollout.log_probs_BT,
            "greedy": greedy,
            "idle": idle,
            "gradient": gradient,
            "norm": norm,
            "start": start,
            "after": after,
            "later": full(agent),
            "loaded": full(loaded),
            "share": sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in agent.policy.parameters()),
        }
    try:
        DQN(gpt2_config(), make_env(), shard_weights=True, device="cpu")
    except WorldError as error:
        found["dqn"] = str(error)
    return found


HARDWARE = {
    "plain": {},
    "float32": {"gradient_checkpointing": True, "compile": True},
    "bf16": {"precision": "bf16", "gradient_checkpointing": True, "compile": True},
}


def gradients_with_options(_folder: Path):
    warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)  # what torch says to itself
    found = {}
    for name, options in HARDWARE.items():
        for kind in ("whole", "sharded"):
            agent = PPO(
                gpt2_config(), make_env(), shard_weights=kind == "sharded", micro_batch_tokens=24, **OPTIONS, **options
            )
            if "compile" in options:
                agent.policy._compilation = Compilation("eager")
            with agent.whole():
                rollout = agent.collector.collect(8 if agent.world.is_main else 4)
            agent._logger = type("Silent", (), {"record": lambda *_: None})()
            agent.accumulate_gradients(agent.prepare(rollout), torch.arange(len(rollout)))
            agent.world.sum_gradients(agent.policy.parameters())
            found[name, kind] = gathered({name: p.grad for name, p in agent.policy.named_parameters()})
            if "compile" in options:
                assert agent.policy._compilation.works
    # Ranks of other numbers of steps: the greedy rollout, too, is everybody's own.
    critical = REINFORCE(
        gpt2_config(),
        make_env(),
        shard_weights=True,
        baseline="self_critical",
        **{name: OPTIONS[name] for name in ("seed", "device", "num_envs", "episodes_per_rollout", "learning_rate")},
    )
    found["self_critical"] = critical.learn(1).num_timesteps
    return found


def test_a_greedy_baseline_is_played_whole(hardware):
    assert hardware[0]["self_critical"] == hardware[1]["self_critical"] > 8


def test_shards_go_with_what_saves_time_and_memory(hardware):
    for rank in hardware:
        exact = rank["plain", "whole"]
        size = max(float(value.abs().max()) for value in exact.values())
        assert largest_gap(rank["float32", "whole"], exact) < 1e-5 * size
        assert largest_gap(rank["float32", "sharded"], exact) < 1e-5 * size
        # In bf16 another rollout is drawn: the two are compared with each other.
        assert largest_gap(rank["bf16", "sharded"], rank["bf16", "whole"]) < 5e-2 * size


@pytest.fixture(scope="module")
def hardware(tmp_path_factory):
    return on_ranks(2, gradients_with_options, tmp_path_factory.mktemp("hardware"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def ranks(folder):
    return on_ranks(2, learn_sharded_and_whole, folder)


def test_a_rank_holds_half(ranks):
    for rank in ranks:
        assert rank["sharded"]["is_sharded"] == (True, True, True)
        assert rank["whole"]["is_sharded"] == (False, False, False)
        assert rank["sharded"]["share"] == pytest.approx(rank["whole"]["share"] / 2, rel=0.02)


def test_it_acts_alike(ranks):
    for rank in ranks:
        torch.testing.assert_close(rank["sharded"]["log_probs"], rank["whole"]["log_probs"], atol=1e-5, rtol=1e-5)
    assert ranks[0]["sharded"]["greedy"] == ranks[0]["whole"]["greedy"]


def test_its_gradient_is_that_of_the_whole_policy(ranks):
    assert [rank["sharded"]["idle"] > 0 for rank in ranks] == [False, True]
    for rank in ranks:
        sharded, whole = rank["sharded"], rank["whole"]
        size = max(float(value.abs().max()) for value in whole["gradient"].values())
        assert largest_gap(sharded["gradient"], whole["gradient"]) < 1e-6 * max(1, size)
        assert sharded["norm"] == pytest.approx(whole["norm"], rel=1e-5)


def test_after_updates_and_a_resume_the_weights_are_those_of_the_whole_policy(ranks):
    for rank in ranks:
        sharded, whole = rank["sharded"], rank["whole"]
        assert largest_gap(sharded["after"], whole["after"]) < 1e-5
        assert largest_gap(whole["after"], whole["start"]) > 1e-4
        assert largest_gap(sharded["loaded"], sharded["later"]) < 1e-6
        assert largest_gap(whole["loaded"], whole["later"]) < 1e-6
        assert largest_gap(sharded["later"], whole["later"]) < 1e-4
        assert largest_gap(ranks[0]["sharded"]["later"], sharded["later"]) == 0


def test_what_many_have_saved_one_can_load(ranks, folder):
    agent = PPO.load(folder / "sharded.zip", device="cpu")
    assert not is_sharded(agent.policy)
    assert largest_gap(weights(agent.policy), ranks[0]["sharded"]["after"]) == 0
    model = AutoModelForCausalLM.from_pretrained(folder / "sharded")
    ids = torch.tensor([[2, 3, 4]])
    plain = PPO.load(folder / "sharded.zip", device="cpu").policy
    plain.load_state_dict(ranks[0]["sharded"]["loaded"])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain.model(ids).logits)


def test_what_cannot_be_sharded_says_so(ranks):
    assert "needs whole weights" in ranks[0]["dqn"]
    with pytest.raises(WorldError, match="torchrun"):
        PPO(gpt2_config(), make_env(), shard_weights=True, device="cpu")
