"""A benchmark's rows, each a figure beside its baseline and its target: measured, printed, written."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import circumstances


@dataclass
class Row:
    """One line of the table."""

    name: str
    unit: str
    value: float
    baseline: str = ""
    baseline_value: float | None = None
    ratio: float | None = None
    """How the value stands to the baseline's; for a "cost" row, how many times its time is spent."""
    target: str = ""
    """As ">= 1.05" or "<= 3"; it speaks of the ratio where there is one, else of the value."""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if not self.target:
            return None
        sign, bound = self.target.split()
        judged = self.value if self.ratio is None else self.ratio
        return judged >= float(bound) if sign == ">=" else judged <= float(bound)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """On purpose: with more, small models on a busy machine measure the scheduler."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measure(sections: Iterable[list[Row]], device: str, *, quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """All rows, told of as they come, and the circumstances. Targets speak of the real sizes: quick rows have none."""
    rows: list[Row] = []
    for section in sections:
        rows += section
        print(f"measured: {section[-1].name}", file=sys.stderr)
    return [replace(row, target="") for row in rows] if quick else rows, circumstances(device)


def publish(rows: Sequence[Row], where: Mapping[str, Any], facts: Mapping[str, Any], path: Path | None) -> None:
    """Print the table, and write it with ``facts`` about the run to ``path``, if there is one."""
    print(table(rows))
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    if path:
        write(rows, where, facts, path)


def write(rows: Sequence[Row], where: Mapping[str, Any], facts: Mapping[str, Any], path: Path) -> None:
    """The rows with their circumstances and ``facts`` about the run as JSON."""
    lines = [{**asdict(row), "met": row.met} for row in rows]
    report = {**facts, "circumstances": where, "rows": lines}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """The rows as plain text; notes follow as footnotes."""
    head = ("", "ours", "unit", "baseline", "ratio", "target", "met")
    cells: list[tuple[str, ...]] = [head]
    notes: list[str] = []
    for row in rows:
        mark = ""
        if row.note:
            notes.append(row.note)
            mark = f" [{len(notes)}]"
        baseline = "" if row.baseline_value is None else f"{_figure(row.baseline_value)} {row.baseline}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        met = "" if row.met is None else "yes" if row.met else "NO"
        cells.append((row.name + mark, _figure(row.value), row.unit, baseline, ratio, row.target, met))
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines + [f"[{index}] {note}" for index, note in enumerate(notes, 1)])


def _figure(value: float) -> str:
    if 0 < abs(value) < 0.005:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
