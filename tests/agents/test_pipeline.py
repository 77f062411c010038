import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import PPO, PPOConfig
from agents.document import Heading, Paragraph, Table, Texts, to_html, to_markdown
from agents.models import small_gpt2
from agents.pipeline import run
from agents.run_folder import ProgressFile, RunFolder
from agents.settings import RunSettings, make_mdp
from tests.agents.conftest import weights, word_tokenizer
from textgen_env import TextTask, TextTokenizer

HOSTILE = "<script>alert('x')</script> <img src=http://evil.example/x.png> ```"
CONFIG = PPOConfig(episodes_per_rollout=16, num_envs=8, epochs=1, learning_rate_schedule="constant")


def count_words(completions, **_):
    """Any number of words is fine, the more the better."""
    return [len(text.split()) / 8 for text in completions]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pets.jsonl"
    rows = [
        {"question": f"{name} has {count} {pet}s. {HOSTILE}", "answer": f"{name}: {count} {pet}s"}
        for name in ("Ann", "Bob", "Cid", "Dee")
        for pet in ("cat", "dog", "owl")
        for count in range(2, 6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(data: Path, output: Path, /, **changes) -> RunSettings:
    defaults = {
        "data": str(data),
        "prompt_field": "question",
        "reference_field": "answer",
        "reward": count_words,
        "max_new_tokens": 6,
        "layers": 1,
        "width": 32,
        "heads": 2,
        "vocab_size": 300,
        "warm_start_epochs": 1,
        "total_tokens": 260,
        "eval_prompts": 3,
        "eval_every": 130,
        "device": "cpu",
        "output": str(output),
    }
    return RunSettings(**{**defaults, **changes})


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run from start to end."""
    stages = []
    result = run(
        settings(data, tmp_path_factory.mktemp("runs") / "run"),
        CONFIG,
        on_stage=lambda stage, detail: stages.append(stage),
    )
    assert stages == ["environment", "model", "warm start", "before", "learn", "after", "report"]
    return result


def test_the_folder_is_complete(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert {
        "config.json",
        "results.json",
        "progress.csv",
        "samples.jsonl",
        "curves.png",
        "report.md",
        "report.html",
        "agent.zip",
        "model",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(name.endswith(".tmp") for name in names)
    config = json.loads((finished.folder / "config.json").read_text())
    assert config["algorithm"]["episodes_per_rollout"] == 16
    assert config["settings"]["seed"] == 0
    assert config["resolved"]["warm_start_epochs"] == 1
    assert config["versions"]["torch"]
    results = json.loads((finished.folder / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["tokens"] >= 260


def test_before_and_after_answer_the_same_held_out_prompts(finished):
    for kind in ("sampled", "greedy"):
        assert finished.before[kind].prompt_indices == finished.after[kind].prompt_indices
        assert finished.before[kind].split == "test"
    assert finished.before["sampled"].kl_per_sequence == pytest.approx(0, abs=1e-5)
    assert finished.after["sampled"].kl_per_sequence != 0


def test_progress_holds_the_curves(finished):
    rows = RunFolder(finished.folder).read_progress()
    assert rows[0]["num_tokens"] == 0
    assert "eval/reward_sampled" in rows[0]
    assert "eval/reward_greedy" in rows[0]
    steps = [row["num_tokens"] for row in rows]
    assert steps == sorted(set(steps))
    assert {"reward", "kl/per_sequence", "completions/mean_length", "entropy"} <= set(rows[-1])


def test_the_model_folder_is_a_hugging_face_model(finished):
    model = AutoModelForCausalLM.from_pretrained(finished.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished.folder / "model")
    trained = finished.agent.policy.model
    ids = torch.tensor([tokenizer.encode("Ann has 2 cats.")])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, trained(ids).logits)
    assert tokenizer.get_vocab() == finished.agent.tokenizer.hf.get_vocab()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_agent_loads(finished):
    agent = PPO.load(finished.folder / "agent.zip", device="cpu")
    assert agent.num_timesteps == finished.agent.num_timesteps
    prompt = ["Ann has 2 cats."]
    assert agent.generate(prompt, greedy=True) == finished.agent.generate(prompt, greedy=True)


def test_the_report_asks_nobody_and_escapes_what_it_quotes(finished):
    page = (finished.folder / "report.html").read_text()
    assert "&lt;script&gt;alert(" in page
    assert "<script" not in page
    for tag in re.findall(r"<[^>]*>", page):
        assert "http:" not in tag
        assert "https:" not in tag
    assert 'src="data:image/png;base64,' in page
    assert b"http" not in (finished.folder / "curves.png").read_bytes()
    text = (finished.folder / "report.md").read_text()
    assert "| Reward, sampled |" in text
    assert "````text" in text  # the fence is longer than any in the text
    assert "Before (score" in text
    assert "After (score" in text


def test_documents_escape():
    blocks = [
        Heading("# <b>", 1),
        Paragraph("*a* | snake_case"),
        Table(["", "x|y"], [["<i>", "1"]]),
        Texts([("l", "<u>")]),
    ]
    assert to_markdown(blocks).startswith("# \\# \\<b\\>\n\n\\*a\\* \\| snake_case\n\n|  | x\\|y |\n")
    assert all(tag not in to_html(blocks) for tag in ("<b>", "<i>", "<u>"))


def test_an_occupied_folder_is_left_alone(data, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="--resume"):
        run(settings(data, tmp_path), CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


class InterruptingReward:
    """Sends this process a Ctrl-C when it is asked for the nth time."""

    def __init__(self, at: int) -> None:
        self.calls = 0
        self.at = at

    def __call__(self, completions):
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return count_words(completions)


def test_after_ctrl_c_a_resumed_run_ends_where_an_uninterrupted_one_does(data, tmp_path):
    whole = run(settings(data, tmp_path / "whole", total_tokens=400), CONFIG)
    # Calls: 2 before, 2 at the start of learning, then one a rollout; evaluations of 2 each in between.
    cut = run(settings(data, tmp_path / "cut", total_tokens=400, reward=InterruptingReward(at=6)), CONFIG)
    assert cut.interrupted
    assert 0 < cut.agent.num_timesteps < 400
    assert json.loads((tmp_path / "cut" / "results.json").read_text())["status"] == "interrupted"
    assert "interrupted" in (tmp_path / "cut" / "report.html").read_text()
    assert "textgen train --resume" in (tmp_path / "cut" / "report.md").read_text()
    assert PPO.load(tmp_path / "cut" / "agent.zip", device="cpu").num_timesteps == cut.agent.num_timesteps

    resumed = run(settings(data, tmp_path / "cut", total_tokens=400), CONFIG, resume=True)
    assert not resumed.interrupted
    expected, got = weights(whole.agent.policy), weights(resumed.agent.policy)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert resumed.after == whole.after
    for name in ("num_tokens", "reward", "eval/reward_sampled"):
        columns = [[row.get(name) for row in RunFolder(result.folder).read_progress()] for result in (whole, resumed)]
        assert columns[0] == columns[1]
    assert (tmp_path / "cut" / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()

    with pytest.raises(ValueError, match="ask for more with --total-tokens"):
        run(settings(data, tmp_path / "cut", total_tokens=400), CONFIG, resume=True)
    with pytest.raises(ValueError, match="keeps its algorithm's options"):
        run(settings(data, tmp_path / "cut", total_tokens=900), PPOConfig(), resume=True)


def test_an_interrupt_from_within_leaves_a_loadable_checkpoint(data, tmp_path, monkeypatch):
    def interrupted_update(self, trajectories):
        raise KeyboardInterrupt

    monkeypatch.setattr(PPO, "train", interrupted_update)
    result = run(settings(data, tmp_path / "run"), CONFIG)
    assert result.interrupted
    assert result.before
    assert PPO.load(tmp_path / "run" / "agent.zip", device="cpu").num_timesteps == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_interrupted_in_the_warm_start_it_starts_again(data, tmp_path, monkeypatch):
    import agents.job

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(agents.job, "supervised_fit", interrupted)
        cut = run(settings(data, tmp_path / "run"), CONFIG)
    assert cut.interrupted
    assert not cut.before
    assert not (tmp_path / "run" / "agent.zip").exists()
    assert not run(settings(data, tmp_path / "run"), CONFIG, resume=True).interrupted


def test_a_failing_reward_is_named_and_the_agent_kept(data, tmp_path):
    calls = []

    def fails_later(completions):
        calls.append(1)
        return count_words(completions) if len(calls) < 6 else [float("nan")] * len(completions)

    with pytest.raises(ValueError, match="fails_later"):
        run(settings(data, tmp_path / "run", reward=fails_later), CONFIG)
    assert (tmp_path / "run" / "agent.zip").is_file()


def test_without_held_out_prompts_there_is_nothing_to_report(data, tmp_path):
    with pytest.raises(ValueError, match="split-fractions"):
        run(settings(data, tmp_path / "run", split_fractions=(1.0, 0.0, 0.0)), CONFIG)
    assert not (tmp_path / "run").exists()


def test_one_held_out_split_serves_twice(data, tmp_path):
    said = []
    run(
        settings(data, tmp_path / "run", split_fractions=(0.7, 0.3, 0.0), total_tokens=50, warm_start_epochs=0),
        CONFIG,
        on_stage=lambda stage, detail: said.append(detail),
    )
    assert any("validation split is the only one held out" in line for line in said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "either env"),
        ({"env": "textgen_env/NewsSummary-v0"}, "either env"),
        ({"total_tokens": 0}, "total_tokens must be at least 1"),
        ({"warm_start_epochs": -1}, "warm_start_epochs"),
        ({"model": "some/model"}, "layers has no effect"),
        ({"data": None, "env": "textgen_env/NewsSummary-v0"}, "prompt_field has no effect"),
    ],
)
def test_settings_that_do_not_fit_together(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(data, tmp_path, **changes)


def without_reward():
    return TextTask.from_pairs({"train": [("a", "b")], "validation": [("c", "d")]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "textgen_env/NewsSumary-v0"}, "did you mean 'textgen_env/NewsSummary-v0'"),
        ({"env": "CartPole-v1"}, "unknown text environment"),
        ({"data": "pets.txt:x", "reward": "rouge_l"}, "cannot import module 'pets.txt'"),
        ({"data": __file__, "reward": "rouge_l"}, "neither a .jsonl nor a .csv"),
        ({"data": f"{__name__}:without_reward"}, "needs a reward"),
        ({"env": "textgen_env/NewsSummary-v0", "reward": "rouge_k"}, "did you mean 'rouge_"),
        ({"env": "textgen_env/NewsSummary-v0", "reward": "json:dump_s"}, "no 'dump_s'"),
    ],
)
def test_an_environment_that_is_not_there(changes, message):
    with pytest.raises(ValueError, match=message):
        make_mdp(RunSettings(**{"reward": None, **changes}))


def test_the_fresh_model_fits_the_tokenizer():
    tokenizer = TextTokenizer(word_tokenizer("a b c"))
    config = small_gpt2(tokenizer, positions=9, layers=1, width=32, heads=2)
    assert (config.vocab_size, config.n_positions, config.resid_pdrop) == (5, 9, 0)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 1, 0)
    with pytest.raises(ValueError, match="multiple of heads=5"):
        small_gpt2(tokenizer, positions=9, heads=5)
    with pytest.raises(ValueError, match="layers must be at least 1"):
        small_gpt2(tokenizer, positions=9, layers=0)


def test_a_reopened_progress_file_goes_on(tmp_path):
    folder = RunFolder(tmp_path)
    ProgressFile(folder).write({"num_tokens": 10, "reward": 0.5}, {"num_tokens": (), "reward": ()})
    again = ProgressFile(folder)
    again.write({"num_tokens": 20, "entropy": np.float32(2.0)}, {"num_tokens": (), "entropy": ()})
    again.write({"num_tokens": 30, "reward": 1.0}, {"num_tokens": (), "reward": ()})
    assert folder.read_progress() == [
        {"num_tokens": 10, "reward": 0.5},
        {"num_tokens": 20, "entropy": 2.0},
        {"num_tokens": 30, "reward": 1.0},
    ]
    folder.forget_after(20)
    assert [row["num_tokens"] for row in folder.read_progress()] == [10, 20]
