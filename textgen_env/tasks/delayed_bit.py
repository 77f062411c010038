"""Built-in task: the first token decides a reward that arrives only at the end; all that follows is small change.

    c 1 a b =   →   1 + + + + + + +

A prompt is a few noise letters with one bit among them. The first action must be the word of that bit; it earns 1,
paid with the last step. Of the ``steps − 1`` tokens that follow, each "+" pays .1 and each "-" −.1 as it comes, any
other 0. The episode is ``steps`` tokens long; an EOS ends it early: what it has earned is paid, the bit included, and
the tokens that were left are forgone.

It separates λ, critics and variance: the return of the first action is buried under the noise of the others.

- Optimum: ``1 + .1 (steps − 1)``, 1.7 by default: the bit and a "+" in every later step. Each part is at its own
  bound, so nothing earns more.
- A uniformly random policy expects ``1/V`` (`random_return`), .091 by default, V being the size of the vocabulary:
  "+" and "-" cancel out, and the bit is one of V tokens, whenever the episode ends.
- Hacks, by default: farming fillers from the first step ("+" throughout) earns .7, EOS at once 0, the bit and then
  EOS 1.0. The best that does not read the prompt, always the same bit and then "+", expects 1.2. Where the bit is
  left out of the reward (`fillers_only`), farming earns .8 and the right answer .7.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import ClassVar

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import check_ids, digits, draw_numbers, reference_oracle, word_ids
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.types import Prompt, StopReason

BITS = ("0", "1")
GOOD, BAD, SEPARATOR = "+", "-", "="
BIT_REWARD, FILLER_REWARD = 1.0, 0.1
_LETTERS = string.ascii_lowercase


def delayed_bit(
    steps: int = 8, noise: int = 3, letters: int = 4, num_prompts: int | None = None, seed: int = 0
) -> TextTask:
    """Prompts of ``noise`` letters and one bit in any order; the answer starts with the bit.

    Args:
        steps: the cap on an answer: the bit and ``steps − 1`` fillers.
        noise: noise letters of a prompt.
        letters: how many different ones there are, at most 26. There are ``2 (noise + 1) letters^noise`` prompts,
            512 by default.
        num_prompts: distinct prompts, drawn with ``seed``. Default: all, or 4096 where there are more.
        seed: seeds the draw.

    The metadata of a prompt are its ``bit_id``, the token of its bit.

    >>> delayed_bit(steps=4).prompts()[0]
    Prompt(text='0 a a a =', references=('0 + + +',), metadata={'bit_id': 2})

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    for name, value, lowest in (("steps", steps, 1), ("noise", noise, 0)):
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}")
    if not 1 <= letters <= len(_LETTERS):
        raise ValueError(f"letters must lie between 1 and {len(_LETTERS)}, got {letters}")
    words = (*BITS, GOOD, BAD, *_LETTERS[:letters], SEPARATOR)
    ids = word_ids(words)

    def prompt(number: int) -> Prompt:
        arrangement, letters_drawn = divmod(number, letters**noise)
        place, bit = divmod(arrangement, len(BITS))
        shown = [_LETTERS[digit] for digit in digits(letters_drawn, letters, noise)]
        shown.insert(place, BITS[bit])
        answer = [BITS[bit], *[GOOD] * (steps - 1)]
        return Prompt(" ".join([*shown, SEPARATOR]), (" ".join(answer),), {"bit_id": ids[BITS[bit]]})

    total = len(BITS) * (noise + 1) * letters**noise
    return TextTask(
        "delayed_bit",
        TextTask.from_pairs(map(prompt, draw_numbers(total, num_prompts, seed))).splits,
        vocabulary=words,
        max_new_tokens=steps,
        reward=DelayedBitReward(steps, good_id=ids[GOOD], bad_id=ids[BAD], vocab_size=len(words) + 2),
        oracle=reference_oracle,
    )


@dataclass(frozen=True)
class DelayedBitReward:
    """Pays fillers as they come and the bit at the end. Fillers past ``steps`` (of a raised cap) pay nothing."""

    name: ClassVar[str] = "delayed_bit"
    kind: ClassVar[str] = "dense"

    steps: int
    good_id: int
    bad_id: int
    vocab_size: int

    @property
    def bounds(self) -> tuple[float, float]:
        """Of a completion's total."""
        fillers = FILLER_REWARD * (self.steps - 1)
        return -fillers, BIT_REWARD + fillers

    def __call__(
        self, completion_ids: list[list[int]], bit_id: list[int], stop_reasons: list[StopReason | None]
    ) -> list[list[float]]:
        """One number a token of every prefix or finished completion."""
        return [self._one(*each) for each in zip(completion_ids, bit_id, stop_reasons, strict=True)]

    def _one(self, ids: list[int], bit_id: int, stop: StopReason | None) -> list[float]:
        check_ids(ids, self.vocab_size)
        pays = {self.good_id: FILLER_REWARD, self.bad_id: -FILLER_REWARD}
        rewards = [pays.get(token, 0.0) if 0 < i < self.steps else 0.0 for i, token in enumerate(ids)]
        if stop is not None and ids[0] == bit_id:
            rewards[-1] += BIT_REWARD
        return rewards


def random_return(letters: int = 4) -> float:
    """What a uniformly random policy expects: the bit by chance."""
    vocab = len(BITS) + 2 + letters + 1 + 2  # bits, fillers, letters, the separator; padding and EOS
    return BIT_REWARD / vocab


def fillers_only(completions: list[str]) -> list[float]:
    """The naive reward: the small change alone, in whatever place, and nothing for the bit."""
    return [FILLER_REWARD * (text.split().count(GOOD) - text.split().count(BAD)) for text in completions]


def _farmed(prompt: Prompt) -> str:
    """As many "+" as there are places."""
    return " ".join([GOOD] * len(prompt.references[0].split()))


RUNG = Rung(
    random=random_return(),
    supervised=1.7,
    optimum=1.7,
    hack=Hack(
        'Writes "+" from the first step on, where the bit belongs.',
        answer=_farmed,
        naive=fillers_only,
        naive_score=0.8,
        robust_score=0.7,
    ),
)
