"""The page of a loop: what each round changed, how sure that is, and what the texts look like."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from agents.document import Block, Heading, Paragraph, Picture, Table, Texts, to_html, to_markdown
from agents.rlhf.folder import POLICY, LoopFolder
from agents.run_folder import STEP, RunFolder

_INK, _FAINT, _GRID = "#1f2430", "#8b93a7", "#e6e9f0"
_GOLD, _PROXY = "#2563b8", "#d4691e"

Figures = Mapping[str, Any]

_AGREEMENT = {
    "accuracy": "Reward model's accuracy, held out",
    "correlation": "Reward model's rank correlation with ratings, held out",
}
"""How a reward model agrees with judgements: the figure's name -> its title."""


def write_report(folder: LoopFolder, status: str, instructions: str = "") -> None:
    """Write ``curves.png``, ``report.md`` and ``report.html`` from ``config.json`` and ``result.json``."""
    options = json.loads(folder.config.read_text(encoding="utf-8"))
    result = json.loads(folder.result.read_text(encoding="utf-8"))
    picture = folder.path / "curves.png"
    draw_rounds(picture, result["start"], result["rounds"], _rollouts(folder, len(result["rounds"])))
    blocks = [
        *_summary(options["settings"], result, status, instructions),
        Heading("Curves"),
        Picture(picture, "Held-out scores, KL, reward model's accuracy and length by round"),
        *_texts(result),
        *_options(options),
    ]
    (folder.path / "report.md").write_text(to_markdown(blocks), encoding="utf-8")
    (folder.path / "report.html").write_text(to_html(blocks), encoding="utf-8")


def rounds_table(start: Figures, rounds: Sequence[Figures]) -> Table:
    """Every figure, one column the start and one a round."""
    evaluations: list[Figures] = [start, *(one["evaluation"] for one in rounds)]
    models: list[Figures] = [{}, *(one["reward_model"] for one in rounds)]
    rows: list[tuple[str, list[str]]] = [
        ("Gold", [_estimate(one.get("gold")) for one in evaluations]),
        ("Gold, change from the start", [_estimate(one.get("gold_gain"), signed=True) for one in evaluations]),
        ("Reward model's score", [_estimate(one.get("reward")) for one in evaluations]),
        ("The same, change from the start", [_estimate(one.get("reward_gain"), signed=True) for one in evaluations]),
        ("KL from the start (nats a completion)", [_kl(one) for one in evaluations]),
        *(
            (title, [_with_interval(one.get(name), one.get(f"{name}_interval")) for one in models])
            for name, title in _AGREEMENT.items()
        ),
        ("The most it could be", [_number(_first(one, "best_accuracy", "best_correlation")) for one in models]),
        (
            "Judgements learned from",
            [str(_first(one, "comparisons", "ratings")["train"]) if one else "–" for one in models],
        ),
        ("Length (tokens)", [_number(one["length"]) for one in evaluations]),
        ("Cut by the length cap", [_number(one["clipped_ratio"]) for one in evaluations]),
        ("Entropy (nats a token)", [_number(one["entropy"]) for one in evaluations]),
        ("Distinct words", [_number(one["distinct_1"]) for one in evaluations]),
        ("Distinct word pairs", [_number(one["distinct_2"]) for one in evaluations]),
    ]
    shown = [[name, *cells] for name, cells in rows if set(cells) != {"–"}]
    return Table(["", "start", *(f"round {one['round']}" for one in rounds)], shown)


def _first(figures: Figures, *names: str) -> Any:
    """The figure that is there; None if none is."""
    return next((figures[name] for name in names if name in figures), None)


def _summary(settings: Figures, result: Figures, status: str, instructions: str) -> Iterator[Block]:
    start, rounds = result["start"], result["rounds"]
    yield Heading(f"Learning from feedback: {settings['env'] or settings['prompts']}", level=1)
    yield Paragraph(
        f"Model: {settings['model']}. {len(rounds)} of {settings['rounds']} rounds of {_judgements(settings)}, "
        f"and {settings['tokens_per_round']:,} tokens of {settings['algo'].upper()}. Seed: {settings['seed']}."
    )
    if status != "finished" and instructions:
        yield Paragraph(f"{status.capitalize()}. {instructions}")
    yield Heading("Held-out result")
    yield Paragraph(
        f"{start['prompts']} prompts of the {start['split']} split, which no stage learned from, one sampled "
        "completion each. In parentheses: 95 % intervals, by the percentile bootstrap over prompts; changes are "
        "paired by prompt; ± is the KL's standard error. Each round has a reward model of its own, whose scores have "
        "mean 0 and standard deviation 1 on samples of the start. The most its agreement with judgements could be "
        "is what the annotators' own noise allows."
    )
    yield rounds_table(start, rounds)


def _judgements(settings: Figures) -> str:
    """Who judged what."""
    given = f"{settings['feedback_kind']}s in {settings['judgements']}"
    if settings["annotators"] == "none":
        return given
    texts = (
        f"{settings['comparisons']} pairs, {'compared' if settings['feedback_kind'] == 'comparison' else 'rated'} by"
    )
    if settings["annotators"] == "people":
        return f"{texts} people" + (f" (and {given})" if settings["judgements"] else "")
    how = f"go by {settings['gold']} (noise {settings['noise']:g}), which the learner never saw"
    return f"{texts} simulated annotators that {how}"


