"""Scorers of summaries beside the human ceiling: SummEval's experts.

    python -m benchmarks.alignment --data ../shared/data --json benchmarks/results/alignment.json

`agents.alignment.human` compares a scorer with annotators as annotators compare with each other. The data at hand has
the *mean* of three experts' ratings from 1 to 5, not the three. A mean says much of them (4⅔ can only be 5, 5, 4), and
what it leaves open is tried both ways: ratings as alike, and as different, as each mean allows. The ceiling lies
between: the upper end says something, the lower one next to nothing.

ROUGE-L (the best over 11 references) and the number of words are measured here; the learned model's figures are those
of `benchmarks.preferences`, which fits it (cross-validated over articles).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.alignment.human import Consistency, rating_consistency
from benchmarks.measure import circumstances
from reward_models import Rouge
from textgen_env.tasks.records import read_jsonl

QUALITIES = ("relevance", "coherence")
EXPERTS, LOW, HIGH = 3, 1, 5
RESAMPLES = 300
LEARNED = "model, new articles"

Array = npt.NDArray[np.float64]


def alike(total: int) -> list[int]:
    """Ratings of so much in all, as alike as can be.

    >>> alike(13)
    [5, 4, 4]
    """
    each, rest = divmod(total, EXPERTS)
    return [each + (expert < rest) for expert in range(EXPERTS)]


def different(total: int) -> list[int]:
    """Ratings of so much in all, as different as the scale allows: as many as can be at its ends.

    >>> different(12), different(4)
    ([5, 5, 2], [2, 1, 1])
    """
    left = total - EXPERTS * LOW
    ratings = []
    for _ in range(EXPERTS):
        step = min(HIGH - LOW, left)
        ratings.append(LOW + step)
        left -= step
    return ratings


def matrix(means_I: Array, extreme: Any, seed: int = 0) -> Array:
    """Ratings (I, 3) with these means; which expert gave which is drawn, since nothing tells.

    Raises:
        ValueError: a mean is none of three whole numbers.
    """
    totals_I = np.rint(means_I * EXPERTS).astype(int)
    if np.abs(totals_I - means_I * EXPERTS).max() > 1e-6:
        raise ValueError(f"a mean of {EXPERTS} whole ratings is a multiple of 1/{EXPERTS}")
    ratings_IA = np.array([extreme(int(total)) for total in totals_I], dtype=np.float64)
    shuffled: Array = np.random.default_rng(seed).permuted(ratings_IA, axis=1)
    return shuffled


def summeval(data: Path, resamples: int = RESAMPLES) -> dict[str, Any]:
    """For each quality and scorer: Spearman with the experts, and the ceiling, at both extremes."""
    documents = {record["doc_id"]: record for _, record in read_jsonl(data / "summeval" / "documents.jsonl")}
    rated = [record for _, record in read_jsonl(data / "summeval" / "ratings.jsonl")]
    owners = [record["doc_id"] for record in rated]
    texts = [record["candidate"] for record in rated]
    references = [list(documents[owner]["references"]) for owner in owners]
    scorers: dict[str, Sequence[float]] = {
        "best-of-11 ROUGE-L": [float(score) for score in Rouge("L")(completions=texts, references=references)],
        "number of words": [float(len(text.split())) for text in texts],
    }
    found: dict[str, Any] = {}
    for quality in QUALITIES:
        means_I = np.array([float(record[quality]) for record in rated])
        tables = {"as alike as can be": matrix(means_I, alike), "as different as can be": matrix(means_I, different)}
        found[quality] = {
            scorer: {
                extreme: plain(rating_consistency(table_IA, scores, owners, resamples=resamples))
                for extreme, table_IA in tables.items()
            }
            for scorer, scores in scorers.items()
        }
    return found


def plain(found: Consistency) -> dict[str, Any]:
    """Figures as data for JSON."""
    return dataclasses.asdict(found)


def learned(results: Path) -> dict[str, Any]:
    """The learned model's Spearman with the experts' mean, as `benchmarks.preferences` has measured it."""
    figures = json.loads(results.read_text(encoding="utf-8"))["summeval"]["figures"]
    return {quality: figures[quality][LEARNED] for quality in QUALITIES}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that has summeval")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the bootstrap over articles")
    parser.add_argument(
        "--preferences",
        type=Path,
        default=Path(__file__).parent / "results" / "preferences.json",
        help="figures of the learned model",
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args(argv)
    began = time.process_time()
    result = {
        "figures": summeval(arguments.data, arguments.resamples),
        "learned": learned(arguments.preferences),
        "resamples": arguments.resamples,
        "cpu_seconds": round(time.process_time() - began, 1),
        "circumstances": circumstances("cpu"),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
