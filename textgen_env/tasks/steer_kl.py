"""Built-in task: steer a known prior towards words that pay, without leaving it further than they are worth.

    g c   →   a n d d k a b a a c

What tuning for sentiment or against toxicity does to a language model, in miniature. The prior p is a Markov chain
(`textgen_env.tasks.markov`) that writes texts of a fixed length after a prompt of two words. The first few words of
the vocabulary are worth +1, all others −1, paid as they are written; the prior is fond of the others. What is to be
maximised is not that reward but

    J(π) = E_π[r] − β KL(π‖p),

r the sum over a completion, the KL that of whole completions, in nats. Its optimum is known exactly, by the soft
Bellman equation (Ziebart 2010; Todorov 2009; in language modelling Korbak et al. 2022):

    V_0 = 0,   V_n(a, b) = β log Σ_c p(c | a, b) exp((v(c) + V_{n−1}(b, c)) / β),   J* = V_T(prompt),
    π*_n(c | a, b) = p(c | a, b) exp((v(c) + V_{n−1}(b, c) − V_n(a, b)) / β).

As log π* = log p + (r − J*) / β for every completion, ``J(π) = J* − β KL(π‖π*)``: what a policy lacks is a divergence
from a known distribution.

The references are samples of the prior, so that supervised learning estimates it; that model is the reference of the
KL. At the default arguments, means over all prompts:

======================================  =====  ==============  =====
policy                                  E[r]   KL(π‖p), nats   J
======================================  =====  ==============  =====
the optimum, π*                         8.85   11.38           3.16
the prior itself                        −5.36  0               −5.36
uniformly random words                  −5     4.59            −7.29
the positive word "a", again and again  10     33.80           −6.90
======================================  =====  ==============  =====

The last is the hack: what a learner comes to that maximises r alone, as β → 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import numpy as np

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import check_ids
from textgen_env.tasks.markov import (
    FIRST_WORD_ID,
    Array,
    MarkovOracle,
    chain_prompts,
    chain_words,
    markov_oracle,
    text_of,
    words_only,
)
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.types import Prompt

_NOT_A_WORD = -20.0


def steer_kl(
    words: int = 16,
    steps: int = 10,
    positive: int = 4,
    texts_per_prompt: int = 128,
    sharpness: float = 1.0,
    beta: float = 0.5,
    seed: int = 0,
) -> TextTask:
    """A prompt for each pair of words, and texts of the prior that go on from it as its references.

    Only words are allowed, neither padding nor EOS: all texts have the same length, and every KL is finite.

    Args:
        words: how many there are, at most 52; the prompts are their ``words²`` ordered pairs.
        steps: words of a completion.
        positive: how many words are worth +1, the first ones; the others are worth −1.
        texts_per_prompt: references of a prompt.
        sharpness: standard deviation of the prior's logits; 0 makes every word equally likely.
        beta: the price of a nat; it does not change what the environment pays, which is r.
        seed: draws the prior and the references.

    The metadata of a prompt are its ``context_ids``, the tokens of its two words.

    >>> steer_kl(words=4, positive=1, steps=5, texts_per_prompt=2)
    TextTask('steer_kl', train=14, validation=2, test=0)

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    steering = Steering(words, steps, positive, sharpness, beta, seed)
    return TextTask(
        "steer_kl",
        chain_prompts(steering.prior, texts_per_prompt, seed),
        vocabulary=chain_words(words),
        max_new_tokens=steps,
        reward=WordValues(steering),
        oracle=partial(repeat_the_first_word, steps=steps),
        allowed_tokens=words_only,
    )


