"""A scorer against people: how often it agrees with them, beside how often they agree with each other.

The ceiling leaves one annotator out at a time and asks how well that person's judgements agree with the others'. The
scorer is asked the same question about the same others, so that both face targets of the same noise: a scorer that
reaches the ceiling could stand in for one of the people (the idea of Calderon, Reichart and Dror, 2025, "The
alternative annotator test").

Shapes: I items (pairs of texts, or texts), A annotators; NaN where an annotator did not judge an item.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from reward_models.feedback.agreement import RESAMPLES, Figure, bootstrapped
from reward_models.preference.report import rank_correlation

Array: TypeAlias = npt.NDArray[np.float64]

FEWEST_RATINGS = 3
"""Texts that an annotator must share with others: a correlation of two is always 1 or −1."""


@dataclass(frozen=True)
class Consistency:
    """How consistent a scorer is with people; 95 % intervals, by the bootstrap over prompts."""

    measure: Literal["agreement", "spearman"]
    """Of comparisons: the share in which the same text is preferred, ties half. Of ratings: Spearman's ρ."""
    score: Figure
    """The scorer against all annotators: their majority, or their mean rating."""
    ceiling: Figure | None
    """A left-out annotator against the others; None where no item has two annotators (or no majority is left)."""
    alike: Figure | None
    """The scorer against the same others, on the same items: what the ceiling is to be compared with."""
    gap: Figure | None
    """``alike − ceiling``, paired: above 0 the scorer is more consistent with people than they with each other."""
    items: int
    annotators: int
    judgements: int
    """What left-out annotators said: pairs of annotator and item that the ceiling rests on."""


# ---------------------------------------------------------------- what people said


@dataclass(frozen=True)
class JudgedPairs:
    """I pairs of texts with the annotators' votes."""

    prompts_I: tuple[str, ...]
    texts_I: tuple[tuple[str, str], ...]
    votes_IA: Array
    """1: the first text is better, −1: the second, 0: a tie, NaN: not judged."""
    sources_I: tuple[tuple[str, str] | None, ...]
    """Who wrote the two texts, where that is known."""


@dataclass(frozen=True)
class RatedTexts:
    """I texts with the annotators' ratings."""

    prompts_I: tuple[str, ...]
    texts_I: tuple[str, ...]
    ratings_IA: Array


def judged_pairs(records: Iterable[Mapping[str, Any]]) -> JudgedPairs | None:
    """The votes in comparisons and rankings (each pair of a ranking is one); None where there are none.

    Args:
        records: with the fields of ``reward_models.feedback.export``; those of other kinds are passed over. Records
            without an "annotator" count as one person each, the n-th judgement of a pair as the n-th person's.
    """
    votes: dict[tuple[str, str, str], list[tuple[str | None, float]]] = defaultdict(list)
    written: dict[tuple[str, str, str], tuple[str, str]] = {}
    for record in records:
        texts = record.get("ranking") or [record[name] for name in ("chosen", "rejected") if name in record]
        sources = record.get("sources") or [None] * len(texts)
        for (better, its), (worse, others) in itertools.combinations(zip(texts, sources, strict=True), 2):
            if better == worse:
                continue  # nothing was judged
            first, second = sorted((better, worse))
            key = (record["prompt"], first, second)
            vote = 0.0 if record.get("tie") else 1.0 if better == first else -1.0
            votes[key].append((record.get("annotator"), vote))
            if its is not None:
                written[key] = (its, others) if better == first else (others, its)
    if not votes:
        return None
    return JudgedPairs(
        tuple(prompt for prompt, _, _ in votes),
        tuple((first, second) for _, first, second in votes),
        _by_annotator(list(votes.values())),
        tuple(written.get(key) for key in votes),
    )


def rated_texts(records: Iterable[Mapping[str, Any]]) -> RatedTexts | None:
    """The ratings among some records, as `judged_pairs` reads them; None where there are none."""
    ratings: dict[tuple[str, str], list[tuple[str | None, float]]] = defaultdict(list)
    for record in records:
        if "rating" in record:
            ratings[record["prompt"], record["completion"]].append((record.get("annotator"), float(record["rating"])))
    if not ratings:
        return None
    prompts, texts = zip(*ratings, strict=True)
    return RatedTexts(prompts, texts, _by_annotator(list(ratings.values())))


