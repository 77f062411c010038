import json

import pytest

from benchmarks import __main__ as command
from benchmarks import presets, runs, trial
from benchmarks.costs import Costs
from benchmarks.lines import read
from benchmarks.trial import Job
from benchmarks.workers import ProcessDied

QUICKLY = ["--tasks", "Reverse", "--algos", "best_of_n", "--seeds", "3"]


@pytest.fixture
def output(tiny_ladder, monkeypatch):
    """Where the runs go, which are made in this process: another one would not see the tiny ladder."""
    monkeypatch.setattr(runs, "side_by_side", lambda function, jobs, workers: ((job, function(job)) for job in jobs))
    monkeypatch.setattr(runs, "RESULTS", tiny_ladder / "none")
    return tiny_ladder / "out" / "runs.jsonl"


def run(*options):
    return command.main(["run", *map(str, options)])


def made(path):
    return [(line["task"], line["contender"], line["seed"], "error" in line) for line in read(path)]


# --- going on where it stopped ----------------------------------------------------------------------------


def test_what_is_there_is_not_made_again(output, capsys):
    assert run(*QUICKLY[:-1], 2, "--output", output) == 0
    said = capsys.readouterr().out
    assert "estimated cost: unknown" in said.splitlines()[1]
    assert "[2/2] Reverse best_of_n seed 1: " in said
    assert run(*QUICKLY, "--output", output) == 0
    said = capsys.readouterr().out
    assert "3 runs, 2 of them" in said
    assert "unknown" not in said  # by now
    assert [seed for _, _, seed, _ in made(output)] == [0, 1, 2]
    before = output.read_bytes()
    assert run(*QUICKLY, "--output", output) == 0
    assert output.read_bytes() == before


def test_after_a_kill_the_whole_lines_stay_and_the_rest_is_made(output, monkeypatch, capsys):
    def killed(job):
        if job.seed == 1:
            raise KeyboardInterrupt
        return trial.run(job)

    monkeypatch.setattr(runs, "run", killed)
    assert run(*QUICKLY, "--output", output) == 130
    assert "goes on" in capsys.readouterr().err
    (first,) = read(output)
    with output.open("a") as file:
        file.write(json.dumps(first)[:300])  # and in the middle of a line
    monkeypatch.setattr(runs, "run", trial.run)
    assert run(*QUICKLY, "--output", output) == 0
    assert made(output) == [("Reverse", "best_of_n", seed, False) for seed in range(3)]
    assert read(output)[0] == first


def test_a_failed_seed_is_written_shown_and_made_again(output, monkeypatch, capsys):
    def failing(job):
        return trial.run(job) if job.seed != 1 else ProcessDied("the process was ended by SIGKILL")

    monkeypatch.setattr(runs, "run", failing)
    assert run(*QUICKLY, "--output", output) == 1
    said = capsys.readouterr()
    assert "Reverse best_of_n seed 1: FAILED\nthe process was ended by SIGKILL" in said.out
    assert "1 runs FAILED" in said.err
    assert made(output) == [("Reverse", "best_of_n", seed, seed == 1) for seed in range(3)]
    monkeypatch.setattr(runs, "run", trial.run)
    assert run(*QUICKLY, "--output", output) == 0
    assert made(output)[3:] == [("Reverse", "best_of_n", 1, False)]


def test_other_options_are_another_run_and_another_budget_another_file(output, capsys):
    asked = ["--tasks", "Reverse", "--algos", "reinforce", "--seeds", 1, "--output", output]
    assert run(*asked) == 0
    path = presets._FOLDER / "reinforce.json"
    content = json.loads(path.read_text())
    content["defaults"]["learning_rate"] = 0.01
    path.write_text(json.dumps(content))
    assert run(*asked) == 0
    assert [line["preset"]["learning_rate"] for line in read(output)] == [0.001, 0.01]
    with pytest.raises(SystemExit):
        run(*asked, "--budget", 0.5)
    assert "choose another --output" in capsys.readouterr().err
    assert len(read(output)) == 2


def test_options_of_ones_own_play_beside_the_built_in_ones(tiny_ladder, output):
    path = tiny_ladder / "mine.json"
    path.write_text(json.dumps({"defaults": {"learning_rate": 0.01}}))
    asked = ["--tasks", "Reverse", "--algos", "reinforce", f"reinforce@{path}", "--seeds", 1, "--output", output]
    assert run(*asked) == 0
    lines = {line["contender"]: line for line in read(output)}
    assert {name: line["preset"]["learning_rate"] for name, line in lines.items()} == {
        "reinforce": 0.001,
        f"reinforce@{path}": 0.01,
    }
    assert run(*asked) == 0
    assert len(read(output)) == 2  # nothing was made again