@dataclass(frozen=True)
class Steering:
    """The problem: a prior, what words are worth, and the price of a nat. See the module for the equations.

    Tables are [W, W, W]: the word before the last, the last one, the next one; with T in front, one a place.
    """

    words: int = 16
    steps: int = 10
    positive: int = 4
    sharpness: float = 1.0
    beta: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.positive < self.words:
            raise ValueError(f"positive must lie between 1 and words - 1 = {self.words - 1}, got {self.positive}")
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, got {self.beta}: at 0 the prior plays no part")

    @property
    def prior(self) -> MarkovOracle:
        """The chain p."""
        return markov_oracle(self.words, self.steps, self.sharpness, self.seed)

    @property
    def values_W(self) -> Array:
        """v: what each word is worth."""
        return np.where(np.arange(self.words) < self.positive, 1.0, -1.0)

    @property
    def optimum_WW(self) -> Array:
        """J*, for every prompt."""
        return _solved(self)[0]

    @property
    def log_policy_TWWW(self) -> Array:
        """log π*, at every place: it depends on how many words are left."""
        return _solved(self)[1]

    def objective_WW(self, log_policy: Array) -> Array:
        """J of a policy that is a chain itself, [W, W, W] or [T, W, W, W] of log π, finite; for every prompt."""
        gains = self.values_W - self.beta * (log_policy - self.prior.log_probs_WWW)
        return self.prior.expected(np.exp(log_policy), gains)


@lru_cache(maxsize=8)
def _solved(steering: Steering) -> tuple[Array, Array]:
    """The log-partition recursion, from the last place to the first."""
    value_WW = np.zeros((steering.words, steering.words))
    log_policy = []
    for _ in range(steering.steps):
        log_weights_WWW = steering.prior.log_probs_WWW + (steering.values_W + value_WW) / steering.beta
        log_partition_WW = np.logaddexp.reduce(log_weights_WWW, axis=-1)
        log_policy.append(log_weights_WWW - log_partition_WW[..., None])
        value_WW = steering.beta * log_partition_WW
    return value_WW, np.stack(log_policy[::-1])


@dataclass(frozen=True)
class WordValues:
    """r: each word pays its worth as it comes. Padding and EOS, which are no words, count as −1."""

    name: ClassVar[str] = "word_values"
    kind: ClassVar[str] = "dense"

    steering: Steering

    @property
    def bounds(self) -> tuple[float, float]:
        """Of a completion's total."""
        return -float(self.steering.steps), float(self.steering.steps)

    def __call__(self, completion_ids: list[list[int]]) -> list[list[float]]:
        """One number a token of every prefix or finished completion."""
        return [self.of(ids) for ids in completion_ids]

    def of(self, token_ids: Sequence[int]) -> list[float]:
        """One number a token."""
        check_ids(token_ids, FIRST_WORD_ID + self.steering.words)
        last = FIRST_WORD_ID + self.steering.positive
        return [1.0 if FIRST_WORD_ID <= token < last else -1.0 for token in token_ids]


@dataclass(frozen=True)
class RegularisedValues:
    """r + β log p(completion): J of a policy that always writes it. What has no probability counts as −20 nats."""

    name: ClassVar[str] = "regularised_values"
    kind: ClassVar[str] = "terminal"

    steering: Steering

    def __call__(self, completion_ids: list[list[int]], context_ids: list[tuple[int, int]]) -> list[float]:
        """One number a completion."""
        return [self._one(ids, context) for ids, context in zip(completion_ids, context_ids, strict=True)]

    def _one(self, ids: list[int], context: tuple[int, int]) -> float:
        values = WordValues(self.steering).of(ids)
        log_probs_T = np.maximum(self.steering.prior.log_prob(context, ids), _NOT_A_WORD)
        return sum(values) + self.steering.beta * float(log_probs_T.sum())


def repeat_the_first_word(prompt: Prompt, steps: int = 10) -> str:
    """What maximises r, whatever the prompt: a positive word, again and again."""
    return text_of([FIRST_WORD_ID] * steps)


RUNG = Rung(
    random=-7.3114,
    supervised=-5.4045,
    optimum=3.1263633,
    hack=Hack(
        "repeats one positive word, as a policy does that is not charged for leaving the prior",
        answer=repeat_the_first_word,
        naive=WordValues(Steering()),
        naive_score=10.0,
        robust=RegularisedValues(Steering()),
        robust_score=-6.9180,
    ),
)
