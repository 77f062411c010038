"""Pictures for a page that is light or dark: SVG whose colours are the page's, and pieces that stand in tables."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from agents.curves import short
from benchmarks.comparison import PROFILE_THRESHOLDS
from benchmarks.records import PEERS, Run, kind
from benchmarks.statistics import Array, Estimate

# Algorithm -> its colour on light and on dark paper. Found by search: of the eight that learn by trial, every two lie
# 23 or more CIELAB units apart for normal vision and for all three kinds of colour blindness (Machado et al. 2009), and
# all have a contrast of 3 or more with the paper. Contenders of other libraries have their algorithm's colour and
# broken lines.
_PALETTE = {
    "ppo": ("#3e3efc", "#0a8fd7"),
    "grpo": ("#f06651", "#e80f0a"),
    "reinforce": ("#126c76", "#2df3b7"),
    "a2c": ("#da6bb6", "#c50079"),
    "dqn": ("#566408", "#dfcd6b"),
    "nlpo": ("#2596f2", "#bdcced"),
    "ilql": ("#9b1ba9", "#981bf5"),
    "expert_iteration": ("#755142", "#ac7b5e"),
    "supervised": ("#707889", "#98a0b5"),
    "best_of_n": ("#2b303b", "#e4e7ef"),
}
_SAME_ALGORITHM = {"rloo": "reinforce"}
_DASHES = {"ours": (), "sb3_": (5, 2), "trl_": (5, 1.5, 1.2, 1.5), "baseline": (1.5, 1.5)}
"""Lengths of strokes and gaps in line widths."""
_INK, _FAINT, _HAIR = "#1f2430", "#6b7285", "#e6e9f0"
_AS_VARIABLES = {_INK: "var(--ink)", _FAINT: "var(--faint)", _HAIR: "var(--hair)"} | {
    light: f"var(--c{number})" for number, (light, _) in enumerate(_PALETTE.values())
}
_GRID = 40
"""Points at which curves are averaged."""
_LEAST = 1e-3
"""Where a logarithmic axis begins at the latest."""


def _style() -> str:
    rules = [
        "".join(f"--c{number}: {colours[shade]}; " for number, colours in enumerate(_PALETTE.values()))
        for shade in (0, 1)
    ]
    return f":root {{ {rules[0]}}}\n@media (prefers-color-scheme: dark) {{ :root {{ {rules[1]}}} }}\n"


STYLE = (
    _style()
    + """
:root { --better: #0072b2; --worse: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --better: #4fa8e8; --worse: #ff9a4d; } }
svg { display: block; width: 100%; height: auto; }
svg.strip { display: inline-block; width: 7.5rem; height: 1rem; margin-left: .6rem; vertical-align: -.15rem; }
svg.swatch { display: inline-block; width: 2rem; height: .6rem; vertical-align: middle; }
.side-by-side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; color: var(--soft); margin: .6rem 0; }
.legend span { white-space: nowrap; }
.chance { display: block; padding: .1rem .4rem; border-radius: 3px; }
.chance small { display: block; color: var(--soft); }
"""
)
"""CSS rules that the drawings need."""


class Pens:
    """The colour and the dashes of every contender: those of its algorithm, else the next ones nobody has."""

    def __init__(self, contenders: Sequence[str]) -> None:
        names = list(_PALETTE)
        algorithms = {name: re.sub(r"^(sb3_|trl_)", "", name) for name in contenders}
        algorithms = {name: _SAME_ALGORITHM.get(algorithm, algorithm) for name, algorithm in algorithms.items()}
        free = [name for name in names if name not in algorithms.values()] or names
        others = sorted({algorithm for algorithm in algorithms.values() if algorithm not in _PALETTE})
        stand_ins = {algorithm: free[number % len(free)] for number, algorithm in enumerate(others)}
        self._colours = {
            name: _PALETTE[stand_ins.get(algorithm, algorithm)][0] for name, algorithm in algorithms.items()
        }

    def colour(self, contender: str) -> str:
        """As on light paper; `inline_svg` makes it the page's."""
        return self._colours[contender]

    def variable(self, contender: str) -> str:
        """The CSS variable of the colour."""
        return _AS_VARIABLES[self._colours[contender]]

    def dashes(self, contender: str) -> tuple[float, ...]:
        """Empty for an unbroken line."""
        return _DASHES[next((prefix for prefix in PEERS if contender.startswith(prefix)), kind(contender))]

    def line(self, contender: str) -> dict[str, Any]:
        """Keyword arguments of matplotlib's ``plot``."""
        dashes = self.dashes(contender)
        return {"color": self.colour(contender), "lw": 1.6, "ls": (0, dashes) if dashes else "-"}

    def legend(self, contenders: Sequence[str]) -> str:
        """A line of swatches with names: HTML."""
        items = []
        for name in contenders:
            broken = " ".join(f"{2 * length:g}" for length in self.dashes(name))
            line = f'<line x1="0" y1="5" x2="32" y2="5" style="stroke: {self.variable(name)}; stroke-width: 2.5; '
            swatch = f'<svg class="swatch" viewBox="0 0 32 10">{line}stroke-dasharray: {broken or "none"}"/></svg>'
            items.append(f"<span>{swatch} {html.escape(name)}</span>")
        return f'<div class="legend">{"".join(items)}</div>'


