import json

import pytest

from agents import cli
from agents.multitask.run import MultiTaskSettings, parse_tasks, resumed_settings
from agents.run_folder import RunFolder
from agents.settings import RunSettings

QUICK = ["--layers", "1", "--width", "32", "--heads", "2", "--episodes-per-rollout", "8", "--num-envs", "8",
         "--eval-prompts", "4", "--minibatches", "1", "--quiet"]  # fmt: skip


def test_tasks_are_named_by_id_and_weight():
    assert parse_tasks(["Reverse", "textgen_env/Add-v0=0.5"]) == {
        "Reverse": {"env": "textgen_env/Reverse-v0", "weight": 1.0},
        "Add": {"env": "textgen_env/Add-v0", "weight": 0.5},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Revers"], "unknown task 'Revers'; did you mean 'Reverse'"),
        (["Reverse=much"], "the weight 'much' is no number"),
        (["Reverse", "textgen_env/Reverse-v0"], "named twice"),
    ],
)
def test_tasks_that_are_not_there(words, message):
    with pytest.raises(ValueError, match=message):
        parse_tasks(words)


def test_tasks_in_a_file(tmp_path):
    path = tmp_path / "tasks.json"
    tasks = {"news": {"data": "news.jsonl", "reward": "rouge_l", "loss": "likelihood"}}
    path.write_text(json.dumps(tasks), encoding="utf-8")
    assert parse_tasks([str(path)]) == tasks
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="expected"):
        parse_tasks([str(path)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {}}, "name the tasks"),
        ({"tasks": {"a": {"envs": "x"}}}, "task 'a' has the unknown setting 'envs'; did you mean 'env'"),
        ({"reward": "bleu"}, "reward has no effect here, each task has its own"),
        ({"logged": "x.jsonl"}, "loss 'likelihood'"),
    ],
)
def test_settings_that_do_not_fit_together(options, message):
    with pytest.raises(ValueError, match=message):
        MultiTaskSettings(**{"tasks": {"Reverse": {"env": "textgen_env/Reverse-v0"}}, **options})


def test_a_tasks_own_settings():
    settings = MultiTaskSettings(tasks={"a": {"env": "textgen_env/Add-v0", "max_new_tokens": 5}, "b": {}}, model="m")
    assert settings.task_settings("a") == RunSettings(env="textgen_env/Add-v0", max_new_tokens=5, model="m")
    with pytest.raises(ValueError, match="task 'b': say where the prompts come from"):
        settings.task_settings("b")
    assert settings.name == "a+b-ppo"
    with pytest.raises(ValueError, match="textgen train --resume"):
        resumed_settings({"env": "textgen_env/Add-v0"})


def test_a_run_and_its_resume(tmp_path, capsys):
    """All stages on two tasks; every one evaluated, watched and reported under its name; and on for more tokens."""
    out = tmp_path / "run"
    command = ["multitask", "Reverse=1", "Add=0.5", "--output", str(out), "--total-tokens", "60", *QUICK]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "Reward, Reverse, greedy" in shown
    assert "Reward, Add, sampled" in shown
    folder = RunFolder(out)
    results = folder.read_results()
    assert set(results["after"]) == {f"{task}, {kind}" for task in ("Reverse", "Add") for kind in ("sampled", "greedy")}
    columns = {name for row in folder.read_progress() for name in row}
    assert {
        "Reverse/eval/reward_greedy",
        "Add/eval/kl_per_sequence",
        "Add/reward",
        "tasks/cosine/Reverse-Add",
    } <= columns
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "PPO on Reverse, Add" in report
    assert "Text 1, Add, greedy" in report
    tokens = results["tokens"]
    assert cli.main(["multitask", "--resume", str(out), "--total-tokens", str(tokens + 40), "--quiet"]) == 0
    assert folder.read_results()["tokens"] > tokens
    capsys.readouterr()
    assert cli.main(["multitask", "Add", "--resume", str(out)]) == 2
    assert "so Add cannot be given" in capsys.readouterr().err
    assert cli.main(["generate", str(out), "a b c =", "--max-new-tokens", "3"]) == 0


def test_likelihood_beside_reward_and_marks(tmp_path, capsys):
    """PPO-ptx from a file, with a warm start: tasks that ask the same are told apart by their marks."""
    tasks = {
        "Reverse": {"env": "textgen_env/Reverse-v0"},
        "Copy": {"env": "textgen_env/Copy-v0", "weight": 0.1, "loss": "likelihood"},
    }
    path, out = tmp_path / "tasks.json", tmp_path / "run"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    command = ["multitask", str(path), "--output", str(out), "--total-tokens", "40", *QUICK]
    assert cli.main(command) == 2
    assert "'Reverse' and 'Copy' both ask" in capsys.readouterr().err
    assert cli.main([*command, "--mark-tasks", "--warm-start-epochs", "0.02"]) == 0
    folder = RunFolder(out)
    assert any("Copy/loss/policy" in row for row in folder.read_progress())
    assert set(folder.read_results()["warm_start_loss"]) == {"Reverse", "Copy"}
