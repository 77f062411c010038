"""The table of results that the README shows, between two comments."""

from __future__ import annotations

from agents.document import Block, Paragraph, Table, to_markdown
from benchmarks.comparison import Comparison, circumstances
from benchmarks.records import kind
from benchmarks.wording import NONE, count

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
_MORE = """
Curves, costs, probabilities of improvement and texts, with their intervals, in one page:
`python -m benchmarks report benchmarks/results/ladder.jsonl.gz --html report.html`. `make results` renews this table.
"""


def readme_table(comparison: Comparison) -> str:
    """A row a task and a column a contender, as Markdown."""
    records = comparison.records
    tasks, names = comparison.normalised_tasks, [name for name in comparison.contenders if name in comparison.overall]
    commits = ", ".join(circumstances(records.all_runs()).get("commit", {})) or "unknown"
    titles = [name if kind(name) == "ours" else f"{name} ({kind(name)})" for name in names]
    rows = [[task, *[_cell(comparison, task, name) for name in names]] for task in tasks]
    rows.append(["all tasks", *[_pooled(comparison, name) for name in names]])
    blocks: list[Block] = [
        Paragraph(
            f"Normalised scores on held-out prompts (0 is random play, 1 the optimum), interquartile mean over "
            f"{count(len(records.seeds), 'seed')}; over all tasks, of those who played all, with a 95 % interval "
            f"(stratified bootstrap). "
            f"In parentheses: seeds that solved the task. {count(len(records.all_runs()), 'run')}, commit {commits}."
        ),
        Table(["", *titles], rows),
    ]
    return to_markdown(blocks) + _MORE


def between_markers(text: str, part: str) -> str:
    """``text`` with ``part`` between its markers.

    Raises:
        ValueError: the markers do not stand there once each, in their order.
    """
    head, begin, rest = text.partition(BEGIN)
    inside, end, tail = rest.partition(END)
    if not (begin and end) or any(mark in piece for mark in (BEGIN, END) for piece in (head, inside, tail)):
        raise ValueError(f"the text needs the lines {BEGIN} and {END}, in this order and once each")
    return f"{head}{BEGIN}\n\n{part}\n{END}{tail}"


def _pooled(comparison: Comparison, contender: str) -> str:
    played, tasks = comparison.tasks_of(contender), comparison.normalised_tasks
    if len(played) < len(tasks):
        return f"{len(played)} of {len(tasks)}"
    found = comparison.overall[contender]
    interval = "" if found.interval is None else f" ({_short(found.interval[0])} to {_short(found.interval[1])})"
    return _short(found.value) + interval


def _cell(comparison: Comparison, task: str, contender: str) -> str:
    cell = comparison.cells.get((task, contender))
    if cell is None or cell.normalised is None:
        return NONE
    return f"{_short(cell.normalised.value)} ({cell.solved})"


def _short(value: float) -> str:
    """Two digits, but never a 1 that is none."""
    shown = f"{round(value, 9):.2f}"
    return ">.99" if shown == "1.00" and round(value, 9) < 1 else shown
