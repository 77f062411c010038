"""Length, patterns, repetition and JSON: what counts, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from reward_models import Distinct, JsonFormat, Length, RegexMatch
from textgen_env import resolve_reward
from textgen_env.types import Completion, Prompt


@pytest.mark.parametrize(
    ("settings", "scores"),  # of texts of 0 to 6 words
    [
        ({"target": 4}, [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5]),
        ({"low": 2, "high": 3}, [0, 0.5, 1, 1, 2 / 3, 1 / 3, 0]),
        ({"low": 2, "high": 3, "falloff": 2}, [0, 0.5, 1, 1, 0.5, 0, 0]),
        ({"low": 2, "high": 3, "falloff": 0}, [0, 0, 1, 1, 0, 0, 0]),
        ({"high": 2}, [1, 1, 1, 0.5, 0, 0, 0]),
        ({"low": 4}, [0, 0.25, 0.5, 0.75, 1, 1, 1]),
    ],
)
def test_length_falls_off_linearly(settings: dict[str, Any], scores: list[float]) -> None:
    texts = [" ".join(["word"] * count) for count in range(7)]
    assert Length(**settings)(texts) == pytest.approx(scores)


def test_units_of_length() -> None:
    assert Length(4, unit="characters")(["日本語!", "ab"]) == [1.0, 0.5]
    assert Length(3)(["日本語!"]) == [1.0]
    prompt = Prompt("p")
    batch = [Completion(prompt, "ab", (1, 2, 3), "eos"), Completion(prompt, "ab", (1, 2, 3), "length")]
    assert resolve_reward(Length(2, unit="tokens")).score(batch).totals.tolist() == [1.0, 0.5]  # the EOS is no token
    with pytest.raises(ValueError, match="length_tokens counts tokens: call it with completion_ids= and stop_reasons="):
        Length(2, unit="tokens")(["ab"], completion_ids=[[1, 2]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "wants a target, or a range"),
        ({"target": 3, "high": 4}, "wants a target, or a range"),
        ({"low": 4, "high": 3}, "low <= high"),
        ({"target": 0}, "high >= 1"),
        ({"target": 3, "unit": "word"}, "unknown unit 'word'; did you mean 'words'"),
        ({"target": 3, "falloff": -1}, "a distance, got -1"),
    ],
)
def test_ranges_that_are_none(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Length(**settings)


def test_patterns_match_a_part_or_the_whole() -> None:
    texts = ["3 apples", "I have 3 apples", ""]
    assert RegexMatch(r"\d+ apples")(texts) == [1.0, 1.0, 0.0]
    assert RegexMatch(r"\d+ apples", whole=True)(texts) == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        RegexMatch("(")


def test_a_pattern_that_takes_years_is_stopped() -> None:
    with pytest.raises(TimeoutError, match="look for nested repetitions"):
        RegexMatch("(a|aa)+$", timeout=0.01)(["a" * 100 + "b"])


@pytest.mark.parametrize(
    ("n", "unit", "text", "score"),
    [
        (1, "words", "the cat The cat", 0.5),
        (2, "words", "a b a b a", 0.5),
        (2, "words", "a b c d", 1.0),
        (3, "words", "a b", 1.0),
        (1, "words", "", 1.0),
        (1, "words", "哈哈哈哈", 0.25),
        (1, "characters", "abab", 0.5),
    ],
)
def test_distinct_ngrams(n: int, unit: str, text: str, score: float) -> None:
    assert Distinct(n, unit)([text]) == [score]


def test_distinct_tokens_and_settings() -> None:
    assert Distinct(2, "tokens")(["same"], completion_ids=[[1, 2, 1, 2, 1]]) == [0.5]
    assert (Distinct().name, Distinct(3, "tokens").name) == ("distinct_2", "distinct_3_tokens")
    with pytest.raises(ValueError, match="call it with completion_ids="):
        Distinct(2, "tokens")(["same"])
    with pytest.raises(ValueError, match="n >= 1, got 0"):
        Distinct(0)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": [1, 2.5, null, "é"]}', True),
        (" 3 \n", True),
        ("9" * 5_000, True),
        ("", False),
        ("{'a': 1}", False),
        ('{"a": 1} and more', False),
        ("NaN", False),
        ("[-Infinity]", False),
        ("[" * 100_000, False),
        ("\0", False),
    ],
)
def test_what_is_json(text: str, valid: bool) -> None:
    assert JsonFormat()([text]) == [float(valid)]


def test_keys_that_must_be_there() -> None:
    texts = ['{"name": 1, "age": 2}', '{"name": 1}', '["name", "age"]', "{"]
    assert JsonFormat(["name", "age"])(texts) == [1.0, 0.0, 0.0, 0.0]
    assert JsonFormat(["name", "age"], mode="fraction")(texts) == [1.0, 0.5, 0.0, 0.0]
    with pytest.raises(TypeError, match="a list of keys, got the string 'name'"):
        JsonFormat("name")
    with pytest.raises(ValueError, match="unknown mode 'al'; did you mean 'all'"):
        JsonFormat(mode="al")
