"""How far annotators agree, beyond chance, and how sure that is.

Shapes: I items, A annotators, C categories (or distinct values), U units: what gets one value from each annotator.
``counts_IC`` says how many annotators put an item into a category.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from reward_models.feedback.answers import Answer, Kind, Prefer, Rank, Rate, same_answer
from reward_models.feedback.types import Judgement

Level: TypeAlias = Literal["nominal", "ordinal", "interval", "ratio"]
Array: TypeAlias = npt.NDArray[np.float64]

LEVEL = 0.95
"""Of all intervals."""
RESAMPLES = 500


# ---------------------------------------------------------------- measures


def raw_agreement(counts_IC: npt.ArrayLike) -> float:
    """The share of agreeing pairs of annotators, averaged over the items with two or more answers; NaN without any.

    ``P_i = Σ_c n_ic (n_ic - 1) / (n_i (n_i - 1))``: Fleiss (1971), equation 3.

    >>> raw_agreement([[2, 0], [1, 1]])
    0.5
    """
    counts = np.asarray(counts_IC, dtype=np.float64)
    totals_I = counts.sum(-1)
    counts, totals_I = counts[totals_I >= 2], totals_I[totals_I >= 2]
    if not len(counts):
        return math.nan
    return float(((counts * (counts - 1)).sum(-1) / (totals_I * (totals_I - 1))).mean())


def cohen_kappa(first_I: Sequence[object], second_I: Sequence[object]) -> float:
    """Two annotators' agreement beyond the chance that their own shares of the categories give (Cohen, 1960).

    ``κ = (p_o - p_e) / (1 - p_e)``, ``p_e = Σ_c p_1(c) p_2(c)``; NaN where both always say the same one thing.

    Raises:
        ValueError: they have not judged the same number of items, or none.
    """
    if len(first_I) != len(second_I) or not first_I:
        raise ValueError(f"both annotators' answers to the same items are wanted, got {len(first_I)}, {len(second_I)}")
    n = len(first_I)
    observed = sum(a == b for a, b in zip(first_I, second_I, strict=True)) / n
    first, second = Counter(first_I), Counter(second_I)
    return _beyond(observed, sum(first[category] * second[category] for category in first) / n**2)


def fleiss_kappa(counts_IC: npt.ArrayLike) -> float:
    """Any annotators' agreement beyond the chance that all answers' shares of the categories give (Fleiss, 1971).

    ``κ = (P̄ - P̄_e) / (1 - P̄_e)``, ``P̄_e = Σ_c p_c²``; NaN where there is one category only. Who answered an item may
    differ from item to item; how many must not.

    Raises:
        ValueError: items have different numbers of answers, fewer than two, or there are none.
    """
    counts = np.asarray(counts_IC, dtype=np.float64)
    totals = set(counts.sum(-1).tolist()) if counts.size else set()
    if len(totals) != 1 or min(totals) < 2:
        raise ValueError(f"Fleiss' kappa wants as many answers for each item, two or more, got {sorted(totals)}")
    shares_C = counts.sum(0) / counts.sum()
    return _beyond(raw_agreement(counts), float((shares_C**2).sum()))


def krippendorff_alpha(
    counts_UC: npt.ArrayLike, values_C: Sequence[float] | None = None, *, level: Level = "nominal"
) -> float:
    """``α = 1 - D_o / D_e``: any number of annotators, answers may be missing (Krippendorff, 2011, with his library).

    Args:
        counts_UC: how many annotators gave each value to each unit.
        values_C: the values, in order; default: 0, 1, ….
        level: how far apart two values are: equal or not, by ranks, by their difference, by its ratio to their sum.

    Returns:
        1 for full agreement, 0 for chance; NaN where no unit has two answers, or all answers are the same.

    Raises:
        ImportError: krippendorff is not installed.
    """
    try:
        import krippendorff
    except ImportError as error:
        raise ImportError("Krippendorff's alpha needs a package: pip install textgen-env[feedback]") from error
    counts = np.asarray(counts_UC, dtype=np.float64)
    if counts.size == 0 or counts.sum(-1).max() < 2 or np.count_nonzero(counts[counts.sum(-1) >= 2].sum(0)) < 2:
        return math.nan
    return float(krippendorff.alpha(value_counts=counts, value_domain=values_C, level_of_measurement=level))


def ranks_of(ranking: Sequence[int]) -> list[int]:
    """The place of each item, from an order of items, best first: its inverse.

    >>> ranks_of([2, 0, 1])
    [1, 2, 0]
    """
    return [ranking.index(item) for item in range(len(ranking))]


def kendall_tau(first: Sequence[int], second: Sequence[int]) -> float:
    """The share of pairs of items that two rankings (items, best first) order alike, less that of the others.

    It is computed on the items' ranks. On the lists themselves, which hold items in the order of places, it is another
    number for 296 of the 576 pairs of rankings of four.

    >>> kendall_tau([0, 1, 2], [0, 1, 2]), kendall_tau([0, 1, 2], [2, 1, 0])
    (1.0, -1.0)

    Raises:
        ValueError: they do not rank the same items, 0 … k - 1, or fewer than two.
    """
    if sorted(first) != sorted(second) or sorted(first) != list(range(len(first))) or len(first) < 2:
        raise ValueError(f"two rankings of the same items, numbered from 0, are wanted, got {first} and {second}")
    places, others = ranks_of(first), ranks_of(second)
    pairs = list(itertools.combinations(range(len(first)), 2))
    return sum(1 if (places[a] < places[b]) == (others[a] < others[b]) else -1 for a, b in pairs) / len(pairs)


def _beyond(observed: float, chance: float) -> float:
    return math.nan if chance >= 1 else (observed - chance) / (1 - chance)


# ---------------------------------------------------------------- how sure


@dataclass(frozen=True)
class Figure:
    """A measure with its 95 % interval; None where too little is known."""

    value: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.interval is None else " [{:.3f}, {:.3f}]".format(*self.interval))


@dataclass(frozen=True)
class Tally:
    """How many of how many."""

    hits: int
    total: int

    @property
    def share(self) -> Figure:
        """With the interval of Wilson (1927); NaN of nothing."""
        if not self.total:
            return Figure(math.nan)
        share = self.hits / self.total
        return Figure(share, wilson(share, self.total))


def wilson(share: float, total: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``total`` ≥ 1 independent trials (Wilson, 1927).

    Of trials that may also count half (ties) the interval is a little wide: their variance is smaller.

    >>> [round(end, 3) for end in wilson(0.5, 10)]
    [0.237, 0.763]
    """
    z = 1.959963984540054
    width = z * z / total
    middle = (share + width / 2) / (1 + width)
    half = z * math.sqrt(share * (1 - share) / total + width / (4 * total)) / (1 + width)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrapped(
    measure: Callable[[npt.NDArray[np.intp]], float], items: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Figure:
    """A measure of all items, and the percentile interval over items drawn with replacement.

    Args:
        measure: the figure for the items with these numbers.
        items: how many there are.
        resamples: how often to draw; 0: no interval. Draws in which the measure is not defined (NaN) do not count;
            where they are most, there is no interval.
        seed: of the draws.
    """
    value = measure(np.arange(items))
    if items < 2 or math.isnan(value):
        return Figure(value)
    draw = np.random.default_rng(seed)
    found = np.array([measure(draw.integers(items, size=items)) for _ in range(resamples)])
    found = found[~np.isnan(found)]
    if len(found) <= resamples / 2:
        return Figure(value)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Figure(value, (float(low), float(high)))


# ---------------------------------------------------------------- of judgements


@dataclass(frozen=True)
class KindAgreement:
    """Agreement on the items of one kind that several annotators have judged."""

    items: int
    annotators: int
    answers: int
    figures: dict[str, Figure]
    """ratings: raw, alpha (interval). comparisons: raw, alpha (nominal), fleiss_kappa over the items with the commonest
    number of answers, cohen_kappa of two annotators. rankings: kendall_tau, the mean over pairs of annotators of an
    item, alpha (ordinal, of ranks). What is not defined is left out."""


@dataclass(frozen=True)
class Agreement:
    """All that judgements tell about annotators. Annotators go by their pseudonyms."""

    kinds: dict[Kind, KindAgreement] = field(default_factory=dict)
    gold: dict[str, Tally] = field(default_factory=dict)
    """How often each annotator gave the known answer."""
    repeats: dict[str, Tally] = field(default_factory=dict)
    """How often each annotator gave the same answer again."""
    first_shown: Tally = Tally(0, 0)
    """How often, of two texts, that shown first was preferred (ties apart): one half, if position has no sway."""


def measure_agreement(
    judgements: Iterable[Judgement], *, tolerance: float = 0.0, resamples: int = RESAMPLES, seed: int = 0
) -> Agreement:
    """How far annotators agree with each other, with known answers and with themselves.

    Which of a comparison's texts is called the first is drawn by the item's id. Annotators do not know who wrote which,
    so they cannot agree by chance on "the text of the better policy", as the kappas would have it.

    Args:
        judgements: as `FeedbackStore.judgements` gives them.
        tolerance: by how much ratings may differ to be the same, for gold items and repeats.
        resamples: see `bootstrapped`.
        seed: of the resampling.

    Raises:
        ImportError: krippendorff is not installed.
    """
    fresh: dict[Kind, dict[str, dict[str, Answer]]] = defaultdict(lambda: defaultdict(dict))
    gold: dict[str, list[bool]] = defaultdict(list)
    again: list[Judgement] = []
    first: list[bool] = []
    for judgement in judgements:
        item, answer = judgement.item, judgement.answer
        if judgement.purpose == "fresh":
            fresh[item.kind][item.id][judgement.annotator] = answer
        elif judgement.purpose == "repeat":
            again.append(judgement)
        elif item.gold is not None:
            gold[judgement.annotator].append(same_answer(answer, item.gold, tolerance))
        if isinstance(answer, Prefer) and answer.preferred is not None and judgement.shown:
            first.append(judgement.shown[0] == answer.preferred)
    repeats: dict[str, list[bool]] = defaultdict(list)
    for judgement in again:
        before = fresh[judgement.item.kind][judgement.item.id].get(judgement.annotator)
        if before is not None:
            repeats[judgement.annotator].append(same_answer(judgement.answer, before, tolerance))
    kinds: dict[Kind, KindAgreement] = {}
    for kind, by_item in fresh.items():
        shared = {id: answers for id, answers in by_item.items() if len(answers) >= 2}
        if shared and kind in _MEASURES:
            measures, count = _MEASURES[kind](shared), len(shared)
            figures = {
                name: bootstrapped(measure, count, resamples=resamples, seed=seed) for name, measure in measures.items()
            }
            kinds[kind] = KindAgreement(
                items=count,
                annotators=len({annotator for answers in shared.values() for annotator in answers}),
                answers=sum(map(len, shared.values())),
                figures={name: figure for name, figure in figures.items() if not math.isnan(figure.value)},
            )
    return Agreement(kinds, _tallies(gold), _tallies(repeats), Tally(sum(first), len(first)))


_Measure: TypeAlias = Callable[[npt.NDArray[np.intp]], float]
_Shared: TypeAlias = Mapping[str, Mapping[str, Answer]]
"""Item's id -> annotator -> answer; two or more annotators an item."""


def _tallies(found: Mapping[str, list[bool]]) -> dict[str, Tally]:
    return {annotator: Tally(sum(hits), len(hits)) for annotator, hits in sorted(found.items())}


def _counts(values: Iterable[Iterable[float]]) -> tuple[Array, list[float]]:
    """Counts [U, C] and the C values, from each unit's values."""
    units = [Counter(unit) for unit in values]
    domain = sorted({value for unit in units for value in unit})
    return np.array([[unit[value] for value in domain] for unit in units], dtype=np.float64), domain


def _of_ratings(shared: _Shared) -> dict[str, _Measure]:
    counts_IC, values = _counts(
        [answer.rating for answer in answers.values() if isinstance(answer, Rate)] for answers in shared.values()
    )
    return {
        "raw": lambda items: raw_agreement(counts_IC[items]),
        "alpha": lambda items: krippendorff_alpha(counts_IC[items], values, level="interval"),
    }


def _of_comparisons(shared: _Shared) -> dict[str, _Measure]:
    labels = [
        {annotator: _label(id, answer) for annotator, answer in answers.items() if isinstance(answer, Prefer)}
        for id, answers in shared.items()
    ]
    counts_IC = np.array([[list(item.values()).count(label) for label in range(3)] for item in labels], np.float64)
    commonest = Counter(map(len, labels)).most_common(1)[0][0]
    full = counts_IC.sum(-1) == commonest

    def fleiss(items: npt.NDArray[np.intp]) -> float:
        drawn = counts_IC[items][full[items]]
        return fleiss_kappa(drawn) if len(drawn) else math.nan

    measures: dict[str, _Measure] = {
        "raw": lambda items: raw_agreement(counts_IC[items]),
        "alpha": lambda items: krippendorff_alpha(counts_IC[items]),
        "fleiss_kappa": fleiss,
    }
    annotators = sorted({annotator for item in labels for annotator in item})
    if len(annotators) == 2:
        pairs = [(item[annotators[0]], item[annotators[1]]) for item in labels]
        measures["cohen_kappa"] = lambda items: cohen_kappa(*zip(*(pairs[item] for item in items), strict=True))
    return measures


def _label(id: str, answer: Prefer) -> int:
    """0 or 1 for a text, 2 for a tie; which text is 0 is drawn by the item's id."""
    flip = blake2b(id.encode()).digest()[0] & 1
    return 2 if answer.preferred is None else answer.preferred ^ flip


def _of_rankings(shared: _Shared) -> dict[str, _Measure]:
    ranked = [
        [answer.ranking for answer in answers.values() if isinstance(answer, Rank)] for answers in shared.values()
    ]
    taus = [
        np.mean([kendall_tau(first, second) for first, second in itertools.combinations(rankings, 2)])
        for rankings in ranked
    ]
    # A unit is a text in its item: the items are drawn as wholes, since an item's ranks hang together.
    places = [np.array([ranks_of(ranking) for ranking in rankings]).T for rankings in ranked]
    most = max(map(len, places))
    units = [np.stack([(text_UA == rank).sum(1) for rank in range(most)], axis=1) for text_UA in places]
    return {
        "kendall_tau": lambda items: float(np.mean([taus[item] for item in items])),
        "alpha": lambda items: krippendorff_alpha(np.concatenate([units[item] for item in items]), level="ordinal"),
    }


_MEASURES: dict[Kind, Callable[[_Shared], dict[str, _Measure]]] = {
    "rating": _of_ratings,
    "comparison": _of_comparisons,
    "ranking": _of_rankings,
}
