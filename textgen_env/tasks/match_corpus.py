"""Built-in task: write as a corpus does, where the distribution that the corpus was drawn from is known.

    g c   →   a n n d k o b a p c c h

The corpus is drawn from a Markov chain of second order: the next word follows from the two words before it, the
first two being the prompt. All texts have the same length, so that nobody wins by writing less. Nobody rewards a
single text here; what counts is the *distribution* of the completions, policy q against chain p, and both directions
of the divergence are needed to judge it:

- KL(q‖p) = E_q[log q − log p], estimated with samples of the policy and its own log-probabilities: whether what it
  writes could stand in the corpus. It forgives a policy that knows only some of the texts.
- KL(p‖q) = E_p[log p − log q], estimated with held-out texts (the references of the other splits): whether it could
  have written what stands there. The policy that knows only some of the texts pays here, without bound.

Both are 0 at the optimum q = p, where the policy's NLL under the chain is the chain's entropy. For a policy that is a
chain itself `MarkovOracle.expected` is exact; for any other, log p is `MarkovOracle.log_prob`.

The task's own reward is that log-likelihood, log p(completion), and it is the trap: the policy that maximises it
writes the one most likely completion, always, which is what the task's ``oracle`` does. Exact means over all prompts
at the default arguments, in nats a completion:

==========================================  =====  =======  ===========
policy                                      NLL    KL(q‖p)  its entropy
==========================================  =====  =======  ===========
the chain itself, the optimum               19.50  0        19.50
uniformly random words                      52.62  19.35    33.27
the most likely completion: mode collapse   6.66   6.66     0
==========================================  =====  =======  ===========

KL(p‖q) of the collapsed policy is infinite. A discriminator between corpus and policy as the reward is what the task
is for (`reward_models.discriminator`).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from textgen_env.tasks.dataset import SPLITS, TextTask, split_of
from textgen_env.tasks.games import EOS_ID, check_ids, digits, word_ids
from textgen_env.tokenizer import TextTokenizer
from textgen_env.types import Prompt

Array = npt.NDArray[np.float64]

_WORDS = string.ascii_letters
_FIRST = EOS_ID + 1
_NOT_A_WORD = -20.0


def match_corpus(
    words: int = 16,
    steps: int = 12,
    texts_per_prompt: int = 32,
    sharpness: float = 2.0,
    seed: int = 0,
    mask: bool = False,
) -> TextTask:
    """A prompt for each pair of words, and texts of the chain that go on from it as its references.

    Args:
        words: how many there are, at most 52; the prompts are their ``words²`` ordered pairs.
        steps: words of a completion.
        texts_per_prompt: references of a prompt. Repeats are kept: the references are a sample, not a set.
        sharpness: standard deviation of the chain's logits; 0 makes every word equally likely.
        seed: draws the chain and the corpus.
        mask: allow words only. The chain writes neither padding nor EOS, so without a mask the KL(q‖p) of any policy
            that gives them a probability is infinite: set it where that is measured.

    The metadata of a prompt are its ``context_ids``, the tokens of its two words.

    >>> match_corpus(words=4, steps=5, texts_per_prompt=2).prompts()[0].text
    'a a'

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if texts_per_prompt < 1:
        raise ValueError(f"texts_per_prompt must be at least 1, got {texts_per_prompt}")
    oracle = markov_oracle(words, steps, sharpness, seed)
    names = tuple(_WORDS[:words])
    ids = word_ids(names)
    rng = np.random.default_rng([seed, 1])
    splits: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
    for number in range(words**2):
        shown = [names[digit] for digit in digits(number, words, 2)]
        context = (ids[shown[0]], ids[shown[1]])
        references = tuple(map(text_of, oracle.sample(context, texts_per_prompt, rng)))
        text = " ".join(shown)
        splits[split_of(text)].append(Prompt(text, references, {"context_ids": context}))
    reward = OracleLogLikelihood(words, steps, sharpness, seed)
    return TextTask(
        "match_corpus",
        {split: tuple(prompts) for split, prompts in splits.items()},
        vocabulary=names,
        max_new_tokens=steps,
        reward=reward,
        oracle=reward.most_likely,
        allowed_tokens=words_only if mask else None,
    )


def words_only(prompt: Prompt, actions: Sequence[int], tokenizer: TextTokenizer) -> range:
    """Every id but padding and EOS, the first two."""
    return range(_FIRST, tokenizer.vocab_size)


def text_of(token_ids: Sequence[int]) -> str:
    """The words of some tokens."""
    return " ".join(_WORDS[token - _FIRST] for token in token_ids)


