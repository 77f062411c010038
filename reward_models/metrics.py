"""ROUGE: how much of the references' wording a text shares."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Literal

from rapidfuzz.distance import LCSseq

from reward_models.composite import Composable, WeightedSum
from reward_models.inputs import check_references, check_texts
from textgen_env.lookup import did_you_mean

_VARIANTS = {"1": "rouge1", "2": "rouge2", "l": "rougeL", "lsum": "rougeLsum"}
_MEASURES = {"f1": "fmeasure", "precision": "precision", "recall": "recall"}
_AGGREGATES = ("max", "mean")
_LSUM_CELLS = 10_000_000
"""What the library's tables for Lsum may hold, in words times words: a second or two of pure Python."""


class Rouge(Composable):
    """ROUGE (Lin, 2004) of a completion against its prompt's references: the figures of ``rouge-score``.

    The library's own words are runs of ``a-z`` and ``0-9`` in lower case, so that a text in another script has none
    and scores 0: pass ``tokenize`` for those. The common subsequence of ``"L"`` is counted by ``rapidfuzz``, the same
    length many times faster (100,000 characters take a fraction of a second); every reference is split once a call.

    Args:
        variant: ``"1"`` or ``"2"`` (shared words, shared word pairs), ``"L"`` (longest common subsequence) or
            ``"Lsum"`` (the same, line by line: one sentence a line). ``1``, ``"rouge1"`` and ``"rouge_l"``
            mean the same.
        measure: ``"f1"``, ``"precision"`` or ``"recall"``.
        use_stemmer: compare Porter stems rather than words.
        aggregate: over several references, ``"max"`` (of the chosen measure) or ``"mean"``.
        tokenize: splits a text into words, instead of the library's way; ``reward_models.words.words`` knows all
            scripts.

    Raises:
        ValueError: an unknown variant, measure or aggregate, or both a tokenizer and a stemmer.

    >>> Rouge("1")(completions=["the cat sat"], references=[["the cat slept", "a dog"]])
    [0.6666666666666666]
    """

    kind: Literal["terminal"] = "terminal"
    bounds = (0.0, 1.0)

    def __init__(
        self,
        variant: str | int = "L",
        measure: str = "f1",
        use_stemmer: bool = False,
        aggregate: str = "max",
        tokenize: Callable[[str], list[str]] | None = None,
    ) -> None:
        from rouge_score import tokenizers  # it brings nltk along, which takes a while to import

        short = str(variant).lower().removeprefix("rouge").lstrip("_-")
        if short not in _VARIANTS:
            raise ValueError(f"unknown ROUGE variant {variant!r}; {did_you_mean(short, _VARIANTS)}")
        if measure not in _MEASURES:
            raise ValueError(f"unknown ROUGE measure {measure!r}; {did_you_mean(str(measure), _MEASURES)}")
        if aggregate not in _AGGREGATES:
            raise ValueError(f"unknown ROUGE aggregate {aggregate!r}; {did_you_mean(str(aggregate), _AGGREGATES)}")
        if tokenize is not None and use_stemmer:
            raise ValueError("use_stemmer=True stems the library's own words: let your tokenize do it")
        self.name = f"rouge_{short}" if measure == "f1" else f"rouge_{short}_{measure}"
        self._type = _VARIANTS[short]
        self._measure = _MEASURES[measure]
        self._aggregate = aggregate
        self._tokenize = tokenize or tokenizers.DefaultTokenizer(use_stemmer).tokenize

    def __call__(
        self,
        completions: Sequence[str],
        references: Sequence[Sequence[str]] | None = None,
        **_: Any,
    ) -> list[float]:
        """Score B completions against their references; B floats in [0, 1], an empty text 0.

        Raises:
            ValueError: a prompt has no references, the lists differ in length, or two texts are too long for the
                library's way with ``"Lsum"`` (10 million words times words).
            TypeError: a text is not a string, or a prompt's references are one string instead of a list of strings.
        """
        check_texts(self.name, completions=completions)
        references = check_references(self.name, completions, references)
        tokenize = functools.cache(self._tokenize)  # prompts come with several completions each
        score = self._longest_common if self._type == "rougeL" else self._by_the_library
        best: Callable[[list[float]], float] = max if self._aggregate == "max" else _mean
        return [
            best([float(getattr(score(target, text, tokenize), self._measure)) for target in targets])
            for text, targets in zip(completions, references, strict=True)
        ]

    def _longest_common(self, target: str, text: str, tokenize: Callable[[str], list[str]]) -> Any:
        from rouge_score import scoring

        target_words, words = tokenize(target), tokenize(text)
        if not target_words or not words:
            return scoring.Score(0.0, 0.0, 0.0)
        length = LCSseq.similarity(target_words, words)
        precision, recall = length / len(words), length / len(target_words)
        return scoring.Score(precision, recall, scoring.fmeasure(precision, recall))

    def _by_the_library(self, target: str, text: str, tokenize: Callable[[str], list[str]]) -> Any:
        from rouge_score import rouge_scorer

        # The characters bound the words, and are counted already.
        if self._type == "rougeLsum" and len(target) * len(text) > _LSUM_CELLS:
            count, target_count = len(tokenize(text)), len(tokenize(target))
            if count * target_count > _LSUM_CELLS:
                raise ValueError(
                    f"{self.name} would compare {count} words with {target_count}, which takes minutes; shorten the "
                    "texts, or use Rouge('L')"
                )
        # split_summaries stays off: it needs nltk's punkt data, which no package brings along.
        scorer = rouge_scorer.RougeScorer([self._type], tokenizer=SimpleNamespace(tokenize=tokenize))
        return scorer.score(target, text)[self._type]


class RougeMean(WeightedSum):
    """The mean of several ROUGE F1s, each reported under its own name: pairs for fluency, the longest run for order.

    Args:
        variants: as `Rouge` takes them.

    Raises:
        ValueError: there are none, or one is unknown.

    >>> RougeMean(["2", "L"])
    0.5 * rouge_2 + 0.5 * rouge_l
    """

    def __init__(self, variants: Sequence[str | int] = ("1", "2", "L")) -> None:
        if not variants:
            raise ValueError(f"a mean of ROUGE scores needs at least one variant of {', '.join(_VARIANTS)}")
        super().__init__([(1 / len(variants), Rouge(variant)) for variant in variants])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
