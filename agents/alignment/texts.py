"""Texts by themselves: how fluent another language model finds them, how alike they are, and how long."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics import BLEU

from agents.evaluation import distinct
from reward_models.feedback.agreement import RESAMPLES, Figure, bootstrapped

MOST_TEXTS = 200
"""Of self-BLEU, whose cost grows with their square."""

LogLikelihoods = Callable[[Sequence[str], Sequence[str]], tuple[Sequence[float], Sequence[int]]]
"""Of N prompts and texts: Σ log p of each text after its prompt, in nats, and its number of tokens."""


@dataclass(frozen=True)
class TextFigures:
    """Of N texts; 95 % intervals, by the bootstrap over prompts."""

    words: Figure
    """Words a text, by white space."""
    distinct_1: float
    distinct_2: float
    """Distinct words, and pairs of neighbouring words, by all of them (Li et al. 2016); they fall with the number of
    texts: compare equal numbers."""
    self_bleu: float | None
    """See `self_bleu`."""
    log_likelihood: Figure | None
    """Mean over tokens, in nats, under the language model that judges fluency; None without one."""
    perplexity: Figure | None
    """exp of its negative."""


def text_figures(
    prompts_N: Sequence[str],
    texts_N: Sequence[str],
    fluency: LogLikelihoods | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> TextFigures:
    """Length, variety and fluency of some texts, at least one.

    Args:
        prompts_N: what each text answers; the texts of a prompt are drawn together in the bootstrap.
        texts_N: the texts.
        fluency: a language model apart from the one that wrote them.
        resamples: see ``reward_models.feedback.agreement.bootstrapped``.
        seed: of the bootstrap, and of which texts self-BLEU compares where there are many.
    """
    _, owner_N = np.unique(np.asarray(prompts_N, dtype=object).astype(str), return_inverse=True)

    def ratio(above_N: Sequence[float], below_N: Sequence[float]) -> Figure:
        above_P, below_P = np.bincount(owner_N, above_N), np.bincount(owner_N, below_N)
        return bootstrapped(
            lambda rows: float(above_P[rows].sum() / below_P[rows].sum()), len(above_P), resamples=resamples, seed=seed
        )

    likelihood, perplexity = None, None
    if fluency is not None:
        totals_N, tokens_N = fluency(prompts_N, texts_N)
        likelihood = ratio(totals_N, tokens_N)
        ends = likelihood.interval
        perplexity = Figure(
            math.exp(-likelihood.value), None if ends is None else (math.exp(-ends[1]), math.exp(-ends[0]))
        )
    return TextFigures(
        words=ratio([len(text.split()) for text in texts_N], [1] * len(texts_N)),
        distinct_1=distinct(texts_N, 1),
        distinct_2=distinct(texts_N, 2),
        self_bleu=self_bleu(texts_N, seed=seed),
        log_likelihood=likelihood,
        perplexity=perplexity,
    )


def self_bleu(texts: Sequence[str], *, most: int = MOST_TEXTS, seed: int = 0) -> float | None:
    """Mean BLEU of each text against all others as references: 100 where all are alike (Zhu et al. 2018, "Texygen").

    sacrebleu's sentence BLEU, up to the longest n-grams that a text has. Empty texts are left out.

    Args:
        texts: the texts.
        most: compare so many at most, drawn without replacement.
        seed: of the draw.

    Returns:
        0 to 100; None of fewer than two texts.
    """
    written = [text for text in texts if text.strip()]
    if len(written) > most:
        drawn = np.random.default_rng(seed).permutation(len(written))[:most]
        written = [written[index] for index in sorted(drawn)]
    if len(written) < 2:
        return None
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, written[:at] + written[at + 1 :]).score for at, text in enumerate(written)]
    return min(100.0, float(np.mean(scores)))
