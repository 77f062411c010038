"""Every example of the README runs, and every make target it names exists."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from agents import cli
from agents.models import small_gpt2
from tests import snippets
from textgen_env import TextTokenizer, train_tokenizer

PYTHON = snippets.blocks("README.md", "python")
SHELL = snippets.commands("README.md")

# The README's budgets are for people; a test sees that the commands work.
SMALL = ["--total-tokens", "200", "--episodes-per-rollout", "8", "--eval-prompts", "4", "--quiet", "--output", "run"]
FROM_SCRATCH = ["--warm-start-epochs", "0.01", "--layers", "1", "--width", "32", "--heads", "2"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_example_runs(number: int, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippets.run("README.md", number)


def test_make_targets_exist() -> None:
    makefile = (snippets.ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", "\n".join(SHELL), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("textgen ")])
def test_textgen_command_runs(line: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in shlex.split(line, comments=True)][1:]
    if words[0] == "train":
        words += SMALL
        if "--model" in words:
            _own_data_and_model(workplace)
        else:
            words += FROM_SCRATCH
    elif words[1:] and words[1].startswith("runs/"):
        assert (
            cli.main(["train", "--env", "textgen_env/NewsSummary-v0", *SMALL, *FROM_SCRATCH, "--output", words[1]]) == 0
        )
        words += ["--prompts", "4"] if words[0] == "evaluate" else ["--texts", "1"]
    assert cli.main(words) == 0


def test_snippets_were_found() -> None:
    assert len(PYTHON) >= 4
    assert sum(line.startswith("textgen ") for line in SHELL) >= 3


def _own_data_and_model(folder: Path) -> None:
    """The files that the README's command line speaks of."""
    records = [{"article": f"Rain fell on town {i}.", "headline": f"Rain in town {i}"} for i in range(40)]
    (folder / "news.jsonl").write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    tokenizer = TextTokenizer(train_tokenizer([record["article"] for record in records], 300))
    from agents.model_source import load_model

    load_model(small_gpt2(tokenizer, positions=96, layers=1, width=32, heads=2), 0).save_pretrained("my-model")
    tokenizer.hf.save_pretrained("my-model")
