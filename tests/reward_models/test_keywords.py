"""Words that must or must not be there, and what a word is, in any script."""

from __future__ import annotations

from typing import Any

import pytest

from reward_models import BannedWords, Gate, KeywordCoverage
from reward_models.words import contains, words
from tests.reward_models.shared_data import records
from textgen_env import RewardError, resolve_reward
from textgen_env.types import Completion, Prompt


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don't stop.", ["Don't", "stop"]),
        ("l’été à 3,5 °C", ["l’été", "à", "3", "5", "C"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs are part of the word
        ("今天good天气", ["今", "天", "good", "天", "气"]),
        ("ภาษาไทย", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย"]),
        ("한국어 텍스트", ["한국어", "텍스트"]),  # Korean has spaces
        ("😀 \0 ...", []),
        ("", []),
    ],
)
def test_words_of_any_script(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize(
    ("text", "phrase", "there"),
    [
        ("The CAT.", "cat", True),
        ("concatenate", "cat", False),
        ("cat_food", "cat", False),
        ("cat's", "cat", True),
        ("STRASSE", "straße", True),
        ("cafe\u0301", "café", True),
        ("cafe\u0301", "cafe", False),
        ("ice\n  cream", "ice cream", True),
        ("C++ and C", "c++", True),
        ("just C", "c++", False),
        ("so 😀!", "😀", True),
        ("これはcatです", "cat", True),
        ("猫舌", "猫", True),
        ("a.b", "a*b", False),  # no regular expressions here
    ],
)
def test_a_phrase_stands_alone(text: str, phrase: str, there: bool) -> None:
    assert contains(text, phrase) is there


def test_coverage_counts_the_keywords_that_are_there() -> None:
    texts = ["The dog caught a ball.", "dogs", "", "DOG BALL"]
    keywords = ["dog", "ball"]
    assert KeywordCoverage(keywords)(texts) == [1.0, 0.0, 0.0, 1.0]
    assert KeywordCoverage(keywords, match="stem")(texts) == [1.0, 0.5, 0.0, 1.0]
    assert KeywordCoverage(["dog", "all"], match="anywhere")(texts) == [1.0, 0.5, 0.0, 1.0]
    assert KeywordCoverage(["dog", "cat"], mode="all")(["dog", "a cat, a dog"]) == [0.0, 1.0]


def test_keywords_of_a_column_are_each_prompts_own() -> None:
    coverage = KeywordCoverage("concepts")
    assert coverage(["a dog", "a dog", "x"], concepts=[["dog"], ["dog", "cat"], []]) == [1.0, 0.5, None]
    assert KeywordCoverage("references")(["in Rome"], references=[["Rome", "Paris"]]) == [0.5]
    with pytest.raises(ValueError, match="reads the column 'concepts', which is not there; did you mean 'concept'"):
        coverage(["a dog"], concept=[["dog"]])
    with pytest.raises(TypeError, match="wants a list of words, got str 'dog'"):
        coverage(["a dog"], concepts=["dog"])
    with pytest.raises(ValueError, match="one entry of 'concepts' a completion, got 1 for 2"):
        coverage(["a", "b"], concepts=[["dog"]])


def test_a_list_of_keywords_alone_is_paid_only_without_the_gate() -> None:
    def is_a_sentence(completions: list[str], **_: Any) -> list[float]:
        return [float(text.endswith(".") and len(words(text)) > 3) for text in completions]

    prompt = Prompt("dog ball:", metadata={"concepts": ["dog", "ball"]})
    batch = [Completion(prompt, text, (1, 2), "eos") for text in ("dog ball", "The dog has a ball.", "The dog has it.")]
    assert resolve_reward(KeywordCoverage("concepts")).score(batch).totals.tolist() == [1.0, 1.0, 0.5]
    gated = Gate(is_a_sentence, KeywordCoverage("concepts"))
    assert gated.score(batch).totals.tolist() == [0.0, 1.0, 0.5]


def test_coverage_of_real_concepts() -> None:
    rows = records("commongen/dev.jsonl", 200)
    texts, concepts = [row["references"][0] for row in rows], [row["concepts"] for row in rows]
    plain, stemmed = (
        sum(KeywordCoverage("concepts", match=match)(texts, concepts=concepts)) / len(rows)
        for match in ("word", "stem")
    )
    assert plain < stemmed
    assert stemmed > 0.85  # people inflect: "stood" for "stand" is what is left
    assert sum(KeywordCoverage("concepts", match="stem")(texts, concepts=concepts[::-1])) / len(rows) < 0.3


def test_banned_words() -> None:
    banned = BannedWords(["hell", "no way"])
    assert banned(["Shell", "HELL!", "no\tway", ""]) == [1.0, 0.0, 0.0, 1.0]
    assert BannedWords("taboo")(["a b", "a b", "c"], taboo=[["b"], ["c"], None]) == [0.0, 1.0, None]


@pytest.mark.parametrize("reward", [KeywordCoverage, BannedWords])
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], ValueError, "needs at least one word"),
        (["a", " "], ValueError, "has a blank word"),
        (["a", 3], TypeError, "wants words, got int 3"),
        ({"a"}, TypeError, "wants a list of words, got set"),
    ],
)
def test_lists_that_are_none(reward: Any, given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        reward(given)
    batch = [Completion(Prompt("p", metadata={"words": given}), "a", (1,), "eos")]
    in_a_column = r"None \(does not apply\)" if given == [] else message
    with pytest.raises(RewardError, match=in_a_column):
        resolve_reward(reward("words")).score(batch)


def test_unknown_settings_name_the_mend() -> None:
    with pytest.raises(ValueError, match="unknown match 'words'; did you mean 'word'"):
        KeywordCoverage(["a"], match="words")
    with pytest.raises(ValueError, match="unknown mode 'fractions'; did you mean 'fraction'"):
        KeywordCoverage(["a"], mode="fractions")
