"""Built-in task: add two numbers, digit by digit, the lowest digit first, then stop.

    5 2 + 1 9 =   →   6 1 1 <eos>          (25 + 91 = 116)

All numbers are written with the lowest digit first, as one adds by hand: each digit of the answer then follows from
the two above it and the carry. The numbers of a prompt have ``places`` digits, leading zeros included; the sum has
none, so where it stops is part of the answer.

It separates exploration from memorising. A fifth of the pairs is held out (a tenth each for validation and test), so a
table of all sums seen is worth nothing there; and the ``exact`` reward, which is the task's own, is one bit that random
tokens never see. With n positions in an answer, the EOS being the last, and V = base + 4 tokens (the digits, "+", "=",
padding and EOS), means over all pairs at the default arguments:

============  =========================================  =================================  ======  =======
reward        pays                                       a uniformly random policy expects          optimum
============  =========================================  =================================  ======  =======
``exact``     1 if all n positions match, at the end     V^−n                               .0002   1
``fraction``  matching positions / n, at the end         (1 − (1 − 1/V)^n) / n              .0646   1
``dense``     1/n for a matching position, at once       (1 − (1 − 1/V)^n) / n              .0646   1
============  =========================================  =================================  ======  =======

Hack: the first digit needs no carry, and a reward that counts the digits that were written (`right_of_written`), rather
than those that should have been, pays in full for it alone. Under ``exact`` the same answer earns what it is worth: it
is right where the sum has one digit.
"""

from __future__ import annotations

import string

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import (
    EOS_ID,
    MatchingPositions,
    Pay,
    digits,
    draw_numbers,
    random_match,
    reference_oracle,
    word_ids,
)
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.types import Prompt

PLUS, EQUALS = "+", "="
_DIGITS = string.digits + string.ascii_lowercase


def add(
    places: int = 2, base: int = 10, reward: Pay = "exact", num_prompts: int | None = None, seed: int = 0
) -> TextTask:
    """Prompts of two numbers; the answer is their sum and an EOS.

    Args:
        places: digits of each number. There are ``base^(2 places)`` pairs, 10,000 by default.
        base: of the number system, at most 36 (0 to 9, a to z).
        reward: "exact", "fraction" or "dense" (see the module's table); the optimum is 1 under each.
        num_prompts: distinct prompts, drawn with ``seed``. Default: all, or 4096 where there are more.
        seed: seeds the draw.

    The metadata of a prompt are its ``target_ids``: what the actions are compared with, the EOS included.

    >>> task = add(places=1)
    >>> [(prompt.text, prompt.references) for prompt in task.prompts()[-2:]]
    [('9 + 7 =', ('6 1',)), ('9 + 9 =', ('8 1',))]

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if places < 1:
        raise ValueError(f"places must be at least 1, got {places}")
    if not 2 <= base <= len(_DIGITS):
        raise ValueError(f"base must lie between 2 and {len(_DIGITS)}, got {base}")
    words = (*_DIGITS[:base], PLUS, EQUALS)
    ids = word_ids(words)

    def prompt(number: int) -> Prompt:
        first, second = divmod(number, base**places)
        left, right = (_written(each, base, places) for each in (first, second))
        answer = _written(first + second, base, _num_digits(first + second, base))
        target_ids = (*(ids[digit] for digit in answer), EOS_ID)
        shown = " ".join([*left, PLUS, *right, EQUALS])
        return Prompt(shown, (" ".join(answer),), {"target_ids": target_ids})

    return TextTask(
        "add",
        TextTask.from_pairs(map(prompt, draw_numbers(base ** (2 * places), num_prompts, seed))).splits,
        vocabulary=words,
        max_new_tokens=places + 2,
        reward=MatchingPositions(reward, vocab_size=len(words) + 2),
        oracle=reference_oracle,
    )


def _num_digits(number: int, base: int) -> int:
    count = 1
    while number >= base**count:
        count += 1
    return count


def _written(number: int, base: int, length: int) -> list[str]:
    """The digits, the lowest first."""
    return [_DIGITS[digit] for digit in reversed(digits(number, base, length))]


def random_return(places: int = 2, base: int = 10, reward: Pay = "exact") -> float:
    """What a uniformly random policy expects, a mean over all pairs: the formulas of the module's table."""
    numbers = base**places
    expected = 0.0
    for total in range(2 * numbers - 1):
        pairs = min(total, 2 * (numbers - 1) - total) + 1
        expected += pairs * random_match(_num_digits(total, base) + 1, base + 4, reward)
    return expected / numbers**2


def right_of_written(completions: list[str], references: list[list[str]]) -> list[float]:
    """The naive reward: the share of the written digits that are right in their place, however few there are."""
    return [_right(text.split(), answers[0].split()) for text, answers in zip(completions, references, strict=True)]


def _right(written: list[str], answer: list[str]) -> float:
    return sum(map(str.__eq__, written, answer)) / max(1, len(written))


def _lowest_digit(prompt: Prompt) -> str:
    return prompt.references[0].split()[0]


RUNG = Rung(
    random=random_return(),
    supervised=1.0,
    optimum=1.0,
    hack=Hack(
        "Writes the lowest digit, which needs no carry, and stops.",
        answer=_lowest_digit,
        naive=right_of_written,
        naive_score=1.0,
        robust_score=0.0,
    ),
)