# --- curves -----------------------------------------------------------------------------------------------


def draw_curves(
    curves: Mapping[str, Sequence[Run]], levels: Mapping[str, float], pens: Pens, *, over: str, label: str, name: str
) -> str:
    """The score on the validation split while contenders learn: mean over seeds, band from the least to the most.

    Args:
        curves: contender -> its runs; a mean goes as far as all of the runs do.
        levels: contender -> score, drawn as a level line: those that do not learn from the environment.
        pens: of the contenders.
        over: "tokens"; or "cpu_seconds", on a logarithmic axis, for some take a hundred times as long as others.
        label: of that axis.
        name: unlike that of any other picture of the page.
    """
    figure, axes = _axes(label)
    if logarithmic := over != "tokens":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    field = "normalised" if all(point["normalised"] is not None for point in _points(curves)) else "score"
    for contender, runs in curves.items():
        xs_G, values_NG = on_one_grid([run["curve"] for run in runs], over, field, logarithmic=logarithmic)
        if len(runs) > 1:
            axes.fill_between(
                xs_G, values_NG.min(0), values_NG.max(0), color=pens.colour(contender), alpha=0.1, linewidth=0
            )
        axes.plot(xs_G, values_NG.mean(0), **pens.line(contender))
    for contender, level in levels.items():
        axes.axhline(level, **{**pens.line(contender), "lw": 1.1})
    axes.set_ylabel("normalised score" if field == "normalised" else "score", color=_FAINT)
    if field == "normalised":
        axes.set_ylim(min(-0.04, axes.get_ylim()[0]), max(1.04, axes.get_ylim()[1]))
    return inline_svg(figure, f"Score over {label}: {', '.join([*curves, *levels])}", name)


def on_one_grid(
    curves: Sequence[Sequence[Run]], over: str, field: str, *, logarithmic: bool = False
) -> tuple[Array, Array]:
    """Several curves, read off at the same points up to where the shortest ends.

    Args:
        curves: each a sequence of looks.
        over: their field that is the axis.
        field: the one that is read off.
        logarithmic: even steps of the axis's logarithm, from the second look on: the first is at the start.

    Returns:
        The points [G], and what the N curves are there [N, G].
    """
    xs = [[float(point[over]) for point in curve] for curve in curves]
    first, last = max(x[int(logarithmic)] for x in xs), min(x[-1] for x in xs)
    if logarithmic:
        first = max(first, _LEAST)
        xs_G = np.geomspace(first, max(first, last), _GRID)
    else:
        xs_G = np.linspace(first, last, _GRID)
    values = [[float(point[field]) for point in curve] for curve in curves]
    return xs_G, np.stack([np.interp(xs_G, x, y) for x, y in zip(xs, values, strict=True)])


