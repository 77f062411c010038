"""What came of the runs: a page, Markdown, the README's table.

    python -m benchmarks report runs.jsonl --html report.html --markdown report.md

Which figures there are, and how sure they are, is computed in `benchmarks.comparison`. A run that failed or is missing
stands at the top, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from agents.document import Block, Drawing, Group, Heading, Paragraph, Table, Texts, html_of, html_page, to_markdown
from benchmarks import drawings
from benchmarks.comparison import Comparison, circumstances
from benchmarks.drawings import Pens
from benchmarks.readme_table import between_markers, readme_table
from benchmarks.records import Fault, Run, gather, read, write_compact
from benchmarks.report_overall import overall, separation
from benchmarks.report_task import one_task
from benchmarks.statistics import RESAMPLES
from benchmarks.wording import count

_TITLE = "Benchmark"
_GLOSSARY = (
    ("score", "the task's objective on the test split at the end of the run, in the task's units"),
    ("normalised", "(score − random) / (optimum − random): 0 is random play, 1 the best there is"),
    (
        "IQM",
        "interquartile mean, 2 ∫ Q(u) du for u from ¼ to ¾ with Q the runs' quantile function: the mean of their "
        "middle half. Each of n sorted runs weighs as much of its 1/n as lies in the middle half: of 5 seeds the inner "
        "three weigh .3, .4 and .3. Where 4 divides n it is the 25 % trimmed mean of Agarwal et al. (2021, Deep "
        "reinforcement learning at the edge of the statistical precipice)",
    ),
    (
        "interval",
        f"95 %, percentile bootstrap of {RESAMPLES:,} resamples, stratified: the seeds of each task are drawn anew. "
        "With 5 seeds of a normal score it holds the true value in 91 % of the cases, with 20 in 94 %",
    ),
    (
        "on the way",
        "area under the learning curve on the validation split by its length: the mean score over the tokens",
    ),
    ("regret", "optimum − score (IQM); normalised, 1 − the normalised score"),
    ("KL", "nats a completion from the warm start, sampled at temperature 1 (IQM)"),
    (
        "solved",
        "seeds whose final normalised score reaches the task's bound. To solve: tokens sampled and CPU seconds of "
        "learning until the first look at the validation split that reached it. Median and most are over all seeds: "
        "one that did not solve the task never got there",
    ),
    (
        "probability of improvement",
        "P(X > Y): the mean over tasks of U / (N K), with U the Mann-Whitney statistic of X's N runs against Y's K, a "
        "tie counting half",
    ),
    ("performance profile", "F(τ): the share of all runs on all tasks whose normalised score is above τ"),
    ("whose", "ours; a peer, from another library; or a baseline, which the others have to beat"),
)
_STYLE = """
body { max-width: 72rem; }
th { vertical-align: bottom; }
.figures { border-collapse: separate; border-spacing: 0; } .figures th + th { white-space: normal; }
.figures :is(th, td):first-child { position: sticky; left: 0; z-index: 1; background: var(--paper); }
.wide { margin: .6rem 0 1.2rem; }
.middling { max-width: 40rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1.2rem 0; } a { color: inherit; }
.faults, .loud { border: 2px solid #c62828; border-radius: 6px; padding: .3rem 1rem; margin: 1rem 0; }
.faults h2 { margin-top: .6rem; } .faults h2, .loud p { color: #c62828; font-weight: 700; }
#separation td:nth-child(2) { white-space: nowrap; }
.figures:has(.chance) { width: auto; } .figures td:has(.chance) { padding-left: .3rem; }
@media (prefers-color-scheme: dark) {
  .faults, .loud { border-color: #ff8a80; } .faults h2, .loud p { color: #ff8a80; }
}
"""


def to_page(comparison: Comparison) -> str:
    """The report as one HTML page that runs no script and asks nobody for anything."""
    found = blocks(comparison, Pens(comparison.contenders))
    return html_page(_TITLE, [html_of(block) for block in found], drawings.STYLE + _STYLE)


def to_text(comparison: Comparison) -> str:
    """The report as Markdown: everything but the pictures and the texts of models."""
    return to_markdown([*blocks(comparison, None)])


def blocks(comparison: Comparison, pens: Pens | None) -> Iterator[Block]:
    """What is wrong, all tasks together, and each task by itself.

    Args:
        comparison: of the runs.
        pens: what pictures are drawn with; None leaves out pictures and texts.
    """
    records = comparison.records
    yield Heading(_TITLE, level=1)
    yield Paragraph(_extent(comparison))
    if records.faults:
        yield Group([*_faults(records.faults)], style="faults")
    yield Drawing(_contents(records.tasks))
    yield Group([*overall(comparison, pens)], anchor="overall")
    yield Group([*separation(comparison)], anchor="separation")
    for number, task in enumerate(records.tasks):
        yield Group([*one_task(comparison, task, pens, f"task-{number}")], anchor=f"task-{number}")
    yield Group([Heading("What the figures mean"), Table(["", ""], _GLOSSARY, numeric=False)], anchor="meaning")
    yield Group([Heading("Circumstances"), _circumstances(records.all_runs())], anchor="circumstances")


def _extent(comparison: Comparison) -> str:
    records = comparison.records
    runs = records.all_runs()
    budgets = sorted({run.get("budget", 1.0) for run in runs} - {1.0})
    part = f" NOT THE FULL BUDGET: {', '.join(f'{budget:g}' for budget in budgets)} of it." if budgets else ""
    return (
        f"{count(len(records.tasks), 'task')}, {count(len(records.contenders), 'contender')}, "
        f"{count(len(records.seeds), 'seed')}: {count(len(runs), 'finished run')}.{part}"
    )


def _faults(faults: Sequence[Fault]) -> Iterator[Block]:
    yield Heading(f"Not to be relied on: {count(len(faults), 'fault')}")
    yield Table(["where", "what"], [(fault.where, fault.what) for fault in faults], numeric=False)
    for fault in faults:
        if fault.details:
            yield Group([Texts([("Traceback", fault.details)])], summary=f"Traceback of {fault.where}")


def _contents(tasks: Sequence[str]) -> str:
    places = {"overall": "Over all tasks", "separation": "Separation"}
    places |= {f"task-{number}": task for number, task in enumerate(tasks)}
    places |= {"meaning": "What the figures mean", "circumstances": "Circumstances"}
    links = "\n".join(f'<a href="#{anchor}">{html.escape(text)}</a>' for anchor, text in places.items())
    return f"<nav>{links}</nav>"


def _circumstances(runs: Sequence[Run]) -> Table:
    rows = []
    for name, values in circumstances(runs).items():
        several = len(values) > 1
        rows.append((name, "; ".join(f"{what} ({count(n, 'run')})" if several else what for what, n in values.items())))
    return Table(["", ""], rows, numeric=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Write what was asked for; exit code 1 if a run failed or is missing, or if runs do not compare."""
    parser = argparse.ArgumentParser(prog="benchmarks report", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON lines of runs, plain or .gz")
    parser.add_argument("--html", type=Path, help="write one self-contained page")
    parser.add_argument(
        "--markdown", metavar="FILE", help="write Markdown; - prints it, as when nothing else is asked for"
    )
    parser.add_argument("--readme", type=Path, metavar="FILE", help="renew the table between the markers in this file")
    parser.add_argument("--compact", type=Path, metavar="FILE", help="write the runs small, to keep; .gz packs them")
    parser.add_argument(
        "--seeds", type=int, help="every contender has at least seeds 0 to n - 1 (default: those found)"
    )
    args = parser.parse_args(argv)
    try:
        found = read(args.files)
        records = gather(found, args.seeds)
        comparison = Comparison(records)
        readme = args.readme and between_markers(args.readme.read_text(encoding="utf-8"), readme_table(comparison))
        if args.html:
            args.html.write_text(to_page(comparison), encoding="utf-8")
        if args.compact:
            write_compact(args.compact, found)
        if args.readme and not records.faults:  # no table that hides a failed seed
            args.readme.write_text(readme, encoding="utf-8")
        if args.markdown not in (None, "-"):
            Path(args.markdown).write_text(to_text(comparison), encoding="utf-8")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.markdown == "-" or not (args.html or args.markdown or args.readme or args.compact):
        print(to_text(comparison), end="")
    for fault in records.faults:
        print(fault, file=sys.stderr)
    if args.readme and records.faults:
        print(f"{args.readme} is left as it was", file=sys.stderr)
    return int(bool(records.faults))
