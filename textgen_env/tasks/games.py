"""What small games with a known optimum share: prompts drawn by number, and token ids that can be counted on.

A game is played in its own vocabulary (`word_tokenizer`): id 0 is padding, 1 is EOS, then its words in order. Its
reward compares token ids, not text: a padding token leaves no trace in the text, but it takes a position.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from textgen_env.types import Prompt

EOS_ID = 1
_FIRST_WORD_ID = 2
_ALL_UP_TO = 4096

Pay: TypeAlias = Literal["fraction", "exact", "dense"]
"""How `MatchingPositions` pays; the optimum is 1 under each."""
_PAYS = get_args(Pay)


def word_ids(words: Sequence[str]) -> dict[str, int]:
    """Word -> its token id under ``word_tokenizer(words)``."""
    return {word: index for index, word in enumerate(words, start=_FIRST_WORD_ID)}


def check_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that the game's own tokenizer does not have.

    Raises:
        ValueError: an id is ``vocab_size`` or more.
    """
    if max(token_ids) >= vocab_size:
        raise ValueError(
            f"token {max(token_ids)} lies outside the game's own vocabulary of {vocab_size}: its reward compares "
            "token ids, so play it without tokenizer="
        )


def reference_oracle(prompt: Prompt) -> str:
    """The oracle of a task whose references are optimal: the first of them."""
    return prompt.references[0]


def draw_numbers(total: int, wanted: int | None, seed: int) -> Sequence[int]:
    """Distinct numbers of ``range(total)``: all in order, or ``wanted`` of them drawn with ``seed``.

    Args:
        total: how many there are.
        wanted: how many to draw; by default all where there are at most 4096, else 4096. A smaller draw is the
            beginning of a larger one with the same seed.
        seed: seeds the draw.

    Raises:
        ValueError: ``wanted`` is below 1 or above ``total``.
    """
    if wanted is not None and not 1 <= wanted <= total:
        raise ValueError(f"num_prompts must lie between 1 and the {total} distinct prompts there are, got {wanted}")
    wanted = min(total, _ALL_UP_TO) if wanted is None else wanted
    if wanted == total:
        return range(total)
    rng = random.Random(seed)
    drawn: dict[int, None] = {}
    while len(drawn) < wanted:
        drawn[rng.randrange(total)] = None
    return list(drawn)


def digits(number: int, base: int, length: int) -> list[int]:
    """The last ``length`` digits of ``number`` in ``base``, the highest first.

    >>> digits(13, base=4, length=3)
    [0, 3, 1]
    """
    return [number // base**place % base for place in reversed(range(length))]


@dataclass(frozen=True)
class MatchingPositions:
    """Compares the actions, one by one, with the prompt's ``target_ids``."""

    pay: Pay
    vocab_size: int

    def __post_init__(self) -> None:
        if self.pay not in _PAYS:
            raise ValueError(f"reward must be one of {', '.join(_PAYS)}; got {self.pay!r}")

    @property
    def name(self) -> str:
        """Its key in ``info["reward"]``."""
        return self.pay

    @property
    def kind(self) -> str:
        """Dense where each position pays at once."""
        return "dense" if self.pay == "dense" else "terminal"

    @property
    def bounds(self) -> tuple[float, float]:
        """Of a completion's total."""
        return 0.0, 1.0

    def __call__(self, completion_ids: list[list[int]], target_ids: list[tuple[int, ...]]) -> list[Any]:
        """One number a completion, or one a token where each position pays at once."""
        return [self._one(ids, target) for ids, target in zip(completion_ids, target_ids, strict=True)]

    def _one(self, ids: list[int], target: tuple[int, ...]) -> float | list[float]:
        check_ids(ids, self.vocab_size)
        if self.pay == "exact":
            return float(tuple(ids) == target)
        # Tokens past the last position, which a raised cap allows, match nothing.
        matches = [i < len(target) and token == target[i] for i, token in enumerate(ids)]
        if self.pay == "dense":
            return [match / len(target) for match in matches]
        return sum(matches) / len(target)


def random_match(positions: int, vocab: int, pay: Pay) -> float:
    """What uniformly random tokens expect of `MatchingPositions`.

    Position i, counted from 0, is reached with probability ``(1 − 1/V)^i``, no EOS having come before, and matches
    with probability 1/V.

    Args:
        positions: n, the length of the target, the EOS at its end included.
        vocab: V, the number of tokens drawn from, the EOS among them.
        pay: how matches are paid.
    """
    if pay == "exact":
        return float(vocab) ** -positions
    return (1 - (1 - 1 / vocab) ** positions) / positions