def _by_annotator(answers_I: Sequence[Sequence[tuple[str | None, float]]]) -> Array:
    """A column an annotator; who answered an item twice counts by the last answer."""
    columns: dict[str | int, int] = {}
    named = [
        {(number if name is None else name): value for number, (name, value) in enumerate(answers)}
        for answers in answers_I
    ]
    for answers in named:
        for name in answers:
            columns.setdefault(name, len(columns))
    table_IA = np.full((len(named), len(columns)), np.nan)
    for row, answers in enumerate(named):
        for name, value in answers.items():
            table_IA[row, columns[name]] = value
    return table_IA


# ---------------------------------------------------------------- comparisons


def pair_consistency(
    votes_IA: npt.ArrayLike,
    preferences_I: npt.ArrayLike,
    prompts_I: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Consistency:
    """Agreement of a scorer's preferences with the majority of the annotators, and of left-out annotators with theirs.

    An item counts where there is a majority: where votes balance, nobody can be right. A tie counts half.

    Args:
        votes_IA: 1, −1, 0 for a tie, NaN.
        preferences_I: the scorer's; the sign counts: the score of the first text less that of the second, say.
        prompts_I: whose items are drawn together in the bootstrap.

    Raises:
        ValueError: the numbers of items differ, or no item has a majority.

    >>> found = pair_consistency([[1, 1, -1], [-1, -1, -1]], [0.3, 0.1], ["p", "q"])
    >>> found.score.value, found.ceiling.value, found.alike.value
    (0.5, 0.75, 0.25)
    """
    votes_IA, signs_I = np.asarray(votes_IA, np.float64), np.sign(np.asarray(preferences_I, np.float64))
    _check(votes_IA, signs_I, prompts_I)
    majority_I = np.sign(np.nansum(votes_IA, axis=1))
    if not majority_I.any():
        raise ValueError("the annotators' votes balance on every pair: there is no majority to agree with")
    others_IA = np.sign(
        np.nansum(votes_IA, axis=1, keepdims=True) - votes_IA
    )  # NaN where there is no vote to leave out
    counts_IA = (~np.isnan(others_IA)) & (others_IA != 0)
    # A vote v against a majority m = ±1 earns (1 + v m)/2: 1, ½ for a tie, 0.
    people_I = np.where(counts_IA, (1 + votes_IA * others_IA) / 2, 0.0).sum(1)
    scorer_I = np.where(counts_IA, (1 + signs_I[:, None] * others_IA) / 2, 0.0).sum(1)
    total_I = counts_IA.sum(1).astype(np.float64)
    against_all_I = np.where(majority_I != 0, (1 + signs_I * majority_I) / 2, 0.0)

    _, owner_I = np.unique(np.asarray(prompts_I, dtype=object).astype(str), return_inverse=True)

    def figure(credit_I: Array, count_I: Array) -> Figure:
        credit_P, count_P = np.bincount(owner_I, credit_I), np.bincount(owner_I, count_I)

        def share(rows: npt.NDArray[np.intp]) -> float:
            count = count_P[rows].sum()
            return float(credit_P[rows].sum() / count) if count else math.nan

        return bootstrapped(share, len(count_P), resamples=resamples, seed=seed)

    shared = bool(total_I.any())
    return Consistency(
        "agreement",
        score=figure(against_all_I, (majority_I != 0).astype(np.float64)),
        ceiling=figure(people_I, total_I) if shared else None,
        alike=figure(scorer_I, total_I) if shared else None,
        gap=figure(scorer_I - people_I, total_I) if shared else None,
        items=len(votes_IA),
        annotators=votes_IA.shape[1],
        judgements=int(total_I.sum()),
    )


# ---------------------------------------------------------------- ratings


def rating_consistency(
    ratings_IA: npt.ArrayLike,
    scores_I: npt.ArrayLike,
    prompts_I: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Consistency:
    """Spearman's ρ of a scorer with the annotators' mean, and of left-out annotators with the mean of the others.

    The last two are means over annotators, by the number of texts that each shares with others (`FEWEST_RATINGS` at
    least): whether one is lenient and another strict does not matter.

    Args:
        ratings_IA: the ratings, NaN where there is none.
        scores_I: the scorer's.
        prompts_I: whose items are drawn together in the bootstrap.

    Raises:
        ValueError: the numbers of items differ, or scores or ratings do not vary.
    """
    ratings_IA, scores_I = np.asarray(ratings_IA, np.float64), np.asarray(scores_I, np.float64)
    _check(ratings_IA, scores_I, prompts_I)
    given_IA = ~np.isnan(ratings_IA)
    count_I = given_IA.sum(1)
    total_I = np.nansum(ratings_IA, axis=1)
    mean_I = total_I / np.maximum(count_I, 1)
    if rank_correlation(scores_I, mean_I) is None:
        raise ValueError("a correlation wants two texts or more, whose scores differ and whose ratings differ")
    left_out_IA = given_IA & (count_I[:, None] >= 2)
    others_IA = (total_I[:, None] - np.nan_to_num(ratings_IA)) / np.maximum(count_I[:, None] - 1, 1)
    _, owner_I = np.unique(np.asarray(prompts_I, dtype=object).astype(str), return_inverse=True)
    of_prompt = [np.flatnonzero(owner_I == owner) for owner in range(owner_I.max() + 1)]

    def with_others(values_IA: Array) -> Callable[[npt.NDArray[np.intp]], float]:
        def measure(rows: npt.NDArray[np.intp]) -> float:
            total, weight = 0.0, 0
            for annotator in range(ratings_IA.shape[1]):
                own = rows[left_out_IA[rows, annotator]]
                if len(own) < FEWEST_RATINGS:
                    continue
                found = rank_correlation(values_IA[own, annotator], others_IA[own, annotator])
                if found is not None:
                    total, weight = total + found * len(own), weight + len(own)
            return total / weight if weight else math.nan

        return _remembered(measure)

    def figure(measure: Callable[[npt.NDArray[np.intp]], float]) -> Figure:
        def of_prompts(drawn: npt.NDArray[np.intp]) -> float:
            return measure(np.concatenate([of_prompt[prompt] for prompt in drawn]))

        return bootstrapped(of_prompts, len(of_prompt), resamples=resamples, seed=seed)

    def with_all(rows: npt.NDArray[np.intp]) -> float:
        found = rank_correlation(scores_I[rows], mean_I[rows])
        return math.nan if found is None else found

    people, scorer = with_others(ratings_IA), with_others(np.repeat(scores_I[:, None], ratings_IA.shape[1], 1))
    shared = not math.isnan(people(np.arange(len(scores_I))))
    return Consistency(
        "spearman",
        score=figure(with_all),
        ceiling=figure(people) if shared else None,
        alike=figure(scorer) if shared else None,
        gap=figure(lambda rows: scorer(rows) - people(rows)) if shared else None,
        items=len(scores_I),
        annotators=ratings_IA.shape[1],
        judgements=int(left_out_IA.sum()),
    )


def _remembered(measure: Callable[[npt.NDArray[np.intp]], float]) -> Callable[[npt.NDArray[np.intp]], float]:
    """The same, each draw measured once: the gap's bootstrap draws what those of its two sides have drawn."""
    known: dict[bytes, float] = {}

    def measured(rows: npt.NDArray[np.intp]) -> float:
        key = rows.tobytes()
        if key not in known:
            known[key] = measure(rows)
        return known[key]

    return measured


def _check(table_IA: Array, values_I: Array, prompts_I: Sequence[str]) -> None:
    if table_IA.ndim != 2 or not len(table_IA) == len(values_I) == len(prompts_I) or not len(values_I):
        raise ValueError(
            f"a row of judgements, a score and a prompt for each item are wanted, got {table_IA.shape} judgements, "
            f"{len(values_I)} scores and {len(prompts_I)} prompts"
        )