# --- what is asked for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "Revers"], "did you mean 'Reverse'"),
        (["--algos", "ppoo"], "did you mean 'ppo'"),
        (["--algos", "ilql"], "ilql learns from logged episodes"),
        (["--workers", "4096"], "this machine lends"),
        (["--workers", "0"], "this machine lends"),
        (["--budget", "0"], "--budget above 0"),
        (["--tasks", "recognisable"], "holds none yet"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(output, monkeypatch, capsys, options, message):
    monkeypatch.setattr(runs, "RECOGNISABLE", {})
    with pytest.raises(SystemExit) as exit:
        run(*QUICKLY, *options, "--output", output)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_selections(tiny_ladder, monkeypatch):
    monkeypatch.setattr(runs, "LADDER", {"DelayedBit": None, "Elsewhere": None})
    assert runs.chosen_tasks(["ladder"]) == ["DelayedBit"]
    assert runs.chosen_tasks(["Reverse", "ladder", "Reverse"]) == ["Reverse", "DelayedBit"]
    cells, left_out = runs.chosen_cells(["DelayedBit", "Reverse"], ["ppo", "all"])
    assert cells[0] == ("DelayedBit", "ppo")
    assert len(set(cells)) == len(cells)
    assert {"supervised", "best_of_n", "sb3_ppo", "grpo"} <= {name for _, name in cells}
    assert all("pip install" in reason or reason.startswith("ilql learns") for reason in left_out)


def test_all_leaves_out_who_cannot_take_part(tiny_ladder, monkeypatch):
    (presets._FOLDER / "ilql.json").write_text(json.dumps({"defaults": {}, "tasks": {}}))
    cells, left_out = runs.chosen_cells(["Reverse"], ["all"])
    assert ("Reverse", "ilql") not in cells
    assert any("ilql learns from logged episodes" in reason for reason in left_out)
    with pytest.raises(ValueError, match="ilql learns from logged episodes"):
        runs.chosen_cells(["Reverse"], ["ilql"])
    (presets._FOLDER / "ppo.json").write_text(json.dumps({"defaults": {"gamma": 2}, "tasks": {}}))
    with pytest.raises(ValueError, match="gamma"):  # a mistake is not left out, whoever asked
        runs.chosen_cells(["Reverse"], ["all"])


def test_who_can_take_part_in_some_tasks_plays_those(tiny_ladder):
    tasks = json.loads((tiny_ladder / "tasks.json").read_text())
    tasks["Reverse"]["trainer"] = "somewhere:teacher"
    (tiny_ladder / "tasks.json").write_text(json.dumps(tasks))
    cells, left_out = runs.chosen_cells(["Reverse", "DelayedBit"], ["sb3_ppo"])
    assert cells == [("DelayedBit", "sb3_ppo")]
    assert "sb3_ppo cannot learn Reverse" in left_out[0]


def test_the_quick_ladder_can_be_run():
    tasks = runs.chosen_tasks(["quick"])
    assert len(runs.chosen_cells(tasks, runs.QUICK["algos"])[0]) * runs.QUICK["seeds"] == 18


def test_commands(capsys):
    assert command.main(["rum"]) == 2
    assert "throughput" in capsys.readouterr().err
    assert command.main(["--help"]) == 0


# --- costs ------------------------------------------------------------------------------------------------


def line(task, seconds, budget=1.0, **more):
    return {
        **{"task": task, "contender": "ppo", "budget": budget},
        **{"cpu_seconds": seconds, "process_cpu_seconds": seconds + 10, **more},
    }


def test_costs_are_medians_scaled_by_the_budget_but_for_what_every_run_takes():
    costs = Costs([line("Reverse", 60), line("Reverse", 50), line("Reverse", 10, 0.1), {"error": "Traceback"}])
    assert costs.of(Job("Reverse", "ppo", 7)) == 70
    assert costs.of(Job("Reverse", "ppo", 7, budget=0.5)) == 40
    assert costs.of(Job("Reverse", "dqn", 7)) is None
    jobs = [Job("Reverse", "ppo", 0), Job("Reverse", "ppo", 1), Job("Add", "ppo", 0)]
    assert costs.total(jobs) == 210
    assert costs.total(jobs[2:]) == 70  # what is unknown counts as the mean, also by itself
    assert costs.stated(jobs) == "estimated cost: 2 CPU minutes for 2 of 3 runs; unknown: Add ppo"
    assert costs.stated(jobs[:2]) == "estimated cost: 2 CPU minutes"
