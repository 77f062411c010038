"""Two processes learn as one: the same gradient as one process gets from all of the episodes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from agents import A2C, DQN, GRPO, PPO, REINFORCE
from agents.distributed import ALONE, FailedElsewhere, World, WorldError, asked_size, join
from agents.supervised import SupervisedConfig, supervised_fit
from tests.agents.conftest import gpt2_config, gradients, largest_gap, make_env, make_mdp, weights
from tests.agents.ranks import on_ranks

EPISODES, SAMPLES = 16, 4
SHARED = {
    "episodes_per_rollout": EPISODES,
    "samples_per_prompt": SAMPLES,
    "num_envs": 4,
    "learning_rate": 1e-3,
    "learning_rate_schedule": "constant",
    "max_grad_norm": 1e9,  # gradients as they are
}
PLAIN = {"whiten_advantages": True, "kl_coef_per_sequence": 0.1, "entropy_coef": 0.01, "whiten_rewards": True}
ALGORITHMS = {
    "reinforce": (REINFORCE, {**SHARED, **PLAIN, "baseline": "batch_mean", "kl_target_per_sequence": 0.5}),
    "a2c": (A2C, {**SHARED, **PLAIN}),
    "ppo": (PPO, {**SHARED, **PLAIN, "epochs": 1, "minibatches": 1}),
    "grpo": (GRPO, {**SHARED, **PLAIN, "epochs": 1, "minibatches": 1}),
    "dqn": (DQN, {**SHARED, "batch_episodes": EPISODES, "learning_starts": 1}),
}


def an_agent(name, episodes=EPISODES):
    kind, options = ALGORITHMS[name]
    agent = kind(gpt2_config(), make_env(), seed=5, device="cpu", **{**options, "episodes_per_rollout": episodes})
    generator = torch.Generator().manual_seed(1)  # a reference that differs, so that there is a KL
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return agent


def halves(rollout):
    """A rollout as two ranks would have it: few tokens on one, many on the other; a prompt's episodes together."""
    lengths = torch.zeros(int(rollout.prompt_groups_B.max()) + 1, dtype=torch.long)
    order = lengths.index_add(0, rollout.prompt_groups_B, rollout.lengths_B).argsort()
    return [torch.isin(rollout.prompt_groups_B, part).nonzero().squeeze(-1) for part in order.tensor_split(2)]


class Metrics(dict):
    """A logger that keeps the last figures."""

    def record(self, name, value, exclude=None):
        self[name] = float(value)


def update(agent, rollout):
    """One update, and the gradient that it stepped along."""
    kept = {}
    agent.policy.optimizer.register_step_pre_hook(lambda *_: kept.update(gradients(agent.policy)))
    agent._logger = Metrics()
    if isinstance(agent, DQN):  # which episodes are replayed is a matter of chance
        agent.log_updates([agent.update(rollout)])
    else:
        agent.train(rollout)
    return {
        "gradients": kept,
        "weights": weights(agent.policy),
        "metrics": dict(agent.logger),
        "kl_coef": 0.0 if isinstance(agent, DQN) else agent.kl_controller.coef,
    }


class OwnMeans(World):
    """Must fail: every rank divides by its own tokens, and the gradients are averaged."""

    def __init__(self, world):
        self.inner, self.rank, self.size = world, world.rank, world.size

    def sum(self, value):
        return value * self.size if isinstance(value, int) else self.inner.sum(value)

    def __getattribute__(self, name):
        own = ("inner", "rank", "size", "sum", "is_main", "__dict__", "__class__")
        return object.__getattribute__(self, name) if name in own else getattr(self.inner, name)