@dataclass(frozen=True, eq=False)
class MarkovOracle:
    """A chain of second order over W words, and what can be computed exactly about texts of ``steps`` words.

    Tables are [W, W, W]: the word before the last, the last one, the next one. A *context* is two words' token ids.
    """

    log_probs_WWW: Array
    """log p(next word | two words)."""
    steps: int

    def log_prob(self, context: Sequence[int], token_ids: Sequence[int]) -> Array:
        """Shape (T,): log p of each token, nats; −∞ for padding and EOS, and wherever they stand in the context."""
        seen = np.array([*context, *token_ids]) - _FIRST
        contexts = np.stack([seen[:-2], seen[1:-1], seen[2:]])
        return np.where((contexts >= 0).all(0), self.log_probs_WWW[tuple(contexts)], -np.inf)

    def sample(self, context: Sequence[int], count: int, rng: np.random.Generator) -> list[list[int]]:
        """Draw completions, lists of ``steps`` token ids."""
        cumulative_WWW = np.exp(self.log_probs_WWW).cumsum(-1)
        before, last = (np.full(count, token - _FIRST) for token in context)
        drawn = []
        for _ in range(self.steps):
            at_most_NW = rng.random((count, 1)) * cumulative_WWW[before, last, -1:]
            before, last = last, (cumulative_WWW[before, last] <= at_most_NW).sum(-1)
            drawn.append(last + _FIRST)
        texts: list[list[int]] = np.stack(drawn, axis=-1).tolist()
        return texts

    def expected(self, probs_WWW: Array, values_WWW: Array) -> Array:
        """Shape (W, W): for every context, the exact expectation of a value summed over a completion's words.

        ``v_n(a, b) = Σ_c q(c | a, b) [value(a, b, c) + v_{n−1}(b, c)]``, ``v_0 = 0`` (Bellman 1957).

        Args:
            probs_WWW: the chain q that writes. The oracle's own with −log p gives the entropy; another with
                log q − log p gives KL(q‖p).
            values_WWW: the value of each word, finite.
        """
        total_WW = np.zeros(values_WWW.shape[:2])
        for _ in range(self.steps):
            total_WW = (probs_WWW * (values_WWW + total_WW)).sum(-1)
        return total_WW

    def entropy(self) -> Array:
        """Shape (W, W): the exact entropy of a completion, nats, for every context."""
        return self.expected(np.exp(self.log_probs_WWW), -self.log_probs_WWW)

    def most_likely(self, context: Sequence[int]) -> list[int]:
        """The completion of highest probability (Viterbi 1967), token ids."""
        before, last = (token - _FIRST for token in context)
        tokens = []
        for left in range(self.steps - 1, -1, -1):
            word = int((self.log_probs_WWW[before, last] + self._best[left][last]).argmax())
            before, last = last, word
            tokens.append(word + _FIRST)
        return tokens

    @cached_property
    def _best(self) -> list[Array]:
        """(W, W) each: the log-probability of the most likely n words, for n = 0 … steps."""
        best = [np.zeros(self.log_probs_WWW.shape[:2])]
        for _ in range(self.steps):
            best.append((self.log_probs_WWW + best[-1]).max(-1))
        return best


@lru_cache(maxsize=8)
def markov_oracle(words: int = 16, steps: int = 12, sharpness: float = 2.0, seed: int = 0) -> MarkovOracle:
    """The chain of `match_corpus` with the same arguments: ``logit(c | a, b) = sharpness (A[a, c] + B[b, c]) / √2``.

    A and B are standard normal. Both words matter, each by itself, so that what follows a pair which the corpus
    lacks can be told from other pairs.

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if not 2 <= words <= len(_WORDS):
        raise ValueError(f"words must lie between 2 and {len(_WORDS)}, got {words}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if sharpness < 0:
        raise ValueError(f"sharpness must be at least 0, got {sharpness}")
    before, last = np.random.default_rng([seed, 0]).standard_normal((2, words, words))
    logits_WWW = sharpness * (before[:, None] + last[None]) / np.sqrt(2)
    return MarkovOracle(logits_WWW - np.logaddexp.reduce(logits_WWW, axis=-1, keepdims=True), steps)


@dataclass(frozen=True)
class OracleLogLikelihood:
    """log p(completion) under the chain, nats. A token that is no word, or follows one, counts as −20.

    A completion that ends early pays the same −20 for every word that is missing.
    """

    name: ClassVar[str] = "oracle_log_likelihood"
    kind: ClassVar[str] = "terminal"

    words: int
    steps: int
    sharpness: float
    seed: int

    @property
    def _oracle(self) -> MarkovOracle:
        return markov_oracle(self.words, self.steps, self.sharpness, self.seed)

    def __call__(self, completion_ids: list[list[int]], context_ids: list[tuple[int, int]]) -> list[float]:
        """One number a completion."""
        return [self._one(ids, context) for ids, context in zip(completion_ids, context_ids, strict=True)]

    def _one(self, ids: list[int], context: tuple[int, int]) -> float:
        check_ids(ids, self.words + _FIRST)
        missing = max(0, self.steps - len(ids))
        return float(np.maximum(self._oracle.log_prob(context, ids), _NOT_A_WORD).sum() + missing * _NOT_A_WORD)

    def most_likely(self, prompt: Prompt) -> str:
        """The completion that earns most."""
        return text_of(self._oracle.most_likely(prompt.metadata["context_ids"]))


def random_return(words: int = 16, steps: int = 12, sharpness: float = 2.0, seed: int = 0) -> float:
    """What uniformly random words expect under the task's own reward, a mean over all prompts."""
    oracle = markov_oracle(words, steps, sharpness, seed)
    return float(oracle.expected(np.full(oracle.log_probs_WWW.shape, 1 / words), oracle.log_probs_WWW).mean())
