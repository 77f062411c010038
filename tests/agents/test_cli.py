import dataclasses
import io
import json
import re
import shlex
import warnings
from typing import Any, Literal

import pytest
from transformers import AutoModelForCausalLM

import agents.cli
from agents import PPO, PPOConfig
from agents.algorithms import ALGORITHMS
from agents.cli import main
from agents.config import option
from agents.options import OptionParser, add_options
from agents.settings import RunSettings

TINY = shlex.split(
    """--prompt-field question --reference-field answer --max-new-tokens 6 --layers 1 --width 32 --heads 2
    --vocab-size 300 --total-tokens 120 --eval-prompts 2 --episodes-per-rollout 8 --num-envs 8 --epochs 1
    --device cpu --warm-start-epochs 0.5 --quiet"""
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pets.jsonl"
    rows = [
        {"question": f"{name} has {count} {pet}s.", "answer": f"{name}: {count} {pet}s"}
        for name in ("Ann", "Bob", "Cid", "Dee")
        for pet in ("cat", "dog", "owl")
        for count in range(2, 6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run_folder(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pets"
    assert main(["train", "--data", str(data), "--reward", "rouge_l", *TINY, "--output", str(folder)]) == 0
    return folder


def test_train_leaves_everything(run_folder):
    assert (run_folder / "report.html").is_file()
    AutoModelForCausalLM.from_pretrained(run_folder / "model")
    assert PPO.load(run_folder / "agent.zip", device="cpu").num_timesteps >= 120
    config = json.loads((run_folder / "config.json").read_text())
    assert config["algorithm"]["episodes_per_rollout"] == 8
    assert config["settings"]["warm_start_epochs"] == 0.5


def test_resume_goes_on_and_refuses_what_it_cannot_change(run_folder, capsys):
    assert main(["train", "--resume", str(run_folder), "--quiet"]) == 2
    assert "ask for more with --total-tokens" in capsys.readouterr().err
    assert main(["train", "--resume", str(run_folder), "--clip-range", "0.1"]) == 2
    assert "--clip-range cannot be given" in capsys.readouterr().err
    assert main(["train", "--resume", str(run_folder), "--total-tokens", "200", "--quiet"]) == 0
    assert PPO.load(run_folder / "agent.zip", device="cpu").num_timesteps >= 200
    assert main(["train", "--resume", str(run_folder.parent / "pet"), "--quiet"]) == 2
    assert f"did you mean '{run_folder}'" in capsys.readouterr().err


def test_evaluate_a_run_and_its_model(run_folder, data, tmp_path, capsys):
    report = tmp_path / "figures.json"
    assert main(["evaluate", str(run_folder), "--prompts", "3", "--output", str(report)]) == 0
    table = capsys.readouterr().out
    assert re.search(r"Reward, sampled +\d\.\d{3} \(", table)
    assert "KL from the reference" in table
    assert len(json.loads(report.read_text())["greedy"]["samples"]) == 3

    own_data = ["--data", str(data), "--prompt-field", "question", "--reference-field", "answer"]
    arguments = ["--reward", "rouge_1", "--max-new-tokens", "6", "--split", "train", "--prompts", "2"]
    assert main(["evaluate", str(run_folder / "model"), *own_data, *arguments]) == 0
    table = capsys.readouterr().out
    assert "2 prompts of the train split" in table
    assert "KL" not in table
    assert main(["evaluate", str(run_folder / "model")]) == 2
    assert "--env or --data" in capsys.readouterr().err
    assert main(["evaluate", str(run_folder), "--split", "tset"]) == 2
    assert "did you mean 'test'" in capsys.readouterr().err


def test_evaluate_lets_the_reward_choose(run_folder, capsys):
    assert main(["evaluate", str(run_folder), "--prompts", "3", "--best-of", "4"]) == 0
    table = capsys.readouterr().out
    scores = {way: float(score) for way, score in re.findall(r"^Reward, (.+?)  +(\d\.\d{3})", table, re.MULTILINE)}
    assert scores.keys() == {"sampled", "greedy", "best of 4"}
    assert scores["best of 4"] >= scores["sampled"]


@pytest.mark.parametrize(
    ("algorithm", "option"),
    [
        *[(name, []) for name in ALGORITHMS],
        ("supervised", ["--logged"]),
        ("ilql", ["--logged"]),
        ("dqn", ["--logged"]),
    ],
)
def test_every_algorithm_trains_by_name_and_goes_on(algorithm, option, data, tmp_path):
    logged = tmp_path / "logged.jsonl"
    questions = [json.loads(line)["question"] for line in data.read_text().splitlines()]
    records = [{"prompt": question, "completion": "owls", "reward": 0.5} for question in questions]
    logged.write_text("".join(json.dumps(record) + "\n" for record in records))
    kind, config_class = ALGORITHMS[algorithm]
    words = ["train", "--data", str(data), "--reward", "rouge_l", *TINY, "--episodes-per-rollout", "16"]
    if not any(field.name == "epochs" for field in dataclasses.fields(config_class)):
        at = words.index("--epochs")
        del words[at : at + 2]
    words += [
        "--algo",
        algorithm,
        "--output",
        str(tmp_path / "run"),
        *(word for o in option for word in (o, str(logged))),
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(records are of prompts outside|references are longer)")
        assert main(words) == 0
        assert main(["train", "--resume", str(tmp_path / "run"), "--total-tokens", "400", "--quiet"]) == 0
    agent = kind.load(tmp_path / "run" / "agent.zip", device="cpu")
    assert agent.num_timesteps >= 400
    if algorithm == "dqn":
        assert (agent.replay.demonstrations is not None) is bool(option)


def test_logged_completions_are_refused_where_nobody_reads_them(data, tmp_path, capsys):
    arguments = ["--data", str(data), "--reward", "rouge_l", *TINY, "--logged", str(data)]
    assert main(["train", *arguments, "--output", str(tmp_path / "run")]) == 2
    assert "'ppo' learns from its own rollouts only: leave --logged out" in capsys.readouterr().err


def test_credit_prints_tokens_and_writes_a_page(run_folder, tmp_path, capsys):
    assert main(["credit", str(run_folder), "--texts", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"{run_folder} (PPO) on pets, 2 prompts of the test split, sampled, seed 0" in printed
    assert len(re.findall(r"^Advantages  \S+\([+-]\d\.\d\d\)", printed, re.MULTILINE)) == 2
    assert f"page: {run_folder / 'credit.html'}" in printed
    page = (run_folder / "credit.html").read_text(encoding="utf-8")
    assert page.count("<h2>Text ") == 2

    other = tmp_path / "other.html"
    asked = ["--split", "train", "--greedy", "--seed", "3", "--output", str(other)]
    assert main(["credit", str(run_folder), *asked]) == 0
    assert "4 prompts of the train split, greedy, seed 3" in capsys.readouterr().out
    assert other.read_text(encoding="utf-8").count("<h2>Text ") == 4

    assert main(["credit", str(run_folder), "--split", "tset"]) == 2
    assert "did you mean 'test'" in capsys.readouterr().err
    assert main(["credit", str(run_folder / "model")]) == 2
    assert "name the folder of a run" in capsys.readouterr().err
    assert main(["credit", str(run_folder), "--texts", "0"]) == 2
    assert "num_texts=0" in capsys.readouterr().err


def test_generate(run_folder, capsys, monkeypatch):
    prompt = "Ann has 2 cats."
    assert main(["generate", str(run_folder), prompt, "--greedy"]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    agent = PPO.load(run_folder / "agent.zip", device="cpu")
    assert [text] == agent.generate([prompt], greedy=True)

    assert main(["generate", str(run_folder / "model"), prompt, "--greedy", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == text

    monkeypatch.setattr("sys.stdin", io.StringIO(f"{prompt}\n\nBob has 3 dogs.\n"))
    assert main(["generate", str(run_folder), "--greedy"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == [prompt, "Bob has 3 dogs."]
    assert lines[0]["completion"] == text

    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["generate", str(run_folder)]) == 2
    assert "no prompts" in capsys.readouterr().err
    assert main(["generate", str(run_folder), "word " * 200]) == 2
    assert "shorten the prompt" in capsys.readouterr().err


def test_a_reward_from_the_current_folder(data, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_rewards_for_cli.py").write_text(
        "def brevity(completions):\n    return [-len(c) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", str(data), "--reward", "my_rewards_for_cli:brevity", *TINY]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("pets-ppo-")
    assert f"report: {folder.relative_to(tmp_path) / 'report.html'}" in capsys.readouterr().out


def test_ctrl_c_exits_with_130(data, tmp_path, monkeypatch, capsys):
    def interrupted(self, trajectories):
        raise KeyboardInterrupt

    monkeypatch.setattr(PPO, "train", interrupted)
    arguments = ["train", "--data", str(data), "--reward", "rouge_l", *TINY, "--output", str(tmp_path / "run")]
    assert main(arguments) == 130
    assert f"textgen train --resume {tmp_path / 'run'}" in capsys.readouterr().out


def test_list(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for word in ("textgen_env/NewsSummary-v0", "rouge_l", "ppo"):
        assert word in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("tran", "did you mean 'train'"),
        ("train", "either env"),
        ("train --evn x", "did you mean '--env'"),
        ("train --env textgen_env/NewsSummery-v0", "did you mean 'textgen_env/NewsSummary-v0'"),
        ("train --env textgen_env/NewsSummary-v0 --reward rouge_k", "did you mean 'rouge_"),
        ("train --env textgen_env/NewsSummary-v0 --algo pppo", "did you mean 'ppo'"),
        ("train --env textgen_env/NewsSummary-v0 --clip-rang 0.1", "did you mean '--clip-range'"),
        ("train --env textgen_env/NewsSummary-v0 --clip-range -1", "clip_range must be above 0"),
        ("train --env textgen_env/NewsSummary-v0 --epochs many", "'many' is no"),
        ("train --env textgen_env/NewsSummary-v0 --precision float33", "did you mean 'float32'"),
        ("train --env textgen_env/NewsSummary-v0 --total-tokens 1.5", "no whole number"),
        ("train --env textgen_env/NewsSummary-v0 --template x", "template has no effect"),
        ("train --env textgen_env/NewsSummary-v0 more", "unexpected argument 'more'"),
        ("train --data nowhere.jsonl --reward rouge_l", "nowhere.jsonl"),
        ("evaluate ./nowhere", "no run folder"),
        ("credit ./nowhere", "no run folder"),
        ("generate ./nowhere hello", "no run folder"),
    ],
)
def test_bad_input_says_how_to_mend_it(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "evaluate", "credit", "generate", "list"])
def test_help_mentions_every_option(command, capsys):
    parser = agents.cli._parser([command])._subparsers._group_actions[0].choices[command]
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    for action in parser._actions:
        assert all(name in page for name in action.option_strings)
        assert action.help


def test_help_of_train_holds_the_options_of_both_dataclasses(capsys):
    assert main(["train", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for field in (*dataclasses.fields(RunSettings), *dataclasses.fields(PPOConfig)):
        assert "--" + field.name.replace("_", "-") in words
    assert "passes over a rollout (default: 4)" in words
    assert main([]) == 2


@dataclasses.dataclass
class Options:
    count: int = option(3, "how many, 5 % more")
    rate: float | None = option(None, "or none")
    flag: bool = option(True, "yes or no")
    kind: Literal["a", "b"] = option("a", "which")
    shares: tuple[float, float] = option((0.5, 0.5), "two of them")
    thing: Any = option(None, "a name")


def read(*arguments: str) -> dict[str, Any]:
    parser = OptionParser(prog="test")
    add_options(parser, "options", Options)
    return vars(parser.parse_args(list(arguments)))


def test_options_are_read_by_type_and_absent_unless_given():
    assert read() == {}
    assert read("--count", "200_000") == {"count": 200_000}
    assert read("--count", "2e5") == {"count": 200_000}
    assert read("--rate", "none") == {"rate": None}
    assert read("--rate", "1e-4") == {"rate": 1e-4}
    assert read("--no-flag") == {"flag": False}
    assert read("--kind", "b") == {"kind": "b"}
    assert read("--shares", "0.9", "0.1") == {"shares": [0.9, 0.1]}
    assert read("--thing", "name") == {"thing": "name"}


def test_a_type_that_no_command_line_gives_is_refused():
    @dataclasses.dataclass
    class Odd:
        table: dict[str, int] = option(None, "no")

    with pytest.raises(TypeError, match="table: cannot read"):
        add_options(OptionParser(prog="test"), "odd", Odd)
