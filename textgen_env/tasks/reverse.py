"""Built-in task: write the symbols of the prompt backwards (or as they are, or sorted), then stop.

    c a b =   →   b a c <eos>

It separates credit assignment (one number at the end for ``length + 1`` decisions) from exploration (the exact
reward pays nothing until everything is right). With ``n = length + 1`` positions, the EOS being the last, and a
vocabulary of V tokens (the symbols, the separator, padding and EOS):

============  =========================================  =================================  =======
reward        pays                                       a uniformly random policy expects  optimum
============  =========================================  =================================  =======
``fraction``  matching positions / n, at the end         (1 − (1 − 1/V)^n) / n              1
``dense``     1/n for a matching position, at once       (1 − (1 − 1/V)^n) / n              1
``exact``     1 if all n positions match, at the end     V^−n                               1
============  =========================================  =================================  =======

(Position i is reached with probability (1 − 1/V)^i and matches with probability 1/V. `random_return` computes it.
With ``mask=True`` only symbols and EOS are drawn, V = symbols + 1.)

Hacks, and what closes them, for 3 symbols of 8 and ``fraction``: EOS at once earns 0, since no first symbol is EOS;
one symbol written up to the cap earns 3/8 of a position in 4, .094; the same with the EOS in its place .344, the best
that can be had without reading the prompt. Length is no way around: the EOS counts in its own place only. A reward
that counts neither places nor the EOS (`unordered_overlap`) gives full marks to a single symbol of the prompt,
repeated for ever.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

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
from textgen_env.tokenizer import TextTokenizer
from textgen_env.types import Prompt

Mode = Literal["reverse", "copy", "sort"]

SEPARATOR = "="
_SYMBOLS = string.ascii_letters
_TARGETS: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "reverse": lambda symbols: list(reversed(symbols)),
    "copy": list,
    "sort": sorted,
}


def reverse(
    length: int = 3,
    symbols: int = 8,
    mode: Mode = "reverse",
    reward: Pay = "fraction",
    num_prompts: int | None = None,
    seed: int = 0,
    mask: bool = False,
) -> TextTask:
    """Prompts of ``length`` symbols and a separator; the answer is their reversal and an EOS.

    Args:
        length: symbols of a prompt.
        symbols: how many different ones there are, at most 52 (a to z, A to Z).
        mode: the answer: "reverse", "copy" or "sort" (in the order of the alphabet).
        reward: "fraction", "exact" or "dense" (see the module's table); the optimum is 1 under each.
        num_prompts: distinct prompts, drawn with ``seed``. Default: all, or 4096 where there are more.
        seed: seeds the draw.
        mask: allow symbols and EOS only, never padding or the separator.

    The metadata of a prompt are its ``target_ids``: what the actions are compared with, the EOS included.

    >>> task = reverse(length=3, symbols=8)
    >>> task.prompts()[0].text, task.prompts()[0].references
    ('a a a =', ('a a a',))

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    if not 2 <= symbols <= len(_SYMBOLS):
        raise ValueError(f"symbols must lie between 2 and {len(_SYMBOLS)}, got {symbols}")
    if mode not in _TARGETS:
        raise ValueError(f"mode must be one of {', '.join(_TARGETS)}; got {mode!r}")
    words = (*_SYMBOLS[:symbols], SEPARATOR)
    ids = word_ids(words)

    def prompt(number: int) -> Prompt:
        shown = [words[digit] for digit in digits(number, symbols, length)]
        target = _TARGETS[mode](shown)
        target_ids = (*(ids[word] for word in target), EOS_ID)
        return Prompt(" ".join([*shown, SEPARATOR]), (" ".join(target),), {"target_ids": target_ids})

    return TextTask(
        mode,
        TextTask.from_pairs(map(prompt, draw_numbers(symbols**length, num_prompts, seed))).splits,
        vocabulary=words,
        max_new_tokens=length + 1,
        reward=MatchingPositions(reward, vocab_size=len(words) + 2),
        oracle=reference_oracle,
        allowed_tokens=symbols_or_eos if mask else None,
    )


copy = partial(reverse, mode="copy")
"""`reverse` with the mode "copy"."""

sort = partial(reverse, mode="sort")
"""`reverse` with the mode "sort"."""

reverse_dense = partial(reverse, reward="dense")
"""`reverse` with the reward "dense": the credit for each symbol comes with it, so that every algorithm learns it."""


def symbols_or_eos(prompt: Prompt, actions: Sequence[int], tokenizer: TextTokenizer) -> range:
    """The ids between padding, the first of the game's vocabulary, and the separator, the last."""
    return range(1, tokenizer.vocab_size - 1)


def random_return(length: int = 3, symbols: int = 8, reward: Pay = "fraction", mask: bool = False) -> float:
    """What a uniformly random policy expects, in every mode: the formulas of the module's table."""
    return random_match(length + 1, symbols + (1 if mask else 3), reward)


def unordered_overlap(completions: list[str], references: list[list[str]]) -> list[float]:
    """The naive reward: the share of the written symbols that occur in the answer, wherever they stand.

    It scores neither the order nor where the text ends.
    """
    return [_overlap(text.split(), answers[0].split()) for text, answers in zip(completions, references, strict=True)]


def _overlap(written: list[str], answer: list[str]) -> float:
    return sum(word in answer for word in written) / max(1, len(written))


def _one_symbol(prompt: Prompt) -> str:
    """The first symbol of the prompt, once for every position."""
    first, *others = prompt.text.split()
    return " ".join([first] * (1 + len(others)))


RUNG = Rung(
    random=random_return(),
    supervised=1.0,
    optimum=1.0,
    hack=Hack(
        "Writes one symbol of the prompt over and over, and never stops.",
        answer=_one_symbol,
        naive=unordered_overlap,
        naive_score=1.0,
        robust_score=0.3010,
    ),
)
"""Of ``reverse()`` and, since they differ in when they pay alone, of ``reverse_dense()``."""
