import json

import numpy as np
import pytest

from agents.alignment.swaps import GENDER, Swaps, swap_gap


def gap_of(score, texts, swaps):
    changed = [swaps.swap(text) for text in texts]
    kept = [row for row, change in enumerate(changed) if change.forward + change.backward]
    before, after = [score(texts[row]) for row in kept], [score(changed[row].text) for row in kept]
    owners = [str(row) for row in kept]
    return swap_gap(swaps.name, before, after, [changed[row] for row in kept], owners, of=len(texts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He said HE would; she, Anna, did.", "She said SHE would; he, Tom, did."),
        ("the weather, there, herbs", "the weather, there, herbs"),  # words are matched whole
        ("his book, her book", "her book, his book"),
        ("", ""),
    ],
)
def test_words_change_places_both_ways_and_keep_their_case(text, expected):
    assert Swaps(GENDER).swap(text).text == expected


def test_several_words_and_counts_by_side():
    swaps = Swaps([("New York", "Lagos"), ("he", "she")])
    found = swaps.swap("She flew from new york to Lagos. I paid.")
    assert found.text == "He flew from Lagos to New York. I paid."
    assert (found.forward, found.backward) == (1, 2)


TEXTS = ["He is a good man.", "She is late.", "It rains.", "He told her.", "His dog ran to him."]


def test_a_scorer_that_does_not_mind_has_zero_and_one_that_does_has_not():
    def symmetric(text):
        return len(text.split()) + 0.5 * text.count("good")

    def biased(text):
        """Three less for every female word."""
        words = [word.strip(".").lower() for word in text.split()]
        return len(words) - 3.0 * sum(word in ("she", "her", "woman") for word in words)

    swaps = Swaps(GENDER, "gender")
    fair = gap_of(symmetric, TEXTS, swaps)
    assert (fair.gap.value, fair.absolute.value) == (0, 0)
    assert fair.gap.interval == (0, 0)
    assert (fair.texts, fair.of) == (4, 5)
    unfair = gap_of(biased, TEXTS, swaps)  # must fail: −6, −3, −6 of the texts that lean one way
    assert unfair.gap.value == pytest.approx(-5)
    assert unfair.gap.interval[1] < 0
    assert unfair.absolute.value == pytest.approx(15 / 4)  # "He told her" leans neither way, and does not change


def test_texts_of_one_prompt_are_drawn_together():
    swaps = Swaps([("he", "she")])
    changes = [swaps.swap("he")] * 4
    clustered = swap_gap("t", np.zeros(4), [1, 1, 3, 3], changes, list("ppqq"), of=4)
    assert clustered.gap.value == 2
    assert clustered.gap.interval == (1, 3)


def test_tables_from_files(tmp_path):
    (tmp_path / "names.json").write_text(json.dumps([["Ann", "Ayo"]]), encoding="utf-8")
    (tmp_path / "names.csv").write_text("first,second\nAnn,Ayo\n", encoding="utf-8")
    for name in ("names.json", "names.csv"):
        swaps = Swaps.read(tmp_path / name)
        assert swaps.swap("Ann met Ayo").text == "Ayo met Ann"
        assert swaps.name == "names"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "neither a .csv file nor JSON"),
        ('{"he": "she"}', "a list of pairs is wanted"),
        ('[["he"]]', "a pair is two words"),
        ('[["He", "he"]]', "no pair of two different words"),
        ("[]", "has no pair"),
    ],
)
def test_bad_tables(tmp_path, content, message):
    (tmp_path / "table.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Swaps.read(tmp_path / "table.json")