def draw_profiles(profiles: Mapping[str, tuple[Array, Array, Array]], pens: Pens, *, name: str) -> str:
    """Performance profiles: the share of runs above every normalised score, with their intervals as bands."""
    figure, axes = _axes("normalised score τ")
    for contender, (shares_T, low_T, high_T) in profiles.items():
        axes.fill_between(PROFILE_THRESHOLDS, low_T, high_T, color=pens.colour(contender), alpha=0.08, linewidth=0)
        axes.plot(PROFILE_THRESHOLDS, shares_T, **pens.line(contender))
    axes.set_ylabel("share of runs above τ", color=_FAINT)
    axes.set_ylim(-0.03, 1.03)
    return inline_svg(figure, f"Performance profiles of {', '.join(profiles)}", name)


def _points(curves: Mapping[str, Sequence[Run]]) -> list[Run]:
    return [point for runs in curves.values() for run in runs for point in run["curve"]]


def _axes(label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.9, 2.9), frameon=False)
    axes = figure.subplots(gridspec_kw={"left": 0.13, "right": 0.97, "bottom": 0.16, "top": 0.97})
    axes.patch.set_visible(False)  # the page's paper shows through
    axes.set_xlabel(label, color=_FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    axes.tick_params(colors=_FAINT, labelcolor=_FAINT, length=0)
    axes.grid(color=_HAIR, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.margins(x=0.01, y=0.06)
    return figure, axes


def inline_svg(figure: Figure, title: str, name: str) -> str:
    """A figure as an ``<svg>`` that stands in a page: in the page's colours and letters, with words for who cannot see.

    Args:
        figure: drawn with the colours of this module.
        title: what it shows, in plain text.
        name: goes before its ids, which must not occur twice in a page.
    """
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10}):
        FigureCanvasSVG(figure).print_svg(file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'xlink:href="', 'href="', body)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda id_: f' id="{name}-{id_[1]}"' if id_[1] in used else "", body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    body = re.sub(r"(font: [^;\"]*px) [^;\"]*", r"\1 system-ui, sans-serif", body)
    body = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", body)
    for colour, variable in _AS_VARIABLES.items():
        body = body.replace(colour, variable)
    return f'<svg {box[0]} role="img" aria-label="{html.escape(title)}">{body}'.strip()


# --- pieces of tables -------------------------------------------------------------------------------------


def strip(found: Estimate, low: float, high: float, colour: str) -> str:
    """An interval as a stroke with a dot at the estimate, on a line from ``low`` to ``high``."""

    def at(value: float) -> float:
        return 4 + 112 * (min(max(value, low), high) - low) / ((high - low) or 1)

    ends = found.interval or (found.value, found.value)
    return (
        '<svg class="strip" viewBox="0 0 120 16" aria-hidden="true">'
        '<path d="M4 8H116M4 5V11M116 5V11" style="stroke: var(--line); fill: none"/>'
        f'<path d="M{at(ends[0]):.1f} 8H{at(ends[1]):.1f}" style="stroke: {colour}; stroke-width: 4; opacity: .5"/>'
        f'<circle cx="{at(found.value):.1f}" cy="8" r="4" style="fill: {colour}"/></svg>'
    )


def chance(text: str, interval: str, value: float) -> str:
    """A probability of improvement in a matrix: blue above ½, orange below, the stronger the surer."""
    colour = "--better" if value >= 0.5 else "--worse"
    share = round(100 * 1.1 * abs(value - 0.5))
    tint = f"background: color-mix(in srgb, var({colour}) {share}%, transparent)"
    return f'<span class="chance" style="{tint}">{html.escape(text)}<small>{html.escape(interval)}</small></span>'
