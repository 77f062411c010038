"""Learning curves of a run as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from agents.run_folder import STEP

_INK, _FAINT, _GRID = "#1f2430", "#8b93a7", "#e6e9f0"
_SAMPLED, _GREEDY = "#2563b8", "#d4691e"
# Panel -> (title, [(metric, label, colour)])
_PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Reward",
        (
            ("reward", "training rollouts", _FAINT),
            ("eval/reward_sampled", "held out, sampled", _SAMPLED),
            ("eval/reward_greedy", "held out, greedy", _GREEDY),
        ),
    ),
    (
        "KL from the reference (nats a completion)",
        (("kl/per_sequence", "training rollouts", _FAINT), ("eval/kl_per_sequence", "held out, sampled", _SAMPLED)),
    ),
    (
        "Length (tokens a completion)",
        (
            ("completions/mean_length", "training rollouts", _FAINT),
            ("eval/length_sampled", "held out, sampled", _SAMPLED),
            ("eval/length_greedy", "held out, greedy", _GREEDY),
        ),
    ),
    (
        "Entropy (nats a token)",
        (("entropy", "training rollouts", _FAINT), ("eval/entropy", "held out, sampled", _SAMPLED)),
    ),
)


def draw_curves(path: Path, rows: Sequence[Mapping[str, float]], levels: Mapping[str, Mapping[str, float]]) -> None:
    """Draw reward, KL, length and entropy over tokens.

    Args:
        path: the PNG file to write.
        rows: the logged metrics, a mapping an update (see `RunFolder.read_progress`).
        levels: "before" and "after" -> the mean held-out rewards "sampled" and "greedy", drawn as lines.
    """
    figure = Figure(figsize=(11, 7), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
    FigureCanvasAgg(figure)  # no display, no pyplot: nothing global
    entries: dict[str, Any] = {}  # the panels share colours, so one legend does, where it covers nothing
    for axes, (title, series) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        _panel(axes, title, series, rows)
        if title == "Reward":
            _draw_levels(axes, levels)
        handles, labels = axes.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
        if not handles:
            axes.text(0.5, 0.5, "not logged in this run", transform=axes.transAxes, ha="center", color=_FAINT)
    if entries:
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=len(entries),
            frameon=False,
            fontsize=9,
            labelcolor=_INK,
        )
    figure.savefig(path, format="png", dpi=130, metadata={"Software": None})


def _panel(axes: Any, title: str, series: Sequence[tuple[str, str, str]], rows: Sequence[Mapping[str, float]]) -> None:
    for metric, label, colour in series:
        points = [(row[STEP], row[metric]) for row in rows if metric in row]
        if not points:
            continue
        held_out = metric.startswith("eval/")
        marker = "o" if held_out or len(points) == 1 else None
        axes.plot(
            *zip(*points, strict=True), color=colour, lw=1.8 if held_out else 1.2, marker=marker, ms=3.5, label=label
        )
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK, fontweight="bold")
    axes.set_xlabel("tokens", fontsize=9, color=_FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: short(tokens)))
    axes.tick_params(colors=_FAINT, labelsize=8.5, length=0)
    axes.grid(color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.margins(x=0.02, y=0.12)


def _draw_levels(axes: Any, levels: Mapping[str, Mapping[str, float]]) -> None:
    """Where the report's own evaluations lie: dotted before RL, dashed after it, in the colours of the curves."""
    for stage, style in (("before", (0, (1, 2))), ("after", (0, (6, 3)))):
        for kind, colour in (("sampled", _SAMPLED), ("greedy", _GREEDY)):
            if kind in levels.get(stage, {}):
                axes.axhline(levels[stage][kind], color=colour, lw=1.2, ls=style, alpha=0.75)
        if levels.get(stage):
            axes.plot([], [], color=_INK, lw=1.2, ls=style, label=f"{stage} RL, final test")


def short(tokens: float) -> str:
    """A number as the label of an axis.

    >>> short(200_000), short(1_500_000), short(800)
    ('200k', '1.5M', '800')
    """
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(tokens) >= size:
            return f"{tokens / size:g}{unit}"
    return f"{tokens:g}"
