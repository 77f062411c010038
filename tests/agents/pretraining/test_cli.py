"""``textgen pretrain``: texts in, a folder out that the other commands take."""

import json
import os
import shlex
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.cli import main
from agents.pretraining import cli as pretrain_cli
from tests.agents.conftest import largest_gap, weights
from tests.reward_models.shared_data import shared_file

TINY = shlex.split(
    "--layers 1 --width 16 --heads 2 --vocab-size 270 --block-size 32 --epochs 2 --batch-size 4 --device cpu "
    "--validation-share 0.3"
)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stories(tmp_path):
    path = tmp_path / "stories.txt"
    texts = [f"It was a {mood} day. We saw {number} birds." for mood in ("good", "bad") for number in range(12)]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


def test_texts_in_a_model_out(stories, tmp_path, capsys):
    folder = str(tmp_path / "lm")
    assert main(["pretrain", str(stories), "--output", folder, *TINY]) == 0
    shown = capsys.readouterr().out
    assert "24" not in shown.splitlines()[0]  # of 24 documents some are held out
    assert "bits a byte" in shown
    assert f"model: {folder}" in shown
    assert main(["generate", folder, "It was", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out
    assert main(["pretrain", "--resume", folder]) == 2
    assert "is finished" in capsys.readouterr().err


def test_a_reward_by_name_and_good_texts_on_demand(stories, tmp_path, capsys):
    folder = str(tmp_path / "lm")
    objective = shlex.split("--objective conditional --reward sentiment_lexicon --threshold 0.1 --segments sentence")
    assert main(["pretrain", str(stories), "--output", folder, *TINY, *objective]) == 0
    shown = capsys.readouterr().out
    assert "25.0% good at 0.1" in shown or "% good at 0.1" in shown
    assert f"good texts: textgen generate {folder} '<|good|>'" in shown
    assert main(["generate", folder, "<|good|>", "--max-new-tokens", "8"]) == 0
    written = capsys.readouterr().out
    assert "<|good|>" not in written
    assert "<|bad|>" not in written


def test_ctrl_c_saves_and_resume_ends_in_the_same_place(stories, tmp_path, capsys, monkeypatch):
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    assert main(["pretrain", str(stories), "--output", whole, *TINY]) == 0

    def interrupting(step, steps, loss):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(pretrain_cli, "_progress", interrupting)
    assert main(["pretrain", str(stories), "--output", cut, *TINY]) == 130
    assert f"go on with: textgen pretrain --resume {cut}" in capsys.readouterr().out
    assert main(["pretrain", "--resume", cut, "--epochs", "3"]) == 2
    assert "so epochs cannot be given" in capsys.readouterr().err
    assert main(["pretrain", str(stories), "--resume", cut]) == 2
    assert "so texts cannot be given" in capsys.readouterr().err
    assert main(["pretrain", "--resume", cut, "--quiet"]) == 0
    ends = [weights(AutoModelForCausalLM.from_pretrained(folder)) for folder in (whole, cut)]
    assert largest_gap(*ends) == 0


def test_a_pretrained_model_goes_on_with_its_own_tokenizer(tmp_path, capsys):
    """A real Llama on real verse: what it knew nothing of, it predicts better after a few steps."""
    model = shared_file("stories260K/hf")
    verse = shared_file("tinyshakespeare/input.txt").read_text(encoding="utf-8")[:20_000]
    (tmp_path / "verse.txt").write_text(verse, encoding="utf-8")
    folder = tmp_path / "lm"
    options = shlex.split("--epochs 1 --batch-size 8 --block-size 128 --checkpoint-every 2 --device cpu")
    asked = ["pretrain", str(tmp_path / "verse.txt"), "--model", str(model), "--output", str(folder), *options]
    assert main([*asked, "--learning-rate", "1e-3"]) == 0
    rows = json.loads((folder / "pretrain.json").read_text())["validation"]
    assert rows[-1]["bits_per_byte"] < rows[0]["bits_per_byte"] - 0.1
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--output {tmp}/lm", "say which texts"),
        ("{stories}", "say --output"),
        ("{stories} --output {tmp}", "is not empty"),
        ("{tmp}/none.txt --output {tmp}/lm", "none.txt"),
        ("{stories} --output {tmp}/lm --separator none", "give more documents"),
        ("{stories} --output {tmp}/lm --objective conditional", "say --reward"),
        ("{stories} --output {tmp}/lm --objective conditional --threshold 0 --reward sentiment", "did you mean"),
        ("{stories} --output {tmp}/lm --block-sise 8", "did you mean '--block-size'"),
        ("{stories} --output {tmp}/lm --model {tmp}/stories.txt", "stories.txt"),
        ("--resume {tmp}/none", "is no folder of 'textgen pretrain'"),
    ],
)
def test_bad_input_is_refused(stories, tmp_path, capsys, arguments, message):
    assert main(["pretrain", *arguments.format(tmp=tmp_path, stories=stories).split()]) == 2
    assert message in capsys.readouterr().err
