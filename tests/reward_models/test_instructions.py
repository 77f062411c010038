"""The small language of verifiable instructions: how it is read, and when one holds."""

from __future__ import annotations

from typing import Any

import pytest

from reward_models import Instructions
from reward_models.instructions import Instruction, read_instructions


@pytest.mark.parametrize(
    ("kind", "value", "follows", "breaks"),
    [
        ("LEN", "2", ["one two", " one, two! ", "日本"], ["", "one", "one two three"]),
        ("LEN", "2-3", ["a b", "a b c"], ["a", "a b c d"]),
        ("LEN", ">=2", ["a b", "a b c d"], ["a"]),
        ("LEN", "<=2", ["", "a b"], ["a b c"]),
        ("LEN", "3-4 characters", ["abc", " abcd "], ["ab", "abcde"]),
        ("START", "the", ["The cat", " the"], ["theory", "a the", ""]),
        ("START", "Dear Ada,", ["Dear  ada, hello"], ["Dear Ada hello"]),
        ("END", "cat", ["a CAT", "cat\n"], ["a cat.", "concat", "cat dog"]),
        ("END", "a a", ["a a a"], ["a a b"]),
        ("END", "!", ["wow!"], ["wow"]),
        ("CONTAINS", "cat", ["the cat's"], ["concatenate", ""]),
        ("FORBID", "cat", ["concatenate", ""], ["the cat's"]),
        ("CONTAINS", "猫", ["大猫们"], ["狗"]),
    ],
)
def test_when_an_instruction_holds(kind: str, value: str, follows: list[str], breaks: list[str]) -> None:
    instruction = Instruction(kind, value)
    assert all(map(instruction.holds, follows))
    assert not any(map(instruction.holds, breaks))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("LEN 5 START red CONTAINS blue FORBID green END white", 5),
        ("Write a poem.\nLEN 5-10; START red\nAnswer:", 2),
        ("LEN=5;START: red", 2),
        ('CONTAINS "LEN; END" FORBID x', 2),
        ("Length and start, contains nothing.", 0),
        ("LENGTH 5, RESTART", 0),
        ("", 0),
    ],
)
def test_instructions_are_found_in_a_prompt(text: str, found: int) -> None:
    assert len(read_instructions(text)) == found


def test_what_is_read_can_be_written() -> None:
    text = 'LEN 5-10; START "Dear Ada"; CONTAINS = "a; END b"; FORBID green'
    found = read_instructions(text)
    assert [(one.kind, one.value) for one in found] == [
        ("LEN", "5-10"),
        ("START", "Dear Ada"),
        ("CONTAINS", "a; END b"),
        ("FORBID", "green"),
    ]
    assert read_instructions("; ".join(f'{one.kind} "{one.value}"' for one in found)) == found


CONSTRAINTS: list[Any] = [
    ["LEN 3", "START red", "FORBID green", "END green"],
    [("LEN", "3"), ["START", "red"], Instruction("FORBID", "green"), "END: green"],
    "LEN 3 START red FORBID green END green",
]


@pytest.mark.parametrize("given", CONSTRAINTS, ids=["strings", "pairs", "text"])
def test_a_text_is_paid_for_what_it_follows(given: Any) -> None:
    texts = ["red and blue", "red green", "green", "Red, blue, white, green"]
    assert Instructions()(texts, constraints=[given] * 4) == [0.75, 0.5, 0.25, 0.5]
    assert Instructions(mode="all")([*texts, "x"], constraints=[given] * 4 + [["LEN 1"]]) == [0, 0, 0, 0, 1]


def test_prompts_can_carry_them() -> None:
    reward = Instructions(column=None)
    assert reward(["a b", "a b"], prompts=["LEN 2; FORBID c", "No demands."]) == [1.0, None]
    assert Instructions("rules")(["a"], rules=[None]) == [None]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["LENGTH 5"], ValueError, "unknown instruction 'LENGTH'; did you mean 'LEN'"),
        (["contains 5"], ValueError, "unknown instruction 'contains'; did you mean 'CONTAINS'"),
        (["LEN five"], ValueError, "LEN wants 5, 5-10, >=5 or <=10, and perhaps 'characters', got 'five'"),
        (["LEN 5 letters"], ValueError, "got '5 letters'"),
        (["LEN 5-3"], ValueError, "empty range"),
        (["START"], ValueError, "instruction START needs a value"),
        ("START; LEN 3", ValueError, "instruction START needs a value"),
        ([5], TypeError, r"a string 'LEN 5' or a pair \['LEN', '5'\], got 5"),
        (5, TypeError, "instructions wants a list of instructions, got int 5"),
    ],
)
def test_what_cannot_be_read_says_why(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Instructions()(["a"], constraints=[given])


def test_a_missing_column_and_an_unknown_mode() -> None:
    with pytest.raises(
        ValueError, match="reads the column 'constraints', which is not there; did you mean 'constraint'"
    ):
        Instructions()(["a"], constraint=[["LEN 1"]])
    with pytest.raises(ValueError, match="unknown mode 'any'"):
        Instructions(mode="any")
