"""Built-in task: write as a corpus does, where the distribution that the corpus was drawn from is known.

    g c   →   l p h h b h c c h h i h c o k j m k n p

The corpus is drawn from a Markov chain of second order: the next word follows from the two words before it, the
first two being the prompt. Half of the words are plain, half intricate: what follows an intricate one has to be known
by heart for every pair (`textgen_env.tasks.markov`), and texts keep to one register for long. A small policy cannot
know it all; which part it gives up is what divergences differ in. All texts have the same length, so that nobody wins
by writing less. Nobody rewards a single text here; what counts is the *distribution* of the completions, policy q
against chain p, and both directions of the divergence are needed to judge it:

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
the chain itself, the optimum               36.68  0        36.68
uniformly random words                      96.42  40.97    55.45
the most likely completion: mode collapse   14.64  14.64    0
==========================================  =====  =======  ===========

KL(p‖q) of the collapsed policy is infinite. A discriminator between corpus and policy as the reward is what the task
is for (`reward_models.discriminator`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import check_ids
from textgen_env.tasks.markov import (
    FIRST_WORD_ID,
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


def match_corpus(
    words: int = 16,
    steps: int = 20,
    texts_per_prompt: int = 32,
    sharpness: float = 0.7,
    seed: int = 0,
    mask: bool = False,
    intricate: int = 8,
    loyalty: float = 2.5,
) -> TextTask:
    """A prompt for each pair of words, and texts of the chain that go on from it as its references.

    Args:
        words: how many there are, at most 52; the prompts are their ``words²`` ordered pairs.
        steps: words of a completion.
        texts_per_prompt: references of a prompt. Repeats are kept: the references are a sample, not a set.
        sharpness: standard deviation of the chain's logits after a plain word; after an intricate one four times that.
        seed: draws the chain and the corpus.
        mask: allow words only. The chain writes neither padding nor EOS, so without a mask the KL(q‖p) of any policy
            that gives them a probability is infinite: set it where that is measured.
        intricate: words of the intricate register; 0 makes all plain.
        loyalty: what is added to the logits of the words of the last word's register.

    The metadata of a prompt are its ``context_ids``, the tokens of its two words.

    >>> match_corpus(words=4, steps=5, texts_per_prompt=2, intricate=2).prompts()[0].text
    'a a'

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    reward = OracleLogLikelihood(words, steps, sharpness, seed, intricate, loyalty)
    return TextTask(
        "match_corpus",
        chain_prompts(reward.chain, texts_per_prompt, seed),
        vocabulary=chain_words(words),
        max_new_tokens=steps,
        reward=reward,
        oracle=reward.most_likely,
        allowed_tokens=words_only if mask else None,
    )


@dataclass(frozen=True)
class OracleLogLikelihood:
    """log p(completion) under the chain, nats. A token that is no word, or follows one, counts as −20.

    A completion that ends early pays the same −20 for every word that is missing. For a policy that always writes the
    same after a prompt it is −KL(q‖p): such a q has no entropy.
    """

    name: ClassVar[str] = "oracle_log_likelihood"
    kind: ClassVar[str] = "terminal"

    words: int = 16
    steps: int = 20
    sharpness: float = 0.7
    seed: int = 0
    intricate: int = 8
    loyalty: float = 2.5

    @property
    def chain(self) -> MarkovOracle:
        """p."""
        return markov_oracle(self.words, self.steps, self.sharpness, self.seed, self.intricate, self.loyalty)

    def __call__(self, completion_ids: list[list[int]], context_ids: list[tuple[int, int]]) -> list[float]:
        """One number a completion."""
        return [self._one(ids, context) for ids, context in zip(completion_ids, context_ids, strict=True)]

    def _one(self, ids: list[int], context: tuple[int, int]) -> float:
        check_ids(ids, self.words + FIRST_WORD_ID)
        missing = max(0, self.steps - len(ids))
        return float(np.maximum(self.chain.log_prob(context, ids), _NOT_A_WORD).sum() + missing * _NOT_A_WORD)

    def most_likely(self, prompt: Prompt) -> str:
        """The completion that earns most."""
        return text_of(self.chain.most_likely(prompt.metadata["context_ids"]))


RUNG = Rung(
    random=-41.0896,
    supervised=-18.8161,
    optimum=0.0,
    hack=Hack(
        "writes the one most likely completion of a prompt, always",
        answer=OracleLogLikelihood().most_likely,
        naive=OracleLogLikelihood(),
        naive_score=-14.4907,
        robust_score=-14.4907,
    ),
)
"""Of −KL(q‖p), nats a completion. The hack earns more than the optimum under the naive reward, −14.5 against minus the
chain's entropy, −36.7; that number is also its −KL."""
