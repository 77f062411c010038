"""Exact match, token F1 and edit similarity against the definitions they are known by."""

from __future__ import annotations

import collections
import re
import string

import nltk
import pytest

from reward_models import EditSimilarity, ExactMatch, TokenF1
from reward_models.answers import squad_normalise
from tests.reward_models.shared_data import records

ANSWERS = [
    ("The Eiffel Tower!", ["eiffel tower", "Tower"]),
    ("an apple a day", ["the  apple day."]),
    ("", [""]),
    ("the", ["a"]),
    ("something", ["", "the"]),
    ("red red blue", ["red blue blue", "green"]),
    ("naïve café", ["naïve cafe"]),
    ("anthem", ["them"]),
]


def squad(text: str, target: str) -> tuple[float, float]:
    """Exact match and F1, step by step as in the SQuAD 2.0 evaluation script."""

    def tokens(answer: str) -> list[str]:
        kept = "".join(character for character in answer.lower() if character not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    found, wanted = tokens(text), tokens(target)
    shared = sum((collections.Counter(wanted) & collections.Counter(found)).values())
    if not found or not wanted:
        return float(found == wanted), float(found == wanted)
    if shared == 0:
        return 0.0, 0.0
    precision, recall = 1.0 * shared / len(found), 1.0 * shared / len(wanted)
    return float(" ".join(found) == " ".join(wanted)), (2 * precision * recall) / (precision + recall)


def web_answers() -> list[tuple[str, list[str]]]:
    rows = records("webquestions/val.jsonl", 300)
    # A question's own words, a neighbour's answer, or its own answer with an article.
    given = [
        (rows[at - 1]["answer"][0], row["question"], "The " + row["answer"][-1])[at % 3] for at, row in enumerate(rows)
    ]
    return [(text, row["answer"]) for text, row in zip(given, rows, strict=True)]


@pytest.mark.parametrize("source", ["written", "webquestions"])
def test_answers_are_scored_as_by_squad(source: str) -> None:
    pairs = ANSWERS if source == "written" else web_answers()
    texts, references = [text for text, _ in pairs], [own for _, own in pairs]
    exact = [max(squad(text, target)[0] for target in own) for text, own in pairs]
    f1 = [max(squad(text, target)[1] for target in own) for text, own in pairs]
    assert ExactMatch()(texts, references) == exact
    assert TokenF1()(texts, references) == pytest.approx(f1, abs=1e-12)
    assert 0 < sum(exact) < len(exact)
    assert set(f1) - {0.0, 1.0}


def test_the_normalisation_can_be_another() -> None:
    assert ExactMatch()(["Die Katze"], [["die katze"]]) == [1.0]
    assert ExactMatch(normalise=str)(["The Cat"], [["cat"]]) == [0.0]
    assert TokenF1(normalise=str.casefold)(["the cat"], [["cat"]]) == [pytest.approx(2 / 3)]
    assert squad_normalise("An  apple, the 'pie'") == "apple pie"


@pytest.mark.parametrize("source", ["written", "webquestions"])
def test_edit_similarity_is_levenshteins(source: str) -> None:
    pairs = ANSWERS if source == "written" else web_answers()[:100]
    expected = []
    for text, own in pairs:
        longest = [max(len(text), len(target), 1) for target in own]
        edits = [nltk.edit_distance(text, target) for target in own]
        expected.append(max(1 - count / length for count, length in zip(edits, longest, strict=True)))
    scores = EditSimilarity()([text for text, _ in pairs], [own for _, own in pairs])
    assert scores == pytest.approx(expected, abs=1e-12)
    assert len(set(scores)) > 3


def test_edits_of_words_or_of_characters() -> None:
    pair = (["the cats sat"], [["the cat sat"]])
    assert EditSimilarity()(*pair) == [pytest.approx(11 / 12)]
    assert EditSimilarity("words")(*pair) == [pytest.approx(2 / 3)]
    assert EditSimilarity("words").name == "edit_similarity_words"
    with pytest.raises(ValueError, match="unknown unit 'word'; did you mean 'words'"):
        EditSimilarity("word")


@pytest.mark.parametrize("reward", [ExactMatch(), TokenF1(), EditSimilarity()], ids=lambda reward: reward.name)
def test_an_answer_without_references_is_refused(reward: TokenF1) -> None:
    with pytest.raises(ValueError, match=f"{reward.name} needs a reference"):
        reward(["a"], [[]])
    with pytest.raises(ValueError, match=f"{reward.name} needs references"):
        reward(["a"])