def _texts(result: Figures) -> Iterator[Block]:
    columns = {"start": result["start"]["texts"]}
    columns |= {f"round {one['round']}": one["evaluation"]["texts"] for one in result["rounds"]}
    yield Heading("Texts")
    for number, first in enumerate(columns["start"]):
        items = [("Prompt", first["prompt"])]
        for stage, texts in columns.items():
            text = texts[number]
            scores = [f"{name} {text[name]:.2f}" for name in ("gold", "reward") if name in text]
            label = stage.capitalize() + (f" ({', '.join(scores)})" if scores else "")
            items.append((label, text["completion"]))
        yield Heading(f"Text {number + 1}", level=3)
        yield Texts(items)


def _options(options: Figures) -> Iterator[Block]:
    titles = {
        "settings": "Settings",
        "fit": "Options of the reward model's fit",
        "algorithm": "Options of the algorithm",
        "versions": "Versions",
    }
    for part, title in titles.items():
        yield Heading(title)
        yield Table(["", ""], [(name, _shown(value)) for name, value in options[part].items()], numeric=False)


# ---------------------------------------------------------------- curves


def draw_rounds(
    path: Path, start: Figures, rounds: Sequence[Figures], rollouts: Sequence[Sequence[Mapping[str, float]]]
) -> None:
    """Draw held-out scores, KL, the reward model's accuracy and the length by round, the rollouts in between.

    Args:
        path: the PNG file to write.
        start: the figures of the start.
        rounds: those of each round.
        rollouts: each round's logged metrics, a mapping an update.
    """
    figure = Figure(figsize=(11, 7), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
    FigureCanvasAgg(figure)  # no display, no pyplot: nothing global
    evaluations = [start, *(one["evaluation"] for one in rounds)]
    score, kl, agreement, length = figure.subplots(2, 2).flat
    _between(score, rollouts, "reward")
    for name, colour, label in (("gold", _GOLD, "gold"), ("reward", _PROXY, "reward model of the round")):
        known = [(at, one[name]) for at, one in enumerate(evaluations) if one.get(name)]
        _points(score, [(at, one["mean"], one["interval"]) for at, one in known], colour, label)
    _between(kl, rollouts, "kl/per_sequence")
    _points(kl, [(at, one["kl"], one["kl_interval"]) for at, one in enumerate(evaluations)], _GOLD, "held out")
    models = [(one["round"], one["reward_model"]) for one in rounds]
    name = next((name for name in _AGREEMENT for _, one in models if name in one), "accuracy")
    _points(agreement, [(at, one[name], one[f"{name}_interval"]) for at, one in models], _PROXY, "held out")
    _points(
        agreement, [(at, one[f"best_{name}"], None) for at, one in models], _INK, "the most it could be", style="--"
    )
    _between(length, rollouts, "completions/mean_length")
    _points(length, [(at, one["length"], None) for at, one in enumerate(evaluations)], _GOLD, "held out")
    titles = ("Score", "KL from the start (nats a completion)", _AGREEMENT[name], "Length (tokens)")
    for axes, title in zip((score, kl, agreement, length), titles, strict=True):
        _finish(axes, title, len(rounds))
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def _points(
    axes: Any, points: Sequence[tuple[float, float, Sequence[float] | None]], colour: str, label: str, style: str = "-"
) -> None:
    points = [point for point in points if point[1] is not None]
    if not points:
        return
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    axes.plot(xs, ys, style, color=colour, lw=1.8, marker="o", ms=4, label=label)
    for x, _, interval in points:
        if interval is not None:
            axes.plot([x, x], interval, color=colour, lw=1.2)


def _between(axes: Any, rollouts: Sequence[Sequence[Mapping[str, float]]], metric: str) -> None:
    """A round's rollouts, from its number less one to its number."""
    for number, rows in enumerate(rollouts):
        known = [(row[STEP], row[metric]) for row in rows if metric in row]
        if known:
            last = rows[-1][STEP]
            label = "training rollouts" if number == 0 else None
            xs = [number + tokens / last for tokens, _ in known]
            axes.plot(xs, [value for _, value in known], color=_FAINT, lw=1, label=label)


def _finish(axes: Any, title: str, rounds: int) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK, fontweight="bold")
    axes.set_xlabel("rounds", fontsize=9, color=_FAINT)
    axes.set_xlim(-0.1, max(1, rounds) + 0.1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(colors=_FAINT, labelsize=8.5, length=0)
    axes.grid(color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=_INK)


def _rollouts(folder: LoopFolder, rounds: int) -> list[list[dict[str, float]]]:
    return [RunFolder(folder.stage(round, POLICY).path).read_progress() for round in range(1, rounds + 1)]


# ---------------------------------------------------------------- cells


def _estimate(found: Figures | None, *, signed: bool = False) -> str:
    return "–" if found is None else _with_interval(found["mean"], found["interval"], signed=signed)


def _with_interval(value: float | None, interval: Sequence[float] | None, *, signed: bool = False) -> str:
    shown = _number(value, signed=signed)
    if interval is None:
        return shown
    return f"{shown} ({_number(interval[0], signed=signed)} to {_number(interval[1], signed=signed)})"


def _kl(one: Figures) -> str:
    if one["kl"] is None:
        return "–"
    error = one["kl_standard_error"]
    return f"{one['kl']:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:{'+' if signed else ''}.{3 if abs(value) < 10 else 1}f}"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
