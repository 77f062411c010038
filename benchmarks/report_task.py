"""The report's part on one task: how good everyone was, what it took, how it went, and a few texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agents.document import Block, Drawing, Group, Heading, Paragraph, Table, Texts
from benchmarks.comparison import Cell, Comparison
from benchmarks.drawings import Pens, draw_curves
from benchmarks.records import OFF_THE_ENVIRONMENT, Run, kind
from benchmarks.report_overall import span, with_strip
from benchmarks.wording import NONE, estimate, number, seconds, spread, whole


def one_task(comparison: Comparison, task: str, pens: Pens | None, anchor: str) -> Iterator[Block]:
    """A section; ``anchor`` is its name in the page."""
    cells = comparison.of_task(task)
    runs = [run for cell in cells for run in cell.runs]
    yield Heading(task)
    if absent := [name for name in comparison.contenders if (task, name) not in comparison.cells]:
        yield Paragraph(f"Not run: {', '.join(absent)}.")
    if not runs:
        yield Paragraph("No run of this task was finished.")
        return
    yield Paragraph(_rules(runs[0]))
    yield _reached(cells, pens)
    yield _took(cells)
    if pens is None:
        return
    yield from _curves(cells, pens, anchor)
    texts = [block for cell in cells for block in _samples(cell)]
    if texts:
        yield Group(texts, summary="Texts of the first seeds on the test split")


def _rules(run: Run) -> str:
    levels = [f"{name} {number(run[name])}" for name in ("random", "optimum") if run.get(name) is not None]
    setup = run["setup"]
    start = "a supervised warm start" if setup.get("warm_start") else "fresh weights"
    solved = "" if run["optimum"] is None else f" Solved from {setup['solved']:g} on, normalised."
    return (
        f"Objective: {setup['objective']}; {', '.join(levels) or 'no known optimum'}.{solved} "
        f"{whole(setup['total_tokens'] * run.get('budget', 1.0))} tokens from {start}."
    )


def _reached(cells: Sequence[Cell], pens: Pens | None) -> Table:
    """How good everyone was in the end, the best first."""
    scale = any(cell.normalised is not None for cell in cells)
    drawn = [found for cell in cells if (found := cell.normalised if scale else cell.score) is not None]
    bounds = span(drawn, normalised=scale)
    rows: list[list[str | Drawing]] = []
    for cell in cells:
        if cell.score is None:
            rows.append([cell.contender, kind(cell.contender), "FAILED", *[NONE] * 6])
            continue
        main = cell.normalised if scale else cell.score
        rows.append(
            [
                cell.contender,
                kind(cell.contender),
                estimate(main) if main is None or pens is None else with_strip(main, bounds, pens, cell.contender),
                estimate(cell.score) if scale else NONE,
                number(cell.regret),
                number(None if cell.normalised is None else 1 - cell.normalised.value),
                *[number(cell.middle(field)) for field in ("sampled", "kl_per_sequence", "entropy")],
            ]
        )
    main_column = "normalised, IQM (95\u00a0%)" if scale else "score, IQM (95\u00a0%)"
    header = ["contender", "whose", main_column, "score, IQM (95\u00a0%)", "regret", "normalised regret"]
    header += ["sampled", "KL, nats", "entropy, nats"]
    if not scale:  # the score stands in the main column
        header, rows = header[:3] + header[4:], [row[:3] + row[4:] for row in rows]
    return Table(header, rows)


def _took(cells: Sequence[Cell]) -> Table:
    """What it cost."""
    rows = []
    for cell in cells:
        rows.append(
            [
                cell.contender,
                NONE if cell.solved is None else f"{cell.solved} of {cell.seeds}",
                estimate(cell.on_the_way),
                NONE if cell.solved is None else spread(cell.to_solve("tokens"), whole),
                NONE if cell.solved is None else spread(cell.to_solve("cpu_seconds"), seconds),
                whole(cell.spread("tokens").median),
                seconds(cell.spread("cpu_seconds").median),
                seconds(cell.spread("warm_start_cpu_seconds").most),
                whole(cell.spread("peak_memory_mb").most),
            ]
        )
    header = [
        "contender",
        "seeds solved",
        "score on the way (95\u00a0%)",
        "tokens to solve: median (most)",
        "CPU s to solve: median (most)",
    ]
    return Table([*header, "tokens in all", "CPU s in all", "CPU s of the warm start", "peak memory, MB"], rows)


def _curves(cells: Sequence[Cell], pens: Pens, anchor: str) -> Iterator[Block]:
    learners = {
        cell.contender: cell.runs
        for cell in cells
        if cell.contender not in OFF_THE_ENVIRONMENT and cell.runs and all(len(run["curve"]) > 1 for run in cell.runs)
    }
    if not learners:
        return
    scale = all(cell.normalised is not None for cell in cells if cell.runs)
    levels = {
        cell.contender: found.value
        for cell in cells
        if cell.contender in OFF_THE_ENVIRONMENT and (found := cell.normalised if scale else cell.score) is not None
    }
    pictures = [
        draw_curves(learners, levels, pens, over=over, label=label, name=f"{anchor}-{over}")
        for over, label in (("tokens", "tokens"), ("cpu_seconds", "CPU seconds of learning"))
    ]
    yield Paragraph(
        "While they learn, on the validation split: mean over seeds, and a band from the least seed to the best."
        f"{' Level lines: the end of those that do not learn from the environment.' if levels else ''}"
    )
    yield Drawing(f'{pens.legend([*learners, *levels])}<div class="side-by-side">{"".join(pictures)}</div>')


def _samples(cell: Cell) -> Iterator[Block]:
    samples = cell.runs[0].get("samples") if cell.runs else None
    if samples:
        yield Heading(cell.contender, level=3)
    for sample in samples or ():
        items = [("Prompt", str(sample["prompt"]))]
        if sample.get("reference") is not None:
            items.append(("Reference", str(sample["reference"])))
        yield Texts([*items, (f"Completion (score {number(sample['score'])})", str(sample["completion"]))])
