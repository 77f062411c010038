"""A known chain of words: the distribution that a task's corpus is drawn from, and what is exact about it.

The chain is of second order: the next word follows from the two words before it, the first two being the prompt. A
task that knows the distribution its references come from can say of a policy what it is worth, without a proxy.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from textgen_env.tasks.dataset import SPLITS, split_of
from textgen_env.tasks.games import EOS_ID, digits, word_ids
from textgen_env.tokenizer import TextTokenizer
from textgen_env.types import Prompt

Array = npt.NDArray[np.float64]

FIRST_WORD_ID = EOS_ID + 1
_WORDS = string.ascii_letters


def words_only(prompt: Prompt, actions: Sequence[int], tokenizer: TextTokenizer) -> range:
    """Every id but padding and EOS, the first two."""
    return range(FIRST_WORD_ID, tokenizer.vocab_size)


def text_of(token_ids: Sequence[int]) -> str:
    """The words of some tokens."""
    return " ".join(_WORDS[token - FIRST_WORD_ID] for token in token_ids)


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
        seen = np.array([*context, *token_ids]) - FIRST_WORD_ID
        contexts = np.stack([seen[:-2], seen[1:-1], seen[2:]])
        return np.where((contexts >= 0).all(0), self.log_probs_WWW[tuple(contexts)], -np.inf)

    def sample(self, context: Sequence[int], count: int, rng: np.random.Generator) -> list[list[int]]:
        """Draw completions, lists of ``steps`` token ids."""
        cumulative_WWW = np.exp(self.log_probs_WWW).cumsum(-1)
        before, last = (np.full(count, token - FIRST_WORD_ID) for token in context)
        drawn = []
        for _ in range(self.steps):
            at_most_NW = rng.random((count, 1)) * cumulative_WWW[before, last, -1:]
            before, last = last, (cumulative_WWW[before, last] <= at_most_NW).sum(-1)
            drawn.append(last + FIRST_WORD_ID)
        texts: list[list[int]] = np.stack(drawn, axis=-1).tolist()
        return texts

    def expected(self, probs: Array, values: Array) -> Array:
        """Shape (W, W): for every context, the exact expectation of a value summed over a completion's words.

        ``v_n(a, b) = Σ_c q(c | a, b) [value(a, b, c) + v_{n−1}(b, c)]``, ``v_0 = 0`` (Bellman 1957).

        Args:
            probs: the chain q that writes, [W, W, W], or [T, W, W, W] where it depends on the place. The oracle's own
                with −log p gives the entropy; another with log q − log p gives KL(q‖p).
            values: the value of each word, finite, in the same shapes.
        """
        everywhere = (self.steps, *self.log_probs_WWW.shape)
        places = zip(np.broadcast_to(probs, everywhere), np.broadcast_to(values, everywhere), strict=True)
        total_WW = np.zeros(self.log_probs_WWW.shape[:2])
        for probs_WWW, values_WWW in reversed(list(places)):
            total_WW = (probs_WWW * (values_WWW + total_WW)).sum(-1)
        return total_WW

    def entropy(self) -> Array:
        """Shape (W, W): the exact entropy of a completion, nats, for every context."""
        return self.expected(np.exp(self.log_probs_WWW), -self.log_probs_WWW)

    def most_likely(self, context: Sequence[int]) -> list[int]:
        """The completion of highest probability (Viterbi 1967), token ids."""
        before, last = (token - FIRST_WORD_ID for token in context)
        tokens = []
        for left in range(self.steps - 1, -1, -1):
            word = int((self.log_probs_WWW[before, last] + self._best[left][last]).argmax())
            before, last = last, word
            tokens.append(word + FIRST_WORD_ID)
        return tokens

    @cached_property
    def _best(self) -> list[Array]:
        """(W, W) each: the log-probability of the most likely n words, for n = 0 … steps."""
        best = [np.zeros(self.log_probs_WWW.shape[:2])]
        for _ in range(self.steps):
            best.append((self.log_probs_WWW + best[-1]).max(-1))
        return best


@lru_cache(maxsize=8)
def markov_oracle(
    words: int = 16,
    steps: int = 12,
    sharpness: float = 2.0,
    seed: int = 0,
    intricate: int = 0,
    loyalty: float = 0.0,
) -> MarkovOracle:
    """A chain whose words are of two registers, plain ones and the last few, the ``intricate`` ones.

    With A, B and C standard normal, the logit of c after (a, b) is ``loyalty [b and c are of one register]`` and

    - ``sharpness (A[a, c] + B[b, c]) / √2`` after a plain b: both words matter, each by itself, so that what follows a
      pair which the corpus lacks can be told from other pairs;
    - ``4 sharpness C[a, b, c]`` after an intricate b: every pair is a word of its own, and nothing but a number for
      each triple says what follows, more than a small policy can hold. It can learn to leave that register alone.

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if not 2 <= words <= len(_WORDS):
        raise ValueError(f"words must lie between 2 and {len(_WORDS)}, got {words}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if sharpness < 0:
        raise ValueError(f"sharpness must be at least 0, got {sharpness}")
    if not 0 <= intricate <= words:
        raise ValueError(f"intricate must lie between 0 and words={words}, got {intricate}")
    rng = np.random.default_rng([seed, 0])
    before, last = rng.standard_normal((2, words, words))
    logits_WWW = sharpness * (before[:, None] + last[None]) / np.sqrt(2)
    is_intricate = np.arange(words) >= words - intricate
    logits_WWW[:, is_intricate] = 4 * sharpness * rng.standard_normal((words, intricate, words))
    logits_WWW += loyalty * (is_intricate[:, None] == is_intricate)
    return MarkovOracle(logits_WWW - np.logaddexp.reduce(logits_WWW, axis=-1, keepdims=True), steps)


def chain_words(words: int) -> tuple[str, ...]:
    """The words of a chain, in the order of their token ids."""
    return tuple(_WORDS[:words])


def chain_prompts(oracle: MarkovOracle, texts_per_prompt: int, seed: int) -> dict[str, tuple[Prompt, ...]]:
    """Split name -> a prompt for each pair of words, with texts of the chain that go on from it as its references.

    The metadata of a prompt are its ``context_ids``, the tokens of its two words.

    Args:
        oracle: the chain.
        texts_per_prompt: references of a prompt. Repeats are kept: the references are a sample, not a set.
        seed: draws them.

    Raises:
        ValueError: ``texts_per_prompt`` is below 1.
    """
    if texts_per_prompt < 1:
        raise ValueError(f"texts_per_prompt must be at least 1, got {texts_per_prompt}")
    words = len(oracle.log_probs_WWW)
    names = chain_words(words)
    ids = word_ids(names)
    rng = np.random.default_rng([seed, 1])
    splits: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
    for number in range(words**2):
        shown = [names[digit] for digit in digits(number, words, 2)]
        context = (ids[shown[0]], ids[shown[1]])
        references = tuple(map(text_of, oracle.sample(context, texts_per_prompt, rng)))
        text = " ".join(shown)
        splits[split_of(text)].append(Prompt(text, references, {"context_ids": context}))
    return {split: tuple(prompts) for split, prompts in splits.items()}
