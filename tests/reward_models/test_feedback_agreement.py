"""Agreement: published examples, enumerations, and the mistakes that are made with it."""

import itertools
import math
from datetime import datetime, timezone

import numpy as np
import pytest
from scipy import stats

from reward_models.feedback import Item, Prefer, Rank, Rate, measure_agreement
from reward_models.feedback.agreement import (
    Tally,
    bootstrapped,
    cohen_kappa,
    fleiss_kappa,
    kendall_tau,
    krippendorff_alpha,
    ranks_of,
    raw_agreement,
)
from reward_models.feedback.types import Judgement

# Fleiss (1971), Table 1: 30 patients, 6 psychiatrists; depression, personality disorder, schizophrenia, neurosis, else.
DIAGNOSES = """
0 0 0 6 0  0 3 0 0 3  0 1 4 0 1  0 0 0 0 6  0 3 0 3 0  2 0 4 0 0  0 0 4 0 2  2 0 3 1 0  2 0 0 4 0  0 0 0 0 6
1 0 0 5 0  1 1 0 4 0  0 3 3 0 0  1 0 0 5 0  0 2 0 3 1  0 0 5 0 1  3 0 0 1 2  5 1 0 0 0  0 2 0 4 0  1 0 2 0 3
0 0 0 0 6  0 1 0 5 0  0 2 0 1 3  2 0 0 4 0  1 0 0 4 1  0 5 0 1 0  4 0 0 0 2  0 2 0 4 0  1 0 5 0 0  0 0 0 0 6
"""
DIAGNOSES_IC = np.array(DIAGNOSES.split(), dtype=int).reshape(30, 5)

# Krippendorff (2011), "Computing Krippendorff's alpha-reliability", C: 12 units, 4 observers, missing data.
_NONE = math.nan
OBSERVED_AU = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _NONE, _NONE, _NONE],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _NONE, 3],
        [_NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _NONE],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _NONE],
    ]
)
OBSERVED_UC = np.stack([(value == OBSERVED_AU).sum(0) for value in range(1, 6)], axis=1)


def test_fleiss_example():
    assert raw_agreement(DIAGNOSES_IC) == pytest.approx(0.5556, abs=5e-5)
    assert fleiss_kappa(DIAGNOSES_IC) == pytest.approx(0.430, abs=5e-4)


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorff_example(level, published):
    assert krippendorff_alpha(OBSERVED_UC, [1, 2, 3, 4, 5], level=level) == pytest.approx(published, abs=5e-4)