def update_a_half(folder: Path, broken: bool):
    found = {}
    for name in ALGORITHMS:
        agent = an_agent(name, EPISODES // 2)
        rollout = torch.load(folder / f"{name}.pt", weights_only=False)
        own = rollout.select(halves(rollout)[agent.world.rank])
        if broken:
            agent.world = OwnMeans(agent.world)
        found[name] = update(agent, own)
    return found


def fit_a_share():
    agent = PPO(gpt2_config(), make_env(), seed=5, device="cpu")
    losses = []
    supervised_fit(
        agent.policy, make_mdp(), FIT, seed=1, on_step=lambda *step: losses.append(step[-1]), world=agent.world
    )
    # A key's bias moves no attention: its gradient is rounding, which Adam scales up.
    return losses, {name: value for name, value in weights(agent.policy).items() if "c_attn.bias" not in name}


FIT = SupervisedConfig(epochs=2, batch_size=5, prompt_loss_weight=0.5)


def talk():
    """What the ranks tell each other."""
    world = join("cpu")
    rank = world.rank
    layer = nn.Linear(2, 2)
    world.broadcast(layer)
    world.check_same(layer)
    if rank == 0:
        layer.weight.grad = torch.ones(2, 2)
    world.sum_gradients(layer.parameters())  # nobody came past the bias, rank 1 not past the weight
    summed = (layer.weight.grad.tolist(), layer.bias.grad)
    try:
        world.on_main(lambda: 1 / 0)
    except (FailedElsewhere, ZeroDivisionError) as error:
        failed = type(error).__name__
    if rank == 1:
        with torch.no_grad():
            layer.bias[0] = float(np.nextafter(np.float32(layer.bias[0]), np.float32(9)))
    try:
        world.check_same(layer)
        differs = ""
    except WorldError as error:
        differs = str(error)
    return {
        "world": (rank, world.size, str(world), join() is not ALONE),
        "sum": (world.sum(rank + 1), world.sum(0.5), world.sum(torch.tensor([1.0, rank])).tolist()),
        "sums": world.sums({"a": rank, "b": 2.0}),
        "any": (world.any(rank == 1), world.any(False)),
        "concat": world.concat(torch.arange(rank + 1)).tolist(),
        "gather": (world.gather({"rank": rank}), world.chain([rank] * 2)),
        "mean": world.mean_where_known({"all": rank, "text": "t", **({"main": 3.0} if rank == 0 else {})}),
        "main": world.on_main(lambda: "from rank 0"),
        "gradients": summed,
        "failed": failed,
        "differs": differs,
        "seed": world.seed(7),
    }


def everything(folder: Path):
    return {
        "oracle": update_a_half(folder, broken=False),
        "broken": update_a_half(folder, broken=True),
        "fit": fit_a_share(),
        "talk": talk(),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with all of the episodes."""
    folder = tmp_path_factory.mktemp("ranks")
    found = {}
    for name in ALGORITHMS:
        agent = an_agent(name)
        rollout = agent.collector.collect(EPISODES, samples_per_prompt=SAMPLES)
        torch.save(rollout, folder / f"{name}.pt")
        few, many = (rollout.select(rows).num_tokens for rows in halves(rollout))
        assert many > 1.2 * few
        found[name] = update(agent, rollout)
    return folder, found


@pytest.fixture(scope="module")
def ranks(alone):
    return on_ranks(2, everything, alone[0])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_ranks_have_the_gradient_of_one_with_all_episodes(name, alone, ranks):
    expected = alone[1][name]
    size = max(float(value.abs().max()) for value in expected["gradients"].values())
    assert size > 1e-3
    for rank in ranks:
        found = rank["oracle"][name]
        assert largest_gap(found["gradients"], expected["gradients"]) < 1e-6 * max(1, size)
        assert found["kl_coef"] == pytest.approx(expected["kl_coef"], rel=1e-6)
        assert found["metrics"].keys() == expected["metrics"].keys()
        for metric, value in expected["metrics"].items():
            assert found["metrics"][metric] == pytest.approx(value, rel=2e-4, abs=1e-6, nan_ok=True), metric


@pytest.mark.parametrize("name", ALGORITHMS)
def test_must_fail_the_mean_of_two_means_is_another_gradient(name, alone, ranks):
    first, second = (rank["broken"][name] for rank in ranks)
    expected = alone[1][name]["gradients"]
    size = max(float(value.abs().max()) for value in expected.values())
    assert largest_gap(first["gradients"], expected) > 1e-3 * size
    assert largest_gap(first["weights"], second["weights"]) == 0  # and the ranks agree on it


def test_the_warm_start_is_shared_out(ranks):
    losses, expected = fit_a_share()
    for rank in ranks:
        assert rank["fit"][0] == pytest.approx(losses, rel=1e-5)
        assert largest_gap(rank["fit"][1], expected) < 1e-5


def test_what_the_ranks_tell_each_other(ranks):
    first, second = (rank["talk"] for rank in ranks)
    assert first["world"] == (0, 2, "2 processes (gloo)", True)
    assert second["world"] == (1, 2, "2 processes (gloo)", True)
    for found in (first, second):
        assert found["sum"] == (3, 1.0, [2.0, 1.0])
        assert found["sums"] == {"a": 1.0, "b": 4.0}
        assert found["any"] == (True, False)
        assert found["concat"] == [0, 0, 1]
        assert found["gather"] == ([{"rank": 0}, {"rank": 1}], [0, 0, 1, 1])
        assert found["mean"] == {"all": 0.5, "text": "t", **({"main": 3.0} if found is first else {})}
        assert found["main"] == "from rank 0"
        assert found["gradients"] == ([[1.0, 1.0], [1.0, 1.0]], None)
        assert "'bias' differs between rank" in found["differs"]
    assert (first["failed"], second["failed"]) == ("ZeroDivisionError", "FailedElsewhere")
    assert first["seed"] == 7
    assert second["seed"] not in (7, None)


def test_a_world_of_one_answers_with_what_it_was_given():
    value = torch.ones(2)
    assert ALONE.sum(value) is value
    assert ALONE.concat(value) is value
    assert ALONE.gather("x") == ["x"]
    assert ALONE.seed(3) == 3
    assert join("cpu") is ALONE
    assert ALONE.is_main


def test_a_launcher_that_formed_a_world_of_one_in_silence_is_found_out():
    """The variables are those that `accelerate launch --cpu --num_processes 2` and `... 1` were seen to set."""
    one = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"}
    assert asked_size({}) == 1
    assert asked_size(one) == 1
    assert asked_size({"MASTER_ADDR": "10.0.0.1"}) == 1  # a cluster's own
    assert asked_size({"WORLD_SIZE": "8", "MASTER_ADDR": "localhost"}) == 8
    assert asked_size({"OMPI_COMM_WORLD_SIZE": "4"}) == 4
    with pytest.raises(WorldError, match="torchrun --nproc-per-node"):
        asked_size({**one, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"})
