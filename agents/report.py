"""The report of a run: what changed, how sure that is, what the texts look like, and every setting."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from agents.curves import draw_curves
from agents.document import Block, Heading, Paragraph, Picture, Table, Texts, to_html, to_markdown
from agents.evaluation import Evaluation, Interval, difference
from agents.run_folder import RunFolder

_NUM_TEXTS = 3

Found: TypeAlias = Mapping[str, Mapping[str, Evaluation]]
"""Stage ("before", "after") -> kind ("sampled", "greedy") -> evaluation; a stage not reached is empty."""


def write_report(folder: RunFolder) -> None:
    """Write ``curves.png``, ``report.md`` and ``report.html`` from what the run's folder holds."""
    results = folder.read_results()
    found = {stage: read_evaluations(results.get(stage)) for stage in ("before", "after")}
    levels = {stage: {kind: one.mean for kind, one in kinds.items()} for stage, kinds in found.items()}
    picture = folder.path / "curves.png"
    draw_curves(picture, folder.read_progress(), levels)
    blocks: list[Block] = [
        *_summary(json.loads(folder.config.read_text(encoding="utf-8")), results, found),
        Heading("Learning curves"),
        Picture(picture, "Reward, KL, length and entropy over tokens"),
        *sample_texts(found),
        *_settings(json.loads(folder.config.read_text(encoding="utf-8"))),
    ]
    (folder.path / "report.md").write_text(to_markdown(blocks), encoding="utf-8")
    (folder.path / "report.html").write_text(to_html(blocks), encoding="utf-8")


def read_evaluations(found: Mapping[str, Any] | None) -> dict[str, Evaluation]:
    """The evaluations of a stage in ``results.json``: "sampled" and "greedy", of each task; empty if there are none."""
    return {kind: Evaluation.from_dict(data) for kind, data in (found or {}).items()}


def measures_table(found: Found) -> Table:
    """Every measure of some evaluations: one column a stage, and the paired change where there are two."""
    stages = [stage for stage in found if found[stage]]
    changes = len(stages) == 2
    rows: list[list[str]] = []
    for kind in dict.fromkeys(kind for stage in stages for kind in found[stage]):
        columns = [found[stage][kind] for stage in stages if kind in found[stage]]
        if not columns:
            continue
        change = [_with_interval(*difference(*columns), signed=True)] if changes else []
        rows.append([f"Reward, {kind}", *[_with_interval(one.mean, one.interval) for one in columns], *change])
        for label, read in _measures(columns[0]):
            figures = [read(one) for one in columns]
            if all(figure is None for figure in figures):
                continue
            change = [_signed(figures[1] - figures[0])] if changes and None not in figures else [""] * changes  # type: ignore[operator]
            rows.append([f"{label}, {kind}", *["–" if f is None else _number(f) for f in figures], *change])
    return Table(["", *stages, *(["change"] if changes else [])], rows)


def _measures(evaluation: Evaluation) -> Iterator[tuple[str, Callable[[Evaluation], float | None]]]:
    if len(evaluation.components) > 1:
        for name in evaluation.components:
            yield f"{name}", lambda one, name=name: one.components.get(name)  # type: ignore[misc]
    yield "Length (tokens)", lambda one: one.mean_length
    yield "Cut by the length cap", lambda one: one.clipped_ratio
    if not evaluation.greedy:
        yield "KL from the reference (nats a completion)", lambda one: one.kl_per_sequence
        yield "Entropy (nats a token)", lambda one: one.entropy
    yield "Distinct words", lambda one: one.distinct_1
    yield "Distinct word pairs", lambda one: one.distinct_2


def _summary(config: Mapping[str, Any], results: Mapping[str, Any], found: Found) -> Iterator[Block]:
    settings = config["settings"]
    source = settings["env"] or settings["data"] or ", ".join(settings["tasks"])
    yield Heading(f"{settings['algo'].upper()} on {source}", level=1)
    yield Paragraph(
        f"{config['resolved']['environment']['task']}. Reward: {config['resolved']['environment']['reward']}. "
        f"Model: {settings['model'] or 'GPT-2 from scratch'}. Seed: {settings['seed']}. "
        f"{results.get('tokens', 0):,} of {settings['total_tokens']:,} tokens"
        + (f" in {_duration(results['learn_seconds'])}." if "learn_seconds" in results else ".")
    )
    if results.get("status") == "interrupted":
        yield Paragraph(
            "This run was interrupted; what follows is what there was. Go on with: "
            f"textgen train --resume {settings['output']}"
        )
    yield Heading("Held-out result")
    if not found["before"]:
        yield Paragraph("The run ended before its first evaluation.")
        return
    one = next(iter(found["before"].values()))
    yield Paragraph(
        f"{one.num_prompts} prompts of the {one.split} split, which no stage learned from. In parentheses: 95 % "
        "intervals, by the percentile bootstrap over prompts; the change is paired by prompt. 'Before' is before RL, "
        "and after the supervised warm start where there is one."
    )
    if found["after"]:
        yield Paragraph(" ".join(_verdict(found, kind) for kind in found["before"]))
    yield measures_table(found)


def _verdict(found: Found, kind: str) -> str:
    """The main result in a sentence, and whether it can be told from chance."""
    before, after = found["before"][kind], found["after"][kind]
    change, interval = difference(before, after)
    sentence = (
        f"The mean reward of a {kind} completion went from {_number(before.mean)} to {_number(after.mean)}, "
        f"a change of {_with_interval(change, interval, signed=True)}"
    )
    if interval is not None and interval[0] <= 0 <= interval[1]:
        return f"{sentence}, which on these prompts cannot be told from chance."
    return f"{sentence}."


def sample_texts(found: Found) -> Iterator[Block]:
    """A few prompts with their completions before and after."""
    if not found["before"]:
        return
    yield Heading("Texts")
    yield Paragraph("The first prompts of that evaluation, completed greedily.")
    for kind, number in itertools.product([k for k, one in found["before"].items() if one.greedy], range(_NUM_TEXTS)):
        stages = {stage: kinds[kind].samples for stage, kinds in found.items() if kind in kinds}
        if number >= len(stages["before"]):
            continue
        sample = stages["before"][number]
        items = [("Prompt", sample.prompt)]
        if sample.reference is not None:
            items.append(("Reference", sample.reference))
        for stage, samples in stages.items():
            items.append((f"{stage.capitalize()} (score {samples[number].score:.3f})", samples[number].completion))
        yield Heading(f"Text {number + 1}" + ("" if kind == "greedy" else f", {kind}"), level=3)
        yield Texts(items)


def _settings(config: Mapping[str, Any]) -> Iterator[Block]:
    for part, title in (("settings", "Settings"), ("algorithm", "Options of the algorithm"), ("versions", "Versions")):
        yield Heading(title)
        rows = [(name, _shown(value)) for name, value in config[part].items()]
        if part == "settings":
            rows += [
                (f"{name} (resolved)", _shown(config["resolved"][name]))
                for name in ("learning_rate", "warm_start_epochs", "device")
            ]
        yield Table(["", ""], rows, numeric=False)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _with_interval(value: float, interval: Interval | None, *, signed: bool = False) -> str:
    show = _signed if signed else _number
    return show(value) if interval is None else f"{show(value)} ({show(interval[0])} to {show(interval[1])})"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if abs(value) < 10 else f"{value:+.1f}"


def _duration(seconds: float) -> str:
    """
    >>> _duration(75), _duration(7300)
    ('1 min 15 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