def test_cohen_by_hand():
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = .7, p_e = .5 · .6 + .5 · .4 = .5."""
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    assert cohen_kappa(*zip(*pairs, strict=True)) == pytest.approx(0.4)


def test_what_is_not_defined_is_nan():
    assert math.isnan(raw_agreement([[1, 0], [0, 1]]))
    assert math.isnan(cohen_kappa([1, 1], [1, 1]))
    assert math.isnan(fleiss_kappa([[2, 0], [2, 0]]))
    assert math.isnan(krippendorff_alpha([[2, 0], [2, 0]]))
    assert math.isnan(krippendorff_alpha([[2, 0], [0, 1]]))  # the other value has nobody to agree with
    assert math.isnan(krippendorff_alpha([[1, 0], [0, 1]]))
    with pytest.raises(ValueError, match=r"as many answers for each item, two or more, got \[2.0, 3.0\]"):
        fleiss_kappa([[2, 0], [2, 1]])
    with pytest.raises(ValueError, match="both annotators' answers"):
        cohen_kappa([1], [1, 2])


# ---------------------------------------------------------------- Kendall's tau

ORDERS = list(itertools.permutations(range(4)))


def by_definition(first, second):
    """Over the pairs of items: is a before b in both?"""
    agree = [
        (first.index(a) < first.index(b)) == (second.index(a) < second.index(b))
        for a, b in itertools.combinations(range(4), 2)
    ]
    return (2 * sum(agree) - len(agree)) / len(agree)


def on_id_lists(first, second):
    """The mistake: the lists of ids taken for lists of ranks."""
    agree = [(first[i] < first[j]) == (second[i] < second[j]) for i, j in itertools.combinations(range(4), 2)]
    return (2 * sum(agree) - len(agree)) / len(agree)


def wrong(tau):
    return sum(abs(tau(first, second) - by_definition(first, second)) > 1e-9 for first in ORDERS for second in ORDERS)


def test_tau_of_all_pairs_of_rankings_of_four():
    assert wrong(kendall_tau) == 0
    assert wrong(on_id_lists) == 296


def test_tau_against_scipy():
    for first, second in itertools.product(ORDERS[::5], ORDERS):
        assert kendall_tau(first, second) == pytest.approx(stats.kendalltau(ranks_of(first), ranks_of(second))[0])


@pytest.mark.parametrize("second", [[0, 1], [0, 1, 1], [1, 2, 3]])
def test_tau_wants_the_same_items(second):
    with pytest.raises(ValueError, match="rankings of the same items"):
        kendall_tau([0, 1, 2], second)


# ---------------------------------------------------------------- intervals


def test_wilson_interval():
    """Of 8 in 10: .490 to .943 (Newcombe, 1998, method 3, by its formula)."""
    share = Tally(8, 10).share
    assert share.value == 0.8
    assert share.interval == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert Tally(0, 4).share.interval[0] == 0
    assert math.isnan(Tally(0, 0).share.value)


def test_bootstrap_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=400)
    figure = bootstrapped(lambda items: float(values[items].mean()), 400, resamples=1000)
    error = values.std() / 20
    assert figure.interval == pytest.approx((figure.value - 1.96 * error, figure.value + 1.96 * error), abs=0.02)
    assert bootstrapped(lambda items: 0.0, 1).interval is None
    assert bootstrapped(lambda items: 0.0 if len(set(items)) == 9 else math.nan, 9).interval is None


# ---------------------------------------------------------------- of judgements


def said(item, annotator, answer, **more):
    return Judgement(item, annotator, answer, 1.0, 0, datetime(2024, 1, 1, tzinfo=timezone.utc), **more)


def compared(choices):
    """Comparisons: annotator -> an answer an item."""
    items = [Item.of(f"p{n}", ["a", "b"]) for n in range(len(choices["ada"]))]
    return [
        said(item, name, Prefer(preferred))
        for name, answers in choices.items()
        for item, preferred in zip(items, answers, strict=True)
    ]


def test_comparisons():
    judgements = compared({"ada": [0, 1, 0, 1, None, 0, 1, 1], "bob": [0, 1, 1, 1, None, 0, 0, 1]})
    found = measure_agreement(judgements, resamples=100).kinds["comparison"]
    assert (found.items, found.annotators, found.answers) == (8, 2, 16)
    assert found.figures["raw"].value == 0.75
    assert set(found.figures) == {"raw", "alpha", "fleiss_kappa", "cohen_kappa"}
    assert found.figures["raw"].interval[0] < 0.75 < found.figures["raw"].interval[1]


def test_the_order_of_a_files_columns_is_no_chance_agreement():
    """Blind annotators who all prefer the better policy agree, wherever its texts stand in the items."""
    judgements = compared({"ada": [0] * 40, "bob": [0] * 40})
    figures = measure_agreement(judgements, resamples=0).kinds["comparison"].figures
    assert figures["alpha"].value == figures["cohen_kappa"].value == figures["fleiss_kappa"].value == 1
    assert math.isnan(krippendorff_alpha([[2, 0]] * 40))  # what it would be by columns


def test_fleiss_goes_by_the_items_with_the_commonest_number_of_answers():
    judgements = compared({"ada": [0, 1, 0, 1], "bob": [0, 1, 1, 1], "cyd": [0, 1, 0, 1]})
    figures = measure_agreement(judgements[:-1], resamples=0).kinds["comparison"].figures
    three = measure_agreement(
        [judgement for judgement in judgements if judgement.item.prompt != "p3"], resamples=0
    ).kinds["comparison"]
    assert figures["fleiss_kappa"] == three.figures["fleiss_kappa"]
    assert "cohen_kappa" not in figures


def test_ratings_and_rankings():
    items = [Item.of(f"p{unit}", ["text"]) for unit in range(12)]
    ratings = [
        said(item, f"annotator {number}", Rate(value))
        for number, row in enumerate(OBSERVED_AU)
        for item, value in zip(items, row, strict=True)
        if not math.isnan(value)
    ]
    found = measure_agreement(ratings, resamples=0).kinds["rating"]
    assert found.items == 11  # one unit has a single value
    assert found.figures["alpha"].value == pytest.approx(0.849, abs=5e-4)

    orders = {"ada": [(0, 1, 2, 3), (3, 2, 0, 1)], "bob": [(0, 1, 3, 2), (3, 2, 0, 1)]}
    items = [Item.of(f"p{n}", list("abcd")) for n in range(2)]
    rankings = [
        said(item, name, Rank(order))
        for name, given in orders.items()
        for item, order in zip(items, given, strict=True)
    ]
    figures = measure_agreement(rankings, resamples=0).kinds["ranking"].figures
    assert figures["kendall_tau"].value == pytest.approx((4 / 6 + 1) / 2)
    ranks_AU = np.array([[*ranks_of(first), *ranks_of(second)] for first, second in orders.values()])
    counts_UC = np.stack([(ranks_AU == rank).sum(0) for rank in range(4)], axis=1)
    assert figures["alpha"].value == pytest.approx(krippendorff_alpha(counts_UC, level="ordinal"))


def test_gold_repeats_and_position():
    tested = [Item.of(f"g{n}", ["a", "b"], gold=Prefer(0)) for n in range(4)]
    own = [Item.of(f"p{n}", ["a"]) for n in range(3)]
    judgements = [
        *(said(item, "ada", Prefer(n // 3), purpose="gold", shown=(0, 1)) for n, item in enumerate(tested)),
        *(said(item, "ada", Rate(3)) for item in own),
        *(said(item, "ada", Rate(3 + n), purpose="repeat") for n, item in enumerate(own)),
    ]
    found = measure_agreement(judgements)
    assert found.gold == {"ada": Tally(3, 4)}
    assert found.repeats == {"ada": Tally(1, 3)}
    assert found.first_shown == Tally(3, 4)
    assert found.kinds == {}  # alone on every item
    assert measure_agreement(judgements, tolerance=1).repeats == {"ada": Tally(2, 3)}
    assert measure_agreement([]).kinds == {}
