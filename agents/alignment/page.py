"""An alignment report as a page, as Markdown, and as the card of the model it is about."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing
from matplotlib.layout_engine import ConstrainedLayoutEngine

from agents.alignment.human import Consistency
from agents.alignment.kl import FrontierPoint, Mean
from agents.alignment.report import AlignmentReport
from agents.alignment.swaps import SwapGap
from agents.alignment.texts import TextFigures
from agents.document import Block, Heading, Paragraph, Picture, Table, Texts, to_html, to_markdown
from reward_models.feedback.agreement import Figure

CARD_MARK = "<!-- written by textgen report -->"
"""Stands in a model card that may be written anew."""

LIMITS = (
    "Intervals are 95 % and say how far other prompts of the same kind could have moved a figure. They say nothing "
    "about prompts of another kind.",
    "A reward that was optimised is not evidence of quality: look at judges that were not, and at people.",
    "A table of words finds the biases that it names, in the texts that have these words.",
    "Fluency is another model's likelihood: repetition is likely too, which is what variety is for.",
)


def write_page(report: AlignmentReport, path: Path) -> None:
    """Write the report as one HTML file that runs no script and asks nobody for anything.

    Raises:
        OSError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture = None
        if report.frontier:
            picture = Path(folder, "frontier.png")
            draw_frontier(picture, report)
        page = to_html([*blocks(report, picture), *_samples(report), *_method(report)])
    path.write_text(page, encoding="utf-8")


def blocks(report: AlignmentReport, picture: Path | None = None) -> Iterator[Block]:
    """The figures, part by part; what was not asked for is not there."""
    yield Heading(f"Alignment of {report.model}", level=1)
    against = "" if report.reference is None else f" Compared with {report.reference}."
    yield Paragraph(
        f"{report.prompts} prompts of {report.task}, {report.samples_per_prompt} sampled completions each, seed "
        f"{report.seed}.{against}"
    )
    for sentence in report.missing:
        yield Paragraph(sentence)
    if report.reward is not None:
        yield Heading("Reward")
        found = report.reward
        row = [found.name, shown(found.model)]
        if found.reference is None or found.difference is None:
            yield Table(["", "model"], [row])
        else:
            yield Table(
                ["", "model", "reference", "difference"],
                [[*row, shown(found.reference), shown(found.difference, signed=True)]],
            )
    yield from _win_rates(report)
    yield from _people(report.consistency)
    yield from _swaps(report)
    yield from _texts(report.texts, report.fluency)
    yield from _distance(report, picture)


def _win_rates(report: AlignmentReport) -> Iterator[Block]:
    if not report.duels:
        return
    yield Heading("Win rate against the reference")
    yield Table(
        ["judge", "win rate", "wins", "ties", "losses"],
        [
            [name, shown(duel.rate), f"{duel.wins}", f"{duel.ties}", f"{duel.losses}"]
            for name, duel in report.duels.items()
        ],
    )
    yield Paragraph(
        "One half is a draw; a tie counts half. Intervals: Wilson's where each prompt has one outcome, else by the "
        "bootstrap over prompts."
    )
    for name, duel in report.duels.items():
        if duel.order is not None:
            order = duel.order
            yield Paragraph(
                f"{name} saw every pair in both orders, and a win is a win in both. It changed its answer about "
                f"{order.inconsistent.hits} of {order.inconsistent.total} pairs "
                f"({shown(order.inconsistent.share)}), and preferred the text shown first in "
                f"{shown(order.first_preferred.share)} of its decided answers; without position bias that is .5."
            )
        if duel.undecided:
            yield Paragraph(f"{name} gave no answer about {duel.undecided} pairs; they do not count.")


def _people(consistency: Mapping[str, Sequence[Consistency]]) -> Iterator[Block]:
    if not consistency:
        return
    yield Heading("Consistency with people")
    rows = []
    for scorer, of_kinds in consistency.items():
        for one in of_kinds:
            figures = [one.score, one.alike, one.ceiling]
            rows.append(
                [
                    f"{scorer}, {'agreement on pairs' if one.measure == 'agreement' else 'Spearman with ratings'}",
                    *["–" if figure is None else shown(figure) for figure in figures],
                    "–" if one.gap is None else shown(one.gap, signed=True),
                ]
            )
    yield Table(["", "with all people", "with all but one", "the one left out (ceiling)", "gap to the ceiling"], rows)
    first = next(iter(consistency.values()))
    sizes = "; ".join(f"{one.items} items, {one.annotators} annotators" for one in first)
    yield Paragraph(
        f"{sizes}. The ceiling leaves one annotator out at a time and asks how well that person agrees with the "
        "others; 'with all but one' asks the scorer the same. A gap of 0: it could stand in for one of them."
        + ("" if any(one.ceiling for one in first) else " No item has two annotators: there is no ceiling.")
    )


