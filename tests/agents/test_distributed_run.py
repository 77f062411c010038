"""A whole run in two processes: one folder, one writer, a stop that all agree on, and the same end after a resume."""

import itertools
import json
import os
import signal
from pathlib import Path

import pytest

from agents.distributed import WorldError
from agents.pipeline import run
from agents.ppo import PPO, PPOConfig
from agents.run_folder import RunFolder
from agents.settings import RunSettings
from tests.agents.conftest import largest_gap, weights
from tests.agents.ranks import on_ranks

CONFIG = PPOConfig(episodes_per_rollout=4, num_envs=4, epochs=1, minibatches=2)


def settings(output, **changes) -> RunSettings:
    defaults = {
        "env": "textgen_env/Reverse-v0",
        "layers": 1,
        "width": 32,
        "heads": 2,
        "warm_start_epochs": 0.05,
        "total_tokens": 200,
        "eval_prompts": 2,
        "eval_every": 100,
        "checkpoint_every": 50,
        "device": "cpu",
        "output": str(output),
    }
    return RunSettings(**{**defaults, **changes})


class StopsRankOne:
    """The fraction of right symbols; asked for the nth time, one rank alone gets a signal."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, completions, **_):
        self.calls += 1
        if self.calls == self.at and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return [float("a" in text) for text in completions]


def whole_cut_and_resumed(folder: Path):
    found = {}

    def note(name, result, stages):
        agent = result.agent
        found[name] = {
            "weights": weights(agent.policy),
            "tokens": agent.num_timesteps,
            "interrupted": result.interrupted,
            "after": {kind: one.mean for kind, one in result.after.items()},
            "sampler": agent.collector.state(),
            "stages": stages,
        }

    for name, reward, resume in (("whole", 10**9, False), ("cut", 3, False), ("cut", 10**9, True)):
        stages = []
        result = run(
            settings(folder / name, reward=StopsRankOne(reward)),
            CONFIG,
            resume=resume,
            on_stage=lambda stage, detail, stages=stages: stages.append((stage, detail)),
        )
        note("resumed" if resume else name, result, stages)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ranks(folder):
    return on_ranks(2, whole_cut_and_resumed, folder)


def test_the_ranks_end_with_one_policy_from_rollouts_of_their_own(ranks):
    first, second = (rank["whole"] for rank in ranks)
    assert largest_gap(first["weights"], second["weights"]) == 0
    assert first["tokens"] == second["tokens"] >= 200
    assert first["after"] == second["after"]
    assert first["sampler"]["prompt_order"] != second["sampler"]["prompt_order"]
    assert (first["sampler"]["generator"] != second["sampler"]["generator"]).any()


def test_rank_0_alone_speaks_and_its_first_line_is_the_world(ranks):
    first, second = (rank["whole"]["stages"] for rank in ranks)
    assert first[0] == ("world", "2 processes (gloo)")
    assert [stage for stage, _ in first][-1] == "report"
    assert second == []


def test_the_tokens_of_all_ranks_are_counted(ranks, folder):
    rows = RunFolder(folder / "whole").read_progress()
    steps = [row["num_tokens"] for row in rows]
    assert steps == sorted(set(steps))
    for before, row in itertools.pairwise(rows):
        # 2 ranks x 4 episodes: their tokens are the mean length's
        assert row["num_tokens"] - before["num_tokens"] == pytest.approx(8 * row["completions/mean_length"])
    assert json.loads((folder / "whole" / "config.json").read_text())["resolved"]["processes"] == 2
    assert not [path for path in (folder / "whole").iterdir() if path.name.endswith(".tmp")]


def test_a_signal_to_one_rank_stops_all(ranks):
    first, second = (rank["cut"] for rank in ranks)
    assert first["interrupted"]
    assert second["interrupted"]
    assert first["tokens"] == second["tokens"] < 200
    assert largest_gap(first["weights"], second["weights"]) == 0


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(ranks, folder):
    for rank in ranks:
        assert largest_gap(rank["resumed"]["weights"], rank["whole"]["weights"]) == 0
        assert rank["resumed"]["after"] == rank["whole"]["after"]
        assert rank["resumed"]["tokens"] == rank["whole"]["tokens"]
    columns = [
        [[row.get(name) for row in RunFolder(folder / run).read_progress()] for name in ("num_tokens", "reward")]
        for run in ("whole", "cut")
    ]
    assert columns[0] == columns[1]


def test_another_world_cannot_resume_but_can_load(ranks, folder):
    with pytest.raises(WorldError, match="started in 2 processes"):
        run(settings(folder / "whole", reward=StopsRankOne(0), total_tokens=400), CONFIG, resume=True)
    agent = PPO.load(folder / "whole" / "agent.zip", device="cpu")
    assert largest_gap(weights(agent.policy), ranks[0]["whole"]["weights"]) == 0
    env = "textgen_env/Reverse-v0"
    with pytest.warns(UserWarning, match="saved by 2 processes"):
        PPO.load(folder / "whole" / "agent.zip", env=env, device="cpu")
