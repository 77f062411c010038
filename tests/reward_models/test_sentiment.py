"""The word list's rules, one by one, and their agreement with people."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_models import LexiconSentiment
from reward_models.sentiment import read_lexicon
from tests.reward_models.shared_data import records, shared_file

LEXICON = {"good": 2.0, "bad": -2.0, ":D": 3.0, "😀": 1.5, "no": -1.0}


def valence(text: str) -> float:
    """The sum before it is squashed to [-1, 1]."""
    score = LexiconSentiment(LEXICON)([text])[0]
    return score * math.sqrt(15.0 / (1.0 - score * score))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a good day", 2.0),
        ("good, bad", 0.0),
        ("Good and good", 4.0),
        ("GOOD day", 2.733),
        ("GOOD DAY", 2.0),  # all in capitals: they tell nothing
        ("very good", 2.293),
        ("very bad", -2.293),
        ("slightly good", 1.707),
        ("very nice good", 2.0 + 0.95 * 0.293),
        ("very x y good", 2.0 + 0.9 * 0.293),
        ("very x y z good", 2.0),
        ("not good", -1.48),
        ("wasn't a bad", 1.48),
        ("wasn’t a bad", 1.48),
        ("not x y z good", 2.0),
        ("no good", -1.48),  # here "no" negates, and is not bad itself
        ("no day", -1.0),
        ("bad but good", 0.5 * -2.0 + 1.5 * 2.0),
        ("good!", 2.292),
        ("bad!!!!!!", -2.0 - 4 * 0.292),
        ("day!!!", 0.0),
        ("x :D", 3.0),
        ("x😀😀", 3.0),
        ("(good)", 2.0),
        ("good/bad/good", 2.0),
        ("goodness", 0.0),
        ("", 0.0),
    ],
)
def test_one_rule_at_a_time(text: str, expected: float) -> None:
    assert valence(text) == pytest.approx(expected, abs=1e-9)


def test_the_built_in_words_tell_good_from_bad() -> None:
    scores = LexiconSentiment()(["I love this wonderful film!", "A stone.", "A terrible, boring waste.", "not happy"])
    assert scores[0] > 0.8
    assert scores[1] == 0.0
    assert scores[2] < -0.6
    assert scores[3] < 0.0


def test_other_languages_bring_their_own_words() -> None:
    german = LexiconSentiment({"gut": 2.0}, boosters={"sehr": 0.3}, negators=["nicht"])
    plain, strong, negated = german(["gut", "SEHR gut", "nicht gut"])
    assert negated < 0 < plain < strong


def test_a_lexicon_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("good\t1.9\t0.5\t[2, 1]\n:-)\t1.3\n\n", encoding="utf-8")
    assert read_lexicon(path) == {"good": 1.9, ":-)": 1.3}
    assert LexiconSentiment(path)(["good"]) == LexiconSentiment({"good": 1.9})(["good"])
    path.write_text("good\t1.9\nbad -2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: wants 'word<TAB>valence', got 'bad -2'"):
        LexiconSentiment(path)
    with pytest.raises(FileNotFoundError):
        LexiconSentiment(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("lexicon", "message"),
    [
        ({}, "the lexicon is empty"),
        ({"good": math.nan}, "valence of 'good' in the lexicon is no finite number: nan"),
        ({"good": "2"}, "no finite number: '2'"),
    ],
)
def test_lexicons_that_are_none(lexicon: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LexiconSentiment(lexicon)


def spearman(one: list[float], other: list[float]) -> float:
    def ranks(values: list[float]) -> Any:
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count - 1) / 2)[place]

    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


@pytest.mark.parametrize(
    ("file", "vader_floor", "built_in_floor"),
    [
        ("tweets", 0.82, 0.77),
        ("amazonReviewSnippets", 0.57, 0.55),
        ("movieReviewSnippets", 0.42, 0.41),
    ],
)
def test_people_agree(file: str, vader_floor: float, built_in_floor: float) -> None:
    """Spearman correlation with the mean of 20 people's ratings."""
    lexicon = shared_file("vader_human_sentiment/lexicon.tsv")
    rated = records(f"vader_human_sentiment/{file}.jsonl")
    texts, ratings = [row["text"] for row in rated], [row["score"] for row in rated]
    assert spearman(LexiconSentiment(lexicon)(texts), ratings) > vader_floor
    assert spearman(LexiconSentiment()(texts), ratings) > built_in_floor