def _swaps(report: AlignmentReport) -> Iterator[Block]:
    parts = (
        ("the same answers, words swapped", report.swaps),
        ("answers to prompts with words swapped", report.swapped_prompts),
    )
    if not any(found for _, found in parts):
        return
    yield Heading("Counterfactual swaps")
    rows = [
        [f"{scorer}: {label}", *_swap_cells(found)] for label, by_scorer in parts for scorer, found in by_scorer.items()
    ]
    yield Table(["", "score, second less first side", "mean size of the change", "texts"], rows)
    table = next(found.table for _, by_scorer in parts for found in by_scorer.values())
    yield Paragraph(
        f"Table of words: {table}. A scorer that does not mind who a text is about has 0 in the first row of its own; "
        "answers to swapped prompts are drawn anew, so that their changes are of the size of sampling noise at least."
    )


def _swap_cells(found: SwapGap) -> list[str]:
    gap = "–" if found.gap is None else shown(found.gap, signed=True)
    return [gap, shown(found.absolute), f"{found.texts} of {found.of}"]


def _texts(texts: Mapping[str, TextFigures], fluency: str | None) -> Iterator[Block]:
    yield Heading("Texts")
    sides = list(texts.values())
    rows = [["Words a text", *[shown(one.words) for one in sides]]]
    if fluency is not None:
        rows.append([f"Perplexity under {fluency}", *[_or_dash(one.perplexity) for one in sides]])
        rows.append(
            [f"Log-likelihood under {fluency} (nats a token)", *[_or_dash(one.log_likelihood) for one in sides]]
        )
    rows += [
        ["Distinct words", *[number(one.distinct_1) for one in sides]],
        ["Distinct word pairs", *[number(one.distinct_2) for one in sides]],
        ["Self-BLEU (100: all alike)", *["–" if one.self_bleu is None else number(one.self_bleu) for one in sides]],
    ]
    yield Table(["", *texts], rows)


def _distance(report: AlignmentReport, picture: Path | None) -> Iterator[Block]:
    if report.kl is None:
        return
    yield Heading("Distance from the reference")
    names = {
        "exact": "token by token, summed over the vocabulary",
        "k1": "k1: log ratio of what was drawn",
        "k3": "k3: never negative, but hangs on rare large values",
    }
    rows = [[label, with_error(getattr(report.kl, name))] for name, label in names.items()]
    yield Table(["KL, nats a completion", "mean ± standard error"], rows)
    yield Paragraph(f"{number(report.kl.per_token)} nats a token. The first is the one to quote: it varies least.")
    if not report.frontier:
        return
    yield Heading("Reward for distance", level=3)
    if picture is not None:
        yield Picture(picture, "Reward over KL from the reference: best-of-n of the reference, checkpoints, the model")
    yield Table(
        ["", "KL, nats a completion", "reward ± standard error"],
        [[_label(point), _kl_cell(point), with_error(point.reward)] for point in (*report.best_of_n, *report.frontier)],
    )
    note = "Best-of-n costs no training. Its KL is log n − (n − 1)/n, at most."
    beaten = at_the_same_kl(report)
    if beaten is not None:
        note += (
            f" At the model's distance it earns about {number(beaten)}, the model "
            f"{number(report.frontier[-1].reward.value)}."
        )
    yield Paragraph(note)


def _label(point: FrontierPoint) -> str:
    return f"{point.label} of the reference" if point.label.startswith("best of ") else point.label


def at_the_same_kl(report: AlignmentReport) -> float | None:
    """What best-of-n earns at the model's KL, between its neighbours on a line; None beyond the curve."""
    curve, kl = report.best_of_n, report.frontier[-1].kl
    for left, right in itertools.pairwise(curve):
        if left.kl <= kl <= right.kl:
            share = (kl - left.kl) / (right.kl - left.kl)
            return left.reward.value + share * (right.reward.value - left.reward.value)
    return None


def _samples(report: AlignmentReport) -> Iterator[Block]:
    yield Heading("Some texts")
    for number_, (sample, other) in enumerate(report.samples, start=1):
        yield Heading(f"Text {number_}", level=3)
        score = "" if math.isnan(sample.score) else f" ({sample.score:.3f})"
        items = [("Prompt", sample.prompt)]
        if sample.reference is not None:
            items.append(("Reference text", sample.reference))
        items.append((f"Model{score}", sample.completion))
        if other is not None:
            items.append(("Reference model", other))
        yield Texts(items)


