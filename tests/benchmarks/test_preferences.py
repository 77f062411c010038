"""What the reward models of the benchmark read, and that no article or system is on both sides."""

import numpy as np
import pytest

from benchmarks.preferences import _accuracy, _agreement, _folds, fluency_view, overlap_view

DOCUMENT = "the cat sat . a dog ran home , it rained . then night fell on us all today"  # 19 words


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("the cat sat .", "head0 + + ."),
        ("a dog ran", "head2 + +"),
        ("dog ran home , it", "mid2 + + , +"),
        ("The CAT slept", "head0 + new"),
        ("zebra , zebra", "new mid4 new"),
        ("night fell on night fell on", "mid6 + + mid6 + again"),
        ("", ""),
    ],
)
def test_overlap_view_by_hand(text, view):
    assert overlap_view(DOCUMENT, text) == view


def test_the_longest_fragment_is_taken():
    """ "a" occurs twice; the fragment "a b c" begins at the second."""
    assert overlap_view("a x a b c d", "a b c") == "mid3 + +"


def test_fluency_view_by_hand():
    ranks, pairs = {"the": 0, "cat": 40}, {("", "the"), ("the", "cat")}
    view = fluency_view("uno dos 1999 Berlin", "the cat cat 1999 2000 berlin zebra", ranks, pairs)
    assert view == "ratio7 0 3 ~3 number number! copied ~rare"


def test_folds_keep_names_together():
    names = [f"article {index % 25}" for index in range(400)]
    folds = _folds(names, 5)
    assert all(len({fold for name, fold in zip(names, folds, strict=True) if name == one}) == 1 for one in set(names))
    assert np.bincount(folds).tolist() == [80] * 5


def test_agreement_and_its_gain():
    human = np.random.default_rng(0).normal(size=200)
    owners = [str(index // 10) for index in range(200)]
    noise = np.random.default_rng(1).normal(size=200)
    found = _agreement(human, human, owners, against=noise, draws=200)
    assert found["spearman"] == 1
    assert found["gain_interval"][0] > 0.5
    none = _agreement(noise, human, owners, against=noise, draws=200)  # must fail: nothing gained over itself
    assert none["gain_interval"] == [0, 0]
    assert none["interval"][0] < 0 < none["interval"][1]


def test_equal_scores_count_half():
    pairs = [{"language": "kk", "source": str(index)} for index in range(4)]
    assert _accuracy(np.array([1.0, 0.0, -1.0, 2.0]), pairs)["accuracy"] == 0.625
