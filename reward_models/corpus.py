"""Figures about a whole test set, as papers print them: they are not the means of the per-text rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reward_models.inputs import check_references, check_texts
from reward_models.metrics import Rouge
from reward_models.translation import check_ter_lengths


def corpus_scores(
    completions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a"
) -> dict[str, float]:
    """Corpus-level BLEU, chrF, TER and ROUGE of N texts, all in points (100 is a perfect BLEU, chrF or ROUGE).

    ``bleu``, ``chrf`` and ``ter`` are sacreBLEU's corpus scores with its default settings: counts are summed over the
    texts before anything is divided. TER is an error rate: lower is better, and it can exceed 100. ``rouge_1``,
    ``rouge_2`` and ``rouge_l`` are mean F1 by ``rouge-score`` without stemming, the best reference of each text.

    Args:
        completions: N texts.
        references: N lists of references, which may differ in length.
        tokenize: sacreBLEU's tokenizer for BLEU, such as ``"zh"`` or ``"char"``.

    Raises:
        ValueError: no texts, a text without references, lists of different lengths, or texts of more than 500 words,
            for which TER takes minutes.
        TypeError: a text is not a string, or references are one string instead of a list.

    >>> scores = corpus_scores(["a cat sat on the mat"], [["a cat sat on the mat", "the cat sat"]])
    >>> {name: round(score) for name, score in scores.items()}
    {'bleu': 100, 'chrf': 100, 'ter': 0, 'rouge_1': 100, 'rouge_2': 100, 'rouge_l': 100}
    """
    from sacrebleu.metrics import BLEU, CHRF, TER

    check_texts("corpus_scores", completions=completions)
    references = check_references("corpus_scores", completions, references)
    if not completions:
        raise ValueError("corpus_scores needs at least one text")
    check_ter_lengths(completions, references)
    most = max(map(len, references))
    # The i-th stream has every text's i-th reference; sacreBLEU reads None as "there is no such one".
    streams: Any = [[targets[at] if at < len(targets) else None for targets in references] for at in range(most)]
    metrics = {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF(), "ter": TER()}
    scores = {name: float(metric.corpus_score(completions, streams).score) for name, metric in metrics.items()}
    for variant in ("1", "2", "l"):
        values = Rouge(variant)(completions, references)
        scores[f"rouge_{variant}"] = 100 * sum(values) / len(values)
    return scores