def _method(report: AlignmentReport) -> Iterator[Block]:
    yield Heading("What this does not show")
    for sentence in LIMITS:
        yield Paragraph(sentence)


# ---------------------------------------------------------------- the picture

_INK, _FAINT, _GRID = "#1f2430", "#8b93a7", "#e6e9f0"
_MODEL, _BASELINE = "#2563b8", "#d4691e"


def draw_frontier(path: Path, report: AlignmentReport) -> None:
    """Reward over KL, error bars of one standard error, as a PNG file."""
    drawing = Drawing(figsize=(9, 4.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(drawing)  # no display, no pyplot: nothing global
    axes: Any = drawing.subplots()
    for points, label, colour, style in (
        (report.best_of_n, "best-of-n of the reference", _BASELINE, "--"),
        (report.frontier, "reference, checkpoints, model", _MODEL, "-"),
    ):
        if not points:
            continue
        axes.errorbar(
            [point.kl for point in points],
            [point.reward.value for point in points],
            xerr=[point.kl_error or 0.0 for point in points],
            yerr=[point.reward.standard_error or 0.0 for point in points],
            color=colour,
            ls=style,
            lw=1.4,
            marker="o",
            ms=4,
            elinewidth=1,
            label=label,
        )
    last = report.frontier[-1]
    axes.annotate("model", (last.kl, last.reward.value), xytext=(6, 6), textcoords="offset points", color=_INK)
    axes.set_xlabel("KL from the reference (nats a completion)", fontsize=9, color=_FAINT)
    axes.set_title("Reward", loc="left", fontsize=10.5, color=_INK, fontweight="bold")
    axes.tick_params(colors=_FAINT, labelsize=8.5, length=0)
    axes.grid(color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
    drawing.savefig(path, format="png", dpi=130, metadata={"Software": None})


# ---------------------------------------------------------------- the card


def model_card(report: AlignmentReport, facts: Mapping[str, str], *, base_model: str | None = None) -> str:
    """A README.md with Hugging Face's front matter: what the model is, its figures with intervals, its limits.

    Args:
        report: the figures.
        facts: label -> what is known of the model: algorithm, data, reward.
        base_model: a hub name; a path would mean nothing to another reader.
    """
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=report.task,
            dataset_name=report.task,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 6),
        )
        for kind, name, value in _metrics(report)
    ]
    data = ModelCardData(
        base_model=base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["reinforcement-learning", "textgen-env"],
        model_name=Path(report.model).name or report.model,
        eval_results=results or None,
    )
    head: list[Block] = [Heading(Path(report.model).name or report.model, level=1)]
    if facts:
        head.append(Table(["", ""], list(facts.items()), numeric=False))
    body = [block for block in blocks(report) if not (isinstance(block, Heading) and block.level == 1)]
    return f"---\n{data.to_yaml()}\n---\n{CARD_MARK}\n\n{to_markdown([*head, *body, *_method(report)])}"


def _metrics(report: AlignmentReport) -> Iterator[tuple[str, str, float]]:
    """What the front matter holds: type, name and value."""
    if report.reward is not None:
        yield "reward", f"mean {report.reward.name}", report.reward.model.value
    for judge, duel in report.duels.items():
        if not math.isnan(duel.rate.value):
            yield "win_rate", f"win rate against the reference, judged by {judge}", duel.rate.value
    if report.kl is not None:
        yield "kl", "KL from the reference, nats a completion", report.kl.exact.value


# ---------------------------------------------------------------- numbers


def shown(figure: Figure, *, signed: bool = False) -> str:
    """A figure with its interval.

    >>> shown(Figure(0.5, (0.25, 0.75)), signed=True)
    '+0.500 (+0.250 to +0.750)'
    """
    value = number(figure.value, signed=signed)
    if figure.interval is None:
        return value
    low, high = (number(end, signed=signed) for end in figure.interval)
    return f"{value} ({low} to {high})"


def with_error(mean: Mean) -> str:
    """A mean with its standard error."""
    error = "" if mean.standard_error is None else f" ± {number(mean.standard_error)}"
    return f"{number(mean.value)}{error}"


def number(value: float, *, signed: bool = False) -> str:
    """Three places below ten, one above; a dash for what is not defined."""
    if math.isnan(value):
        return "–"
    places = 3 if abs(value) < 10 else 1
    return f"{value:+.{places}f}" if signed else f"{value:.{places}f}"


def _kl_cell(point: FrontierPoint) -> str:
    return number(point.kl) + ("" if point.kl_error is None else f" ± {number(point.kl_error)}")


def _or_dash(figure: Figure | None) -> str:
    return "–" if figure is None else shown(figure)
