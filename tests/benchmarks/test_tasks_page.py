"""docs/tasks.md says what the tasks declare, names every keyword, and its commands run."""

import re
import shlex

import pytest
import torch

from agents import cli
from benchmarks import __main__ as benchmarks
from benchmarks import runs, tasks_page
from benchmarks.readme_table import between_markers
from tests import snippets
from textgen_env.lookup import load_entry_point
from textgen_env.registry import BUILT_IN
from textgen_env.tasks.ladder import LADDER, RECOGNISABLE

TASKS = {**LADDER, **RECOGNISABLE}
TEXT = tasks_page.PAGE.read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", TEXT, re.DOTALL | re.MULTILINE))
SMALL = "--total-tokens 64 --episodes-per-rollout 8 --eval-prompts 4 --quiet --output run --warm-start-epochs 0.01"


def test_the_tables_are_those_of_the_code():
    assert between_markers(TEXT, tasks_page.tables()) == TEXT, "run 'python -m benchmarks.tasks_page'"


def test_every_task_has_a_section_in_order():
    assert set(SECTIONS) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_every_keyword_is_explained(task):
    said = set(re.findall(r"`(\w+)[`=]", SECTIONS[task]))
    known = set(tasks_page.arguments(task))
    assert known - {"seed", "num_prompts"} <= said


@pytest.mark.parametrize("task", RECOGNISABLE)
def test_what_own_data_is_read_as(task):
    (row,) = re.findall(rf"^\| {task} \| (.*?) \| (.*?) \| `(\w+)` \|$", TEXT, re.MULTILINE)
    columns = re.findall(r"`(\w+)`", row[0])
    record = {column: f"the {column}" for column in columns}
    kwargs = {"opening_words": 1} if task == "Sentiment" else {}
    read = load_entry_point(BUILT_IN[f"textgen_env/{task}-v0"]["task"])(data=[record], fractions=(1, 0, 0), **kwargs)
    (prompt,) = read.prompts()
    assert read.reward == row[2]
    if task == "Sentiment":
        assert (prompt.text, prompt.references) == ("the", ("text",))
        return
    asked = columns[-2]
    template = row[1].strip("`").replace("\\n", "\n").replace("{prompt}", f"{{{asked}}}")
    assert prompt.text == template.format_map(record)
    assert prompt.references == (record[columns[-1]],)


@pytest.mark.parametrize("line", snippets.commands("docs/tasks.md"))
def test_commands_run(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(line)
    monkeypatch.setattr(runs, "side_by_side", lambda run, jobs, workers: ((job, run(job)) for job in jobs))  # here
    threads = torch.get_num_threads()
    try:
        if program == "textgen":
            assert cli.main([*words, *shlex.split(SMALL), "--layers", "1", "--width", "32", "--heads", "2"]) == 0
        else:
            assert words[:2] == ["-m", "benchmarks"]
            assert benchmarks.main([*words[2:], "--budget", "0.005", "--workers", "1"]) == 0
    finally:
        torch.set_num_threads(threads)


def test_commands_were_found():
    assert len(snippets.commands("docs/tasks.md")) == 2


def test_the_readme_counts_them():
    assert f"[Tasks](docs/tasks.md): {len(TASKS)} built in" in (snippets.ROOT / "README.md").read_text(encoding="utf-8")
