"""The report's part on all tasks together: who is better, how sure that is, and which tasks tell contenders apart."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Mapping, Sequence

from agents.document import Block, Drawing, Group, Heading, Paragraph, Table
from benchmarks.comparison import Comparison, Measure
from benchmarks.drawings import Pens, chance, draw_profiles, strip
from benchmarks.records import kind
from benchmarks.statistics import Estimate
from benchmarks.wording import NONE, estimate, seconds

_MEASURES: Mapping[str, Measure] = {
    "At the end: the score on the test split": lambda cell: cell.score,
    "On the way: the mean score on the validation split, over the tokens": lambda cell: cell.on_the_way,
}


def overall(comparison: Comparison, pens: Pens | None) -> Iterator[Block]:
    """Interquartile means, performance profiles and probabilities of improvement, over the tasks with an optimum."""
    names = [name for name in comparison.contenders if name in comparison.overall]
    yield Heading("Over all tasks")
    if missing := [task for task, normalised in comparison.scale.items() if not normalised]:
        yield Paragraph(f"Not in these figures, for want of normalised scores: {', '.join(missing)}.")
    if not names:
        yield Paragraph("No task has an optimum to normalise scores with.")
        return
    yield overall_table(comparison, pens)
    if partial := [name for name in names if len(comparison.tasks_of(name)) < len(comparison.normalised_tasks)]:
        yield Paragraph(
            f"Did not play every task, so that their figures are not comparable with the others': {', '.join(partial)}."
        )
    if pens is not None:
        yield Heading("Performance profiles", level=3)
        picture = draw_profiles({name: comparison.profile(name) for name in names}, pens, name="profiles")
        yield Drawing(f'{pens.legend(names)}<div class="middling">{picture}</div>')
    if len(names) > 1:
        yield Heading("Probability of improvement", level=3)
        yield Paragraph("That a run of the row's contender beats one of the column's, on the tasks that both played.")
        yield Table(["", *names], [[row, *_chances(comparison, row, names)] for row in names])


def overall_table(comparison: Comparison, pens: Pens | None) -> Table:
    """A row a contender, the best first."""
    estimates = comparison.overall
    bounds = span(list(estimates.values()))
    rows: list[list[str | Drawing]] = []
    for name in comparison.contenders:
        if name not in estimates:
            continue
        tasks = comparison.tasks_of(name)
        cells = [comparison.cells[task, name] for task in tasks]
        costs = [run["cpu_seconds"] for cell in cells for run in cell.runs]
        rows.append(
            [
                name,
                kind(name),
                estimate(estimates[name]) if pens is None else with_strip(estimates[name], bounds, pens, name),
                f"{len(tasks)} of {len(comparison.normalised_tasks)}",
                f"{comparison.solved_tasks(name)} of {len(tasks)}",
                f"{sum(cell.solved or 0 for cell in cells)} of {sum(cell.seeds for cell in cells)}",
                seconds(sum(costs) / len(costs)),
            ]
        )
    header = [
        "contender",
        "whose",
        "normalised, IQM (95\u00a0%)",
        "tasks",
        "solved by all seeds",
        "runs solved",
        "CPU s a run",
    ]
    return Table(header, rows)


def separation(comparison: Comparison) -> Iterator[Block]:
    """Which tasks tell which contenders apart; those that tell none are called out."""
    yield Heading("Which tasks separate which contenders")
    if len(comparison.rivals) < 2:
        yield Paragraph("It takes two contenders that are no baselines.")
        return
    for title, measure in _MEASURES.items():
        found = {task: comparison.separated(task, measure) for task in comparison.records.tasks}
        yield Heading(title, level=3)
        if none := [task for task, pairs in found.items() if not pairs and comparison.pairs(task)]:
            yield Group([Paragraph(f"SEPARATES NO PAIR: {', '.join(none)}.")], style="loud")
        yield Table(
            ["task", "pairs", "which"],
            [
                (task, f"{len(pairs)} of {len(comparison.pairs(task))}", _which(pairs, comparison.pairs(task)))
                for task, pairs in found.items()
            ],
            numeric=False,
        )
        told = {frozenset(pair) for pairs in found.values() for pair in pairs}
        never = [pair for pair in itertools.combinations(comparison.rivals, 2) if frozenset(pair) not in told]
        yield Paragraph(f"By no task: {_listed(never, ' and ')}." if never else "Every pair is separated by some task.")
    yield Paragraph(
        "Pairs whose intervals do not overlap, the better one first; baselines aside. For one pair that is rare by "
        "chance; among all pairs of all tasks a few such cases are to be expected."
    )


def _which(separated: Sequence[tuple[str, str]], pairs: Sequence[tuple[str, str]]) -> str:
    """The separated pairs, or the others where those are fewer."""
    if not pairs:
        return NONE
    if len(separated) <= len(pairs) / 2:
        return _listed(separated, " over ") or "NONE"
    told = {frozenset(pair) for pair in separated}
    others = [pair for pair in pairs if frozenset(pair) not in told]
    return f"all but {_listed(others, ' and ')}" if others else "all"


def _listed(pairs: Sequence[tuple[str, str]], word: str) -> str:
    """Pairs with one first name together."""
    by_first: dict[str, list[str]] = {}
    for first, second in pairs:
        by_first.setdefault(first, []).append(second)
    return "; ".join(f"{first}{word}{', '.join(seconds)}" for first, seconds in by_first.items())


def span(estimates: Sequence[Estimate], *, normalised: bool = True) -> tuple[float, float]:
    """From where to where a column's intervals are drawn; on the normalised scale at least from 0 to 1."""
    ends = [end for found in estimates for end in (found.interval or (found.value,))]
    return min([*[0.0] * normalised, *ends]), max([*[1.0] * normalised, *ends])


def with_strip(found: Estimate, bounds: tuple[float, float], pens: Pens, contender: str) -> Drawing:
    """An estimate in figures, and drawn."""
    words = estimate(found)
    return Drawing(html.escape(words) + strip(found, *bounds, pens.variable(contender)), words)


def _chances(comparison: Comparison, row: str, names: Sequence[str]) -> Iterator[str | Drawing]:
    for column in names:
        found = None if row == column else comparison.improvement(row, column)
        if found is None:
            yield "" if row == column else NONE
        else:
            interval = "" if found.interval is None else f"{found.interval[0]:.2f} to {found.interval[1]:.2f}"
            words = f"{found.value:.2f} ({interval})" if interval else f"{found.value:.2f}"
            yield Drawing(chance(f"{found.value:.2f}", interval, found.value), words)
