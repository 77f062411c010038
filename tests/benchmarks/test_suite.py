import dataclasses
import json

import gymnasium as gym
import pytest

from agents import DQNConfig, PPOConfig
from agents.algorithms import ALGORITHMS
from benchmarks import presets, suite


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder of presets whose runs take a second; one names an option that there is not."""
    files = {
        "ppo": {"defaults": {"num_envs": 8, "episodes_per_rollout": 16}, "tasks": {"Reverse": {"total_tokens": 100}}},
        "a2c": {"defaults": {}, "tasks": {"Reverse": {"total_tokens": 100, "gama": 1}}},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(presets, "_FOLDER", tmp_path)
    return tmp_path


# --- presets ----------------------------------------------------------------------------------------------


def test_every_preset_fits_its_algorithm_and_its_task():
    assert {"reinforce", "a2c", "ppo", "dqn"} <= set(presets.names())
    for algorithm in presets.names():
        assert set(presets.tasks(algorithm)) >= {"Reverse", "DelayedBit"}
        for task in presets.tasks(algorithm):
            config, tokens = presets.preset(algorithm, task)
            assert type(config) is ALGORITHMS[algorithm][1]
            assert tokens > 0
            assert f"textgen_env/{task}-v0" in gym.registry


def test_a_task_changes_the_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "_FOLDER", tmp_path)
    content = {
        "defaults": {"q_lambda": 0.5, "num_envs": 8},
        "tasks": {"Reverse": {"q_lambda": 0.0, "total_tokens": 7}},
    }
    (tmp_path / "dqn.json").write_text(json.dumps(content))
    assert presets.preset("dqn", "Reverse") == (DQNConfig(q_lambda=0.0, num_envs=8), 7)


def test_what_there_is_not_is_named(tiny):
    with pytest.raises(ValueError, match="no presets for 'pppo'; did you mean 'ppo'"):
        presets.preset("pppo", "Reverse")
    with pytest.raises(ValueError, match="no preset of ppo for task 'Revers'; did you mean 'Reverse'"):
        presets.preset("ppo", "Revers")
    with pytest.raises(TypeError, match="no option 'gama': did you mean 'gamma'"):
        presets.preset("a2c", "Reverse")


# --- runs -------------------------------------------------------------------------------------------------


def test_a_line_holds_what_repeats_the_run(tiny):
    line = json.loads(json.dumps(suite.run(suite.Job("Reverse", "ppo", 3))))
    assert PPOConfig(**line["preset"]) == presets.preset("ppo", "Reverse")[0]
    assert line["seed"] == 3
    assert line["tokens"] >= line["total_tokens"] == 100
    assert 0 <= line["greedy"] <= 1
    assert line["optimum"] == 1
    assert line["curve"][0]["tokens"] == 0
    assert {"commit", "torch", "torch_threads"} <= set(line["circumstances"])
    again = suite.run(suite.Job("Reverse", "ppo", 3))
    assert [again[name] for name in ("greedy", "sampled", "curve")] == [
        line[name] for name in ("greedy", "sampled", "curve")
    ]


def test_a_run_that_fails_is_a_line_too(tiny, monkeypatch):
    monkeypatch.setattr(suite, "_train", lambda *args: 1 / 0)
    line = suite.run(suite.Job("Reverse", "ppo", 0))
    assert "ZeroDivisionError" in line["error"]
    assert "| Reverse | ppo | 0 of 1, 1 failed |" in suite.report([line])


def test_what_is_there_is_not_made_again(tiny, tmp_path):
    output = tmp_path / "out" / "suite.jsonl"
    jobs = [suite.Job("Reverse", "ppo", 0)]
    made = list(suite.run_all(jobs, output, workers=1, pool=_InProcess))
    assert [line["seed"] for line in made] == [0]
    assert list(suite.run_all(jobs, output, workers=1, pool=_InProcess)) == []
    assert len(suite.read(output)) == 1


class _InProcess:
    """An executor without processes, which would not see this test's presets."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def submit(self, function, *args):
        from concurrent.futures import Future

        future = Future()
        future.set_result(function(*args))
        return future


# --- the table --------------------------------------------------------------------------------------------


def lines(*greedy, algorithm="ppo"):
    return [
        {
            **dataclasses.asdict(suite.Job("Reverse", algorithm, seed)),
            "greedy": score,
            "sampled": score,
            "episodes": 1000,
            "cpu_seconds": 2.0,
            "solved_at_episodes": 100 * (seed + 1) if score >= 0.99 else None,
        }
        for seed, score in enumerate(greedy)
    ]


def test_the_table_counts_the_seeds_that_solved_it():
    table = suite.report(lines(1.0, 0.5, 0.995))
    assert "| Reverse | ppo | 2 of 3 | 0.832 ± 0.714 | 0.832 ± 0.714 | 200 (300) | 1,000 | 2 |" in table


def test_a_failed_seed_is_shown_until_it_is_made_again(tmp_path, capsys):
    failed = {**dataclasses.asdict(suite.Job("Reverse", "ppo", 1)), "error": "Traceback"}
    path = tmp_path / "suite.jsonl"

    def written(*content):
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
        code = suite.main(["report", str(path)])
        return code, capsys.readouterr().out

    code, table = written(*lines(1.0), failed)
    assert code == 1
    assert "1 of 2, 1 failed" in table
    code, table = written(*lines(1.0), failed, lines(1.0, 1.0)[1])
    assert code == 0
    assert "2 of 2" in table


def test_a_misspelled_name_ends_before_hours_of_work(tmp_path, capsys):
    with pytest.raises(SystemExit):
        suite.main(["run", "--algos", "ppoo", "--output", str(tmp_path / "x.jsonl")])
    assert "did you mean 'ppo'" in capsys.readouterr().err
